//! What the calling convention asks of a function that calls nothing, judged from its instructions.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

const CALLEE_SAVED: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// Checks `[push..] [sub rsp] body [add rsp] [pop..] vzeroupper ret`: the body changes no callee-saved register that is
/// not pushed and never the stack pointer, touches no memory by it outside the frame, and jumps only within itself.
pub fn check(code: &[u8]) -> Result<(), String> {
    let all: Vec<Instruction> = Decoder::new(64, code, DecoderOptions::NONE).into_iter().collect();
    let pushed: Vec<Register> =
        all.iter().map_while(|i| (i.mnemonic() == Mnemonic::Push).then(|| i.op0_register())).collect();
    if let Some(other) = pushed.iter().find(|r| !CALLEE_SAVED.contains(r)) {
        return Err(format!("pushes {other:?}"));
    }
    let mut body = &all[pushed.len()..];
    let frame = body.first().and_then(|i| frame_change(i, Mnemonic::Sub));
    body = &body[usize::from(frame.is_some())..];
    for (wanted, mnemonic) in [("ret", Mnemonic::Ret), ("vzeroupper", Mnemonic::Vzeroupper)] {
        body = body.split_last().filter(|(i, _)| i.mnemonic() == mnemonic).ok_or(format!("lacks its last {wanted}"))?.1;
    }
    for &register in &pushed {
        let restores = |i: &Instruction| i.mnemonic() == Mnemonic::Pop && i.op0_register() == register;
        body =
            body.split_last().filter(|(i, _)| restores(i)).ok_or(format!("does not pop {register:?} in its turn"))?.1;
    }
    if let Some(bytes) = frame {
        let frees = |i: &Instruction| frame_change(i, Mnemonic::Add) == Some(bytes);
        body = body.split_last().filter(|(i, _)| frees(i)).ok_or(format!("does not free {bytes} bytes of frame"))?.1;
    }
    let mut factory = InstructionInfoFactory::new();
    body.iter().try_for_each(|i| {
        let say = |problem: String| format!("at {:#x}: `{i}` {problem}", i.ip());
        check_body(i, &mut factory, &pushed, frame.unwrap_or(0), body).map_err(say)
    })
}

/// The bytes of `sub rsp, bytes` or `add rsp, bytes`.
fn frame_change(instruction: &Instruction, mnemonic: Mnemonic) -> Option<u64> {
    let is_one = instruction.mnemonic() == mnemonic && instruction.op0_register() == Register::RSP;
    let is_constant = matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64);
    (is_one && is_constant).then(|| instruction.immediate(1))
}

fn check_body(
    instruction: &Instruction,
    factory: &mut InstructionInfoFactory,
    pushed: &[Register],
    frame: u64,
    body: &[Instruction],
) -> Result<(), String> {
    match instruction.flow_control() {
        FlowControl::Next => {}
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
            let target = instruction.near_branch_target();
            if !body.iter().any(|i| i.ip() == target) {
                return Err("leaves the body".to_owned());
            }
        }
        _ => return Err("is neither a jump nor goes on".to_owned()),
    }
    let info = factory.info(instruction);
    for used in info.used_registers() {
        let register = used.register().full_register();
        let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
        if writes && register == Register::RSP {
            return Err("moves the stack pointer".to_owned());
        }
        if writes && CALLEE_SAVED.contains(&register) && !pushed.contains(&register) {
            return Err(format!("changes {register:?}, which is not saved"));
        }
    }
    for memory in info.used_memory() {
        if memory.base() != Register::RSP && memory.index() != Register::RSP {
            continue;
        }
        let end = memory.displacement().checked_add(memory.memory_size().size() as u64);
        // An index goes through the frame; how far, the code does not tell.
        let inside = memory.index() != Register::RSP && end.is_some_and(|end| end <= frame);
        if !inside {
            return Err(format!("touches memory outside the frame of {frame} bytes"));
        }
    }
    Ok(())
}
