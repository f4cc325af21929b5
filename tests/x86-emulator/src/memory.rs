//! The process's own memory, with a list of what the emulated code may touch.

use std::cell::Cell;

use crate::fault::{Done, FaultKind};

#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    end: u64,
    writable: bool,
}

/// Allowed regions. An access must lie in one region.
#[derive(Debug)]
pub(crate) struct Memory {
    /// The stack's first.
    regions: Vec<Region>,
    /// The region of the last access.
    last: Cell<usize>,
    /// Whether anything but the stack was listed: if not, everything is allowed.
    restricted: bool,
}

impl Memory {
    pub fn new() -> Memory {
        let stack = Region { start: 0, end: 0, writable: true };
        Memory { regions: vec![stack], last: Cell::new(0), restricted: false }
    }

    pub fn set_stack(&mut self, address: u64, bytes: usize) {
        (self.regions[0].start, self.regions[0].end) = (address, address + bytes as u64);
    }

    pub fn allow(&mut self, address: u64, bytes: usize, writable: bool) {
        self.restricted = true;
        self.regions.push(Region { start: address, end: address.saturating_add(bytes as u64), writable });
    }

    /// Restricts to the stack.
    pub fn forbid(&mut self) {
        self.regions.truncate(1);
        self.restricted = true;
    }

    fn allowed(&self, address: u64, bytes: usize, write: bool) -> bool {
        let Some(end) = address.checked_add(bytes as u64) else { return false };
        let holds = |region: &Region| region.start <= address && end <= region.end && (region.writable || !write);
        if !self.restricted || self.regions.get(self.last.get()).is_some_and(holds) {
            return true;
        }
        match self.regions.iter().position(holds) {
            Some(found) => {
                self.last.set(found);
                true
            }
            None => false,
        }
    }

    #[inline]
    pub fn read<const N: usize>(&self, address: u64) -> Done<[u8; N]> {
        if !self.allowed(address, N, false) {
            return Err(FaultKind::Read { address, bytes: N });
        }
        // SAFETY: `Machine::call` demands that allowed memory is mapped, and memory is unrestricted
        // only where the caller vouches for the code.
        Ok(unsafe { (address as *const [u8; N]).read_unaligned() })
    }

    #[inline]
    pub fn read_into(&self, address: u64, out: &mut [u8]) -> Done {
        if !self.allowed(address, out.len(), false) {
            return Err(FaultKind::Read { address, bytes: out.len() });
        }
        // SAFETY: as in `read`; `out` is the emulator's own and not what the code can name.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    #[inline]
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Done {
        if !self.allowed(address, bytes.len(), true) {
            return Err(FaultKind::Write { address, bytes: bytes.len() });
        }
        // SAFETY: as in `read_into`, for writing.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }
}
