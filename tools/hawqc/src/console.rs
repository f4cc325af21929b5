//! What the user sees: results on standard output, progress and notes on standard error.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::args::{Color, Global};
use crate::failure::Failure;

/// The two streams and how to write to them.
pub struct Console {
    json: bool,
    quiet: bool,
    verbose: u8,
    color: bool,
    /// Whether results are notes: they belong to a step of something larger.
    aside: bool,
}

impl Console {
    pub fn new(global: &Global) -> Console {
        let color = match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::io::stderr().is_terminal(),
        };
        Console { json: global.json, quiet: global.quiet, verbose: global.verbose, color, aside: false }
    }

    /// The same streams for a step of something larger, whose results are notes.
    pub fn aside(&self) -> Console {
        Console { json: false, aside: true, ..*self }
    }

    /// A result: `value` as JSON, or the text made by `human`.
    pub fn result<T: Serialize>(&self, value: &T, human: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.aside {
            self.note(human());
            return Ok(());
        }
        let text = match self.json {
            true => serde_json::to_string_pretty(value).map_err(|e| Failure::invalid(e.to_string()))?,
            false => human(),
        };
        write_stdout(&text)
    }

    /// A line about what happens, unless `--quiet`.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("{}", text.as_ref());
        }
    }

    /// A line for `-v`.
    pub fn detail(&self, text: impl FnOnce() -> String) {
        if self.verbose > 0 && !self.quiet {
            eprintln!("{}", text());
        }
    }

    pub fn warn(&self, text: impl AsRef<str>) {
        eprintln!("{} {}", self.paint("warning:", "33"), text.as_ref());
    }

    pub fn fail(&self, failure: &Failure) {
        eprintln!("{} {}", self.paint("error:", "31"), failure.message);
        if let Some(hint) = &failure.hint {
            eprintln!("{} {hint}", self.paint("hint:", "36"));
        }
    }

    fn paint(&self, text: &str, code: &str) -> String {
        if self.color { format!("\x1b[1;{code}m{text}\x1b[0m") } else { text.into() }
    }

    /// A progress bar of `length` units with an estimate; invisible when quiet or not a terminal.
    pub fn progress(&self, what: &str, length: usize) -> ProgressBar {
        let visible = !self.quiet && std::io::stderr().is_terminal();
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(length as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{msg:>12} [{bar:40}] {pos}/{len} {eta}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// Prints to standard output; a closed pipe is not an error of ours.
pub fn write_stdout(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    match writeln!(std::io::stdout().lock(), "{}", text.trim_end_matches('\n')) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::invalid(format!("standard output: {e}"))),
        _ => Ok(()),
    }
}

/// A table with a header; columns of numbers are aligned to the right.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY).set_header(header.to_vec());
    for (index, column) in table.column_iter_mut().enumerate() {
        let is_number = |text: &String| text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
        if rows.iter().filter_map(|row| row.get(index)).all(is_number) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    table.add_rows(rows);
    table.to_string()
}

/// A number of bytes for people.
pub fn bytes(count: usize) -> String {
    match count {
        0..10_240 => format!("{count} B"),
        10_240..10_485_760 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}

/// A time for people.
pub fn time(duration: Duration) -> String {
    let us = duration.as_secs_f64() * 1e6;
    match us {
        ..1e3 => format!("{us:.1} us"),
        1e3..1e6 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}
