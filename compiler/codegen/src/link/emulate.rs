//! Running aarch64 models anywhere, for tests: an executable whose start code holds the shared object
//! as it would be mapped (addresses equal file offsets) and calls into it, under an emulator.

use std::process::Command;

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSymbol};

use crate::object::EXPORTS;

/// Calls `hawqc_run_integer` of a linked aarch64 model with `input` at `inputs[0]` and fills `output`
/// from `outputs[0]`. False, loudly, where a tool is missing.
pub(crate) fn emulate(shared: &[u8], input: &[u8], output: &mut [u8]) -> bool {
    let file = ElfFile64::<Endianness>::parse(shared).unwrap();
    let entry = file.dynamic_symbols().find(|symbol| symbol.name() == Ok(EXPORTS[2])).unwrap().address();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("model.so"), shared).unwrap();
    std::fs::write(path("input"), input).unwrap();
    let start = format!(
        ".text\n.p2align 16\nimage: .incbin \"model.so\"\n.p2align 4\n.global _start\n_start:\n\
         adrp x0, call\nadd x0, x0, :lo12:call\nadrp x1, image\nadd x1, x1, :lo12:image\n\
         ldr x2, =0x{entry:x}\nadd x1, x1, x2\nblr x1\n\
         mov x0, #1\nadrp x1, output\nadd x1, x1, :lo12:output\nmov x2, #{length}\nmov x8, #64\nsvc #0\n\
         mov x0, #0\nmov x8, #93\nsvc #0\n\
         .data\n.p2align 6\ncall: .quad inputs, outputs, 0, 1, 0, 0, 0, 0\n\
         inputs: .quad input\noutputs: .quad output\n\
         .p2align 6\ninput: .incbin \"input\"\n.p2align 6\noutput: .skip {length}\n",
        length = output.len()
    );
    std::fs::write(path("start.s"), start).unwrap();
    let steps: [(&str, &[&str]); 3] = [
        ("aarch64-linux-gnu-as", &["start.s", "-o", "start.o"]),
        ("aarch64-linux-gnu-ld", &["start.o", "-o", "start"]),
        ("qemu-aarch64", &["./start"]),
    ];
    for (command, args) in steps {
        let Ok(finished) = Command::new(command).args(args).current_dir(folder.path()).output() else {
            eprintln!("SKIPPED: `{command}` is not installed");
            return false;
        };
        let errors = String::from_utf8_lossy(&finished.stderr);
        assert!(finished.status.success(), "{command}: {errors}");
        if command == "qemu-aarch64" {
            assert_eq!(finished.stdout.len(), output.len());
            output.copy_from_slice(&finished.stdout);
        }
    }
    true
}
