//! The command line of hawqc: arguments in, exit code out; everything between is a command.

mod args;
mod commands;
mod console;
mod data;
mod failure;
mod limit;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;
use console::Console;
use failure::{Failure, Kind};

fn main() -> ExitCode {
    let cli = Cli::parse_from(args::with_command(std::env::args_os()));
    let console = Console::new(&cli.global);
    // A panic is a mistake of ours; it is reported like any other error, with its own exit code.
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| commands::run(&cli, &console)));
    match outcome.unwrap_or_else(|panic| Err(internal(panic.as_ref()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            console.fail(&failure);
            failure.exit_code()
        }
    }
}

fn internal(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Failure::new(Kind::Internal, format!("internal error: {}", text.unwrap_or("unknown")))
        .hint("this is a mistake in hawqc; please report it with the command and the model")
}
