//! Linking with an installed C compiler, when asked to.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use super::LinkError;
use crate::object::EXPORTS;

pub(super) fn link(command: &str, object: &[u8], soname: &str) -> Result<Vec<u8>, LinkError> {
    // The object is held to the same rules as for the own linker.
    super::input::Input::read(object)?;
    let failed = |message: String| LinkError::Cc { command: command.to_owned(), message };
    let folder = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
    let (input, output) = (folder.path().join("model.o"), folder.path().join("model.so"));
    let script = folder.path().join("exports.map");
    let exports = format!("{{ global: {}; local: *; }};\n", EXPORTS.join("; "));
    fs::write(&input, object).map_err(|error| failed(error.to_string()))?;
    fs::write(&script, exports).map_err(|error| failed(error.to_string()))?;
    let mut version_script = OsStr::new("-Wl,--version-script=").to_owned();
    version_script.push(&script);
    let finished = Command::new(command)
        .args(["-shared", "-nostdlib", "-Wl,-z,noexecstack", "-Wl,-z,text"])
        .args(["-Wl,-Bsymbolic", "-Wl,--build-id=none"])
        .arg(format!("-Wl,-soname,{soname}"))
        .arg(version_script)
        .arg(&input)
        .arg("-o")
        .arg(&output)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !finished.status.success() {
        let message = String::from_utf8_lossy(&finished.stderr).trim().to_owned();
        return Err(failed(format!("{}: {message}", finished.status)));
    }
    fs::read(&output).map_err(|error| failed(error.to_string()))
}
