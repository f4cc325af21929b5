//! Whole networks, one thread and two, uniform 8 and 4 bits.

use criterion::{Criterion, criterion_group, criterion_main};
use hawqc_benches::Checked;
use hawqc_driver::Target;
use hawqc_onnx::zoo::ZooOptions;
use hawqc_tests::{Network, images};

fn networks(c: &mut Criterion) {
    let mut group = c.benchmark_group("model");
    group.sample_size(10);
    for name in ["resnet18", "resnet50", "inception_v3", "mobilenet_v2"] {
        let network = Network::zoo(name, &ZooOptions::default());
        for bits in ["8", "4"] {
            let compiled = network.compile(network.plan(bits), Target::host().unwrap(), false).unwrap();
            for threads in [1, 2] {
                let mut model = Checked::new(&compiled, &images(&network.float, 1), threads).unwrap();
                group.bench_function(format!("{name}/{bits} bit/{threads} threads"), |b| {
                    b.iter(|| model.run().unwrap())
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, networks);
criterion_main!(benches);
