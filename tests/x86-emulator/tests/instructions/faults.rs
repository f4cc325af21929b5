//! What the machine refuses, calls in both directions, and memory under masks.

use hawqc_x86_emulator::{Fault, FaultKind, Features, Machine};

use crate::enumerate::{Evex, Opcode, Shape};

fn avx2() -> Machine {
    Machine::new(Features::named(["ssse3", "sse4.1", "avx", "avx2"]).unwrap())
}

/// Calls `code` with the address of `memory`, all that it may touch, as its argument.
fn call(mut machine: Machine, code: &[u8], memory: &mut [u8]) -> Result<u64, Fault> {
    // SAFETY: restricted to `memory`.
    unsafe {
        machine.add_code(code.as_ptr(), code.len());
        machine.allow_write(memory.as_mut_ptr(), memory.len());
        machine.call(code.as_ptr(), &[memory.as_ptr() as u64])
    }
}

fn refused(code: &[u8]) -> FaultKind {
    call(avx2(), code, &mut [0; 4]).unwrap_err().kind
}

#[repr(C, align(64))]
struct Aligned([u8; 128]);

#[test]
fn faults_name_the_instruction() {
    // mov eax, [rdi]; add eax, [rdi+4]; ret
    let code = [0x8b, 0x07, 0x03, 0x47, 0x04, 0xc3];
    let mut memory = [1, 0, 0, 0, 2, 0, 0, 0];
    assert_eq!(call(avx2(), &code, &mut memory), Ok(3));
    let fault = call(avx2(), &code, &mut memory[..7]).unwrap_err();
    let address = memory.as_ptr() as u64 + 4;
    assert_eq!(fault.kind, FaultKind::Read { address, bytes: 4 });
    assert_eq!((fault.address, fault.instruction.as_str()), (code.as_ptr() as u64 + 2, "add eax,[rdi+4]"));
    // mov [rdi+1], eax; ret
    let fault = call(avx2(), &[0x89, 0x47, 0x01, 0xc3], &mut memory[..4]).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Write { address: memory.as_ptr() as u64 + 1, bytes: 4 });
}

#[test]
fn what_is_not_emulated_is_refused() {
    assert_eq!(refused(&[0x06, 0xc3]), FaultKind::Undecodable);
    // lock add [rdi], eax; std; div ecx
    assert_eq!(refused(&[0xf0, 0x01, 0x07, 0xc3]), FaultKind::Unsupported);
    assert_eq!(refused(&[0xfd, 0xc3]), FaultKind::Unsupported);
    assert_eq!(refused(&[0xf7, 0xf1, 0xc3]), FaultKind::Division);
    // Code that ends without returning; a jump to an address that is not code.
    assert!(matches!(refused(&[0x90]), FaultKind::OutsideCode(_)));
    assert!(matches!(refused(&[0xff, 0xe7]), FaultKind::OutsideCode(_)));
    // mov rbx, 1; ret, and pop rax; push rax; push rax; ret: one more on the stack
    let saved = refused(&[0x48, 0xc7, 0xc3, 1, 0, 0, 0, 0xc3]);
    assert!(matches!(saved, FaultKind::CalleeSaved { register: "rbx", found: 1, .. }));
    let saved = refused(&[0x58, 0x50, 0x50, 0xc3]);
    assert!(matches!(saved, FaultKind::CalleeSaved { register: "rsp", .. }));
    let mut machine = avx2();
    machine.limit = 1000;
    assert_eq!(call(machine, &[0xeb, 0xfe], &mut []).unwrap_err().kind, FaultKind::Limit(1000));
}

#[test]
fn features_outside_the_set_are_refused() {
    // vpaddd zmm1, zmm2, zmm3 and xmm; vpdpbusd ymm by VEX; shlx
    let add = Opcode { map: 1, prefix: 1, w: 0, byte: 0xfe };
    let wide = Evex { length: 2, mask: 0, zeroing: false, broadcast: false };
    let add = |length| add.evex(Evex { length, ..wide }, true, Shape::Register, 1, 3, 0xc3);
    let dot = Opcode { map: 2, prefix: 1, w: 0, byte: 0x50 }.vex(1, true, Shape::Register, 1, 3, 0xc3);
    assert_eq!(refused(&add(2)), FaultKind::Feature("avx512f"));
    assert_eq!(refused(&dot), FaultKind::Feature("avxvnni"));
    assert_eq!(refused(&[0xc4, 0xe2, 0x71, 0xf7, 0xc7, 0xc3]), FaultKind::Feature("bmi2"));
    let some = |names: &[&str]| Machine::new(Features::named(names.iter().copied()).unwrap());
    assert!(call(some(&["avx512f"]), &add(2), &mut []).is_ok());
    let fault = call(some(&["avx512f"]), &add(0), &mut []).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Feature("avx512vl"));
    assert!(call(some(&["avxvnni", "avx2"]), &dot, &mut []).is_ok());
    assert!(Features::named(["avx1024"]).is_err());
}

