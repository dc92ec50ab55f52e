//! Owns how a shared directory is written: cloud-hypervisor's `--fs`, with what we add, and crosvm's
//! `--shared-dir`. Never shares one.

use std::path::PathBuf;

use vm_remap::spec::{SpecError, fields, parse_toggle, unknown};

use super::error::{FlagError, refused};
use super::values::{number, path, queue_size};
use crate::run::launch::{FsCache, FsServer, FsShare, FsSpec};

/// The most bytes that virtio-fs has for a tag.
const MAX_TAG: usize = 36;

/// The most request queues that the project's own daemon has.
const MOST_OF_OURS: u16 = 16;

/// The most entries of a queue that it has.
const LARGEST_OF_OURS: u16 = 1024;

/// Cloud-hypervisor's, and `source`, `dax` and what a server can be told.
const KEYS: [&str; 12] = [
    "tag",
    "source",
    "socket",
    "dax",
    "cache",
    "writeback",
    "timeout",
    "num_queues",
    "queue_size",
    // Read, so that they can be refused by name.
    "id",
    "pci_segment",
    "pci_device_id",
];

/// Crosvm's keys behind `PATH:TAG:`.
const SHARED_KEYS: [&str; 22] = [
    "type",
    "dax",
    "use_dax",
    "cache",
    "cache_policy",
    "writeback",
    "timeout",
    // Read, so that they can be refused by name.
    "uid",
    "gid",
    "uidmap",
    "gidmap",
    "negative_timeout",
    "rewrite_security_xattrs",
    "rewrite-security-xattrs",
    "ascii_casefold",
    "privileged_quota_uids",
    "posix_acl",
    "max_dynamic_perm",
    "max_dynamic_xattr",
    "security_ctx",
    "ugid_map",
    "unmap_guest_memory_on_fork",
];

/// What both spellings come to.
#[derive(Debug, Default)]
struct Parts {
    tag: Option<String>,
    source: Option<PathBuf>,
    socket: Option<PathBuf>,
    dax: bool,
    cache: Option<FsCache>,
    queues: Option<u16>,
    queue_size: Option<u16>,
}

/// The shared directory of a `--fs`.
///
/// # Errors
/// Where it has no tag, or not one of a directory and a socket, or asks for what this VMM does not
/// do.
pub(super) fn parse(text: &str) -> Result<FsSpec, FlagError> {
    let mut parts = Parts::default();
    for field in fields(text, &KEYS)? {
        let (key, value) = (field.key, field.value.as_str());
        match key {
            "tag" => parts.tag = Some(value.to_owned()),
            "source" => parts.source = Some(path(key, value)?),
            "socket" => parts.socket = Some(path(key, value)?),
            "num_queues" => parts.queues = Some(queues(key, value)?),
            "queue_size" => parts.queue_size = Some(queue_size(key, value)?),
            "id" | "pci_segment" | "pci_device_id" => {
                let why = "this VMM names and places its devices itself; leave it out";
                return Err(refused(format!("{key}={value}"), why));
            }
            _ => parts.take(key, value)?,
        }
    }
    parts.spec(text)
}

/// The shared directory of a `--shared-dir`.
///
/// # Errors
/// Where it is to be shared by 9p, as it is there if not said otherwise, and as for [`parse`].
pub(super) fn shared_dir(text: &str) -> Result<FsSpec, FlagError> {
    let mut words = text.split(':');
    let (source, tag) = (words.next().unwrap_or_default(), words.next());
    let is_key = |tag: &str| {
        tag.split_once('=')
            .is_some_and(|(key, _)| SHARED_KEYS.contains(&key))
    };
    let tag = tag.filter(|tag| !source.is_empty() && !tag.is_empty() && !is_key(tag));
    let Some(tag) = tag else {
        let why = "a directory and the tag that the guest mounts come first; write DIR:TAG:type=fs";
        return Err(refused(format!("{text:?}"), why));
    };
    let mut parts = Parts {
        source: Some(path("DIR", source)?),
        tag: Some(tag.to_owned()),
        ..Parts::default()
    };
    let (mut kind, mut seen) = ("p9", Vec::new());
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            let why = "behind DIR:TAG there is key=value, with : between them";
            return Err(refused(format!("{word:?}"), why));
        };
        if !SHARED_KEYS.contains(&key) {
            return Err(unknown(key, &SHARED_KEYS).into());
        }
        let plain = match key {
            "use_dax" => "dax",
            "cache_policy" => "cache",
            key => key,
        };
        if seen.contains(&plain) {
            let key = key.to_owned();
            return Err(SpecError::Twice { key }.into());
        }
        seen.push(plain);
        match plain {
            "type" => kind = value,
            "dax" | "cache" | "writeback" | "timeout" => parts.take(plain, value)?,
            _ => {
                let why = "the daemon that shares it has no such choice; leave it out";
                return Err(refused(format!("{key}={value}"), why));
            }
        }
    }
    match kind {
        "fs" | "FS" => parts.spec(text),
        "p9" | "P9" | "9p" | "9P" => Err(refused(
            format!("{text:?}"),
            "it is shared by 9p unless it says type=fs, and this VMM has virtio-fs only; write \
             :type=fs",
        )),
        other => Err(refused(format!("type={other}"), "write type=fs")),
    }
}

