//! The checkpoint beside the output: appended to while measuring, removed when the output is there.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use hawqc_quantize::sensitivity::{Record, RunHead, checkpoint_head, checkpoint_line, read_checkpoint};

use crate::console::Console;
use crate::failure::{Failure, io};

/// A file that need not exist yet.
pub struct CheckpointFile {
    path: PathBuf,
    open: Option<File>,
}

impl CheckpointFile {
    pub fn beside(output: &Path) -> CheckpointFile {
        let mut name = output.as_os_str().to_owned();
        name.push(".partial");
        CheckpointFile { path: name.into(), open: None }
    }

    /// The records of an earlier, interrupted run of the same kind, in the order of their tasks. A line torn by the
    /// interruption is cut off.
    pub fn resume(&mut self, run: &RunHead, console: &Console) -> Result<Vec<Record>, Failure> {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(io(&self.path)(e)),
        };
        let found = read_checkpoint(&text, run).map_err(|e| {
            Failure::invalid(format!("{}: {e}", self.path.display()))
                .hint("it is from another run: repeat that command, remove the file, or give another output")
        })?;
        if found.whole_bytes < text.len() {
            console.warn(format!("{}: the last line is torn and left out", self.path.display()));
            let file = OpenOptions::new().write(true).open(&self.path).map_err(io(&self.path))?;
            file.set_len(found.whole_bytes as u64).map_err(io(&self.path))?;
        }
        console.note(format!("{} measurements are there already: {}", found.records.len(), self.path.display()));
        Ok(found.records)
    }

    /// Adds a record, as one line written at once.
    pub fn append(&mut self, run: &RunHead, record: &Record) -> Result<(), Failure> {
        let mut file = match self.open.take() {
            Some(file) => file,
            None => self.begin(run)?,
        };
        file.write_all(checkpoint_line(record).as_bytes()).map_err(io(&self.path))?;
        self.open = Some(file);
        Ok(())
    }

    /// Opens it behind what it holds, with the head of the run if that is nothing.
    fn begin(&self, run: &RunHead) -> Result<File, Failure> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).map_err(io(&self.path))?;
        if file.metadata().map_err(io(&self.path))?.len() == 0 {
            file.write_all(checkpoint_head(run).as_bytes()).map_err(io(&self.path))?;
        }
        Ok(file)
    }

    /// Removes it, if it is there.
    pub fn remove(self) -> Result<(), Failure> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(io(&self.path)(e)),
            _ => Ok(()),
        }
    }
}
