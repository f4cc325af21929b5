//! Attacks on the proof: weights and inputs chosen to leave lanes and accumulators, run as a machine
//! runs them, every intermediate wrapping.

use hawqc_ir::Range;
use proptest::prelude::*;

use super::super::*;
use super::{cached_members, kernels, member, program};

/// The inputs of one tile, `[c][height][width]`.
pub struct Image {
    size: [usize; 2],
    data: Vec<i64>,
}

impl Image {
    pub fn new(member: &Member, c: usize, value: impl Fn(usize) -> i64) -> Image {
        let size = [&member.algorithm.rows, &member.algorithm.cols].map(Filter::inputs);
        Image { size, data: (0..c * size[0] * size[1]).map(value).collect() }
    }

    fn at(&mut self, c: usize, y: usize, x: usize) -> &mut i64 {
        &mut self.data[(c * self.size[0] + y) * self.size[1] + x]
    }

    /// A channel's inputs.
    pub fn tile(&self, c: usize) -> Vec<i64> {
        let values = self.size[0] * self.size[1];
        self.data[c * values..][..values].to_vec()
    }

    /// One output channel by definition; weights `[kh][kw][c]`.
    pub fn convolve(&self, member: &Member, weights: &[i64], c: usize, bias: Option<i64>) -> Vec<i64> {
        let [mh, mw] = member.outputs();
        let Kernel { taps: [_, kw], stride } = member.kernel();
        let output = |i: usize| {
            let (oy, ox) = (stride[0] * (i / mw), stride[1] * (i % mw));
            let value = |(j, w): (usize, &i64)| {
                let (tap, ci) = (j / c, j % c);
                w * self.data[(ci * self.size[0] + oy + tap / kw) * self.size[1] + ox + tap % kw]
            };
            bias.unwrap_or(0) + weights.iter().enumerate().map(value).sum::<i64>()
        };
        (0..mh * mw).map(output).collect()
    }
}

/// A matrix along the height of `x`, then one along its width, as programs in wrapping lanes. A matrix is given as the
/// rows that one program has, with the columns that it reads.
fn two_passes(rows: &[Pass], cols: &[Pass], x: &[i64], [height, width]: [usize; 2], bits: u32) -> Vec<i64> {
    let along = |passes: &[Pass], line: &[i64]| -> Vec<i64> {
        let of_pass = |(program, columns): &Pass| {
            program.eval(&columns.iter().map(|&column| line[column]).collect::<Vec<_>>(), bits)
        };
        passes.iter().flat_map(of_pass).collect()
    };
    let columns: Vec<Vec<i64>> =
        (0..width).map(|j| along(rows, &(0..height).map(|i| x[i * width + j]).collect::<Vec<_>>())).collect();
    (0..columns[0].len()).flat_map(|i| along(cols, &columns.iter().map(|c| c[i]).collect::<Vec<_>>())).collect()
}

type Pass = (Program, Vec<usize>);

fn input_passes(filter: &Filter) -> Vec<Pass> {
    let pass = |piece: &Piece| {
        let inputs = (0..piece.transform.n).map(|i| piece.first + filter.stride * i).collect();
        (program(&piece.transform.bt), inputs)
    };
    filter.pieces.iter().map(pass).collect()
}

fn output_passes(filter: &Filter) -> Vec<Pass> {
    vec![(program(&filter.at), (0..filter.sums()).collect())]
}

