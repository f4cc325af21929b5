use super::*;

/// The next of a sequence of made-up numbers.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn random(count: usize, range: Range, state: &mut u64) -> Vec<i64> {
    (0..count).map(|_| range.lo + next(state) as i64 % (range.hi - range.lo + 1)).collect()
}

/// Inputs of every position, `[position][pixel][channel]` of parts, from `[P][C]`.
fn inputs(levels: usize, x: &[i64], p: usize, c: usize) -> Vec<i64> {
    if levels == 0 {
        return x.to_vec();
    }
    let (p, c) = (p / 2, c / 2);
    let block =
        |b: usize| (0..p).flat_map(|row| x[((b / 2 * p + row) * 2 + b % 2) * c..][..c].to_vec()).collect::<Vec<i64>>();
    let blocks = [0, 1, 2, 3].map(block);
    INPUTS.iter().flat_map(|sum| inputs(levels - 1, &sum.of(&blocks), p, c)).collect()
}

/// `[P][K]` from the sums of every position.
fn outputs(levels: usize, sums: &[i64], p: usize, k: usize) -> Vec<i64> {
    if levels == 0 {
        return sums.to_vec();
    }
    let (p, k) = (p / 2, k / 2);
    let mut blocks = vec![vec![0; p * k]; 4];
    for (product, sums) in sums.chunks(sums.len() / PRODUCTS).enumerate() {
        let sums = outputs(levels - 1, sums, p, k);
        for &(block, sign) in OUTPUTS[product] {
            blocks[block].iter_mut().zip(&sums).for_each(|(to, sum)| *to += sign * sum);
        }
    }
    (0..4 * p * k).map(|i| blocks[i / (2 * k) / p * 2 + i % (2 * k) / k][i / (2 * k) % p * k + i % k]).collect()
}

/// The product as a kernel forms it, every lane wrapping.
fn run(operands: &Operands, x: &[i64], [p, c, k]: [usize; 3]) -> Vec<i64> {
    let Operands { levels, weights, starts, offsets, .. } = operands;
    let parts = levels.parts();
    let (p_part, c_part, k_part) = (p / parts, c / parts, k / parts);
    let x = inputs(levels.0, x, p, c);
    let mut sums = Vec::new();
    for (position, &offset) in offsets.iter().enumerate() {
        for pixel in 0..p_part {
            let row = &x[(position * p_part + pixel) * c_part..][..c_part];
            for channel in 0..k_part {
                let row_weights = &weights[(position * k_part + channel) * c_part..][..c_part];
                let products = row
                    .iter()
                    .zip(row_weights)
                    .map(|(&x, &w)| i32::from((x + offset) as u8).wrapping_mul(i32::from(w as i8)));
                let start = starts[position * k_part + channel];
                sums.push(i64::from(products.fold(start, i32::wrapping_add)));
            }
        }
    }
    outputs(levels.0, &sums, p, k).into_iter().map(|sum| i64::from(sum as i32)).collect()
}

fn direct(x: &[i64], weights: &[i64], bias: &[i64], [p, c, k]: [usize; 3]) -> Vec<i64> {
    let dot = |i: usize, j: usize| (0..c).map(|h| x[i * c + h] * weights[j * c + h]).sum::<i64>() + bias[j];
    (0..p).flat_map(|i| (0..k).map(move |j| dot(i, j))).collect()
}

#[test]
fn products_are_exact() {
    let mut state = 1;
    for levels in 1..=MAX_LEVELS {
        for (src, wei) in [
            (Range::new(0, 15), Range::new(-8, 7)),
            (Range::new(-8, 7), Range::new(-8, 7)),
            (Range::new(3, 15), Range::new(-8, -8)),
            (Range::new(0, 60), Range::new(-31, 31)),
        ] {
            let shape @ [p, c, k] = [4, 12, 8];
            for extreme in [false, true] {
                let ends = |values: Vec<i64>, range: Range| -> Vec<i64> {
                    let end = |v: i64| if v - range.lo > range.hi - v { range.hi } else { range.lo };
                    values.into_iter().map(|v| if extreme { end(v) } else { v }).collect()
                };
                let x = ends(random(p * c, src, &mut state), src);
                let weights = ends(random(k * c, wei, &mut state), wei);
                let bias = random(k, Range::new(-1 << 20, 1 << 20), &mut state);
                let operands = prove(Levels(levels), &weights, [k, c], src, Some(&bias)).unwrap();
                assert_eq!(run(&operands, &x, shape), direct(&x, &weights, &bias, shape), "{levels} {src:?} {wei:?}");
            }
        }
    }
}

/// The widest operands that fit, and one step beyond, where a result comes out wrong.
#[test]
fn proofs_are_tight() {
    let legal = |levels: usize, src: Range, weight: [i64; 2]| {
        let parts = Levels(levels).parts();
        // Blocks of both signs, so that sums and differences are attained.
        let weights: Vec<i64> = (0..4 * parts * parts).map(|i| weight[i.count_ones() as usize % 2]).collect();
        prove(Levels(levels), &weights, [2 * parts; 2], src, None).map(|o| o.to_string())
    };
    let shown = "Strassen of 1 level legal: weights in [-16, 15], inputs in [0, 30]";
    assert_eq!(legal(1, Range::new(0, 15), [-8, 7]).unwrap(), shown);
    assert!(legal(1, Range::new(0, 127), [-64, 63]).is_ok());
    assert!(legal(2, Range::new(0, 63), [-32, 31]).is_ok());
    assert!(
        legal(1, Range::new(0, 128), [-8, 7])
            .unwrap_err()
            .contains("1 level refused: inputs with their offsets reach 256")
    );
    assert!(
        legal(2, Range::new(0, 64), [-8, 7])
            .unwrap_err()
            .contains("2 levels refused: inputs with their offsets reach 256")
    );
    assert!(legal(1, Range::new(0, 15), [-65, 63]).unwrap_err().contains("1 level refused: weights in [-130, 128]"));
}