#[test]
fn alignment_is_demanded_where_the_processor_does() {
    let mut memory = Aligned([0; 128]);
    let mut at = |code: &[u8], offset: usize| call(avx2(), code, &mut memory.0[offset..]).map_err(|fault| fault.kind);
    // vmovdqa ymm1, [rdi]; paddd xmm0, [rdi]; movaps [rdi], xmm1; vpaddd xmm0, xmm0, [rdi]; movdqu xmm0, [rdi]
    let vmovdqa = [0xc5, 0xfd, 0x6f, 0x0f, 0xc3];
    for code in [&vmovdqa[..], &[0x66, 0x0f, 0xfe, 0x07, 0xc3], &[0x0f, 0x29, 0x0f, 0xc3]] {
        assert!(at(code, 32).is_ok());
        assert!(matches!(at(code, 8), Err(FaultKind::Misaligned { .. })));
    }
    assert!(matches!(at(&vmovdqa, 16), Err(FaultKind::Misaligned { bytes: 32, .. })));
    for code in [&[0xc5, 0xf9, 0xfe, 0x07, 0xc3][..], &[0xf3, 0x0f, 0x6f, 0x07, 0xc3]] {
        assert!(at(code, 1).is_ok());
    }
}

#[test]
fn masked_out_memory_is_not_touched() {
    let masked = |opcode: Opcode, length, zeroing| {
        let evex = Evex { length, mask: 1, zeroing, broadcast: false };
        opcode.evex(evex, false, Shape::Plain, 1, 0, 0)
    };
    // vmovdqu8 zmm1 {k1}{z}, [rbx]; vmovdqu8 [rbx] {k1}, zmm1; vpmovusdb [rbx] {k1}, zmm1
    let load = masked(Opcode { map: 1, prefix: 3, w: 0, byte: 0x6f }, 2, true);
    let store = masked(Opcode { map: 1, prefix: 3, w: 0, byte: 0x7f }, 2, false);
    let narrow = masked(Opcode { map: 2, prefix: 2, w: 0, byte: 0x11 }, 2, false);
    let step = |code: &[u8], mask: u64, memory: &mut [u8]| {
        let mut machine = Machine::new(Features::all());
        machine.general[3] = memory.as_ptr() as u64;
        machine.masks[1] = mask;
        machine.vectors[1].0 = std::array::from_fn(|n| 0x40 + n as u8);
        // SAFETY: restricted to `memory`.
        unsafe {
            machine.add_code(code.as_ptr(), code.len());
            machine.allow_write(memory.as_mut_ptr(), memory.len());
            machine.step(code.as_ptr()).map(|_| machine).map_err(|fault| fault.kind)
        }
    };
    let mut memory = [9, 8, 7];
    let loaded = step(&load, 0b101, &mut memory).unwrap().vectors[1];
    assert_eq!((&loaded.0[..4], loaded.0[4..].iter().all(|b| *b == 0)), (&[9, 0, 7, 0][..], true));
    assert!(matches!(step(&load, 0b1101, &mut memory), Err(FaultKind::Read { bytes: 1, .. })));
    step(&store, 0b110, &mut memory).unwrap();
    assert_eq!(memory, [9, 0x41, 0x42]);
    assert!(matches!(step(&store, 1 << 63, &mut memory), Err(FaultKind::Write { bytes: 1, .. })));
    step(&narrow, 0b001, &mut memory).unwrap();
    assert_eq!(memory, [0xff, 0x41, 0x42]);
}

#[test]
fn compressed_displacements_count_vectors() {
    let evex = Evex { length: 2, mask: 0, zeroing: false, broadcast: false };
    let code = Opcode { map: 1, prefix: 3, w: 0, byte: 0x6f }.evex(evex, false, Shape::Indexed, 0, 0, 0);
    let mut memory = [0u8; 2048];
    memory[16 + 16 * 64] = 77;
    let mut machine = Machine::new(Features::all());
    (machine.general[3], machine.general[6]) = (memory.as_ptr() as u64, 8);
    // SAFETY: restricted to `memory`.
    unsafe {
        machine.add_code(code.as_ptr(), code.len());
        machine.allow_write(memory.as_mut_ptr(), memory.len());
        machine.step(code.as_ptr()).unwrap();
    }
    assert_eq!(machine.vectors[0].0[0], 77);
}

#[test]
fn callbacks_are_called_and_call_back() {
    const HOST: u64 = 0x1234_5678;
    // lea rax, [rdi+rsi]; ret. Then: push rbx; call rdi; pop rbx; ret. Then: call rdi; ret.
    let code = [0x48, 0x8d, 0x04, 0x37, 0xc3, 0x53, 0xff, 0xd7, 0x5b, 0xc3, 0xff, 0xd7, 0xc3];
    let mut machine = avx2();
    // SAFETY: the code touches the stack only.
    unsafe { machine.add_code(code.as_ptr(), code.len()) };
    machine.on_call(
        HOST,
        Box::new(|machine, [_, entry, a, ..]| {
            let mut sum = 0;
            for n in 0..3 {
                // SAFETY: as above.
                sum += unsafe { machine.call(entry as *const u8, &[a, n])? };
            }
            Ok(sum)
        }),
    );
    let entry = |offset: usize| code[offset..].as_ptr();
    for _ in 0..2 {
        // SAFETY: as above.
        assert_eq!(unsafe { machine.call(entry(5), &[HOST, entry(0) as u64, 100]) }, Ok(303));
    }
    // SAFETY: as above.
    let fault = unsafe { machine.call(entry(10), &[HOST, entry(0) as u64, 100]) }.unwrap_err();
    assert!(matches!(fault.kind, FaultKind::StackAlignment(_)));
}
