//! Owns a tiny guest on KVM through cloud-hypervisor's traits: RAM, one vCPU in 64-bit ring 3, and
//! programs of a few instructions. Never opens a window.
//!
//! Ring 3 since some hosts run only that natively, and an access of code that KVM emulates is no
//! fault.

use std::io::Write;
use std::sync::{Arc, Mutex};

use hypervisor::arch::x86::{DescriptorTable, SegmentRegister};
use hypervisor::{Hypervisor, HypervisorCpuError, HypervisorVmConfig, Vcpu, Vm};
use vm_remap_cloud_hypervisor::{RemapHypervisor, RemapOptions, RemapVm};

use crate::memory::{Memory, create, figures};
use crate::ops::Ops;
use crate::recorder::Recorder;

const RAM_PAGES: u64 = 512;
const GDT: u64 = 0x1000;
const TSS: u64 = 0x2000;
const CODE: u64 = 0x3000;
const TABLES: u64 = 0x5000;
/// No memslot lies there.
pub const DOORBELL: u64 = 3 << 30;
/// Where tests have their windows.
pub const WINDOW: u64 = 4 << 30;

/// `mov rax, [rsi]`, ring the doorbell with it, stay.
pub const READ: &[u8] = &[0x48, 0x8b, 0x06, 0x48, 0x89, 0x07, 0xeb, 0xfe];
/// `mov [rsi], rax`; then the same.
pub const WRITE: &[u8] = &[
    0x48, 0x89, 0x06, 0x48, 0x8b, 0x06, 0x48, 0x89, 0x07, 0xeb, 0xfe,
];

pub struct Guest {
    pub vm: Arc<dyn Vm>,
    pub recorder: Arc<Recorder>,
    pub ram: Arc<Memory>,
    pub ops: Arc<Ops>,
    pub vcpu: Box<dyn Vcpu>,
}

/// KVM's hypervisor, or a line that says why the test is skipped.
pub fn kvm(test: &str) -> Option<Arc<dyn Hypervisor>> {
    let reason = match hypervisor::new() {
        Ok(hypervisor) => match hypervisor.create_vm(HypervisorVmConfig::default()) {
            Ok(_) => return Some(hypervisor),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIP {test}: no KVM here: {reason}").unwrap();
    None
}

/// A guest whose VM is decorated, with what KVM's is asked written down.
pub fn decorated(test: &str, options: RemapOptions) -> Option<(Guest, Arc<RemapVm>)> {
    let hypervisor = kvm(test)?;
    let inner = hypervisor.create_vm(HypervisorVmConfig::default()).unwrap();
    let recorder = Recorder::around(inner);
    let remap = RemapVm::wrap(Arc::clone(&recorder) as _, options).unwrap();
    let vm = Arc::clone(&remap) as Arc<dyn Vm>;
    Some((guest(hypervisor.as_ref(), vm, recorder), remap))
}

/// A guest of the decorated hypervisor.
pub fn of_the_decorated_hypervisor(test: &str, options: RemapOptions) -> Option<Guest> {
    let hypervisor = RemapHypervisor::wrap(kvm(test)?, options).unwrap();
    let vm = hypervisor.create_vm(HypervisorVmConfig::default()).unwrap();
    Some(guest(hypervisor.as_ref(), vm, Recorder::alone()))
}

/// A guest of KVM's own VM.
pub fn bare(test: &str) -> Option<Guest> {
    let hypervisor = kvm(test)?;
    let vm = hypervisor.create_vm(HypervisorVmConfig::default()).unwrap();
    Some(guest(hypervisor.as_ref(), vm, Recorder::alone()))
}

fn guest(hypervisor: &dyn Hypervisor, vm: Arc<dyn Vm>, recorder: Arc<Recorder>) -> Guest {
    let ram = Arc::new(Memory::shared(RAM_PAGES));
    create(vm.as_ref(), figures(0, 0, RAM_PAGES), &ram).unwrap();
    for (at, value) in tables() {
        ram.store(at, &value.to_le_bytes());
    }
    let ops = Arc::new(Ops {
        ram: Arc::clone(&ram),
        rung: Mutex::default(),
    });
    let vcpu = vm
        .create_vcpu(0, Some(Arc::clone(&ops) as _), None)
        .unwrap();
    vcpu.set_cpuid2(&hypervisor.get_supported_cpuid().unwrap())
        .unwrap();
    enter(vcpu.as_ref());
    Guest {
        vm,
        recorder,
        ram,
        ops,
        vcpu,
    }
}

impl Guest {
    /// Runs `code` with `address` in rsi and `value` in rax, and returns what it rings with.
    pub fn run(
        &mut self,
        code: &[u8],
        address: u64,
        value: u64,
    ) -> Result<u64, HypervisorCpuError> {
        self.ram.store(CODE, code);
        let mut regs = self.vcpu.get_regs().unwrap();
        regs.set_rip(CODE);
        regs.set_rsi(address);
        regs.set_rdi(DOORBELL);
        regs.set_rax(value);
        regs.set_rflags(2);
        self.vcpu.set_regs(&regs).unwrap();
        loop {
            self.vcpu.run()?;
            if let Some((at, value)) = self.ops.rung.lock().unwrap().pop() {
                assert_eq!(at, DOORBELL);
                return Ok(value);
            }
        }
    }
}

/// GDT and page tables: onto themselves, wherever something lies, in pages of 2 MiB.
fn tables() -> Vec<(u64, u64)> {
    let (table, large) = (0x27, 0xe7);
    let pdpt = TABLES + 0x1000;
    let mut entries = vec![
        (GDT + 0x28, 0x00cf_f300_0000_ffff),
        (GDT + 0x30, 0x00af_fb00_0000_ffff),
        (GDT + 0x40, 0x0000_8b00_0000_0067 | (TSS << 16)),
        (TABLES, pdpt | table),
    ];
    for (number, gib) in [0, DOORBELL >> 30, WINDOW >> 30].into_iter().enumerate() {
        let directory = pdpt + 0x1000 * (number as u64 + 1);
        entries.push((pdpt + 8 * gib, directory | table));
        for block in 0..16 {
            let at = (gib << 30) + (block << 21);
            entries.push((directory + 8 * block, at | large));
        }
    }
    entries
}

fn enter(vcpu: &dyn Vcpu) {
    let mut special = vcpu.get_sregs().unwrap();
    let data = SegmentRegister {
        limit: u32::MAX,
        selector: 0x2b,
        type_: 3,
        present: 1,
        dpl: 3,
        db: 1,
        s: 1,
        g: 1,
        ..SegmentRegister::default()
    };
    special.cs = SegmentRegister {
        selector: 0x33,
        type_: 11,
        db: 0,
        l: 1,
        ..data
    };
    for segment in [
        &mut special.ss,
        &mut special.ds,
        &mut special.es,
        &mut special.fs,
        &mut special.gs,
    ] {
        *segment = data;
    }
    special.tr = SegmentRegister {
        base: TSS,
        limit: 0x67,
        selector: 0x40,
        type_: 11,
        present: 1,
        ..SegmentRegister::default()
    };
    special.ldt = SegmentRegister {
        type_: 2,
        unusable: 1,
        ..SegmentRegister::default()
    };
    special.gdt = DescriptorTable {
        base: GDT,
        limit: 0x4f,
    };
    special.idt = DescriptorTable { base: 0, limit: 0 };
    special.cr3 = TABLES;
    special.cr4 = 0x620;
    special.cr0 = 0x8005_0033;
    special.efer = 0x501;
    vcpu.set_sregs(&special).unwrap();
}
