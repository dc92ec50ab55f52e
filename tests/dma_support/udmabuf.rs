//! Owns the making of a dma-buf from a memfd. Never maps it.

// UNSAFETY: no crate has the ioctl of /dev/udmabuf.
#![expect(unsafe_code, reason = "UDMABUF_CREATE is a raw ioctl")]

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use crate::guest_support::skip;

const PAGE: u64 = 4096;
const CLOEXEC: u32 = 1;

/// `struct udmabuf_create` (Linux: `include/uapi/linux/udmabuf.h`).
#[repr(C)]
struct Create {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

ioctl_iow_nr!(UDMABUF_CREATE, 0x75, 0x42, Create);

/// A dma-buf, and the memfd whose pages it has.
pub(crate) struct DmaBuf {
    pub(crate) fd: OwnedFd,
    file: File,
}

impl DmaBuf {
    /// A dma-buf in which the first word of page `n` is `first + n`; none where the kernel cannot
    /// make one, and it says so.
    pub(crate) fn new(test: &str, pages: u64, first: u64) -> Option<Self> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/udmabuf");
        let device = match device {
            Ok(device) => device,
            Err(error) => {
                skip(test, &format!("cannot open /dev/udmabuf: {error}"));
                return None;
            }
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = memfd_create("pages", flags).unwrap();
        ftruncate(&memfd, pages * PAGE).unwrap();
        fcntl_add_seals(&memfd, SealFlags::SHRINK).unwrap();
        let file = File::from(memfd);
        let create = Create {
            memfd: file.as_raw_fd().cast_unsigned(),
            flags: CLOEXEC,
            offset: 0,
            size: pages * PAGE,
        };
        // SAFETY: the request is a `struct udmabuf_create` that lives through the call.
        let fd = unsafe { ioctl_with_ref(&device, UDMABUF_CREATE(), &create) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just made the descriptor for this process, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let buffer = Self { fd, file };
        for page in 0..pages {
            buffer.set_word(page, first + page);
        }
        Some(buffer)
    }

    pub(crate) fn word(&self, page: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, page * PAGE).unwrap();
        u64::from_ne_bytes(bytes)
    }

    pub(crate) fn set_word(&self, page: u64, word: u64) {
        let bytes = word.to_ne_bytes();
        self.file.write_all_at(&bytes, page * PAGE).unwrap();
    }
}
