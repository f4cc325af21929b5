//! Damaged models: whatever is wrong, importing returns. Overflow checks are on in every profile here.

use std::path::Path;

use hawqc_onnx::zoo::{self, ZooOptions};
use hawqc_onnx::{ImportOptions, import};
use prost::Message;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tract_onnx::pb::ModelProto;

/// Imports `bytes` with one to four bits flipped, or cut off, at places drawn from `rng`. Returns whether it was accepted.
fn damaged(bytes: &[u8], rng: &mut ChaCha8Rng) -> bool {
    let mut copy = bytes.to_vec();
    let mut at = |len: usize| (rng.next_u64() % len.max(1) as u64) as usize;
    if at(8) == 0 {
        copy.truncate(at(bytes.len()));
    } else {
        for _ in 0..1 + at(4) {
            let (byte, bit) = (at(bytes.len()), at(8));
            copy[byte] ^= 1 << bit;
        }
    }
    import(&copy, &ImportOptions::default()).is_ok()
}

#[test]
fn networks_with_flipped_bits_or_cut_off() {
    let small = ZooOptions { image_size: Some(16), width: 0.25, classes: 4, seed: 1 };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (name, rounds) in [("tiny_resnet", 4000), ("squeezenet1_1", 200), ("mobilenet_v2", 100)] {
        let bytes = zoo::write(name, &ZooOptions { image_size: Some(32), ..small.clone() }).unwrap();
        let accepted = (0..rounds).filter(|_| damaged(&bytes, &mut rng)).count();
        // Most flips land in weights and keep a model; if none did, the damage would not reach the importer.
        assert!(accepted > 0 && accepted < rounds, "{name}: {accepted} of {rounds} accepted");
    }
}

/// The committed single-operator and QDQ models.
fn committed() -> Vec<Vec<u8>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    let folders = ["onnx_ops", "qdq"].map(|f| std::fs::read_dir(data.join(f)).unwrap());
    let mut models: Vec<_> = folders.into_iter().flatten().map(|e| e.unwrap().path()).collect();
    models.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    models.iter().map(|m| std::fs::read(m).unwrap()).collect()
}

#[test]
fn operators_with_flipped_bits_or_cut_off() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (mut accepted, mut total) = (0, 0);
    for bytes in committed() {
        total += 100;
        accepted += (0..100).filter(|_| damaged(&bytes, &mut rng)).count();
    }
    assert!(total > 10_000 && accepted > total / 20 && accepted < total, "{accepted} of {total} accepted");
}

/// Puts an extreme or neighbouring value somewhere in the structure of a model.
fn distort(model: &mut ModelProto, rng: &mut ChaCha8Rng) {
    const EXTREMES: [i64; 12] = [i64::MIN, -5, -1, 0, 1, 2, 3, 7, 4096, 1 << 31, 1 << 40, i64::MAX];
    let mut at = |len: usize| (rng.next_u64() % len.max(1) as u64) as usize;
    let extreme = EXTREMES[at(EXTREMES.len())];
    let Some(graph) = &mut model.graph else { return };
    let names: Vec<String> = graph.node.iter().flat_map(|n| [n.input.clone(), n.output.clone()].concat()).collect();
    let ops: Vec<String> = graph.node.iter().map(|n| n.op_type.clone()).collect();
    let (node, tensor) = (at(graph.node.len()), at(graph.initializer.len()));
    let kind = at(9);
    if let Some(t) = graph.initializer.get_mut(tensor)
        && kind < 4
    {
        let dim = at(t.dims.len());
        match (kind, t.dims.get_mut(dim)) {
            (0, Some(d)) => *d = extreme,
            (1, _) => t.dims.push(extreme.clamp(0, 2)),
            (2, _) => t.data_type = at(25) as i32,
            // Values that are shapes, axes or bounds.
            _ => t.raw_data.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&extreme.to_le_bytes())),
        }
        return;
    }
    let Some(n) = graph.node.get_mut(node) else { return };
    let (input, attribute) = (at(n.input.len()), at(n.attribute.len()));
    match kind {
        4 => n.op_type = ops[at(ops.len())].clone(),
        5 => {
            if let Some(i) = n.input.get_mut(input) {
                *i = names[at(names.len())].clone();
            }
        }
        6 => n.input.truncate(input),
        _ => {
            if let Some(a) = n.attribute.get_mut(attribute) {
                let index = at(a.ints.len());
                a.i = extreme;
                a.f = extreme as f32;
                if let Some(v) = a.ints.get_mut(index) {
                    *v = extreme;
                }
            }
        }
    }
}

#[test]
fn structures_with_extreme_values() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut accepted, mut total) = (0, 0);
    for bytes in committed() {
        for _ in 0..150 {
            let mut model = ModelProto::decode(bytes.as_slice()).unwrap();
            for _ in 0..1 + rng.next_u64() % 2 {
                distort(&mut model, &mut rng);
            }
            total += 1;
            accepted += usize::from(import(&model.encode_to_vec(), &ImportOptions::default()).is_ok());
        }
    }
    assert!(total > 10_000 && accepted > total / 20 && accepted < total, "{accepted} of {total} accepted");
}
