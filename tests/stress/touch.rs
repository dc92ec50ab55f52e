//! Owns the threads that let the guest touch any page of any window, one at a time, and judge what
//! comes of it. A hole ends in an exit, and the guest goes on with the next page.

use vm_remap_cli::guest::Access;

use crate::scene::{PAGES, READER, Scene, WINDOWS, WRITER, blob_of};

/// What the guest writes into the second word of a page.
pub(crate) fn written(page: u64) -> u64 {
    (0x17e << 48) | page
}

fn place(random: &mut impl FnMut(u64) -> u64) -> (usize, u64) {
    (
        usize::try_from(random(WINDOWS as u64)).unwrap(),
        random(PAGES),
    )
}

/// Reads until the end: each word is that of some blob, for that very page.
pub(crate) fn read(scene: &Scene) -> String {
    let _alarm = scene.alarm();
    let mut random = scene.random(2000);
    let (mut reads, mut holes) = (0_u64, 0_u64);
    while scene.goes_on() {
        let (window, page) = place(&mut random);
        let gpa = scene.guest_address(window, page);
        match scene.guest.read_u64(READER, gpa).unwrap() {
            Access::Done(word) => {
                let known = blob_of(word, page).is_some();
                assert!(
                    known,
                    "window {window}, page {page}: the guest read {word:#x}"
                );
                reads += 1;
            }
            Access::Fault | Access::Mmio { .. } | Access::Stopped(_) => holes += 1,
        }
    }
    assert!(reads > 0, "the guest read nothing");
    format!("{reads} words read, {holes} holes met")
}

/// Writes until the end: what is written lands in the page that it was meant for, or nowhere.
pub(crate) fn write(scene: &Scene) -> String {
    let _alarm = scene.alarm();
    let mut random = scene.random(3000);
    let (mut writes, mut refused) = (0_u64, 0_u64);
    while scene.goes_on() {
        let (window, page) = place(&mut random);
        let gpa = scene.guest_address(window, page) + 8;
        match scene.guest.write_u64(WRITER, gpa, written(page)).unwrap() {
            Access::Done(()) => writes += 1,
            Access::Fault | Access::Mmio { .. } | Access::Stopped(_) => refused += 1,
        }
    }
    assert!(writes > 0, "the guest wrote nothing");
    format!("{writes} words written, {refused} refused")
}
