//! Damaged models: whatever bits are wrong, importing returns. Overflow checks are on in every profile here.

use std::path::Path;

use hawqc_onnx::zoo::{self, ZooOptions};
use hawqc_onnx::{ImportOptions, import};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

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

#[test]
fn operators_with_flipped_bits_or_cut_off() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/onnx_ops");
    let mut models: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    models.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (mut accepted, mut total) = (0, 0);
    for model in &models {
        let bytes = std::fs::read(model).unwrap();
        total += 150;
        accepted += (0..150).filter(|_| damaged(&bytes, &mut rng)).count();
    }
    assert!(total > 10_000 && accepted > total / 20 && accepted < total, "{accepted} of {total} accepted");
}
