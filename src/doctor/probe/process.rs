//! Owns the reading of what binds this process: its user, its limits and
//! its control groups. Never raises or drops anything.

use std::path::{Component, Path, PathBuf};

use vm_remap::host::Host;

/// Version 1 writes "no limit" as the largest page-aligned number.
const NO_LIMIT: u64 = 1 << 62;
/// The bit of `CAP_SYS_PTRACE`.
const SYS_PTRACE: u64 = 1 << 19;

/// Who this process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::doctor) struct User {
    /// The effective user.
    pub(in crate::doctor) uid: Option<u32>,
    /// The effective group and the supplementary ones.
    pub(in crate::doctor) groups: Vec<u32>,
    /// Whether `CAP_SYS_PTRACE` holds, and in the first user namespace.
    pub(in crate::doctor) may_trace: bool,
}

impl User {
    /// Takes the texts of `/proc/self/status` and `/proc/self/uid_map`.
    pub(super) fn parse(status: &str, uid_map: &str) -> Self {
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .unwrap_or_default()
        };
        // Real, effective, saved, file system.
        let effective = |name: &str| field(name).split_ascii_whitespace().nth(1)?.parse().ok();
        let mut groups: Vec<u32> = effective("Gid").into_iter().collect();
        groups.extend(
            field("Groups")
                .split_ascii_whitespace()
                .filter_map(|gid| gid.parse::<u32>().ok()),
        );
        let caps = u64::from_str_radix(field("CapEff").trim(), 16).unwrap_or(0);
        let first_namespace = uid_map
            .split_ascii_whitespace()
            .eq(["0", "0", "4294967295"]);
        Self {
            uid: effective("Uid"),
            groups,
            may_trace: first_namespace && caps & SYS_PTRACE != 0,
        }
    }
}

/// A resource limit; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::doctor) struct Limit {
    /// What holds now.
    pub(in crate::doctor) soft: Option<u64>,
    /// How far the process may raise it itself.
    pub(in crate::doctor) hard: Option<u64>,
}

impl Limit {
    /// Takes the text of `/proc/self/limits` and a name in it.
    pub(super) fn parse(limits: &str, name: &str) -> Option<Self> {
        let mut words = limits
            .lines()
            .find_map(|line| line.strip_prefix(name))?
            .split_ascii_whitespace()
            .map(|word| match word {
                "unlimited" => Some(None),
                number => number.parse().ok().map(Some),
            });
        Some(Self {
            soft: words.next()??,
            hard: words.next()??,
        })
    }
}

/// The tightest memory limit on the way from our control group to the root
/// of the hierarchy, in bytes.
pub(super) fn cgroup_limit(host: &Host) -> Option<u64> {
    let groups = host.text("/proc/self/cgroup").unwrap_or_default();
    groups
        .lines()
        .filter_map(|line| {
            let (_, line) = line.split_once(':')?;
            let (controllers, group) = line.split_once(':')?;
            let (mount, file) = if controllers.is_empty() {
                ("/sys/fs/cgroup", "memory.max")
            } else if controllers.split(',').any(|name| name == "memory") {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            } else {
                return None;
            };
            tightest(host, Path::new(mount), &plain(group), file)
        })
        .min()
}

/// A group outside our namespace is shown with `..`: only the root of the
/// hierarchy can be looked at then.
fn plain(group: &str) -> PathBuf {
    let path = Path::new(group.trim_start_matches('/'));
    let is_plain = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if is_plain {
        path.to_owned()
    } else {
        PathBuf::new()
    }
}

fn tightest(host: &Host, mount: &Path, group: &Path, file: &str) -> Option<u64> {
    group
        .ancestors()
        .filter_map(|group| {
            let path = mount.join(group).join(file);
            let limit: u64 = host.text(path.to_str()?).ok()?.parse().ok()?;
            (limit < NO_LIMIT).then_some(limit)
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: &str = "\
Limit                     Soft Limit           Hard Limit           Units
Max open files            1024                 524288               files
Max locked memory         unlimited            unlimited            bytes
Max nonsense              lots                 more
";

    #[test]
    fn user_is_read_from_effective_ids() {
        let status = "Name:\tx\nUid:\t1\t1000\t3\t4\nGid:\t5\t100\t7\t8\nGroups:\t27 104 \n\
                      CapEff:\t0000000000080000\n";
        let user = User::parse(status, "         0          0 4294967295");
        assert_eq!(user.uid, Some(1000));
        assert_eq!(user.groups, [100, 27, 104]);
        assert!(user.may_trace);
        let contained = User::parse(status, "0 100000 65536");
        assert!(!contained.may_trace);
    }

    #[test]
    fn limits_are_read_by_name() {
        let files = Limit::parse(LIMITS, "Max open files").unwrap();
        assert_eq!((files.soft, files.hard), (Some(1024), Some(524_288)));
        let locked = Limit::parse(LIMITS, "Max locked memory").unwrap();
        assert_eq!((locked.soft, locked.hard), (None, None));
        assert_eq!(Limit::parse(LIMITS, "Max nonsense"), None);
        assert_eq!(Limit::parse(LIMITS, "Max cheese"), None);
    }

    #[test]
    fn group_outside_the_namespace_is_looked_at_from_the_root() {
        assert_eq!(plain("/../../etc"), PathBuf::new());
        assert_eq!(plain("/user.slice/a"), Path::new("user.slice/a"));
        assert_eq!(plain("/"), PathBuf::new());
    }
}
