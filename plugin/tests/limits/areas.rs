//! Owns the test of a window whose kernel allows no more areas all of a sudden: the operator lowers
//! `vm.max_map_count` while the window lives, so that its budget is wrong.

use std::fs;

use vm_remap::Protection::ReadWrite;
use vm_remap::{Batch, Error};

use crate::alone::alone;
use crate::support::*;

const LIMIT: &str = "/proc/sys/vm/max_map_count";

fn used() -> usize {
    fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count()
}

fn set_limit(areas: usize) {
    fs::write(LIMIT, areas.to_string()).unwrap();
}

#[test]
fn at_a_limit_lowered_by_the_operator_every_call_works_or_changes_nothing() {
    let test = "areas::at_a_limit_lowered_by_the_operator_every_call_works_or_changes_nothing";
    if !in_the_lab() {
        skip(
            test,
            "it changes vm.max_map_count of the machine; it runs in the lab",
        );
        return;
    }
    alone(test, || {
        let before: usize = fs::read_to_string(LIMIT).unwrap().trim().parse().unwrap();
        let watched = Watched::open(64 * MIB);
        let (peer, own) = (memfd(MIB, 1), sealed(MIB, 2));
        for at in 0..8 {
            watched.map(pages(at * 8, 4), &peer, 1).unwrap();
        }
        let (mut made, mut refused) = (0, 0);
        // From far above what there is down to below it.
        for spare in (0..24).rev() {
            set_limit(used() + spare - 4);
            let mut count = |result: Result<(), Error>| match result {
                Ok(()) => made += 1,
                Err(error) => {
                    assert_eq!(error.errno(), libc::ENOMEM, "{error}");
                    refused += 1;
                }
            };
            count(watched.replace(pages(1, 2), &own, 2));
            count(watched.replace(pages(8, 4), &peer, 1));
            count(watched.map(pages(20, 2), &own, 2));
            count(watched.unmap(pages(33, 1)));
            count(watched.unmap(pages(16, 4)));
            let batch =
                Batch::new()
                    .unmap(pages(40, 4))
                    .map(pages(41, 2), &source(&own), ReadWrite);
            let done = watched.window.commit(&batch);
            let unmapped = done.is_ok();
            count(done);
            set_limit(before);
            // The budget itself is as it was: all of it can be done now.
            if unmapped {
                watched.unmap(pages(40, 4)).unwrap();
                watched.map(pages(40, 4), &peer, 1).unwrap();
            }
            watched.unmap(pages(0, 36)).unwrap();
            for at in 0..5 {
                watched
                    .map(pages(at * 8, 4), &peer, 1)
                    .unwrap_or_else(|error| {
                        // The unmap above stops inside a mapping.
                        assert!(matches!(error, Error::Occupied { .. }), "{error}");
                    });
            }
        }
        assert!(made > 20 && refused > 20, "{made} made, {refused} refused");
        watched.window.close().unwrap();
    });
}
