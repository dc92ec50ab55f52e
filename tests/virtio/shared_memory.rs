//! Owns the proofs of a device's shared memory: what the daemon maps is there, and goes with a
//! reset. Never needs a guest to look at it.

use crate::daemon::{REGION_LEN, Request};
use crate::driver::started;

#[test]
fn what_the_daemon_maps_is_in_the_window_when_the_request_is_answered() {
    let (machine, daemon, mut driver) = started();
    let map = |offset, fill| Request::Map {
        offset,
        len: 0x2000,
        fill,
    };
    assert_eq!(driver.ask(1, map(0x10_0000, 7)), 0);
    assert_eq!(machine.peek(0x10_0000), Some(7));
    assert_eq!(machine.peek(0x10_1000), Some(7));
    assert_eq!(machine.peek(0x10_2000), None);
    // A file system maps the same range again, to make it writable.
    assert_eq!(driver.ask(1, map(0x10_0000, 8)), 0);
    assert_eq!(machine.peek(0x10_0000), Some(8));
    // Slots rest.
    assert_eq!(machine.slots.registered(), 1);
    let unmap = Request::Unmap {
        offset: 0x10_0000,
        len: 0x2000,
    };
    assert_eq!(driver.ask(1, unmap), 0);
    assert_eq!(machine.peek(0x10_0000), None);
    daemon.kill();
}

#[test]
fn what_the_window_refuses_is_the_daemons_error_and_no_more() {
    let (machine, daemon, mut driver) = started();
    for (offset, len) in [
        (REGION_LEN, 0x1000),
        (0x800, 0x1000),
        (u64::MAX - 0xfff, 0x1000),
    ] {
        let map = Request::Map {
            offset,
            len,
            fill: 1,
        };
        assert_eq!(driver.ask(0, map), 1, "{offset:#x}");
    }
    let good = Request::Map {
        offset: 0,
        len: 0x1000,
        fill: 9,
    };
    assert_eq!(driver.ask(0, good), 0);
    assert_eq!(machine.peek(0), Some(9));
    assert_eq!(driver.status(), 15);
    daemon.kill();
}
