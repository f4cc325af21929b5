//! Single fused kernels: the distinct convolutions of ResNet-50, one thread, with the rate in
//! multiply-accumulates.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hawqc_benches::Checked;
use hawqc_benches::networks::{ConvShape, convolution};
use hawqc_driver::{CompileOptions, Target, compile, lower_integer};
use hawqc_tests::images;

const SHAPES: [ConvShape; 9] = [
    ConvShape { size: 56, channels: 64, kernels: 64, window: 1, stride: 1 },
    ConvShape { size: 56, channels: 64, kernels: 64, window: 3, stride: 1 },
    ConvShape { size: 56, channels: 64, kernels: 256, window: 1, stride: 1 },
    ConvShape { size: 28, channels: 128, kernels: 128, window: 3, stride: 1 },
    ConvShape { size: 28, channels: 256, kernels: 256, window: 3, stride: 2 },
    ConvShape { size: 14, channels: 256, kernels: 256, window: 3, stride: 1 },
    ConvShape { size: 14, channels: 1024, kernels: 256, window: 1, stride: 1 },
    ConvShape { size: 7, channels: 512, kernels: 512, window: 3, stride: 1 },
    ConvShape { size: 1, channels: 2048, kernels: 1000, window: 1, stride: 1 },
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
