//! The distinct convolutions of ResNet-50 on one thread, requantisation included: direct 8-bit kernels, and the fastest
//! schedules of all at 8 and at 4 bits, beside the most that the core multiplies.
//!
//! Every schedule's answer is compared with the interpreter's before it is timed. The fastest are looked for first, then timed
//! in interleaved rounds; a time is the median of the rounds' medians. Arguments: a part of the layers' names.

use hawqc_benches::contender::{Layer, Outcome, interleaved};
use hawqc_benches::networks::ConvShape;
use hawqc_codegen::{Target, limit};
use hawqc_schedules::Schedule;

const SHAPES: [ConvShape; 20] = [
    ConvShape::dense(56, 64, 64, 3, 1),
    ConvShape::dense(28, 128, 128, 3, 1),
    ConvShape::dense(14, 256, 256, 3, 1),
    ConvShape::dense(7, 512, 512, 3, 1),
    ConvShape::dense(56, 128, 128, 3, 2),
    ConvShape::dense(28, 256, 256, 3, 2),
    ConvShape::dense(14, 512, 512, 3, 2),
    ConvShape::dense(56, 64, 64, 1, 1),
    ConvShape::dense(56, 64, 256, 1, 1),
    ConvShape::dense(56, 256, 64, 1, 1),
    ConvShape::dense(56, 256, 128, 1, 1),
    ConvShape::dense(28, 128, 512, 1, 1),
    ConvShape::dense(28, 512, 128, 1, 1),
    ConvShape::dense(28, 512, 256, 1, 1),
    ConvShape::dense(14, 256, 1024, 1, 1),
    ConvShape::dense(14, 1024, 256, 1, 1),
    ConvShape::dense(14, 1024, 512, 1, 1),
    ConvShape::dense(7, 512, 2048, 1, 1),
    ConvShape::dense(7, 2048, 512, 1, 1),
    ConvShape::dense(224, 3, 64, 7, 2),
];

fn main() -> Outcome<()> {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let target = Target::host()?;
    let mut limits = limit::Limits::new(&target);
    println!("| layer | direct 8 bits | GMAC/s | of limit | 8 bits | over direct | 4 bits | over direct 8 bits |");
    println!("|---|---|---|---|---|---|---|---|");
    for shape in SHAPES.into_iter().filter(|shape| shape.to_string().contains(&filter)) {
        let (wide, narrow) = (Layer::new(shape, 8)?, Layer::new(shape, 4)?);
        let is_direct = |s: &Schedule| matches!(s, Schedule::Wide(_) | Schedule::Conv(_));
        let is_assembled = |s: &Schedule| !matches!(s, Schedule::Conv(_));
        let mut contenders = [
            wide.fastest(&target, is_direct)?,
            wide.fastest(&target, is_assembled)?,
            narrow.fastest(&target, is_assembled)?,
        ];
        let [direct, eight, four] = interleaved(&mut contenders)?;
        let ns = (direct * 1e9) as u64;
        let share = limits.share(contenders[0].schedule, shape.macs(), ns)?.ok_or("a portable kernel was fastest")?;
        let rate = shape.macs() as f64 / direct;
        let us = |seconds: f64| format!("{:.1} us", seconds * 1e6);
        println!(
            "| {shape} | {} `{}` | {:.1} | {:.0} % | {} `{}` | {:.2} | {} `{}` | {:.2} |",
            us(direct),
            contenders[0].schedule,
            rate / 1e9,
            100.0 * share,
            us(eight),
            contenders[1].schedule,
            direct / eight,
            us(four),
            contenders[2].schedule,
            direct / four,
        );
    }
    for (multiply, limit) in limits.measured() {
        println!("limit of a core by `{}`: {:.1} GMAC/s", multiply.name(), limit / 1e9);
    }
    Ok(())
}