/// The member on a tile as a machine runs it, `[k][outputs]`: lanes of 8 or 16 bits, accumulators and
/// output transform of 32 bits, everything wrapping. 8-bit sums of pairs go through 16 saturating bits
/// where the proof allows any.
fn run(proof: &Proof, layer: &Layer, image: &Image) -> Vec<Vec<i32>> {
    let Member { algorithm, lane: held_in } = &proof.member;
    let [k, _, _, c] = layer.shape;
    let u = algorithm.transform_weights(layer.weights, k, c);
    let starts = proof.starts(&u, k, layer.bias).unwrap();
    let u: Vec<i64> = u.into_iter().map(|u| held(u, *held_in)).collect();
    let filters = [&algorithm.rows, &algorithm.cols];
    let [rows, cols] = filters.map(input_passes);
    let lanes: Vec<Vec<i64>> = (0..c)
        .map(|ci| {
            let v = two_passes(&rows, &cols, &image.tile(ci), filters.map(Filter::inputs), held_in.bits());
            v.iter().zip(&proof.offsets).map(|(v, offset)| lane(v + offset, *held_in)).collect()
        })
        .collect();
    let [rows, cols] = filters.map(output_passes);
    let outputs = |ki: usize| {
        let mut sums: Vec<i32> = (0..algorithm.sums()).map(|sum| starts[sum * k + ki]).collect();
        for (p, sum) in algorithm.sum_of().into_iter().enumerate() {
            let u = &u[(p * k + ki) * c..][..c];
            let v: Vec<i64> = lanes.iter().map(|lane| lane[p]).collect();
            sums[sum] = sums[sum].wrapping_add(dot(u, &v, proof.pair_steps));
        }
        let sums: Vec<i64> = sums.into_iter().map(i64::from).collect();
        let scaled = two_passes(&rows, &cols, &sums, filters.map(Filter::sums), 32);
        scaled.into_iter().map(|y| algorithm.divisor().divide(y as i32)).collect()
    };
    (0..k).map(outputs).collect()
}

/// What a lane makes of a transformed weight.
fn held(u: i64, lane: Lane) -> i64 {
    match lane {
        Lane::I8 => i64::from(u as i8),
        Lane::I16 => i64::from(u as i16),
    }
}

fn lane(v: i64, lane: Lane) -> i64 {
    match lane {
        Lane::I8 => i64::from(v as u8),
        Lane::I16 => i64::from(v as i16),
    }
}

fn dot(u: &[i64], v: &[i64], pair_steps: usize) -> i32 {
    if pair_steps == 0 {
        return u.iter().zip(v).fold(0, |sum, (u, v)| sum.wrapping_add((u * v) as i32));
    }
    let saturate = |v: i64| v.clamp(-(1 << 15), (1 << 15) - 1) as i16;
    let pairs: Vec<i16> =
        u.chunks(2).zip(v.chunks(2)).map(|(u, v)| saturate(u.iter().zip(v).map(|(u, v)| u * v).sum())).collect();
    let blocks = pairs.chunks(pair_steps).map(|block| block.iter().fold(0i16, |sum, &p| sum.wrapping_add(p)));
    blocks.fold(0, |sum, block| sum.wrapping_add(block.into()))
}

/// Whether the machine's results are the convolution's.
fn right(proof: &Proof, layer: &Layer, image: &Image) -> bool {
    let [k, _, _, c] = layer.shape;
    let found = run(proof, layer, image);
    (0..k).all(|ki| {
        let weights = &layer.weights[ki * layer.weights.len() / k..][..layer.weights.len() / k];
        let expected = image.convolve(&proof.member, weights, c, layer.bias.map(|bias| bias[ki]));
        expected.iter().zip(&found[ki]).all(|(&e, &f)| e == i64::from(f))
    })
}

/// Inputs that drive one position to the end of its range, up or down by the sign of each channel's
/// transformed weight, so that its accumulator goes farthest too. Inputs that it does not read stay.
fn drive(image: &mut Image, member: &Member, position: usize, up: impl Fn(usize) -> bool, src: Range) {
    let Winograd2d { rows, cols } = &member.algorithm;
    let (row, col) = (rows.bt.row(position / cols.products()), cols.bt.row(position % cols.products()));
    let c = image.data.len() / (row.len() * col.len());
    for (ci, y, x) in (0..c).flat_map(|ci| (0..row.len()).flat_map(move |y| (0..col.len()).map(move |x| (ci, y, x)))) {
        let coefficient = row[y] * col[x];
        if coefficient != 0 {
            *image.at(ci, y, x) = if (coefficient > 0) == up(ci) { src.hi } else { src.lo };
        }
    }
}

