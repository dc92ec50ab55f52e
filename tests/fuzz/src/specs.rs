//! Owns the target of specifications from outside: any text. It is refused, or what was read is
//! written so that it reads the same, and each way to read it agrees with the others.

use vm_remap::GuestAddress;
use vm_remap::spec::{MemorySpec, WindowSpec, fields, parse_size, size_text};

/// Runs what the bytes say, as text and as JSON.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(bytes) = parse_size("size", text) {
        assert_eq!(parse_size("size", &size_text(bytes)).unwrap(), bytes);
    }
    if let Ok(spec) = text.parse::<MemorySpec>() {
        assert_eq!(spec.to_string().parse::<MemorySpec>().unwrap(), spec);
        one_by_one(text, spec.window);
    }
    if let Ok(spec) = text.parse::<WindowSpec>() {
        holds(spec);
        one_by_one(text, spec);
    }
    if let Ok(spec) = serde_json::from_str::<WindowSpec>(text) {
        holds(spec);
    }
}

/// A VMM with a parser of its own hands the keys over one by one: that must come to the same.
fn one_by_one(text: &str, whole: WindowSpec) {
    let mut spec = WindowSpec::default();
    for field in fields(text, &MemorySpec::KEYS).unwrap() {
        let ours = spec.set(field.key, &field.value).unwrap();
        assert_eq!(ours, WindowSpec::KEYS.contains(&field.key));
    }
    assert_eq!(spec, whole);
}

fn holds(spec: WindowSpec) {
    assert_eq!(spec.to_string().parse::<WindowSpec>().unwrap(), spec);
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<WindowSpec>(&json).unwrap(), spec);
    for bytes in [spec.window(), spec.segment()].into_iter().flatten() {
        assert!(bytes > 0 && bytes.is_multiple_of(vm_remap::PAGE_SIZE));
    }
    let _options = spec.options(GuestAddress(0), spec.window().unwrap_or(1 << 30));
}
