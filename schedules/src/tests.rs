use hawqc_ir::{Add, Arg, Conv, Elem, KernelSpec, TensorType};

use super::*;

const X86: Machine = Machine { vector_registers: 16, quad_dot: true, wide: [None, None] };
const AVX2: Machine = Machine {
    quad_dot: false,
    wide: [Some(WideMachine { lanes: 8, registers: 16, dot: false, evex: false }), None],
    ..X86
};
const AVX512: Machine = Machine {
    wide: [
        Some(WideMachine { lanes: 16, registers: 32, dot: true, evex: true }),
        Some(WideMachine { lanes: 8, registers: 16, dot: true, evex: true }),
    ],
    ..X86
};

fn conv(pixels: [usize; 2], c: usize, k: usize, wei: Elem, groups: usize) -> KernelSpec {
    conv_of(Elem::U8, pixels, c, k, wei, groups)
}

fn conv_of(src: Elem, pixels: [usize; 2], c: usize, k: usize, wei: Elem, groups: usize) -> KernelSpec {
    let src = TensorType::new(src, [1, pixels[0], pixels[1], c]);
    let wei = TensorType::new(wei, [k, 1, 1, c / groups]);
    let op = Conv { groups, ..Conv::unit() };
    KernelSpec::new(vec![src, wei], vec![(op.into(), vec![Arg::Operand(0), Arg::Operand(1)])]).unwrap()
}

/// From 4-bit inputs and weights, padded as its window needs.
fn filtered(size: usize, channels: usize, taps: [usize; 2], stride: [usize; 2]) -> KernelSpec {
    let src = TensorType::new(Elem::U4, [1, size, size, channels]);
    let wei = TensorType::new(Elem::I4, [channels, taps[0], taps[1], channels]);
    let [h, w] = taps.map(|t| t / 2);
    let op = Conv { stride, pad: [h, w, h, w], ..Conv::unit() };
    KernelSpec::new(vec![src, wei], vec![(op.into(), vec![Arg::Operand(0), Arg::Operand(1)])]).unwrap()
}

#[test]
fn every_candidate_is_legal_and_reads_back() {
    for spec in [
        conv([56, 56], 64, 64, Elem::I8, 1),
        conv([7, 7], 512, 2048, Elem::I4, 1),
        conv_of(Elem::U4, [7, 7], 512, 2048, Elem::I4, 1),
        conv([1, 1], 2048, 1000, Elem::I8, 1),
        conv([1, 1], 3, 1, Elem::I4, 1),
        conv([9, 1], 64, 12, Elem::I16, 4),
        conv([9, 1], 64, 64, Elem::I8, 64),
        conv([9, 9], 128, 128, Elem::I8, 32),
        conv_of(Elem::I8, [5, 8], 60, 96, Elem::I4, 4),
        conv([7, 7], 9, 9, Elem::I4, 9),
        conv([14, 14], 96, 96, Elem::I8, 96),
        conv_of(Elem::I16, [13, 21], 24, 24, Elem::I8, 24),
        filtered(16, 32, [3, 3], [2, 2]),
        filtered(16, 32, [5, 5], [1, 1]),
        filtered(16, 32, [1, 7], [1, 1]),
    ] {
        for machine in [X86, AVX2, AVX512] {
            let candidates = Schedule::candidates(&spec, machine);
            assert_eq!(candidates[0], Schedule::default_for(&spec, machine));
            for (i, schedule) in candidates.iter().enumerate() {
                schedule.legal(&spec, machine).unwrap();
                assert_eq!(schedule.to_string().parse::<Schedule>().as_ref(), Ok(schedule));
                assert!(!candidates[..i].contains(schedule), "{schedule} twice");
            }
        }
    }
}

#[test]
fn strassen_is_the_default_where_it_was_faster() {
    let is_strassen = |pixels, c, k, machine| {
        let spec = conv_of(Elem::U4, pixels, c, k, Elem::I4, 1);
        let preferred = Schedule::preferred(&spec, machine);
        assert!(preferred.iter().any(|s| matches!(s, Schedule::Wide(_))));
        matches!(preferred[0], Schedule::Strassen(StrassenSchedule { levels: 1, .. }))
    };
    assert!(is_strassen([14, 14], 1024, 256, AVX512) && is_strassen([7, 7], 2048, 512, AVX512));
    // Few input channels, few pixels, many outputs, a machine that was not measured.
    assert!(!is_strassen([56, 56], 256, 64, AVX512) && !is_strassen([1, 1], 2048, 512, AVX512));
    assert!(!is_strassen([7, 7], 512, 2048, AVX512) && !is_strassen([14, 14], 1024, 256, AVX2));
}

