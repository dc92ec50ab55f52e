//! Owns the tests of whole specifications: what is read, what is refused, and that what is written
//! reads back. Never opens a window.

use proptest::prelude::*;

use super::*;
use crate::backend::BackendKind;
use crate::range::{GuestAddress, PAGE_SIZE};
use crate::window::holes::HolePolicy;
use crate::window::options::{WindowOptions, Zap};

fn memory(text: &str) -> MemorySpec {
    text.parse().unwrap()
}

fn refused(text: &str) -> String {
    text.parse::<MemorySpec>().unwrap_err().to_string()
}

#[test]
fn nothing_written_is_what_cloud_hypervisor_has() {
    let usual = MemorySpec::default();
    assert_eq!(memory(""), usual);
    assert_eq!(memory("size=,shared=,backend="), usual);
    assert_eq!(usual.to_string(), "size=512M");
    assert!(usual.thp && usual.window.is_empty());
}

#[test]
fn every_key_is_read() {
    let all = "size=4G,file=\"/a,b\",shared=on,hugepages=on,hugepage_size=2M,prefault=on,\
               reserve=on,mergeable=on,thp=off,hotplug_method=virtio-mem,hotplug_size=8G,\
               hotplugged_size=1G,backend=memslot,window=16G,segment=256M,hole=zero,zap=precise";
    let spec = memory(all);
    assert_eq!(spec.to_string(), all);
    assert_eq!(spec.size, 4 << 30);
    assert_eq!(spec.file.as_deref(), Some("/a,b"));
    assert!(spec.shared && spec.hugepages && spec.prefault && spec.reserve && spec.mergeable);
    assert!(!spec.thp);
    assert_eq!(spec.hugepage_size, Some(2 << 20));
    assert_eq!(spec.hotplug_method, HotplugMethod::VirtioMem);
    assert_eq!(spec.hotplug_size, Some(8 << 30));
    assert_eq!(spec.hotplugged_size, Some(1 << 30));
    assert_eq!(spec.window.backend(), Some(BackendKind::Memslot));
    assert_eq!(spec.window.window(), Some(16 << 30));
    assert_eq!(spec.window.segment(), Some(256 << 20));
    assert_eq!(spec.window.holes(), Some(HolePolicy::Zero));
    assert_eq!(spec.window.zap(), Some(Zap::Precise));
    for key in MemorySpec::KEYS {
        assert!(all.contains(&format!("{key}=")), "{key}");
    }
    assert!(MemorySpec::KEYS.ends_with(&WindowSpec::KEYS));
}

#[test]
fn a_wrong_value_is_named_with_what_there_is() {
    for (text, error) in [
        (
            "backend=nonsense",
            "cannot find a backend named \"nonsense\": there are fixed, memslot",
        ),
        (
            "size=lots",
            "cannot use size=\"lots\": write a number of bytes below 2^64, or one with K, M or G \
             (binary) behind it",
        ),
        (
            "prefault=maybe",
            "cannot use prefault=\"maybe\": write on or off",
        ),
        (
            "hotplug_method=usb",
            "cannot use hotplug_method=\"usb\": there are acpi, virtio-mem",
        ),
        (
            "window=0",
            "cannot use window=0: it must be a multiple of 4K, above 0",
        ),
        (
            "segment=1000",
            "cannot use segment=1000: it must be a multiple of 4K, above 0",
        ),
        (
            "hole=one",
            "cannot use hole=\"one\": there are trap, zero, stop",
        ),
        (
            "zap=some",
            "cannot use zap=\"some\": there are all, precise",
        ),
        (
            "size=1G,size=2G",
            "cannot use the key \"size\" twice: leave one of them out",
        ),
    ] {
        assert_eq!(refused(text), error);
    }
    assert_eq!(
        refused("hugepage=on"),
        "cannot use the key \"hugepage\": did you mean hugepages? there are size, file, shared, \
         hugepages, hugepage_size, prefault, reserve, mergeable, thp, hotplug_method, \
         hotplug_size, hotplugged_size, backend, window, segment, hole, zap"
    );
}

#[test]
fn keys_can_be_set_one_by_one_and_once_only() {
    let mut spec = WindowSpec::default();
    assert!(!spec.set("size", "whatever").unwrap());
    assert!(spec.is_empty());
    spec.set("backend", "").unwrap_err();
    spec.set("window", "5000").unwrap_err();
    assert!(spec.is_empty(), "a refused value changes nothing");
    assert!(spec.set("window", "8K").unwrap());
    assert_eq!(
        spec.set("window", "8K").unwrap_err().to_string(),
        "cannot use the key \"window\" twice: leave one of them out"
    );
    assert_eq!(spec.to_string(), "window=8K");
}

#[test]
fn the_help_text_names_every_key_and_value() {
    let parts: Vec<_> = WindowSpec::SYNTAX.split(',').collect();
    let keys: Vec<_> = parts
        .iter()
        .map(|part| part.split_once('=').unwrap())
        .collect();
    assert!(keys.iter().map(|(key, _)| *key).eq(WindowSpec::KEYS));
    for (key, values) in keys {
        let mut words: Vec<_> = values
            .split('|')
            .map(|word| word.replace("<size>", "4K"))
            .collect();
        for word in &words {
            WindowSpec::default().set(key, word).unwrap();
        }
        let all = match key {
            "backend" => BackendKind::ALL.map(|kind| kind.to_string()).to_vec(),
            "hole" => HolePolicy::ALL.map(|hole| hole.to_string()).to_vec(),
            "zap" => Zap::ALL.map(|zap| zap.to_string()).to_vec(),
            _ => vec!["4K".to_owned()],
        };
        words.sort();
        let mut all = all;
        all.sort();
        assert_eq!(words, all);
    }
}

