//! Owns the thread that pins what is mapped, and looks whether it stays what it is: by copies, and
//! directly where the memory is stable. Pins come and go while all others change the windows.

use vm_memory::{VolatileMemory, VolatileSlice};
use vm_remap::{Error, GuestAddress, Pin, Window};
use vm_remap_cli::guest::PAGE;

use crate::scene::{BLOBS, PAGES, Scene, WINDOWS, blob_of, pages};

/// Pages of the longest pin.
const LONGEST: u64 = 16;
/// Looks at each pin.
const LOOKS: usize = 3;

/// Pins until the end; says how often.
pub(crate) fn pin(scene: &Scene) -> String {
    let _alarm = scene.alarm();
    let mut random = scene.random(4000);
    let (mut pins, mut direct, mut holes) = (0_u64, 0_u64, 0_u64);
    while scene.goes_on_with(pins) {
        let index = usize::try_from(random(WINDOWS as u64)).unwrap();
        let first = random(PAGES);
        let range = pages(first, 1 + random(LONGEST.min(PAGES - first)));
        match scene.windows[index].pin(range) {
            Ok(pin) => {
                direct += u64::from(look(scene, index, &pin));
                pins += 1;
            }
            Err(Error::NotMapped { .. }) => holes += 1,
            Err(error) => panic!("{error}"),
        }
    }
    format!("{pins} pins, {direct} of them direct, {holes} refused over holes")
}

/// Looks at all pages several times; whether it could do so directly.
fn look(scene: &Scene, index: usize, pin: &Pin<'_>) -> bool {
    let slice = pin.slice();
    let first = pin.range().start() / PAGE;
    for at in 0..pin.range().len() / PAGE {
        let page = first + at;
        // Its owner can make the file shorter under a pin, and then the page is lost.
        if Scene::shrinks(index, page) {
            may_be_lost(pin, at * PAGE);
            continue;
        }
        let blob = blob_at(&scene.windows[index], page);
        for _ in 0..LOOKS {
            let words = [
                Some(copied(pin, at * PAGE).unwrap()),
                slice.as_ref().map(|slice| word(slice, at * PAGE)),
            ];
            for word in words.into_iter().flatten() {
                assert_eq!(blob_of(word, page), Some(blob), "page {page}: {word:#x}");
            }
        }
        assert_eq!(
            blob_at(&scene.windows[index], page),
            blob,
            "a pinned page changes"
        );
    }
    slice.is_some()
}

fn copied(pin: &Pin<'_>, offset: u64) -> Result<u64, Error> {
    let mut word = [0; 8];
    pin.read(offset, &mut word)?;
    Ok(u64::from_ne_bytes(word))
}

fn may_be_lost(pin: &Pin<'_>, offset: u64) {
    match copied(pin, offset) {
        Ok(_) | Err(Error::Access { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

fn word(slice: &VolatileSlice<'_>, offset: u64) -> u64 {
    let offset = usize::try_from(offset).unwrap();
    slice.get_ref::<u64>(offset).unwrap().load()
}

/// The blob that a pinned page is labelled with.
fn blob_at(window: &Window, page: u64) -> usize {
    let guest = GuestAddress(window.base().0 + page * PAGE);
    let found = window.lookup(guest).unwrap();
    let blob = usize::try_from(found.mapping.label()).unwrap();
    assert!(blob < BLOBS);
    blob
}