/// Without a dot product of bytes those with stride 2 whose inputs grow little, so that sums of 16 bits last.
#[test]
fn strided_winograd_is_the_default_where_it_was_faster() {
    let default = |machine| Schedule::default_for(&filtered(56, 128, [3, 3], [2, 2]), machine);
    let Schedule::Winograd(in_sums) = default(AVX2) else { panic!("{}", default(AVX2)) };
    assert_eq!(in_sums.multiply, Multiply::Sum16);
    assert!([[2, 2], [3, 2], [3, 3]].contains(&in_sums.outputs), "{in_sums}");
    let Schedule::Winograd(in_dots) = default(AVX512) else { panic!("{}", default(AVX512)) };
    assert_eq!(in_dots.multiply, Multiply::Dot);
}

#[test]
fn other_kernels_have_the_default_only() {
    let ty = TensorType::new(Elem::I16, [1, 2, 2, 8]);
    let add = vec![(Add {}.into(), vec![Arg::Operand(0), Arg::Operand(1)])];
    let add = KernelSpec::new(vec![ty.clone(), ty], add).unwrap();
    let depthwise = conv([4, 4], 8, 8, Elem::I8, 8);
    for spec in [add, depthwise] {
        assert_eq!(Schedule::candidates(&spec, X86), [Schedule::Default]);
        Schedule::Default.legal(&spec, X86).unwrap();
        let tile: Schedule = "conv mr=3 nr=4 tiles=1 blocks=1".parse().unwrap();
        assert!(matches!(tile.legal(&spec, X86), Err(ScheduleError::Illegal { .. })));
    }
}

/// Tiles of an odd number of pixels begin in different phases where cells are two columns wide.
#[test]
fn depthwise_tiles_begin_in_one_phase() {
    let bytes = conv([14, 14], 96, 96, Elem::I8, 96);
    let words = conv_of(Elem::I16, [14, 14], 96, 96, Elem::I8, 96);
    let one_tile = conv([7, 7], 96, 96, Elem::I8, 96);
    let odd: Schedule = "depthwise mr=7 rows=7 vectors=3".parse().unwrap();
    let even: Schedule = "depthwise mr=6 rows=7 vectors=3".parse().unwrap();
    let error = odd.legal(&bytes, AVX512).unwrap_err().to_string();
    assert!(error.contains("either column"), "{error}");
    even.legal(&bytes, AVX512).unwrap();
    for (spec, machine) in [(&words, AVX512), (&one_tile, AVX512), (&bytes, AVX2)] {
        odd.legal(spec, machine).unwrap();
    }
}

/// The tap that a place of a cell meets is the one that lies there.
#[test]
fn cells_hold_the_taps_of_every_output() {
    for (kernel, stride, dilation, cell) in
        [(3, 1, 1, 2), (3, 2, 1, 2), (5, 3, 2, 2), (1, 1, 1, 2), (2, 2, 3, 2), (7, 1, 1, 1)]
    {
        let axis = CellAxis { kernel, stride, dilation, cell };
        for output in 0..5 {
            let (first, phase) = axis.begin(output);
            assert!(phase < axis.phases());
            let taps: Vec<usize> = (0..kernel).map(|tap| output * stride + tap * dilation).collect();
            let cells = axis.cells(phase);
            assert!(cells.iter().all(|cell| axis.all_cells().contains(cell)));
            let met = |&cell: &usize| {
                let places = (0..axis.cell).map(move |place| (place, axis.tap(phase, cell, place)));
                places.filter_map(move |(place, tap)| tap.map(|tap| (tap, (first + cell) * axis.cell + place)))
            };
            let mut found: Vec<(usize, usize)> = cells.iter().flat_map(met).collect();
            found.sort_unstable();
            assert_eq!(found, taps.into_iter().enumerate().collect::<Vec<_>>(), "{axis:?} {output}");
            assert!(cells.iter().all(|cell| first + cell < axis.extent(output + 1)), "{axis:?} {output}");
        }
    }
}

