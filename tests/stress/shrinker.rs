//! Owns the thread that is a bad peer: the file behind its part of a window shrinks and grows,
//! while the guest and pins look at it. Nobody else changes that part.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_remap::Protection::ReadWrite;
use vm_remap::{Error, Source};
use vm_remap_cli::guest::PAGE;

use crate::scene::{PART, SHRINKING, Scene, pages, word};

/// Shrinks and grows until the end; says how often.
pub(crate) fn shrink_and_grow(scene: &Scene) -> String {
    let _alarm = scene.alarm();
    let mut random = scene.random(5000);
    let file = File::from(memfd_create("shrinking", MemfdFlags::CLOEXEC).unwrap());
    let source = Source::descriptor(file.as_fd(), 0);
    let (mut times, mut pinned) = (0_u64, 0_u64);
    while scene.goes_on_with(times) {
        ftruncate(&file, PART * PAGE).unwrap();
        for page in 0..PART {
            let word = word(0, SHRINKING + page).to_ne_bytes();
            file.write_all_at(&word, page * PAGE).unwrap();
        }
        match scene.windows[0].replace(pages(SHRINKING, PART), &source, ReadWrite) {
            Ok(()) => {}
            Err(Error::Pinned { .. }) => pinned += 1,
            Err(error) => panic!("{error}"),
        }
        std::thread::yield_now();
        ftruncate(&file, random(PART) * PAGE).unwrap();
        // Long enough for the guest to come by.
        std::thread::sleep(std::time::Duration::from_millis(5));
        times += 1;
    }
    format!("{times} times shrunk, {pinned} refused")
}
