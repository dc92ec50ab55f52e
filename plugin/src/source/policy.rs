//! Owns the choice of which descriptors may stand behind guest memory, by kind and seals.
//! Never asks the kernel: it judges what `descriptor` has found.

use rustix::fs::SealFlags;

use super::descriptor::{Descriptor, DescriptorKind};
use crate::error::Error;
use crate::range::PageRange;

/// Which descriptors [`Source::descriptor`](crate::Source::descriptor) accepts, with
/// [`Source::policy`](crate::Source::policy).
///
/// Who owns the file behind a mapping decides what a touch of it does. A file that shrinks makes
/// the touch fail. A file on FUSE or on a network can let it wait for ever, with a vCPU in it that
/// no signal ends. Kinds and seals are what the kernel vouches for, so a policy is made of these:
///
/// | | [`own`](Self::own) | [`peer`](Self::peer) |
/// | --- | --- | --- |
/// | memfd, file on tmpfs | yes | sealed against shrinking |
/// | hugetlb memfd or file | yes | sealed against shrinking |
/// | dma-buf | yes | yes |
/// | file on any other file system | yes | no |
///
/// **The check holds for as long as the mapping lives**: a file's kind does not change, seals are
/// only ever added, and they are read before the size, which a sealed file never goes below. It
/// asks the kernel nothing that mapping does not ask anyway.
///
/// What no policy can promise: that the host has a page when it is touched. The owner of a hugetlb
/// file can punch holes into it, sealed or not, and the pool can be empty then. And the driver that
/// a dma-buf comes from is believed.
///
/// ```
/// use std::os::fd::AsFd;
/// use vm_remap::{DescriptorPolicy, Source};
///
/// # let fd = rustix::fs::memfd_create("blob", rustix::fs::MemfdFlags::CLOEXEC)?;
/// // For a peer that does not seal: the VMM resolves the faults of a file that shrinks.
/// let lax = DescriptorPolicy::peer().seals(0);
/// let source = Source::descriptor(fd.as_fd(), 0).policy(lax);
/// # let _ = source;
/// # Ok::<(), rustix::io::Errno>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DescriptorPolicy {
    shmem: bool,
    hugetlb: bool,
    dma_buf: bool,
    regular_file: bool,
    seals: u32,
}

impl Default for DescriptorPolicy {
    /// [`own`](Self::own): most descriptors that a VMM maps are those it made or was started with.
    fn default() -> Self {
        Self::own()
    }
}

impl DescriptorPolicy {
    /// For the VMM's own files: everything that can be mapped.
    #[must_use]
    pub const fn own() -> Self {
        Self {
            shmem: true,
            hugetlb: true,
            dma_buf: true,
            regular_file: true,
            seals: 0,
        }
    }

    /// For descriptors that a vhost-user peer or another process sent: dma-bufs, and memfds, with
    /// huge pages or without, that have `F_SEAL_SHRINK`.
    ///
    /// Few peers seal what they send. virtiofsd sends files of the directory that it shares, and
    /// needs [`regular_file`](Self::regular_file) for a DAX window. What is let in that way needs
    /// a VMM that resolves the guest's faults.
    #[must_use]
    pub const fn peer() -> Self {
        Self {
            regular_file: false,
            seals: SealFlags::SHRINK.bits(),
            ..Self::own()
        }
    }

    /// Whether memfds, and other files on tmpfs, are accepted. Only a memfd made with
    /// `MFD_ALLOW_SEALING` can be sealed.
    #[must_use]
    pub const fn shmem(mut self, accepted: bool) -> Self {
        self.shmem = accepted;
        self
    }

    /// Whether hugetlb memfds, and other files on hugetlbfs, are accepted.
    #[must_use]
    pub const fn hugetlb(mut self, accepted: bool) -> Self {
        self.hugetlb = accepted;
        self
    }

    /// Whether dma-bufs are accepted. They cannot shrink and have no seals.
    #[must_use]
    pub const fn dma_buf(mut self, accepted: bool) -> Self {
        self.dma_buf = accepted;
        self
    }

    /// Whether files on any other file system are accepted, FUSE and network ones among them.
    /// They have no seals: their owner can shrink them, or leave a touch of them waiting.
    #[must_use]
    pub const fn regular_file(mut self, accepted: bool) -> Self {
        self.regular_file = accepted;
        self
    }

    /// The seals that a memfd or hugetlb file must have, at least, as `F_GET_SEALS` has them: 2 is
    /// `F_SEAL_SHRINK`, 0 asks for none.
    #[must_use]
    pub const fn seals(mut self, wanted: u32) -> Self {
        self.seals = wanted;
        self
    }

    pub(crate) fn accepts_files(self) -> bool {
        self.regular_file
    }

    /// What to say of a kind that is not accepted.
    pub(crate) fn refuses(self, range: PageRange, kind: String) -> Error {
        Error::PolicyKind {
            range,
            kind,
            accepted: self.kinds(),
        }
    }