#[test]
fn illegal_and_malformed_schedules_say_why() {
    let spec = conv([4, 4], 8, 8, Elem::I4, 1);
    for (text, expected) in [
        ("default", "needs a tile"),
        ("conv mr=2 nr=3 tiles=1 blocks=1", "must be even"),
        ("conv mr=4 nr=4 tiles=1 blocks=1", "exceed 16 registers"),
        ("conv mr=0 nr=4 tiles=1 blocks=1", "1 to 8 pixels"),
        ("conv mr=1 nr=4 tiles=0 blocks=1", "1 to 65536"),
    ] {
        let error = text.parse::<Schedule>().unwrap().legal(&spec, X86).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let spec = conv_of(Elem::U4, [4, 4], 128, 64, Elem::I4, 1);
    let strided = filtered(16, 32, [3, 3], [2, 2]);
    let large = filtered(16, 32, [5, 5], [1, 1]);
    for (spec, text, expected) in [
        (&strided, "winograd mul=dot m=4x2 mr=6 nr=2 rows=2 blocks=1", ""),
        (&strided, "winograd mul=dot m=4x4 mr=6 nr=2 rows=2 blocks=1", "do not fit lanes of i8"),
        (&strided, "winograd mul=i16 m=4x4 mr=6 nr=2 rows=2 blocks=1", ""),
        (&strided, "winograd mul=i16 m=4x4 mr=8 nr=1 rows=2 blocks=1", "a tile is 1 to 7"),
        (&strided, "winograd mul=i16 m=6x6 mr=6 nr=2 rows=2 blocks=1", "at stride 2x2 are: m=4x4, m=4x3,"),
        (&strided, "winograd mul=dot m=2x2 taps=3+2 mr=6 nr=2 rows=2 blocks=1", "at stride 2x2 are: m=4x4,"),
        (&large, "winograd mul=dot m=2x2 taps=3+2 mr=6 nr=2 rows=2 blocks=1", ""),
        (&large, "winograd mul=dot m=2x2 mr=6 nr=2 rows=2 blocks=1", "do not fit lanes of i8"),
        (&large, "winograd mul=dot m=2x2 taps=4+3 mr=6 nr=2 rows=2 blocks=1", "are: m=2x2, m=4x4 taps=3+2,"),
    ] {
        let result = text.parse::<Schedule>().unwrap().legal(spec, AVX512);
        assert_eq!(result.is_ok(), expected.is_empty(), "{text}");
        let shown = result.map_or_else(|error| error.to_string(), |()| String::new());
        assert!(shown.contains(expected), "{text}: {shown}");
    }
    for (text, expected) in [
        ("strassen levels=1 mr=7 nr=4 tiles=4 blocks=1", ""),
        ("strassen levels=2 mr=7 nr=4 tiles=4 blocks=1", "256 channels at a time"),
        ("strassen levels=3 mr=7 nr=4 tiles=4 blocks=1", "levels are 1 to 2"),
        ("strassen levels=1 mr=8 nr=4 tiles=4 blocks=1", "needs 33 registers"),
        ("strassen levels=1 mr=9 nr=1 tiles=4 blocks=1", "1 to 8 by 1 to 4"),
        ("strassen levels=1 mr=7 nr=4 tiles=0 blocks=1", "tiles are 1 to 1024"),
        ("strassen levels=1 mr=7 nr=4 tiles=9 blocks=1", "there are 8 tiles"),
    ] {
        let result = text.parse::<Schedule>().unwrap().legal(&spec, AVX512);
        assert_eq!(result.is_ok(), expected.is_empty(), "{text}");
        let shown = result.map_or_else(|error| error.to_string(), |()| String::new());
        assert!(shown.contains(expected), "{text}: {shown}");
    }
    // Groups of three vectors.
    let spec = conv([4, 4], 64, 96, Elem::I8, 4);
    for (nr, is_legal) in [(1, true), (2, false), (3, true), (4, false)] {
        let schedule: Schedule = format!("wide mul=i16 mr=2 nr={nr} rows=1 blocks=1").parse().unwrap();
        let result = schedule.legal(&spec, AVX2);
        assert_eq!(result.is_ok(), is_legal, "{nr}");
        assert!(result.err().is_none_or(|e| e.to_string().contains("sections of 3 vectors")), "{nr}");
    }
    let winograd: Schedule = "winograd mul=i16 m=4x4 mr=2 nr=1 rows=1 blocks=1".parse().unwrap();
    assert!(winograd.legal(&spec, AVX2).unwrap_err().to_string().contains("in 4 groups"));
    for text in [
        "",
        "conv",
        "conv mr=03 nr=4 tiles=1 blocks=1",
        "conv nr=4 mr=3 tiles=1 blocks=1",
        "Default",
        "winograd mul=dot m=2x2 taps=2+3 mr=6 nr=2 rows=2 blocks=1",
    ] {
        assert_eq!(text.parse::<Schedule>(), Err(ScheduleError::Syntax(text.to_owned())));
    }
}
