//! Owns the test of a guest that touches a file for whose pages its file system has no room.

use std::os::fd::AsFd;

use vm_remap::BackendKind;
use vm_remap::Protection::ReadWrite;
use vm_remap::Source;
use vm_remap_cli::guest::{Access, PAGE, Touch};

use crate::guest_support::skip;
use crate::small_file_system::Small;
use crate::support::*;

#[test]
fn touch_of_a_page_that_a_full_tmpfs_has_no_room_for_is_an_exit_and_the_guest_goes_on() {
    let test = "touch_of_a_page_that_a_full_tmpfs_has_no_room_for_is_an_exit_and_the_guest_goes_on";
    let Some(small) = Small::mount() else {
        skip(test, "a tmpfs cannot be mounted here (root only)");
        return;
    };
    for backend in BackendKind::ALL {
        let Some(bench) = open(test, backend) else {
            return;
        };
        let Bench { window, guest } = &bench;
        let sparse = small.sparse(64 * PAGE);
        let other = Blob::new(Seal::Unsealed, 64, 500);
        window
            .map(pages(64, 64), &other.source(), ReadWrite)
            .unwrap();
        let source = Source::descriptor(sparse.as_fd(), 0);
        window.map(pages(0, 64), &source, ReadWrite).unwrap();
        let touched = guest.touch(0, at(0), 64 * PAGE, Touch::Write).unwrap();
        assert_eq!(touched, Access::Fault, "{backend}");
        // The pages that there was room for are there, and so is everything else.
        assert_eq!(guest.read_u64(0, at(0)).unwrap(), Access::Done(at(0)));
        assert_eq!(view(guest, 64..128), words(&other), "{backend}");
        window
            .replace(pages(0, 64), &other.source(), ReadWrite)
            .unwrap();
        assert_eq!(view(guest, 0..64), words(&other), "{backend}");
        window.unmap(pages(0, 128)).unwrap();
    }
}