    /// Refuses a descriptor that the policy does not accept.
    pub(crate) fn judge(self, found: &Descriptor, range: PageRange) -> Result<(), Error> {
        let (accepted, wanted) = match found.kind {
            DescriptorKind::Shmem => (self.shmem, self.seals),
            DescriptorKind::Hugetlb { .. } => (self.hugetlb, self.seals),
            DescriptorKind::DmaBuf => (self.dma_buf, 0),
            DescriptorKind::RegularFile => (self.regular_file, 0),
        };
        if !accepted {
            return Err(self.refuses(range, found.to_string()));
        }
        let seals = found.seals.map_or(0, |seals| seals.bits());
        if seals & wanted == wanted {
            return Ok(());
        }
        Err(Error::PolicySeals {
            range,
            kind: found.to_string(),
            found: seals,
            wanted,
        })
    }

    /// What it accepts, in words.
    fn kinds(self) -> String {
        let kinds = [
            (self.shmem, "memfd"),
            (self.hugetlb, "hugetlb"),
            (self.dma_buf, "dma-buf"),
            (self.regular_file, "file"),
        ];
        let names: Vec<&str> = kinds
            .iter()
            .filter_map(|(accepted, name)| accepted.then_some(*name))
            .collect();
        match names.as_slice() {
            [] => "nothing".to_owned(),
            names => names.join(", "),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::FileType;

    use super::*;
    use crate::source::descriptor::kind_of;

    const FUSE: i64 = 0x6573_5546;
    const EXT4: i64 = 0xef53;
    const NFS: i64 = 0x6969;
    const HUGETLB: DescriptorKind = DescriptorKind::Hugetlb {
        page_size: 0x20_0000,
    };

    fn judged(
        policy: DescriptorPolicy,
        kind: DescriptorKind,
        seals: Option<SealFlags>,
    ) -> Result<(), Error> {
        let found = Descriptor::of_test(kind, seals);
        policy.judge(&found, PageRange::new(0x1000, 0x2000).unwrap())
    }

    #[test]
    fn own_accepts_every_kind_without_seals() {
        let own = DescriptorPolicy::default();
        assert_eq!(own, DescriptorPolicy::own());
        for (kind, seals) in [
            (DescriptorKind::Shmem, Some(SealFlags::empty())),
            (HUGETLB, Some(SealFlags::empty())),
            (DescriptorKind::DmaBuf, None),
            (DescriptorKind::RegularFile, None),
        ] {
            judged(own, kind, seals).unwrap();
        }
    }

    #[test]
    fn peer_wants_memory_that_cannot_shrink() {
        let peer = DescriptorPolicy::peer();
        for kind in [DescriptorKind::Shmem, HUGETLB] {
            judged(peer, kind, Some(SealFlags::SHRINK)).unwrap();
            judged(peer, kind, Some(SealFlags::SHRINK | SealFlags::SEAL)).unwrap();
            for seals in [
                SealFlags::empty(),
                SealFlags::SEAL,
                SealFlags::GROW | SealFlags::WRITE,
            ] {
                let error = judged(peer, kind, Some(seals)).unwrap_err();
                assert!(matches!(error, Error::PolicySeals { wanted: 2, .. }));
                assert_eq!(error.errno(), 1);
            }
        }
        judged(peer, DescriptorKind::DmaBuf, None).unwrap();
    }

    #[test]
    fn peer_refuses_files_whose_pages_come_from_elsewhere() {
        for file_system in [FUSE, NFS, EXT4] {
            let kind = kind_of(FileType::RegularFile, file_system, 4096).unwrap();
            let error = judged(DescriptorPolicy::peer(), kind, None).unwrap_err();
            assert_eq!(
                error.to_string(),
                "cannot map 0x1000..0x3000 from file: the policy accepts memfd, hugetlb, dma-buf; \
                 pass one of these, or choose a policy that accepts it"
            );
            assert_eq!(error.errno(), 1);
        }
    }

    #[test]
    fn each_kind_can_be_let_in_and_kept_out() {
        let (none, shrink) = (Some(SealFlags::empty()), Some(SealFlags::SHRINK));
        let peer = DescriptorPolicy::peer();
        judged(peer.seals(0), DescriptorKind::Shmem, none).unwrap();
        judged(peer.regular_file(true), DescriptorKind::RegularFile, None).unwrap();
        judged(peer.shmem(false), DescriptorKind::Shmem, shrink).unwrap_err();
        judged(peer.hugetlb(false), HUGETLB, shrink).unwrap_err();
        judged(peer.dma_buf(false), DescriptorKind::DmaBuf, None).unwrap_err();
        let nothing = peer.shmem(false).hugetlb(false).dma_buf(false);
        let error = judged(nothing, DescriptorKind::DmaBuf, None).unwrap_err();
        assert!(error.to_string().contains("accepts nothing"), "{error}");
    }
}