#[test]
fn a_window_is_opened_as_written() {
    let text = |options: WindowOptions| format!("{options:?}");
    let (base, len) = (GuestAddress(4 << 30), 1 << 30);
    let usual = WindowOptions::new(base, len);
    assert_eq!(text(WindowSpec::default().options(base, len)), text(usual));
    let spec: WindowSpec = "backend=memslot,window=8G,segment=64M,hole=stop,zap=precise"
        .parse()
        .unwrap();
    let asked = usual
        .backend(BackendKind::Memslot)
        .segment_size(64 << 20)
        .holes(HolePolicy::Stop)
        .zap(Zap::Precise);
    assert_eq!(text(spec.options(base, len)), text(asked));
}

#[cfg(feature = "serde")]
#[test]
fn json_has_the_same_words_and_the_same_checks() {
    let read = serde_json::from_str::<WindowSpec>;
    let json = r#"{"backend":"fixed","window":8589934592,"segment":1073741824,"hole":"trap","zap":"precise"}"#;
    let spec: WindowSpec = "backend=fixed,window=8G,segment=1G,hole=trap,zap=precise"
        .parse()
        .unwrap();
    assert_eq!(serde_json::to_string(&spec).unwrap(), json);
    assert_eq!(read(json).unwrap(), spec);
    assert_eq!(serde_json::to_string(&WindowSpec::default()).unwrap(), "{}");
    assert!(read("{}").unwrap().is_empty());
    assert!(read(r#"{"window":null}"#).unwrap().is_empty());
    let error = read(r#"{"window":4097}"#).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot use window=4097: it must be a multiple of 4K"),
        "{error}"
    );
    for wrong in [
        r#"{"segment":0}"#,
        r#"{"backend":"nonsense"}"#,
        r#"{"zap":"some"}"#,
        r#"{"hole":"one"}"#,
        r#"{"back":"fixed"}"#,
    ] {
        read(wrong).unwrap_err();
    }
}

/// As a VMM does whose own configuration has these keys beside others.
#[cfg(feature = "serde")]
#[test]
fn json_can_have_the_keys_beside_those_of_a_vmm() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Config {
        size: u64,
        #[serde(flatten)]
        window: WindowSpec,
    }
    let read = serde_json::from_str::<Config>;
    let json = r#"{"size":1,"backend":"fixed","segment":4096,"zap":"all"}"#;
    let config = read(json).unwrap();
    assert_eq!(
        config.window.to_string(),
        "backend=fixed,segment=4K,zap=all"
    );
    assert_eq!(serde_json::to_string(&config).unwrap(), json);
    assert!(read(r#"{"size":1}"#).unwrap().window.is_empty());
    read(r#"{"size":1,"segment":4097}"#).unwrap_err();
    read(r#"{"size":1,"backend":"nonsense"}"#).unwrap_err();
}

fn windows() -> impl Strategy<Value = WindowSpec> {
    let pages = || prop::option::of((1..=u64::MAX / PAGE_SIZE).prop_map(|pages| pages * PAGE_SIZE));
    let parts = (
        prop::option::of(prop::sample::select(BackendKind::ALL.to_vec())),
        pages(),
        pages(),
        prop::option::of(prop::sample::select(HolePolicy::ALL.to_vec())),
        prop::option::of(prop::sample::select(Zap::ALL.to_vec())),
    );
    parts.prop_map(|(backend, window, segment, hole, zap)| {
        let mut spec = WindowSpec::default();
        let values = [
            backend.map(|word| word.to_string()),
            window.map(|bytes| bytes.to_string()),
            segment.map(|bytes| bytes.to_string()),
            hole.map(|word| word.to_string()),
            zap.map(|word| word.to_string()),
        ];
        for (key, value) in WindowSpec::KEYS.iter().zip(values) {
            if let Some(value) = value {
                assert!(spec.set(key, &value).unwrap());
            }
        }
        spec
    })
}

fn memories() -> impl Strategy<Value = MemorySpec> {
    let sizes = (any::<u64>(), any::<[Option<u64>; 3]>());
    let file = prop::option::of(any::<String>());
    (sizes, any::<[bool; 7]>(), file, windows()).prop_map(|(sizes, flags, file, window)| {
        let (size, [hugepage_size, hotplug_size, hotplugged_size]) = sizes;
        let [shared, hugepages, prefault, reserve, mergeable, thp, other] = flags;
        let methods = [HotplugMethod::Acpi, HotplugMethod::VirtioMem];
        MemorySpec {
            size,
            file,
            shared,
            hugepages,
            hugepage_size,
            prefault,
            reserve,
            mergeable,
            thp,
            hotplug_method: methods[usize::from(other)],
            hotplug_size,
            hotplugged_size,
            window,
        }
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(spec in memories()) {
        let text = spec.to_string();
        prop_assert_eq!(text.parse::<MemorySpec>().unwrap(), spec.clone());
        let text = spec.window.to_string();
        prop_assert_eq!(text.parse::<WindowSpec>().unwrap(), spec.window);
    }

    #[test]
    fn sizes_read_back(bytes: u64) {
        prop_assert_eq!(parse_size("size", &size_text(bytes)).unwrap(), bytes);
    }

    #[test]
    fn no_text_makes_it_panic(text: String, near in "([a-z_]{1,14}[=,\"\\[\\]]?[0-9KMG\"]{0,21},?){0,6}") {
        for text in [text, near] {
            if let Ok(spec) = text.parse::<MemorySpec>() {
                prop_assert_eq!(spec.to_string().parse::<MemorySpec>().unwrap(), spec);
            }
        }
    }
}
