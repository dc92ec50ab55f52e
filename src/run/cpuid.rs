//! Owns what the guest is told of its CPUs: KVM's list of what it supports, made true for each
//! vCPU. Never adds a feature that neither KVM nor this machine has.

use anyhow::{Context as _, Result};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::machine_check;

/// Leaf 1, ECX: the timer of the local APIC counts in TSC ticks. KVM has it with its own APIC.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: this is a virtual machine.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the count of logical CPUs is valid.
const HTT: u32 = 1 << 28;
/// AMD, leaf 0x80000007, EBX: machine checks that came too fast, and those of broken memory, can be
/// gone on from (`machine_check`).
const RECOVERY: u32 = 3;
/// A level of leaf 0xb, as it stands in ECX.
const THREADS: u32 = 1 << 8;
const CORES: u32 = 2 << 8;

/// The leaves that tell the topology, level by level. KVM offers the first level only, and empty.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];

/// The list for vCPU `id` of `count`, all of them cores of one package.
///
/// # Errors
/// It would be longer than KVM takes.
pub(super) fn for_vcpu(supported: &CpuId, id: u8, count: u8) -> Result<CpuId> {
    let mut leaves = Vec::new();
    let is_amd = machine_check::is_understood(supported);
    for leaf in supported.as_slice() {
        let topology = TOPOLOGY.contains(&leaf.function);
        let levels = match (topology, leaf.index) {
            (true, 0) => 0..=2,
            // Made anew with the first one.
            (true, _) => continue,
            (false, index) => index..=index,
        };
        for index in levels {
            let mut leaf = kvm_cpuid_entry2 { index, ..*leaf };
            tell(&mut leaf, id, count, is_amd);
            leaves.push(leaf);
        }
    }
    CpuId::from_entries(&leaves)
        .with_context(|| format!("cannot tell vCPU {id} of {} features", leaves.len()))
}

fn tell(leaf: &mut kvm_cpuid_entry2, id: u8, count: u8, is_amd: bool) {
    let others = u32::from(count.saturating_sub(1));
    match leaf.function {
        1 => {
            leaf.ecx |= TSC_DEADLINE | HYPERVISOR;
            leaf.ebx = (leaf.ebx & 0xffff) | u32::from(count) << 16 | u32::from(id) << 24;
            leaf.edx = if count > 1 {
                leaf.edx | HTT
            } else {
                leaf.edx & !HTT
            };
        }
        // Intel's caches: how many cores there are, and that each has its own threads to itself.
        4 => leaf.eax = (leaf.eax & 0x3fff) | others.min(63) << 26,
        0xb | 0x1f => {
            leaf.edx = id.into();
            (leaf.eax, leaf.ebx, leaf.ecx) = match leaf.index {
                0 => (0, 1, THREADS),
                1 => (id_bits(count), count.into(), CORES | 1),
                other => (0, 0, other & 0xff),
            };
        }
        // Reserved, and 0, on Intel's.
        0x8000_0007 if is_amd => leaf.ebx |= RECOVERY,
        // AMD: the number of cores, and the width of a core's number.
        0x8000_0008 => leaf.ecx = (leaf.ecx & !0xf0ff) | others | id_bits(count) << 12,
        0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id.into(), id.into(), 0),
        _ => {}
    }
}

/// Takes from the list what lets KVM wait for a page in the guest's stead (leaf 0x40000001, EAX:
/// asynchronous page faults).
pub(super) fn forget_async_faults(supported: &mut CpuId) {
    const ASYNC_PF: u32 = 1 << 4 | 1 << 10 | 1 << 14;
    for leaf in supported.as_mut_slice() {
        if leaf.function == 0x4000_0001 {
            leaf.eax &= !ASYNC_PF;
        }
    }
}

/// How many bits the numbers of `count` CPUs take.
fn id_bits(count: u8) -> u32 {
    u32::from(count.max(1)).next_power_of_two().trailing_zeros()
}

/// The width of a guest-physical address, where KVM tells it.
pub(super) fn address_bits(supported: &CpuId) -> u8 {
    let leaf = supported
        .as_slice()
        .iter()
        .find(|leaf| leaf.function == 0x8000_0008);
    // The width before there was a leaf for it.
    leaf.map_or(36, |leaf| leaf.eax.to_le_bytes()[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> CpuId {
        let leaf = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: 0x3028,
            ebx: 0xffff_1234,
            ..Default::default()
        };
        let leaves = [leaf(1, 0), leaf(0xb, 0), leaf(0x8000_0008, 0)];
        CpuId::from_entries(&leaves).unwrap()
    }

    #[test]
    fn each_vcpu_gets_its_own_number_in_every_leaf() {
        let supported = list();
        for id in 0..3 {
            let told = for_vcpu(&supported, id, 3).unwrap();
            let leaf = told.as_slice();
            assert_eq!(leaf[0].ebx, u32::from(id) << 24 | 0x3_1234);
            assert_eq!(leaf[0].ecx, TSC_DEADLINE | HYPERVISOR);
            assert_eq!(leaf[1].edx, u32::from(id));
            assert_eq!(
                (leaf[2].eax, leaf[2].ebx),
                (2, 3),
                "a width of 2 bits, for 3 cores"
            );
            assert_eq!(
                (leaf[3].index, leaf[3].ecx),
                (2, 2),
                "an empty level ends the list"
            );
            assert_eq!(leaf[4].ecx, 2 | 2 << 12);
        }
    }

    #[test]
    fn kvm_is_kept_from_waiting_for_pages_and_from_nothing_else() {
        let leaf = |function, eax| kvm_cpuid_entry2 {
            function,
            eax,
            ..Default::default()
        };
        let leaves = [leaf(0x4000_0000, !0), leaf(0x4000_0001, !0)];
        let mut list = CpuId::from_entries(&leaves).unwrap();
        forget_async_faults(&mut list);
        let found: Vec<u32> = list.as_slice().iter().map(|leaf| leaf.eax).collect();
        assert_eq!(found, [!0, !0x4410]);
    }

    #[test]
    fn id_bits_reach_for_the_last_number() {
        assert_eq!([1, 2, 3, 4, 5, 255].map(id_bits), [0, 1, 2, 2, 3, 8]);
    }

    #[test]
    fn address_bits_come_from_the_leaf_that_has_them() {
        assert_eq!(address_bits(&list()), 0x28);
        assert_eq!(address_bits(&CpuId::new(0).unwrap()), 36);
    }
}
