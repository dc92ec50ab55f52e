//! Owns the VMM's side of the tiny guest: its RAM for whoever reads code, and what it rings. Never
//! runs the guest.

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use anyhow::anyhow;
use hypervisor::{HypervisorVmError, VmOps};

use crate::memory::Memory;

type Result<T> = std::result::Result<T, HypervisorVmError>;

pub struct Ops {
    pub ram: Arc<Memory>,
    /// Device writes since the last look: address and value.
    pub rung: Mutex<Vec<(u64, u64)>>,
}

impl VmOps for Ops {
    fn guest_mem_write(&self, _: u64, _: &[u8]) -> Result<usize> {
        Err(HypervisorVmError::GuestMemWrite(anyhow!("not for tests")))
    }

    fn guest_mem_read(&self, at: u64, into: &mut [u8]) -> Result<usize> {
        let read = self.ram.file.as_ref().unwrap().read_at(into, at);
        read.map_err(|error| HypervisorVmError::GuestMemRead(error.into()))
    }

    fn mmio_read(&self, _: u64, into: &mut [u8]) -> Result<()> {
        into.fill(0x55);
        Ok(())
    }

    fn mmio_write(&self, at: u64, from: &[u8]) -> Result<()> {
        let value = from.iter().rev();
        let value = value.fold(0, |value, byte| value << 8 | u64::from(*byte));
        self.rung.lock().unwrap().push((at, value));
        Ok(())
    }

    fn pio_read(&self, _: u64, into: &mut [u8]) -> Result<()> {
        into.fill(0);
        Ok(())
    }

    fn pio_write(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
}
