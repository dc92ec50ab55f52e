//! Owns every kind of descriptor that a peer could send. Never maps one.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arbitrary::Arbitrary;
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, open,
};
use vm_remap::PAGE_SIZE;

const LEN: u64 = 32 * PAGE_SIZE;

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Kind {
    Memfd,
    SmallMemfd,
    EmptyMemfd,
    /// Its last page is not whole.
    CrookedMemfd,
    SealedAgainstShrinking,
    SealedAgainstWriting,
    SealedAgainstFutureWriting,
    /// It claims more than any host has.
    EndlessMemfd,
    OpenForReading,
    OpenForWriting,
    Hugetlb,
    RegularFile,
    Socket,
    Pipe,
    Directory,
    PathOnly,
    Epoll,
    Zero,
    Proc,
}

const KINDS: usize = Kind::Proc as usize + 1;

/// One of each, in the order of [`Kind`].
pub(crate) struct Files([OwnedFd; KINDS]);

fn memfd(len: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("sent", flags).unwrap();
    ftruncate(&fd, len).unwrap();
    if !seals.is_empty() {
        fcntl_add_seals(&fd, seals).unwrap();
    }
    fd
}

/// The same file, opened again.
fn again(fd: &OwnedFd, flags: OFlags) -> OwnedFd {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn at(path: &str, flags: OFlags) -> OwnedFd {
    open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

impl Files {
    pub(crate) fn new() -> Self {
        let none = SealFlags::empty();
        let plain = memfd(LEN, none);
        let (reading, writing) = (again(&plain, OFlags::RDONLY), again(&plain, OFlags::WRONLY));
        // Where the kernel has no huge pages: another memfd.
        let huge = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB);
        let huge = huge.unwrap_or_else(|_| memfd(LEN, none));
        // The pool may not have them: then the peer finds out.
        let _sized = ftruncate(&huge, 4 << 20);
        let regular = tempfile::tempfile().unwrap();
        regular.set_len(LEN).unwrap();
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        let socket = {
            use rustix::net::{AddressFamily, SocketType, socket};
            socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap()
        };
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        let zero = File::options().read(true).write(true).open("/dev/zero");
        Self([
            plain,
            memfd(PAGE_SIZE, none),
            memfd(0, none),
            memfd(5 * PAGE_SIZE + 100, none),
            memfd(LEN, SealFlags::SHRINK | SealFlags::SEAL),
            memfd(LEN, SealFlags::WRITE | SealFlags::SEAL),
            memfd(LEN, SealFlags::FUTURE_WRITE),
            memfd((1 << 63) - PAGE_SIZE, none),
            reading,
            writing,
            huge,
            regular.into(),
            socket,
            pipe,
            at("/", OFlags::RDONLY | OFlags::DIRECTORY),
            at("/", OFlags::PATH),
            epoll.unwrap(),
            zero.unwrap().into(),
            at("/proc/self/status", OFlags::RDONLY),
        ])
    }

    pub(crate) fn descriptor(&self, kind: Kind) -> BorrowedFd<'_> {
        self.0[kind as usize].as_fd()
    }

    /// Gives a file another size; most kinds have none, or refuse.
    pub(crate) fn resize(&self, kind: Kind, len: u64) {
        let _refused = ftruncate(self.descriptor(kind), len);
    }
}
