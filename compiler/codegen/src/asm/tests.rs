use super::*;

#[test]
fn too_many_registers_are_refused() {
    let (mut asm, argument) = Asm::new(Isa::Avx2);
    let all = asm.vecs(17);
    all.iter().for_each(|&v| asm.load(v, Mem::at(argument, 0)));
    all.iter().for_each(|&v| asm.store(Mem::at(argument, 0), v));
    assert!(matches!(asm.finish(), Err(AsmError::Registers { needed: 17, available: 16, .. })));
}

/// A register that appears before a loop keeps its place through the loop.
#[test]
fn loops_keep_what_they_need() {
    let (mut asm, argument) = Asm::new(Isa::Avx2);
    let outer = asm.vec();
    asm.load(outer, Mem::at(argument, 0));
    asm.repeat(3, |asm| {
        let sum = asm.vec();
        asm.binary(Binary::AddI32, sum, outer, outer);
        let other = asm.vec();
        asm.load(other, Mem::at(argument, 32));
        asm.store(Mem::at(argument, 64), other);
    });
    let allocation = alloc::allocate(&asm).unwrap();
    assert!(allocation.vecs[1..].iter().all(|&r| r != allocation.vecs[0]));
    assert!(asm.finish().is_ok());
}

/// Two pieces of code beside each other keep their own order and are spread evenly.
#[test]
fn pieces_are_mixed_evenly() {
    let order = |firsts: usize, seconds: usize| -> Vec<usize> {
        let (mut asm, argument) = Asm::new(Isa::Avx2);
        let put = |asm: &mut Asm, places: std::ops::Range<usize>| {
            places.for_each(|place| asm.prefetch(Mem::at(argument, place)));
        };
        asm.beside(|asm| put(asm, 0..firsts), |asm| put(asm, 100..100 + seconds));
        let place = |item: &Item| match item {
            Item::Inst(inst) => inst.operands.iter().find_map(|operand| match operand {
                Operand::Mem(mem) => Some(mem.disp as usize),
                _ => None,
            }),
            _ => None,
        };
        asm.items.iter().filter_map(place).collect()
    };
    assert_eq!(order(4, 2), [0, 100, 1, 2, 101, 3]);
    assert_eq!(order(2, 4), [0, 100, 101, 1, 102, 103]);
    assert_eq!(order(3, 0), [0, 1, 2]);
    assert_eq!(order(0, 2), [100, 101]);
}
