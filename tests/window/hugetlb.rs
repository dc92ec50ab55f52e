//! Owns the test of 2 MiB pages: mapped, touched, replaced, unmapped. Borrows huge pages of the
//! host for as long as it runs.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_remap::BackendKind;
use vm_remap::Protection::ReadWrite;
use vm_remap::Source;
use vm_remap::host::{Host, TdpMmu};
use vm_remap_cli::guest::{Access, Guest, PAGE, Touch};

use crate::guest_support::skip;
use crate::support::*;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// Two files of two blocks, and as many to spare for the copies that a change may need.
const NEEDED: u64 = 8;
const BLOCKS: u64 = 2;
const COUNT: u64 = BLOCKS * SEGMENT_PAGES;

/// The host's huge pages; puts the size of the pool back.
pub(crate) struct Pool {
    restore: Option<u64>,
    // Dropped last: one test at a time counts on the pool.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

fn figure(name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("{POOL}/{name}")).ok()?;
    text.trim().parse().ok()
}

impl Pool {
    pub(crate) fn with(needed: u64) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (total, free) = (figure("nr_hugepages")?, figure("free_hugepages")?);
        if free >= needed {
            return Some(Self {
                restore: None,
                _turn: turn,
            });
        }
        fs::write(format!("{POOL}/nr_hugepages"), (total + needed).to_string()).ok()?;
        let pool = Self {
            restore: Some(total),
            _turn: turn,
        };
        (figure("free_hugepages")? >= needed).then_some(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(total) = self.restore {
            let put_back = fs::write(format!("{POOL}/nr_hugepages"), total.to_string());
            assert!(put_back.is_ok() || std::thread::panicking(), "{put_back:?}");
        }
    }
}

pub(crate) fn huge() -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let fd = memfd_create("huge", flags).unwrap();
    ftruncate(&fd, BLOCKS * SEGMENT).unwrap();
    fd
}

fn pages_2m(guest: &Guest) -> Option<u64> {
    guest.vm_stats()?.read("pages_2m").unwrap()
}

#[test]
fn hugetlb_blocks_are_mapped_replaced_and_unmapped_as_blocks() {
    let test = "hugetlb_blocks_are_mapped_replaced_and_unmapped_as_blocks";
    let Some(_pool) = Pool::with(NEEDED) else {
        skip(test, "no 8 free huge pages of 2 MiB, and none can be added");
        return;
    };
    let tdp_mmu = Host::default().tdp_mmu().state == TdpMmu::On;
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        let Bench { window, guest } = &bench;
        let first = SEGMENT_PAGES;
        let range = pages(first, COUNT);
        let touch = |kind| guest.touch(0, at(first), COUNT * PAGE, kind).unwrap();
        let word = |page| guest.read_u64(0, at(first + page)).unwrap();
        let [old, new] = [huge(), huge()];
        let [old, new] = [&old, &new].map(|fd| Source::descriptor(fd.as_fd(), 0));

        // The guest's own pages may come in blocks as well: let it have them first.
        let ram = guest.layout().working_set().base;
        assert_eq!(guest.read_u64(0, ram).unwrap(), Access::Done(0));
        let before = pages_2m(guest);
        window.map(range, &old, ReadWrite).unwrap();
        assert_eq!(touch(Touch::Write), Access::Done(COUNT), "{backend}");
        if let (true, Some(before)) = (tdp_mmu, before) {
            assert_eq!(pages_2m(guest), Some(before + BLOCKS), "{backend}");
        }
        window.replace(range, &new, ReadWrite).unwrap();
        if let (true, Some(before)) = (tdp_mmu, before) {
            assert!(pages_2m(guest) <= Some(before), "{backend}");
        }
        assert_eq!(word(700), Access::Done(0), "{backend}: the new file");
        window.replace(range, &old, ReadWrite).unwrap();
        assert_eq!(word(700), Access::Done(at(first + 700)), "{backend}");

        // Half of it: a cut between two blocks.
        window.unmap(pages(first, SEGMENT_PAGES)).unwrap();
        assert_eq!(word(0), hole(backend, at(first), false), "{backend}");
        assert_eq!(word(700), Access::Done(at(first + 700)), "{backend}");
        window.unmap(range).unwrap();
        assert_eq!(word(700), hole(backend, at(first + 700), false));
    }
}
