use std::sync::{LazyLock, Mutex};

use proptest::prelude::*;

use super::*;

mod attack;

fn conv1d(w: &[i64], x: &[i64], m: usize) -> Vec<i64> {
    (0..m).map(|i| w.iter().zip(&x[i..]).map(|(w, x)| w * x).sum()).collect()
}

/// Every pair of outputs and taps that `best` serves.
fn sizes() -> impl Iterator<Item = (usize, usize)> {
    (1..=MAX_N).flat_map(|m| (1..=MAX_N + 1 - m).map(move |r| (m, r)))
}

/// Those of the family's members: seven points, one of them without its opposite, take the search long.
fn served() -> impl Iterator<Item = (usize, usize)> {
    sizes().filter(|&(m, r)| m + r - 1 != 7 || m == 1 || r == 1)
}

fn kernels() -> Vec<Kernel> {
    let taps = [[3, 3], [1, 3], [3, 1], [1, 7], [7, 1], [5, 5], [2, 2], [1, 5], [5, 1]];
    let unit = taps.map(|taps| Kernel { taps, stride: [1, 1] });
    let strided = [([3, 3], [2, 2]), ([3, 3], [1, 2]), ([1, 3], [1, 2])];
    unit.into_iter().chain(strided.map(|(taps, stride)| Kernel { taps, stride })).collect()
}

/// The members of a kernel and their programs take longer to find than a case takes to run.
fn cached_members(kernel: Kernel) -> &'static [Member] {
    static ALL: LazyLock<Vec<(Kernel, Vec<Member>)>> =
        LazyLock::new(|| kernels().into_iter().map(|kernel| (kernel, members(kernel))).collect());
    ALL.iter().find(|entry| entry.0 == kernel).map_or(&[], |entry| &entry.1)
}

/// A short program for a matrix.
fn program(matrix: &Matrix) -> Program {
    static ALL: Mutex<Vec<(Matrix, Program)>> = Mutex::new(Vec::new());
    let mut all = ALL.lock().unwrap();
    if let Some(entry) = all.iter().find(|entry| entry.0 == *matrix) {
        return entry.1.clone();
    }
    all.push((matrix.clone(), Program::of(matrix)));
    all[all.len() - 1].1.clone()
}

/// Every filter of one transform, and of several for the members' strides and runs.
fn filters() -> impl Iterator<Item = Filter> {
    let whole = sizes().filter_map(|(m, r)| Filter::new(m, r, 1, &[]));
    let several = kernels().into_iter().flat_map(cached_members);
    let several = several.flat_map(|member| [&member.algorithm.rows, &member.algorithm.cols]).cloned();
    whole.chain(several.filter(|filter| filter.pieces.len() > 1))
}

fn member(name: &str, taps: [usize; 2], stride: [usize; 2]) -> Member {
    Member::find(Kernel { taps, stride }, name).unwrap_or_else(|| panic!("{name}"))
}

/// A filter is a linear identity in `w` and `x`: unit vectors decide it for all values.
#[test]
fn filters_equal_convolution_for_all_unit_vectors() {
    let mut shared = 0;
    for filter in filters() {
        let (m, inputs) = (filter.outputs(), filter.inputs());
        let divisor = i64::try_from(filter.divisor).unwrap();
        assert_eq!(filter.at.apply(&filter.ones().unwrap()), vec![divisor; m], "{filter:?}");
        for (k, j) in (0..filter.taps).flat_map(|k| (0..inputs).map(move |j| (k, j))) {
            let unit = |len: usize, at: usize| (0..len).map(|i| i64::from(i == at)).collect::<Vec<_>>();
            let (w, x) = (unit(filter.taps, k), unit(inputs, j));
            let mut sums = vec![0; filter.sums()];
            for ((a, b), &sum) in filter.g.apply(&w).iter().zip(filter.bt.apply(&x)).zip(&filter.sum_of) {
                sums[sum] += a * b;
            }
            let y = |i: usize| if filter.stride * i + k == j { divisor } else { 0 };
            assert_eq!(filter.at.apply(&sums), (0..m).map(y).collect::<Vec<_>>(), "{filter:?}");
        }
        shared += filter.products() - filter.sums();
    }
    assert!(shared > 0);
}

