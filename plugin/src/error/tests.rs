//! Owns the texts and numbers of errors that no test of the public face provokes.
//! Never provokes one.

use super::*;

fn io(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

#[expect(clippy::too_many_lines, reason = "a list")]
/// The errors that no test of the public face provokes, or not with all figures known.
fn errors() -> Vec<(Error, &'static str, i32)> {
    let range = PageRange::new(0x1000, 0x2000).unwrap();
    let mapping = PageRange::new(0, 0x20_0000).unwrap();
    let (guest, len, number) = (GuestAddress(0x10_0000), 0x3000, 9);
    vec![
        (
            Error::Inspect {
                range,
                source: io(9),
            },
            "cannot inspect the descriptor for 0x1000..0x3000",
            9,
        ),
        (
            Error::Stage {
                range,
                source: io(12),
            },
            "cannot make a mapping for 0x1000..0x3000",
            12,
        ),
        (
            Error::Prefault {
                range,
                source: io(14),
            },
            "cannot bring in the pages for 0x1000..0x3000: nothing has changed; look whether the \
             source still has them all, or map it without prefault",
            14,
        ),
        (
            Error::Place {
                range,
                state: StateAfter::Hole,
                source: io(22),
            },
            "cannot put memory in place at 0x1000..0x3000: the range is a hole now",
            22,
        ),
        (
            Error::Slot {
                verb: "unregister",
                number,
                guest,
                len,
                state: StateAfter::Poisoned,
                source: io(16),
            },
            "cannot unregister memslot 9 at guest address 0x100000, 0x3000 bytes: the window is \
             poisoned and can only be closed",
            16,
        ),
        (
            Error::Dma {
                verb: "unmap",
                guest,
                len,
                state: StateAfter::Unchanged,
                source: io(5),
            },
            "cannot unmap 0x3000 bytes at guest address 0x100000 for DMA: nothing has changed",
            5,
        ),
        (
            Error::HostMemory {
                range,
                address: 0x7000,
                reason: "it is private memory",
                source: None,
            },
            "cannot map 0x1000..0x3000 from host memory at 0x7000: it is private memory; pass its \
             descriptor, or open the window with fallback to memslots",
            22,
        ),
        (
            Error::HugePageCut {
                range,
                mapping,
                page_size: 0x20_0000,
            },
            "cannot change 0x1000..0x3000: it cuts the mapping 0x0..0x200000 inside a huge page of \
             0x200000 bytes",
            22,
        ),
        (
            Error::PolicySeals {
                range,
                kind: "hugetlb 0x200000".to_owned(),
                found: 1,
                wanted: 2,
            },
            "cannot map 0x1000..0x3000 from hugetlb 0x200000 with seals 0x1: the policy wants 0x2 \
             among them; have its owner add them, or choose a policy that wants less",
            1,
        ),
        (
            Error::MapCount {
                range,
                needed: 2,
                used: 64_000,
                limit: 65_530,
                headroom: 1023,
            },
            "cannot change 0x1000..0x3000: it needs 2 more memory areas, 64000 of vm.max_map_count \
             = 65530 are used or spoken for and 1023 are kept for unmapping; unmap something, or \
             raise vm.max_map_count",
            12,
        ),
        (
            Error::Pinned {
                range,
                pinned: mapping,
                waited: Duration::from_millis(1500),
            },
            "cannot change 0x1000..0x3000: 0x0..0x200000 is pinned, after 1500 ms of waiting; let go \
             of the pin, or wait longer for it",
            16,
        ),
        (
            Error::Access {
                verb: "write",
                offset: 0x1010,
                len: 0x2000,
                done: 0xff0,
                source: io(14),
            },
            "cannot write 0x2000 bytes at 0x1010 of the window: only 0xff0 could be reached; the \
             file behind them may have been truncated",
            14,
        ),
        (
            Error::Poisoned,
            "cannot use the window: an earlier failure poisoned it; close it",
            5,
        ),
        (
            Error::WorkerZaps {
                evidence: "kvm has it".to_owned(),
            },
            "cannot invalidate the roots in the calling task: this host's kernel leaves the work to \
             workers on any CPU (kvm has it); allow that, or use a kernel from 6.6, 6.5.6 or 6.1.60 on",
            95,
        ),
        (
            Error::PreciseZap,
            "cannot invalidate the roots: precise zapping was switched on for this VM, so deleting a \
             memslot drops that slot's translations only",
            95,
        ),
        (
            Error::PreciseZapRefused { source: io(1) },
            "cannot switch precise zapping on for the VM",
            1,
        ),
        (
            Error::OtherWindow,
            "cannot commit the prepared batch: another window prepared it; commit it there",
            22,
        ),
        (
            Error::NoScratchPage,
            "cannot invalidate the roots: every page of the window lies under a memslot; open the \
             window with a scratch page",
            28,
        ),
        (
            Error::DirtyLogUnsupported,
            "cannot start dirty logging: the slot provider has no log of dirty pages; use one that \
             has",
            95,
        ),
        (
            Error::DirtyLogOn,
            "cannot start dirty logging: it is on already; stop it first",
            16,
        ),
        (
            Error::DirtyLogOff,
            "cannot take or stop the dirty log: dirty logging is off; start it first",
            2,
        ),
        (
            Error::DirtyLogSwitch {
                on: true,
                number,
                guest,
                len,
                source: io(12),
            },
            "cannot switch dirty logging on for memslot 9 at guest address 0x100000, 0x3000 bytes: \
             logging is off",
            12,
        ),
        (
            Error::DirtyLogSwitch {
                on: false,
                number,
                guest,
                len,
                source: io(12),
            },
            "cannot switch dirty logging off for memslot 9 at guest address 0x100000, 0x3000 \
             bytes: this slot goes on logging; stop it again",
            12,
        ),
        (
            Error::DirtyLogFetch {
                number,
                source: io(22),
            },
            "cannot fetch the hypervisor's dirty log of memslot 9: what was fetched is kept; take \
             the log again",
            22,
        ),
        (
            Error::RecordedSource {
                range,
                recorded: "anonymous memory".to_owned(),
                found: "host memory at 0x7000".to_owned(),
            },
            "cannot replay the record: 0x1000..0x3000 was anonymous memory, and its source is \
             host memory at 0x7000; pass the recorded file, or use replay_copies for a copy of it",
            22,
        ),
        (
            Error::NotEmpty { mappings: 3 },
            "cannot replay the record: the window has 3 mappings; replay into an empty one",
            17,
        ),
    ]
}

#[test]
fn texts_name_the_figures_and_errnos_are_those_of_the_cause() {
    for (error, text, errno) in errors() {
        assert_eq!(error.to_string(), text);
        assert_eq!(error.errno(), errno, "{text}");
    }
}

#[test]
fn an_error_without_a_state_has_changed_nothing() {
    for (error, text, _) in errors() {
        let expected = match error {
            Error::Place { .. } => StateAfter::Hole,
            Error::Slot { .. } | Error::Poisoned => StateAfter::Poisoned,
            _ => StateAfter::Unchanged,
        };
        assert_eq!(error.state_after(), expected, "{text}");
    }
}
