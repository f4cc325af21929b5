//! The distinct convolutions of ResNet-50 and some of InceptionV3 on one thread, requantisation included: direct kernels and
//! the fastest schedules of all at 8 and at 4 bits, beside the most that the core multiplies.
//!
//! Every schedule's answer is compared with the interpreter's before it is timed. The fastest are looked for first, then timed
//! in interleaved rounds; a time is the median of the rounds' medians. Arguments: a part of the layers' names;
//! `--target=NAME`; `--all` to print the time of every schedule while the fastest is looked for.

use hawqc_benches::contender::{Arguments, Contender, Layer, Outcome, interleaved};
use hawqc_benches::networks::ConvShape;
use hawqc_codegen::limit;
use hawqc_schedules::Schedule;

const fn square(size: usize, channels: usize, kernels: usize, window: usize, stride: usize) -> ConvShape {
    ConvShape::square(size, channels, kernels, window, stride)
}

const SHAPES: [ConvShape; 26] = [
    square(56, 64, 64, 3, 1),
    square(28, 128, 128, 3, 1),
    square(14, 256, 256, 3, 1),
    square(7, 512, 512, 3, 1),
    square(56, 128, 128, 3, 2),
    square(28, 256, 256, 3, 2),
    square(14, 512, 512, 3, 2),
    square(56, 64, 64, 1, 1),
    square(56, 64, 256, 1, 1),
    square(56, 256, 64, 1, 1),
    square(56, 256, 128, 1, 1),
    square(28, 128, 512, 1, 1),
    square(28, 512, 128, 1, 1),
    square(28, 512, 256, 1, 1),
    square(14, 256, 1024, 1, 1),
    square(14, 1024, 256, 1, 1),
    square(14, 1024, 512, 1, 1),
    square(7, 512, 2048, 1, 1),
    square(7, 2048, 512, 1, 1),
    square(224, 3, 64, 7, 2),
    square(35, 288, 384, 3, 2).without_padding(),
    square(35, 96, 96, 3, 2).without_padding(),
    square(17, 192, 320, 3, 2).without_padding(),
    square(35, 48, 64, 5, 1),
    square(17, 192, 192, 7, 1).windowed([1, 7]),
    square(17, 160, 160, 7, 1).windowed([7, 1]),
];

fn main() -> Outcome<()> {
    let Arguments { filter, target, all } = Arguments::read()?;
    let mut limits = limit::Limits::new(&target);
    println!(
        "| layer | direct 8 bits | GMAC/s | of limit | 8 bits | over direct | direct 4 bits | 4 bits | over direct | \
         over direct 8 bits |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for shape in SHAPES.into_iter().filter(|shape| shape.to_string().contains(&filter)) {
        let (wide, narrow) = (Layer::new(shape, 8)?, Layer::new(shape, 4)?);
        let is_direct = |s: &Schedule| matches!(s, Schedule::Wide(_) | Schedule::Conv(_));
        let is_assembled = |s: &Schedule| !matches!(s, Schedule::Conv(_));
        let mut contenders = [
            wide.fastest(&target, false, is_direct)?,
            wide.fastest(&target, all, is_assembled)?,
            narrow.fastest(&target, false, is_direct)?,
            narrow.fastest(&target, all, is_assembled)?,
        ];
        let [direct, eight, direct_four, four] = interleaved(&mut contenders)?;
        let ns = (direct * 1e9) as u64;
        let share = limits.share(contenders[0].schedule, shape.macs(), ns)?.ok_or("a portable kernel was fastest")?;
        let rate = shape.macs() as f64 / direct;
        let us = |seconds: f64, contender: &Contender| format!("{:.1} us `{}`", seconds * 1e6, contender.schedule);
        println!(
            "| {shape} | {} | {:.1} | {:.0} % | {} | {:.2} | {} | {} | {:.2} | {:.2} |",
            us(direct, &contenders[0]),
            rate / 1e9,
            100.0 * share,
            us(eight, &contenders[1]),
            direct / eight,
            us(direct_four, &contenders[2]),
            us(four, &contenders[3]),
            direct_four / four,
            direct / four,
        );
    }
    for (multiply, limit) in limits.measured() {
        println!("limit of a core by `{}`: {:.1} GMAC/s", multiply.name(), limit / 1e9);
    }
    Ok(())
}