/// Products of several transforms share sums, for which weights grow little.
#[test]
fn pieces_share_sums() {
    for (m, taps, stride, runs, products, sums, growth) in [
        (2, 3, 2, &[][..], 5, 3, 2),
        (3, 3, 2, &[], 7, 5, 2),
        (4, 3, 2, &[], 9, 7, 3),
        // Its pieces alone grow 3 times.
        (2, 5, 1, &[3, 2], 7, 4, 4),
        // Two sums for the point 2, where sharing would grow weights 12 times.
        (4, 5, 1, &[3, 2], 11, 7, 7),
        (3, 7, 1, &[4, 3], 11, 7, 15),
        (4, 7, 1, &[3, 3, 1], 16, 8, 7),
        (1, 3, 1, &[], 3, 1, 1),
    ] {
        let filter = Filter::new(m, taps, stride, runs).unwrap();
        let found = (filter.products(), filter.sums(), filter.g.growth());
        assert_eq!(found, (products, sums, growth), "F({m},{taps}:{stride}) {runs:?}");
    }
}

#[test]
fn known_transforms_come_out() {
    let rows = |m: &Matrix| (0..m.rows()).map(|i| m.row(i).to_vec()).collect::<Vec<_>>();
    let t = Filter::new(2, 3, 1, &[]).unwrap();
    assert_eq!(rows(&t.bt), [[1, 0, -1, 0], [0, 1, 1, 0], [0, 1, -1, 0], [0, 1, 0, -1]]);
    assert_eq!(rows(&t.at), [[1, 1, 1, 0], [0, 1, -1, 1]]);
    assert_eq!((t.divisor, t.g.growth()), (2, 3));
    let t = Filter::new(4, 3, 1, &[]).unwrap();
    assert_eq!((t.divisor, t.bt.growth(), t.g.growth()), (24, 10, 7));
    let d = Winograd2d { rows: t.clone(), cols: t }.divisor();
    assert_eq!((d.value, d.shift, d.odd), (576, 6, 9));
    assert_eq!(d.inverse.wrapping_mul(9), 1);
}

#[test]
fn what_is_no_transform_is_refused() {
    assert_eq!(Transform1d::best(8, 2), None);
    assert_eq!(Transform1d::best(0, 3), None);
    assert_eq!(Transform1d::derive(2, 3, &POINTS[..3]), None);
    let twice = [POINTS[0], POINTS[1], POINTS[1], POINTS[7]];
    assert_eq!(Transform1d::derive(2, 3, &twice), None);
    assert_eq!(Point::new(0, 0), None);
    assert_eq!(Point::new(2, -4), Point::new(-1, 2));
    assert_eq!(Point::new(-3, 0), Some(POINTS[7]));
    let three = Kernel { taps: [3, 3], stride: [1, 1] };
    assert_eq!(Member::new(three, [2, 2], [&[2, 2], &[]], Lane::I8), None);
    assert!(members(Kernel { taps: [1, 1], stride: [1, 1] }).is_empty());
}

