//! Owns FUSE requests and answers as bytes, laid out as Linux does (`include/uapi/linux/fuse.h`,
//! protocol 7.38). Never sends one.

pub(crate) const LOOKUP: u32 = 1;
pub(crate) const FORGET: u32 = 2;
pub(crate) const GETATTR: u32 = 3;
pub(crate) const SETATTR: u32 = 4;
pub(crate) const READLINK: u32 = 5;
pub(crate) const SYMLINK: u32 = 6;
pub(crate) const MKDIR: u32 = 9;
pub(crate) const UNLINK: u32 = 10;
pub(crate) const RENAME: u32 = 12;
pub(crate) const LINK: u32 = 13;
pub(crate) const OPEN: u32 = 14;
pub(crate) const READ: u32 = 15;
pub(crate) const WRITE: u32 = 16;
pub(crate) const STATFS: u32 = 17;
pub(crate) const INIT: u32 = 26;
pub(crate) const OPENDIR: u32 = 27;
pub(crate) const READDIR: u32 = 28;
pub(crate) const CREATE: u32 = 35;
pub(crate) const DESTROY: u32 = 38;
pub(crate) const FALLOCATE: u32 = 43;
pub(crate) const SETUPMAPPING: u32 = 48;
pub(crate) const REMOVEMAPPING: u32 = 49;

pub(crate) const ROOT: u64 = 1;

/// Flags of INIT, in two words: extended flags, big writes, pages, map alignment; DAX per file.
pub(crate) const INIT_FLAGS: u32 = 1 << 30 | 1 << 26 | 1 << 22 | 1 << 5;
pub(crate) const INIT_FLAGS_2: u32 = 1 << 1;

/// An answer without its header.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The errno, positive.
    pub(crate) error: i32,
    pub(crate) unique: u64,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(usize::try_from(word(0)).unwrap(), bytes.len());
        Self {
            error: -word(4).cast_signed(),
            unique: u64::from_le_bytes(bytes[8..16].try_into().unwrap()),
            body: bytes[16..].to_vec(),
        }
    }

    pub(crate) fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.body[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.body[at..at + 8].try_into().unwrap())
    }
}

/// A request of root in the guest.
pub(crate) fn request(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(40 + body.len()).unwrap();
    let mut bytes = words(&[len, opcode]);
    bytes.extend(longs(&[unique, node]));
    bytes.extend(words(&[0, 0, 1, 0]));
    bytes.extend(body);
    bytes
}

pub(crate) fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

pub(crate) fn longs(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

pub(crate) fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

pub(crate) fn init() -> Vec<u8> {
    let mut body = words(&[7, 38, 128 << 10, INIT_FLAGS, INIT_FLAGS_2]);
    body.extend([0; 44]);
    body
}

pub(crate) fn open(flags: i32) -> Vec<u8> {
    words(&[flags.cast_unsigned(), 0])
}

pub(crate) fn read(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    let mut body = longs(&[handle, offset]);
    body.extend(words(&[size, 0, 0, 0, 0, 0]));
    body
}

/// Written with the flags of the open file, `O_RDWR`.
pub(crate) fn write(handle: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut body = longs(&[handle, offset]);
    let size = u32::try_from(data.len()).unwrap();
    body.extend(words(&[size, 0, 0, 0, libc::O_RDWR.cast_unsigned(), 0]));
    body.extend(data);
    body
}

pub(crate) fn set_size(size: u64) -> Vec<u8> {
    let mut body = words(&[1 << 3, 0]);
    body.extend(longs(&[0, size]));
    body.resize(88, 0);
    body
}

pub(crate) fn get_attributes() -> Vec<u8> {
    vec![0; 16]
}

pub(crate) fn setup_mapping(file: u64, len: u64, writable: bool, window: u64) -> Vec<u8> {
    longs(&[0, file, len, if writable { 3 } else { 2 }, window])
}

pub(crate) fn remove_mappings(ranges: &[(u64, u64)]) -> Vec<u8> {
    let mut body = words(&[u32::try_from(ranges.len()).unwrap()]);
    for &(window, len) in ranges {
        body.extend(longs(&[window, len]));
    }
    body
}
