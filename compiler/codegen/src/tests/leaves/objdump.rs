//! A second decoder: GNU objdump reads the same bytes.
//!
//! In: machine code. Out: what each decoder takes it for, an instruction a line, in one notation; and where they
//! disagree. iced-x86 encodes as it decodes, so its own decoder cannot tell that an encoding is wrong; objdump is by
//! other authors.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Command;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, MemorySizeOptions};

/// An instruction as a decoder reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub at: usize,
    pub bytes: usize,
    pub mnemonic: String,
    pub operands: String,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}+{} `{} {}`", self.at, self.bytes, self.mnemonic, self.operands)
    }
}

/// What objdump writes and iced-x86 does not: which of two encodings it is, and a displacement of 0 that the encoding
/// cannot do without. They have the same name for every instruction that is assembled.
const NOTATION: [(&str, &str); 2] = [("{vex} ", ""), ("+0x0]", "]")];

/// `code` from its first byte to its last, instruction by instruction.
pub fn by_iced(code: &[u8]) -> Vec<Line> {
    let mut formatter = IntelFormatter::new();
    // objdump's notation: every number in hexadecimal with 0x, every size and scale written out.
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_small_hex_numbers_in_decimal(false);
    options.set_leading_zeros(false);
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    options.set_always_show_scale(true);
    options.set_memory_size_options(MemorySizeOptions::Always);
    let line = |instruction: Instruction| {
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        line(instruction.ip() as usize, instruction.len(), &text)
    };
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE).into_iter().map(line).collect()
}

/// The same by objdump; none if there is no objdump, which is said on standard error and is a failure where
/// `HAWQC_REQUIRE` names `objdump` or is `all`.
pub fn by_objdump(code: &[u8]) -> Option<Vec<Line>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(code).unwrap();
    let arguments = "-D -z -w -b binary -m i386:x86-64 -M intel --insn-width=15";
    let mut command = Command::new("objdump");
    let output = match command.env("LC_ALL", "C").args(arguments.split(' ')).arg(file.path()).output() {
        Ok(output) => output,
        Err(error) => {
            // Past the capture of a test that passes.
            writeln!(std::io::stderr(), "SKIPPED: no second decoder has read the assembled code: objdump: {error}")
                .unwrap();
            let required = std::env::var("HAWQC_REQUIRE").unwrap_or_default();
            let demanded = required.split(',').any(|r| r == "all" || r == "objdump");
            assert!(!demanded, "HAWQC_REQUIRE={required}, and there is no objdump");
            return None;
        }
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "objdump: {}{text}", String::from_utf8_lossy(&output.stderr));
    Some(listing(&text))
}

/// What objdump wrote.
pub fn listing(text: &str) -> Vec<Line> {
    text.lines().filter_map(parse).collect()
}

/// `  1a:\t62 f2 75 48 50 c2    \tvpdpbusd zmm0,zmm1,zmm2`; none for headings.
fn parse(text: &str) -> Option<Line> {
    let (at, rest) = text.split_once(":\t")?;
    let at = usize::from_str_radix(at.trim(), 16).ok()?;
    let (bytes, text) = rest.split_once('\t').unwrap_or((rest, ""));
    Some(line(at, bytes.split_whitespace().count(), text))
}

fn line(at: usize, bytes: usize, text: &str) -> Line {
    let text = NOTATION.iter().fold(text.to_lowercase(), |text, (from, to)| text.replace(from, to));
    let (mnemonic, operands) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    Line { at, bytes, mnemonic: mnemonic.to_owned(), operands: operands.trim().to_owned() }
}

/// Where two readings of the same bytes differ: the address, and the difference for people.
pub fn disagreements(iced: &[Line], objdump: &[Line]) -> Vec<(usize, String)> {
    let mut all = Vec::new();
    let places: BTreeSet<usize> = iced.iter().chain(objdump).map(|line| line.at).collect();
    let (mut iced, mut objdump) = (iced.iter().peekable(), objdump.iter().peekable());
    for at in places {
        let readings = [iced.next_if(|line| line.at == at), objdump.next_if(|line| line.at == at)];
        let is_bad = readings.iter().flatten().any(|line| line.mnemonic == "(bad)");
        if readings[0] != readings[1] || is_bad {
            let [mine, other] = readings.map(|line| line.map_or("no instruction".to_owned(), ToString::to_string));
            all.push((at, format!("iced-x86 reads {mine}, objdump {other}")));
        }
    }
    all
}