/// Equal to the matrices for all inputs, being linear: unit vectors decide it. And not long.
#[test]
fn programs_equal_matrices_and_are_short() {
    let mut lengths = Vec::new();
    let whole = served().map(|(m, r)| Filter::new(m, r, 1, &[]).unwrap());
    for filter in whole.chain(filters().filter(|filter| filter.pieces.len() > 1)) {
        let inputs: Vec<&Matrix> = filter.pieces.iter().map(|piece| &piece.transform.bt).collect();
        for &matrix in inputs.iter().chain([&&filter.at]) {
            let program = program(matrix);
            for j in 0..matrix.cols() {
                let unit: Vec<i64> = (0..matrix.cols()).map(|i| i64::from(i == j)).collect();
                assert_eq!(program.eval(&unit, 64), matrix.apply(&unit), "{matrix:?} {program:?}");
            }
            let defined = |op: &Op, i: usize| match *op {
                Op::Add(a, b) | Op::Sub(a, b) => a.max(b) < program.inputs + i,
                Op::Shl(a, _) | Op::Mul(a, _) | Op::Neg(a) => a < program.inputs + i,
            };
            assert!(program.ops.iter().enumerate().all(|(i, op)| defined(op, i)));
        }
        let ops = |matrix: &Matrix| program(matrix).ops.len();
        lengths.push(((filter.outputs(), filter.taps), inputs.into_iter().map(ops).sum::<usize>(), ops(&filter.at)));
    }
    for ((m, r), bt, at) in [((2, 3), 4, 4), ((4, 3), 17, 17), ((6, 3), 40, 39)] {
        let found = lengths.iter().find(|l| l.0 == (m, r)).unwrap();
        assert!(found.1 <= bt && found.2 <= at, "F({m},{r}): {found:?}");
    }
}

/// A part of a program gives the same values, and the parts together do not need fewer operations.
#[test]
fn programs_of_some_outputs_equal_the_whole() {
    for matrix in filters().map(|filter| filter.at) {
        let whole = program(&matrix);
        let inputs: Vec<i64> = (0..whole.inputs as i64).map(|i| 1000 * i * i - 77).collect();
        let expected = whole.eval(&inputs, 32);
        for first in 0..expected.len() {
            for end in first..=expected.len() {
                let part = whole.restricted(first..end);
                assert_eq!(part.eval(&inputs, 32), expected[first..end]);
                assert!(part.ops.len() <= whole.ops.len());
            }
        }
        let halves = [0..expected.len() / 2, expected.len() / 2..expected.len()];
        let ops: usize = halves.map(|half| whole.restricted(half).ops.len()).iter().sum();
        assert!(ops >= whole.restricted(0..expected.len()).ops.len());
    }
}

#[test]
fn names_are_unique_and_find_their_member() {
    for kernel in kernels() {
        let all = members(kernel);
        assert!(!all.is_empty(), "{kernel:?}");
        for (i, member) in all.iter().enumerate() {
            assert_eq!(Member::find(kernel, &member.to_string()).as_ref(), Some(member));
            assert!(!all[..i].contains(member), "{member} twice");
            assert!(member.multiplications() < member.direct_multiplications());
            assert!(member.algorithm.ones().is_some());
            assert_eq!(member.kernel(), kernel);
        }
    }
    let strided = member("F(2x2,3x3:2x2)/i8", [3, 3], [2, 2]);
    let pieces = |filter: &Filter| filter.pieces.iter().map(|p| (p.first, p.transform.r)).collect::<Vec<_>>();
    assert_eq!([&strided.algorithm.rows, &strided.algorithm.cols].map(pieces), [[(0, 2), (1, 1)], [(0, 2), (1, 1)]]);
    assert_eq!((strided.multiplications(), strided.direct_multiplications()), (25, 36));
    member("F(1x2,1x(3+3+1))/i8", [1, 7], [1, 1]);
}

#[test]
fn a_proof_prints_what_it_found() {
    let weights: Vec<i64> = (0..9 * 8).map(|i| (i * 5 + i / 8) % 15 - 7).collect();
    let src = hawqc_ir::Range::new(0, 15);
    let layer = Layer { weights: &weights, shape: [1, 3, 3, 8], src, bias: None };
    let proof = prove(&member("F(2x2,3x3)/i8", [3, 3], [1, 1]), &layer).unwrap();
    let text = proof.to_string();
    assert!(text.starts_with("F(2x2,3x3)/i8 legal: transformed weights in ["), "{text}");
    assert!(text.contains("inputs in [2, 92] with 32 added"), "{text}");
    let refusal = prove(&member("F(4x4,3x3)/i8", [3, 3], [1, 1]), &layer).unwrap_err().to_string();
    assert_eq!(
        refusal,
        "F(4x4,3x3)/i8 refused: inputs at position 0,0 in [-750, 750], wider than the 256 values a lane holds; \
         use wider lanes, a smaller tile or fewer bits"
    );
    let wrong = Layer { shape: [1, 3, 3, 9], ..layer };
    let refusal = prove(&proof.member, &wrong).unwrap_err().to_string();
    assert!(refusal.contains("72 weights of shape [1, 3, 3, 9]"), "{refusal}");
}