/// Weights that drive one position to the end of its range.
fn worst_weights(member: &Member, position: usize, [k, c]: [usize; 2], range: Range) -> Vec<i64> {
    let Winograd2d { rows, cols } = &member.algorithm;
    let (row, col) = (rows.g.row(position / cols.products()), cols.g.row(position % cols.products()));
    let taps = row.iter().flat_map(|a| col.iter().map(move |b| a * b));
    let of_tap = |coefficient: i64| if coefficient < 0 { range.lo } else { range.hi };
    let weights: Vec<i64> = taps.flat_map(|coefficient| vec![of_tap(coefficient); c]).collect();
    weights.repeat(k)
}

#[derive(Clone, Debug)]
struct Attack {
    member: Member,
    position: usize,
    src: Range,
    weights: Vec<i64>,
    shape: [usize; 4],
    bias: Option<Vec<i64>>,
    noise: Vec<i64>,
    up: bool,
}

/// Layers of 2 to 8 bits with weights random, at the ends, or the worst for a position.
fn attacks() -> impl Strategy<Value = Attack> {
    let who = (proptest::sample::select(kernels()), any::<[proptest::sample::Index; 2]>());
    let bits = (2u32..=8, 2u32..=8, any::<bool>(), 0i64..=3);
    let size = (1usize..=3, 1usize..=9);
    let values = (proptest::collection::vec(any::<i16>(), 400), 0usize..3, any::<bool>());
    let bias = proptest::option::of(proptest::collection::vec(-100_000i64..=100_000, 3));
    (who, bits, size, values, bias).prop_map(
        |((kernel, pick), (xb, wb, signed, less), (k, c), (noise, kind, up), bias)| {
            let all = cached_members(kernel);
            let member = all[pick[0].index(all.len())].clone();
            let position = pick[1].index(member.algorithm.positions());
            let half = 1 << (xb - 1);
            let src =
                if signed { Range::new(-half, half - 1 - less.min(half - 1)) } else { Range::new(0, 2 * half - 1) };
            let n = (1 << (wb - 1)) - 1;
            let weights = Range::new(-n - 1, n);
            let noise: Vec<i64> = noise.into_iter().map(i64::from).collect();
            let [kh, kw] = kernel.taps;
            let count = k * kh * kw * c;
            let weights = match kind {
                0 => (0..count).map(|i| weights.lo + noise[i % 397].rem_euclid(2 * n + 2)).collect(),
                1 => (0..count).map(|i| if noise[i % 397] > 0 { weights.hi } else { weights.lo }).collect(),
                _ => worst_weights(&member, position, [k, c], weights),
            };
            let bias = bias.map(|bias| bias[..k].to_vec());
            Attack { position, src, weights, shape: [k, kh, kw, c], bias, noise, up, member }
        },
    )
}