impl Parts {
    /// Takes what both spellings have.
    fn take(&mut self, key: &str, value: &str) -> Result<(), FlagError> {
        match key {
            "dax" => self.dax = parse_toggle(key, value)?,
            "cache" => self.cache = Some(cache(key, value)?),
            "writeback" if !parse_toggle(key, value)? => {}
            "writeback" => {
                let why =
                    "each write of the guest is one of the daemon's; leave it out, or write off";
                return Err(refused(format!("{key}={value}"), why));
            }
            _ => {
                let why = "cache= says how long the guest may believe what it was told: never not at \
                           all, auto a second, always a day; leave it out";
                return Err(refused(format!("{key}={value}"), why));
            }
        }
        Ok(())
    }

    /// What the project's own daemon does not have.
    fn beyond_ours(&self) -> Result<(), FlagError> {
        let most = |key: &str, asked: Option<u16>, most: u16| match asked {
            Some(asked) if asked > most => Err(refused(
                format!("{key}={asked}"),
                format!("the daemon that source= starts has {most} at the most"),
            )),
            _ => Ok(()),
        };
        most("num_queues", self.queues, MOST_OF_OURS)?;
        most("queue_size", self.queue_size, LARGEST_OF_OURS)
    }

    fn spec(self, text: &str) -> Result<FsSpec, FlagError> {
        if self.source.is_some() {
            self.beyond_ours()?;
        }
        let Some(tag) = self.tag else {
            let why = "write tag=TAG, the name that the guest mounts";
            return Err(refused(format!("{text:?}"), why));
        };
        if tag.is_empty() || tag.len() > MAX_TAG || tag.contains('\0') {
            let why = format!("its tag {tag:?} must have 1 to {MAX_TAG} bytes, none of them 0");
            return Err(refused(format!("{text:?}"), why));
        }
        let server = match (self.source, self.socket) {
            (Some(source), None) => FsServer::Daemon(FsShare {
                source,
                cache: self.cache.unwrap_or_default(),
            }),
            (None, Some(_)) if self.cache.is_some() => {
                let why = "whoever listens on the socket decides on the cache; leave cache= out";
                return Err(refused(format!("{text:?}"), why));
            }
            (None, Some(socket)) => FsServer::Socket(socket),
            (Some(_), Some(_)) => {
                let why = "source= starts a server and socket= is where one listens already; leave \
                           one of them out";
                return Err(refused("source= and socket=", why));
            }
            (None, None) => {
                let why = "write source=DIR, or socket=FILE where a server listens already";
                return Err(refused(format!("{text:?}"), why));
            }
        };
        Ok(FsSpec {
            tag,
            server,
            dax: self.dax,
            queues: self.queues.unwrap_or(1),
            queue_size: self.queue_size.unwrap_or(1024),
        })
    }
}

fn cache(key: &str, value: &str) -> Result<FsCache, FlagError> {
    match value {
        "never" => Ok(FsCache::Never),
        "auto" => Ok(FsCache::Auto),
        "always" => Ok(FsCache::Always),
        _ => Err(refused(
            format!("{key}={value}"),
            "there are never, auto, always",
        )),
    }
}

