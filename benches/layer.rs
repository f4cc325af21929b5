//! A residual block: two 3x3 convolutions, their requantisations, and the two-branch addition.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hawqc_benches::Checked;
use hawqc_benches::networks::{ConvShape, residual_block};
use hawqc_driver::{CompileOptions, Target, compile, lower_integer};
use hawqc_tests::images;

fn blocks(c: &mut Criterion) {
    let mut group = c.benchmark_group("layer");
    group.sample_size(20);
    for (size, channels) in [(56, 64), (28, 128), (14, 256), (7, 512)] {
        let shape = ConvShape::square(size, channels, channels, 3, 1);
        for bits in [8, 4] {
            let graph = residual_block(shape, bits).unwrap();
            let options = CompileOptions::new(Target::host().unwrap());
            let compiled = compile(lower_integer(&graph).unwrap(), &options).unwrap();
            for threads in [1, 2] {
                let mut model = Checked::new(&compiled, &images(&graph, 3), threads).unwrap();
                group.throughput(Throughput::Elements(2 * shape.macs()));
                group.bench_function(format!("block {shape}/{bits} bit/{threads} threads"), |b| {
                    b.iter(|| model.run().unwrap())
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, blocks);
criterion_main!(benches);