proptest! {
    // Refused members are not counted; if most were refused, the attack would be on little.
    #![proptest_config(ProptestConfig { cases: 512, max_global_rejects: 1024, ..ProptestConfig::default() })]

    /// What is declared legal survives inputs driven to the ends of a position's range, with every
    /// channel pushing its accumulator the same way, and inputs at random.
    #[test]
    fn nothing_overflows_a_legal_member(attack in attacks()) {
        let Attack { member, src, shape, .. } = &attack;
        let layer = Layer { weights: &attack.weights, shape: *shape, src: *src, bias: attack.bias.as_deref() };
        let proof = prove(member, &layer);
        prop_assume!(proof.is_ok());
        let proof = proof.unwrap();
        let [k, _, _, c] = *shape;
        let u = member.algorithm.transform_weights(layer.weights, k, c);
        let width = src.hi - src.lo + 1;
        let mut image = Image::new(member, c, |i| src.lo + attack.noise[i % 397].rem_euclid(width));
        prop_assert!(right(&proof, &layer, &image), "{} at random", proof);

        let own = &u[attack.position * k * c..][..c];
        let up = |ci: usize| (own[ci] > 0) == attack.up;
        drive(&mut image, member, attack.position, up, *src);
        prop_assert!(right(&proof, &layer, &image), "{} driven", proof);
        for (ci, &weight) in own.iter().enumerate() {
            let v = member.algorithm.transform_input(&image.tile(ci));
            for (p, v) in v.iter().enumerate() {
                let held = v + proof.offsets[p];
                let bound = proof.inputs[p];
                prop_assert!((bound.lo..=bound.hi).contains(&held), "{}: {} at {}", proof, held, p);
            }
            // The bound is attained.
            let end = if up(ci) { proof.inputs[attack.position].hi } else { proof.inputs[attack.position].lo };
            prop_assert_eq!(v[attack.position] + proof.offsets[attack.position], end);
            prop_assert!((proof.weights.lo..=proof.weights.hi).contains(&weight));
        }
    }

    /// Results driven to the ends of their range, by the signs of the weights.
    #[test]
    fn results_stay_in_their_range(attack in attacks()) {
        let Attack { member, src, shape, .. } = &attack;
        let layer = Layer { weights: &attack.weights, shape: *shape, src: *src, bias: attack.bias.as_deref() };
        let proof = prove(member, &layer);
        prop_assume!(proof.is_ok());
        let proof = proof.unwrap();
        let [_, _, kw, c] = *shape;
        let mut image = Image::new(member, c, |_| src.lo);
        for (i, &w) in layer.weights[..layer.weights.len() / shape[0]].iter().enumerate() {
            let (tap, ci) = (i / c, i % c);
            *image.at(ci, tap / kw, tap % kw) = if (w > 0) == attack.up { src.hi } else { src.lo };
        }
        prop_assert!(right(&proof, &layer, &image), "{}", proof);
        let y = run(&proof, &layer, &image)[0][0];
        prop_assert!((proof.result.lo..=proof.result.hi).contains(&i64::from(y)));
    }
}

/// A proof for weights of zero, held against others: what running the member regardless would do.
fn regardless(member: &Member, layer: &Layer, lenient: Range) -> Proof {
    let easy = vec![0; layer.weights.len()];
    let mut proof = prove(member, &Layer { weights: &easy, src: lenient, ..*layer }).unwrap();
    proof.pair_steps = 0;
    proof
}

/// The bound on weights is the true limit: `9 * 14` fits 8 bits, `9 * 15` does not and is wrong.
#[test]
fn one_value_beyond_the_weight_bound_is_wrong() {
    let member = member("F(2x2,3x3)/i8", [3, 3], [1, 1]);
    for (weight, legal) in [(14, true), (15, false)] {
        let weights = vec![weight; 9];
        let src = Range::new(0, 15);
        let layer = Layer { weights: &weights, shape: [1, 3, 3, 1], src, bias: None };
        let image = Image::new(&member, 1, |_| 15);
        match prove(&member, &layer) {
            Ok(proof) => assert!(legal && right(&proof, &layer, &image)),
            Err(refusal) => {
                assert!(!legal && matches!(refusal, Refusal::Weights { .. }), "{refusal}");
                assert!(!right(&regardless(&member, &layer, src), &layer, &image));
            }
        }
    }
}

/// The bound on results is the true limit: up to it every result is right, one channel more and the
/// driven result is wrong.
#[test]
fn one_channel_beyond_the_result_bound_is_wrong() {
    let member = member("F(4x4,3x3)/i16", [3, 3], [1, 1]);
    let src = Range::new(0, 255);
    let limit = (i64::from(i32::MAX) / 64 / (9 * 127 * 255)) as usize;
    for (c, legal) in [(limit, true), (limit + 1, false)] {
        let weights = vec![127; 9 * c];
        let layer = Layer { weights: &weights, shape: [1, 3, 3, c], src, bias: None };
        let image = Image::new(&member, c, |_| 255);
        match prove(&member, &layer) {
            Ok(proof) => assert!(legal && right(&proof, &layer, &image)),
            Err(refusal) => {
                assert!(!legal && matches!(refusal, Refusal::Result { shift: 6, .. }), "{refusal}");
                assert!(!right(&regardless(&member, &layer, src), &layer, &image));
            }
        }
    }
}