proptest! {
    #[test]
    fn any_points_give_a_transform(
        raw in proptest::collection::vec((-4i64..=4, 0i64..=4), 2..=7),
        m in 1usize..=7,
        w in proptest::collection::vec(-99i64..=99, 8),
        x in proptest::collection::vec(-99i64..=99, 8),
    ) {
        let mut points: Vec<Point> = Vec::new();
        for point in raw.iter().filter_map(|&(a, b)| Point::new(a, b)) {
            if !points.contains(&point) {
                points.push(point);
            }
        }
        prop_assume!(m <= points.len());
        let r = points.len() + 1 - m;
        // Points far apart may need a divisor beyond 64 bits.
        let Some(t) = Transform1d::derive(m, r, &points) else { return Ok(()) };
        let wide = |v: &Matrix, x: &[i64], i: usize| -> i128 {
            v.row(i).iter().zip(x).map(|(&a, &b)| i128::from(a) * i128::from(b)).sum()
        };
        let products: Vec<i128> = (0..t.n).map(|i| wide(&t.g, &w[..r], i) * wide(&t.bt, &x[..t.n], i)).collect();
        for (k, y) in conv1d(&w[..r], &x[..t.n], m).into_iter().enumerate() {
            let sum: i128 = t.at.row(k).iter().zip(&products).map(|(&a, &p)| i128::from(a) * p).sum();
            prop_assert_eq!(sum, i128::from(y) * i128::from(t.divisor));
        }
    }

    #[test]
    fn programs_may_wrap(
        size in proptest::sample::select(served().collect::<Vec<_>>()),
        x in proptest::collection::vec(any::<i64>(), 8),
        bits in proptest::sample::select(vec![8u32, 16, 32]),
    ) {
        let t = Transform1d::best(size.0, size.1).unwrap();
        let narrow = program(&t.bt).eval(&x[..t.n], bits);
        for (i, value) in narrow.into_iter().enumerate() {
            let exact: i128 = t.bt.row(i).iter().zip(&x).map(|(&a, &b)| i128::from(a) * i128::from(b)).sum();
            prop_assert_eq!((exact - i128::from(value)) % (1 << bits), 0);
        }
    }

    #[test]
    fn division_is_exact(value in 1u64..1 << 40, y in any::<i32>()) {
        let d = Divisor::of(value);
        prop_assert_eq!(d.odd << d.shift, value);
        prop_assume!(d.shift < 32);
        let y = y >> d.shift;
        let scaled = (i128::from(y) * i128::from(value)) as i32;
        prop_assert_eq!(d.divide(scaled), y);
    }

    #[test]
    fn nested_transforms_equal_direct_convolution(
        kernel in proptest::sample::select(kernels()),
        choice in any::<proptest::sample::Index>(),
        w in proptest::collection::vec(-128i64..=127, 49),
        x in proptest::collection::vec(-255i64..=255, 400),
    ) {
        let all = cached_members(kernel);
        let member = &all[choice.index(all.len())];
        let image = attack::Image::new(member, 1, |i| x[i % x.len()]);
        let w = &w[..kernel.taps.iter().product()];
        let algorithm = &member.algorithm;
        let u = algorithm.transform_weights(w, 1, 1);
        let v = algorithm.transform_input(&image.tile(0));
        let mut sums = vec![0; algorithm.sums()];
        u.iter().zip(v).zip(algorithm.sum_of()).for_each(|((u, v), sum)| sums[sum] += u * v);
        prop_assert_eq!(algorithm.transform_output(&sums).unwrap(), image.convolve(member, w, 1, None));
    }
}
