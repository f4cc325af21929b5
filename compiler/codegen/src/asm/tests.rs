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
