//! Owns the ACPI tables: what the guest is told of its CPUs, interrupts, devices and the way to
//! power off. Never decides where anything lies.
//!
//! It is ACPI's "hardware-reduced" kind: no PIT, no PIC, no fixed registers but sleep and reset.

use acpi_tables::aml::{
    Device, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml::EISAName};
use anyhow::{Context as _, Result, ensure};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::layout::{ACPI, IO_APIC, LOCAL_APIC, RESET_VECTOR, VIRTIO_LEN};
use super::power::{OFF, PANIC_PORT, RESET_PORT, RESET_VALUE, SLEEP_PORT, STATUS_PORT};
use super::serial::{SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS};

const OEM: [u8; 6] = *b"VMREMP";
const OEM_TABLE: [u8; 8] = *b"VMREMAP ";
const REVISION: u32 = 1;
/// The revision of the DSDT from which on its integers have 64 bits.
const DSDT_REVISION: u8 = 2;
/// FADT, `IAPC_BOOT_ARCH`: no VGA, no clock in CMOS; and, by bits that are not set, no keyboard
/// controller and no devices of the old kind.
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;
/// The tables lie on multiples of this.
const ALIGN: u64 = 64;

/// A virtio-mmio device, as the guest finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioPlace {
    /// The guest-physical address of its registers.
    pub base: u32,
    /// Its interrupt.
    pub gsi: u32,
}

/// Writes the tables where the boot parameters say that they are.
///
/// # Errors
/// There are more devices than the place for the tables has room for.
pub(super) fn write(cpus: u8, devices: &[VirtioPlace], memory: &GuestMemoryMmap) -> Result<()> {
    for (address, bytes) in tables(cpus, devices)? {
        memory
            .write_slice(&bytes, GuestAddress(address))
            .context("cannot write ACPI tables into guest memory")?;
    }
    Ok(())
}

/// The tables, as (guest-physical address, bytes), the root pointer first.
fn tables(cpus: u8, devices: &[VirtioPlace]) -> Result<Vec<(u64, Vec<u8>)>> {
    let mut place = ACPI.saturating_add(u64::try_from(Rsdp::len())?);
    let mut placed = Vec::new();
    let mut put = |bytes: Vec<u8>| -> Result<u64> {
        let address = place.next_multiple_of(ALIGN);
        place = address.saturating_add(u64::try_from(bytes.len())?);
        ensure!(
            place <= RESET_VECTOR,
            "cannot describe {} devices to the guest: the ACPI tables have {} bytes of room",
            devices.len(),
            RESET_VECTOR.saturating_sub(ACPI)
        );
        placed.push((address, bytes));
        Ok(address)
    };
    let dsdt = put(dsdt(devices))?;
    let fadt = put(bytes(&fadt(dsdt)))?;
    let madt = put(bytes(&madt(cpus)))?;
    let mut root = XSDT::new(OEM, OEM_TABLE, REVISION);
    root.add_entry(fadt);
    root.add_entry(madt);
    let root = put(bytes(&root))?;
    placed.insert(0, (ACPI, bytes(&Rsdp::new(OEM, root))));
    Ok(placed)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn register(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        port.into(),
    )
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.reset_reg = register(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register(SLEEP_PORT);
    fadt.sleep_status_reg = register(STATUS_PORT);
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let local = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, REVISION, local);
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn dsdt(devices: &[VirtioPlace]) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, OEM_TABLE, REVISION);
    table.append_slice(&serial());
    table.append_slice(&panics());
    for (number, device) in devices.iter().enumerate() {
        table.append_slice(&virtio(number, *device));
    }
    let off = Package::new(vec![&OFF, &OFF, &0_u8, &0_u8]);
    table.append_slice(&bytes(&Name::new(Path::new("_S5_"), &off)));
    table.as_slice().to_vec()
}

/// An interrupt that is an event: the devices signal it by eventfds.
fn interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn serial() -> Vec<u8> {
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 0, SERIAL_PORTS);
    let gsi = interrupt(SERIAL_GSI);
    bytes(&Device::new(
        Path::new("_SB_.COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &0_u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&ports, &gsi]),
            ),
        ],
    ))
}

fn panics() -> Vec<u8> {
    let ports = IO::new(PANIC_PORT, PANIC_PORT, 0, 1);
    bytes(&Device::new(
        Path::new("_SB_.PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports])),
        ],
    ))
}

fn virtio(number: usize, device: VirtioPlace) -> Vec<u8> {
    let len = u32::try_from(VIRTIO_LEN).unwrap_or(u32::MAX);
    let registers = Memory32Fixed::new(true, device.base, len);
    let gsi = interrupt(device.gsi);
    bytes(&Device::new(
        Path::new(&format!("_SB_.V{number:03X}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &number),
            // Its memory is coherent: no device here needs a cache flush.
            &Name::new(Path::new("_CCA"), &1_u8),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&registers, &gsi]),
            ),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: [VirtioPlace; 2] = [
        VirtioPlace {
            base: 0xd000_0000,
            gsi: 5,
        },
        VirtioPlace {
            base: 0xd000_1000,
            gsi: 6,
        },
    ];

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..][..8].try_into().unwrap())
    }

    #[test]
    fn each_table_is_found_from_the_root_and_sums_up_to_0() {
        let tables = tables(3, &DEVICES).unwrap();
        let find = |address: u64| &tables.iter().find(|(at, _)| *at == address).unwrap().1;
        let root = find(ACPI);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!((sum(&root[..20]), sum(root)), (0, 0));
        let xsdt = find(word(root, 24));
        let fadt = find(word(xsdt, 36));
        let madt = find(word(xsdt, 44));
        let dsdt = find(word(fadt, 140));
        for (table, name) in [
            (xsdt, b"XSDT"),
            (fadt, b"FACP"),
            (madt, b"APIC"),
            (dsdt, b"DSDT"),
        ] {
            assert_eq!(&table[..4], name);
            assert_eq!(sum(table), 0, "{name:?}");
            let len = u32::from_le_bytes(table[4..8].try_into().unwrap());
            assert_eq!(usize::try_from(len).unwrap(), table.len());
        }
        // A header of 44 bytes, 3 CPUs of 8 and an I/O APIC of 12.
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
    }

    #[test]
    fn tables_do_not_overlap() {
        let tables = tables(255, &DEVICES).unwrap();
        let mut ranges: Vec<_> = tables
            .iter()
            .map(|(at, bytes)| (*at, at + u64::try_from(bytes.len()).unwrap()))
            .collect();
        ranges.sort_unstable();
        assert!(
            ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0),
            "{ranges:x?}"
        );
    }

    #[test]
    fn the_dsdt_names_every_device() {
        let dsdt = dsdt(&DEVICES);
        let has = |part: &[u8]| dsdt.windows(part.len()).any(|window| window == part);
        assert!(has(b"LNRO0005"));
        assert!(has(b"V000") && has(b"V001") && !has(b"V002"));
        assert!(has(&0xd000_1000_u32.to_le_bytes()));
        assert!(has(b"_S5_"));
    }

    #[test]
    fn more_devices_than_there_is_room_for_are_refused() {
        let error = tables(1, &[DEVICES[0]; 4000]).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot describe 4000 devices to the guest"),
            "{error}"
        );
    }
}
