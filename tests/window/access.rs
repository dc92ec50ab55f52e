//! Owns the proof that a guest and its VMM see each other's bytes through a pin, and that what the
//! guest reaches does not change while one lives.

use vm_remap::OnPinned::Refuse;
use vm_remap::Protection::ReadWrite;
use vm_remap::{BackendKind, Source, StateAfter};
use vm_remap_cli::guest::{Access, PAGE};

use crate::support::*;

#[test]
fn guest_and_vmm_see_each_others_bytes_through_a_pin() {
    let test = "guest_and_vmm_see_each_others_bytes_through_a_pin";
    for backend in BackendKind::ALL {
        for seal in [Seal::Sealed, Seal::Unsealed] {
            let options = options(backend).on_pinned(Refuse);
            let Some(bench) = open_with(test, 1, options, NUMBERS) else {
                return;
            };
            let Bench { window, guest } = &bench;
            let blob = Blob::new(seal, 4, 1000);
            window.map(pages(8, 4), &blob.source(), ReadWrite).unwrap();
            let pin = window.pin(pages(9, 2)).unwrap();
            let word = |page: u64| {
                let mut bytes = [0; 8];
                pin.read(page * PAGE, &mut bytes).unwrap();
                u64::from_ne_bytes(bytes)
            };
            assert_eq!([word(0), word(1)], [1001, 1002], "{backend} {seal:?}");

            assert_eq!(guest.write_u64(0, at(9), 7).unwrap(), Access::Done(()));
            assert_eq!(word(0), 7, "{backend} {seal:?}: the guest's write");
            pin.write(PAGE, &8_u64.to_ne_bytes()).unwrap();
            let read = guest.read_u64(0, at(10)).unwrap();
            assert_eq!(read, Access::Done(8), "{backend} {seal:?}: the VMM's write");

            let refused = window.replace(pages(8, 4), &Source::anonymous(), ReadWrite);
            assert_eq!(refused.unwrap_err().state_after(), StateAfter::Unchanged);
            window.unmap(pages(8, 1)).unwrap();
            let seen = view(guest, 9..12);
            assert_eq!(seen, [7, 8, 1003].map(Access::Done), "{backend} {seal:?}");
            drop(pin);
            window.unmap(pages(8, 4)).unwrap();
            let read = guest.read_u64(0, at(9)).unwrap();
            assert_eq!(read, hole(backend, at(9), false), "{seal:?}");
        }
    }
}
