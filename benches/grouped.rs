//! Grouped convolutions on one thread, requantisation included: the fastest portable kernel, and the fastest assembled ones
//! at 8 and at 4 bits.
//!
//! As the bench of dense convolutions, which tells how, with its arguments.

use hawqc_benches::contender::{Arguments, Layer, Outcome, interleaved};
use hawqc_benches::networks::ConvShape;
use hawqc_schedules::Schedule;

const fn shape(size: usize, channels: usize, groups: usize, window: usize, stride: usize) -> ConvShape {
    ConvShape { groups, ..ConvShape::square(size, channels, channels, window, stride) }
}

/// Of ResNeXt-50 (32x4d), then of RegNets, of a ShuffleNet, and one that does not fill vectors.
const SHAPES: [ConvShape; 12] = [
    shape(56, 128, 32, 3, 1),
    shape(28, 256, 32, 3, 1),
    shape(14, 512, 32, 3, 1),
    shape(7, 1024, 32, 3, 1),
    shape(56, 256, 32, 3, 2),
    shape(28, 512, 32, 3, 2),
    shape(14, 1024, 32, 3, 2),
    shape(14, 160, 10, 3, 1),
    shape(14, 336, 14, 3, 1),
    shape(14, 448, 4, 3, 1),
    shape(28, 240, 3, 1, 1),
    shape(28, 96, 8, 3, 1),
];

fn main() -> Outcome<()> {
    let Arguments { filter, target, all } = Arguments::read()?;
    println!("| layer | portable 8 bits | 8 bits | GMAC/s | over portable | 4 bits | over portable 8 bits |");
    println!("|---|---|---|---|---|---|---|");
    for shape in SHAPES.into_iter().filter(|shape| shape.to_string().contains(&filter)) {
        let (eight, four) = (Layer::new(shape, 8)?, Layer::new(shape, 4)?);
        let is_portable = |s: &Schedule| matches!(s, Schedule::Conv(_));
        let is_assembled = |s: &Schedule| !is_portable(s);
        let mut contenders = [
            eight.fastest(&target, all, is_portable)?,
            eight.fastest(&target, all, is_assembled)?,
            four.fastest(&target, all, is_assembled)?,
        ];
        let [portable, wide, narrow] = interleaved(&mut contenders)?;
        let us = |seconds: f64| format!("{:.1} us", seconds * 1e6);
        println!(
            "| {shape} | {} | {} `{}` | {:.1} | {:.2} | {} `{}` | {:.2} |",
            us(portable),
            us(wide),
            contenders[1].schedule,
            shape.macs() as f64 / wide / 1e9,
            portable / wide,
            us(narrow),
            contenders[2].schedule,
            portable / narrow,
        );
    }
    Ok(())
}
