//! Owns the proofs that a guest harms nobody but its own device, whatever it writes. Never uses a
//! daemon that would mind.

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;
use vm_device::MutDeviceMmio;
use vm_device::bus::MmioAddress;

use crate::daemon::{Manner, Request};
use crate::driver::{Machine, wait_for};

/// One access of the guest: where, how wide, and what it writes; nothing, if it reads.
type Access = (u64, usize, Option<u64>);

fn accesses() -> impl Strategy<Value = Vec<Access>> {
    // The notification register is left out: the daemon of these tests believes what a ring says.
    let register = (0_u64..0x40).prop_map(|at| at * 4);
    let register = register.prop_filter("notification", |at| {
        *at != u64::from(VIRTIO_MMIO_QUEUE_NOTIFY)
    });
    let offset = prop_oneof![3 => register, 1 => 0x100_u64..0x1200];
    let width = prop_oneof![8 => Just(4_usize), 1 => 0_usize..9];
    let value = prop_oneof![0_u64..16, Just(0x4000), any::<u64>()];
    let access = (offset, width, proptest::option::weighted(0.8, value));
    proptest::collection::vec(access, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_a_guest_writes_its_device_starts_again(accesses in accesses(), first in any::<bool>()) {
        let machine = Machine::new();
        let daemon = machine.daemon(&Manner::default());
        let mut driver = machine.device(&machine.options()).unwrap();
        if first {
            driver.start();
        }
        for (offset, width, written) in accesses {
            match written {
                Some(value) => {
                    let bytes = &value.to_le_bytes()[..width];
                    driver.transport.mmio_write(MmioAddress(0), offset, bytes);
                }
                None => {
                    let mut bytes = vec![0xff; width];
                    driver.transport.mmio_read(MmioAddress(0), offset, &mut bytes);
                }
            }
        }
        wait_for("a start", || {
            driver.start();
            !driver.needs_reset()
        });
        prop_assert_eq!(driver.ask(0, Request::Add(41)), 42);
        daemon.kill();
    }
}