fn queues(key: &str, value: &str) -> Result<u16, FlagError> {
    match u16::try_from(number(key, value)?) {
        Ok(count @ 1..=256) => Ok(count),
        _ => Err(refused(format!("{key}={value}"), "there can be 1 to 256")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(dax: bool, cache: FsCache) -> FsSpec {
        FsSpec {
            tag: "tag".into(),
            server: FsServer::Daemon(FsShare {
                source: "/tmp".into(),
                cache,
            }),
            dax,
            queues: 1,
            queue_size: 1024,
        }
    }

    #[test]
    fn both_spellings_share_a_directory() {
        for (ours, theirs, spec) in [
            (
                "tag=tag,source=/tmp,dax=on",
                "/tmp:tag:type=fs:dax=true",
                share(true, FsCache::Auto),
            ),
            (
                "tag=tag,source=/tmp,cache=always",
                "/tmp:tag:cache=always:type=fs",
                share(false, FsCache::Always),
            ),
            (
                "tag=tag,source=\"/tmp\",cache=never,writeback=off",
                "/tmp:tag:type=fs:cache_policy=never:writeback=false:use_dax=false",
                share(false, FsCache::Never),
            ),
        ] {
            assert_eq!(parse(ours).unwrap(), spec);
            assert_eq!(shared_dir(theirs).unwrap(), spec);
        }
    }

    #[test]
    fn a_server_can_listen_already() {
        let spec = parse("tag=myfs,socket=/tmp/virtiofs,num_queues=2,queue_size=512").unwrap();
        assert_eq!(spec.server, FsServer::Socket("/tmp/virtiofs".into()));
        assert_eq!((spec.queues, spec.queue_size, spec.dax), (2, 512, false));
    }

    #[test]
    fn what_is_missing_or_not_done_is_named() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        for (text, why) in [
            (
                "source=/tmp",
                "cannot use \"source=/tmp\": write tag=TAG, the name that the guest mounts",
            ),
            (
                "tag=t",
                "cannot use \"tag=t\": write source=DIR, or socket=FILE where a server listens \
                 already",
            ),
            (
                "tag=t,source=/tmp,socket=/s",
                "cannot use source= and socket=: source= starts a server and socket= is where one \
                 listens already; leave one of them out",
            ),
            (
                "tag=t,socket=/s,cache=auto",
                "cannot use \"tag=t,socket=/s,cache=auto\": whoever listens on the socket decides \
                 on the cache; leave cache= out",
            ),
            (
                "tag=t,source=/tmp,cache=some",
                "cannot use cache=some: there are never, auto, always",
            ),
            (
                "tag=t,source=/tmp,writeback=on",
                "cannot use writeback=on: each write of the guest is one of the daemon's; leave it \
                 out, or write off",
            ),
            (
                "tag=t,source=/tmp,timeout=5",
                "cannot use timeout=5: cache= says how long the guest may believe what it was told: \
                 never not at all, auto a second, always a day; leave it out",
            ),
            (
                "tag=t,source=/tmp,num_queues=17",
                "cannot use num_queues=17: the daemon that source= starts has 16 at the most",
            ),
            (
                "tag=t,source=/tmp,queue_size=2048",
                "cannot use queue_size=2048: the daemon that source= starts has 1024 at the most",
            ),
            (
                "tag=t,socket=/s,num_queues=0",
                "cannot use num_queues=0: there can be 1 to 256",
            ),
            (
                "tag=t,socket=/s,id=fs0",
                "cannot use id=fs0: this VMM names and places its devices itself; leave it out",
            ),
        ] {
            assert_eq!(error(text), why);
        }
        let long = "t".repeat(37);
        assert!(error(&format!("tag={long},source=/tmp")).ends_with("none of them 0"));
    }

    #[test]
    fn crosvms_other_words_are_refused_by_name() {
        let error = |text: &str| shared_dir(text).unwrap_err().to_string();
        for (text, why) in [
            (
                "/tmp:tag",
                "cannot use \"/tmp:tag\": it is shared by 9p unless it says type=fs, and this VMM \
                 has virtio-fs only; write :type=fs",
            ),
            ("/tmp:tag:type=nfs", "cannot use type=nfs: write type=fs"),
            (
                "/tmp:tag:type=fs:uid=5",
                "cannot use uid=5: the daemon that shares it has no such choice; leave it out",
            ),
            (
                "/tmp:tag:type=fs:dax",
                "cannot use \"dax\": behind DIR:TAG there is key=value, with : between them",
            ),
            (
                "/tmp:tag:type=fs:dax=true:use_dax=true",
                "cannot use the key \"use_dax\" twice: leave one of them out",
            ),
        ] {
            assert_eq!(error(text), why);
        }
        for text in [
            "",
            "/tmp",
            ":tag:type=fs",
            "/tmp::type=fs",
            "/tmp:type=fs:dax=true",
        ] {
            assert_eq!(
                error(text),
                format!(
                    "cannot use {text:?}: a directory and the tag that the guest mounts come first; \
                     write DIR:TAG:type=fs"
                )
            );
        }
        assert!(error("/tmp:t:typ=fs").contains("did you mean type?"));
    }
}
