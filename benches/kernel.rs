//! Single fused kernels: the distinct convolutions of ResNet-50, one thread, with the rate in
//! multiply-accumulates.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hawqc_benches::Checked;
use hawqc_benches::networks::{ConvShape, convolution};
use hawqc_driver::{CompileOptions, Target, compile, lower_integer};
use hawqc_tests::images;

const SHAPES: [ConvShape; 9] = [
    ConvShape::square(56, 64, 64, 1, 1),
    ConvShape::square(56, 64, 64, 3, 1),
    ConvShape::square(56, 64, 256, 1, 1),
    ConvShape::square(28, 128, 128, 3, 1),
    ConvShape::square(28, 256, 256, 3, 2),
    ConvShape::square(14, 256, 256, 3, 1),
    ConvShape::square(14, 1024, 256, 1, 1),
    ConvShape::square(7, 512, 512, 3, 1),
    ConvShape::square(1, 2048, 1000, 1, 1),
];

fn kernels(c: &mut Criterion) {
    let mut group = c.benchmark_group("kernel");
    group.sample_size(20);
    for shape in SHAPES {
        for bits in [8, 4] {
            let graph = convolution(shape, bits).unwrap();
            let options = CompileOptions::new(Target::host().unwrap());
            let compiled = compile(lower_integer(&graph).unwrap(), &options).unwrap();
            let mut model = Checked::new(&compiled, &images(&graph, 3), 1).unwrap();
            group.throughput(Throughput::Elements(shape.macs()));
            group.bench_function(format!("{shape}/{bits} bit"), |b| b.iter(|| model.run().unwrap()));
        }
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
