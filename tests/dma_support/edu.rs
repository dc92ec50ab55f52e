//! Owns the driver of QEMU's device `edu`, behind VFIO: a device that does DMA when it is told to.
//! Never maps memory for it.
//!
//! The device has a buffer of its own. It copies from guest memory into the buffer, or from the
//! buffer into guest memory (QEMU: `docs/specs/edu.rst`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_ioctls::{VfioContainer, VfioDevice};

use crate::guest_support::wait_for;

/// Regions of a VFIO PCI device.
const BAR0: u32 = 0;
const CONFIG: u32 = 7;
/// Registers in BAR 0.
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const START: u32 = 1;
const TO_MEMORY: u32 = 2;
/// Where the device's own buffer lies for it.
const BUFFER: u32 = 0x4_0000;

/// The device and its container; one at a time in a process.
pub(crate) struct Edu {
    pub(crate) container: Arc<VfioContainer>,
    device: VfioDevice,
    _alone: MutexGuard<'static, ()>,
}

impl Edu {
    /// Takes the device, or says why there is none.
    pub(crate) fn open() -> Result<Self, String> {
        static ALONE: Mutex<()> = Mutex::new(());
        let path = find().ok_or("there is no edu device (PCI 1234:11e8)")?;
        if !path.join("iommu_group").exists() {
            return Err("the edu device is behind no IOMMU".to_owned());
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        bind(&path).map_err(|error| format!("cannot bind edu to vfio-pci: {error}"))?;
        let container = VfioContainer::new(None).map_err(|error| error.to_string())?;
        let container = Arc::new(container);
        let device = VfioDevice::new(&path, Arc::clone(&container) as _, false);
        let edu = Self {
            container,
            device: device.map_err(|error| error.to_string())?,
            _alone: alone,
        };
        edu.enable();
        Ok(edu)
    }

    /// Lets the device answer at its addresses, and do DMA.
    fn enable(&self) {
        let mut command = [0; 2];
        self.device.region_read(CONFIG, &mut command, 4);
        command[0] |= 0b110;
        self.device.region_write(CONFIG, &command, 4);
        let mut identification = [0; 4];
        self.device.region_read(BAR0, &mut identification, 0);
        assert_eq!(identification[0], 0xed, "{identification:x?}");
    }

    /// Copies 64 bytes of memory into the device.
    pub(crate) fn fetch(&self, guest: u64) {
        self.run(u32::try_from(guest).unwrap(), BUFFER, START);
    }

    /// Copies 64 bytes of the device into memory.
    pub(crate) fn send(&self, guest: u64) {
        let command = START | TO_MEMORY;
        self.run(BUFFER, u32::try_from(guest).unwrap(), command);
    }

    fn run(&self, source: u32, destination: u32, command: u32) {
        for (register, value) in [
            (SOURCE, source),
            (DESTINATION, destination),
            (COUNT, 64),
            (COMMAND, command),
        ] {
            self.device
                .region_write(BAR0, &value.to_le_bytes(), register);
        }
        wait_for("end of the DMA", || {
            let mut command = [0; 4];
            self.device.region_read(BAR0, &mut command, COMMAND);
            u32::from_le_bytes(command) & START == 0
        });
    }
}

fn find() -> Option<PathBuf> {
    let devices = fs::read_dir("/sys/bus/pci/devices").ok()?;
    let is_edu = |path: &PathBuf| {
        let id = |name| fs::read_to_string(path.join(name)).unwrap_or_default();
        id("vendor").trim() == "0x1234" && id("device").trim() == "0x11e8"
    };
    devices.flatten().map(|entry| entry.path()).find(is_edu)
}

fn bind(device: &Path) -> std::io::Result<()> {
    let driver = fs::read_link(device.join("driver"));
    if driver.is_ok_and(|driver| driver.ends_with("vfio-pci")) {
        return Ok(());
    }
    fs::write(device.join("driver_override"), "vfio-pci")?;
    let name = device.file_name().unwrap_or_default();
    fs::write("/sys/bus/pci/drivers_probe", name.as_encoded_bytes())
}