/// The bound on inputs is the true limit: where it refuses, a tile exists that the lanes get wrong.
#[test]
fn one_value_beyond_the_input_bound_is_wrong() {
    for name in ["F(2x2,3x3)/i8", "F(3x3,3x3)/i8", "F(4x4,3x3)/i16", "F(6x6,3x3)/i16"] {
        let member = member(name, [3, 3], [1, 1]);
        let layer = |hi: i64| Layer { weights: &[1; 9], shape: [1, 3, 3, 1], src: Range::new(0, hi), bias: None };
        let hi = (1..1 << 15).find(|&hi| prove(&member, &layer(hi)).is_err()).unwrap();
        let refusal = prove(&member, &layer(hi)).unwrap_err();
        let Refusal::Inputs { position, .. } = refusal else { panic!("{refusal}") };
        let lenient = regardless(&member, &layer(hi), Range::new(0, hi - 1));
        let position = position.0 * member.algorithm.cols.products() + position.1;
        let wrong = [true, false].into_iter().any(|up| {
            let mut image = Image::new(&member, 1, |_| 0);
            drive(&mut image, &member, position, |_| up, Range::new(0, hi));
            !right(&lenient, &layer(hi), &image)
        });
        assert!(wrong, "{name} refuses inputs up to {hi} without need");
    }
}

/// The number of 16-bit sums is the true limit: with one more, the worst inputs saturate or wrap.
#[test]
fn one_pair_more_than_proved_is_wrong() {
    let member = member("F(2x2,3x3)/i8", [3, 3], [1, 1]);
    let c = 32;
    let weights = vec![7; 9 * c];
    let layer = Layer { weights: &weights, shape: [1, 3, 3, c], src: Range::new(0, 15), bias: None };
    let mut proof = prove(&member, &layer).unwrap();
    let image = Image::new(&member, c, |_| 15);
    assert_eq!(proof.pair_steps, 2);
    assert!(right(&proof, &layer, &image));
    proof.pair_steps += 1;
    assert!(!right(&proof, &layer, &image));
}

/// Prints the table of `docs/winograd.md`: multiplications saved, sums, growth of inputs and weights, divisor,
/// and the widths that fit for every input and every weight.
#[test]
#[ignore = "a table for documentation"]
fn legal_members_for_worst_weights() {
    for kernel in kernels() {
        for member in members(kernel) {
            let Winograd2d { rows, cols } = &member.algorithm;
            let inputs = member.algorithm.input_growth();
            let weights = rows.g.growth() * cols.g.growth();
            let divisor = member.algorithm.divisor();
            let [kh, kw] = kernel.taps;
            let legal = |weights: &[i64], bits: u32| {
                let src = Range::new(0, (1 << bits) - 1);
                prove(&member, &Layer { weights, shape: [1, kh, kw, 1], src, bias: None }).is_ok()
            };
            let input_bits = (1..=8).filter(|&bits| legal(&vec![0; kh * kw], bits)).max().unwrap_or(0);
            let weight_bits = (2..=8)
                .filter(|bits| {
                    let n = (1i64 << (bits - 1)) - 1;
                    let worst = |p| worst_weights(&member, p, [1, 1], Range::new(-n, n));
                    (0..member.algorithm.positions()).all(|p| legal(&worst(p), 1))
                })
                .max()
                .unwrap_or(0);
            println!(
                "| {member} | {}/{} = {:.2} | {} | {inputs} | {weights} | 2^{} * {} | {input_bits} | {weight_bits} |",
                member.direct_multiplications(),
                member.multiplications(),
                member.direct_multiplications() as f64 / member.multiplications() as f64,
                member.algorithm.sums(),
                divisor.shift,
                divisor.odd
            );
        }
    }
}
