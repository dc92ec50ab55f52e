//! Owns the table of the flags that a guest is started with, in both spellings: the help, the page
//! in docs/ and the tests have it from here. Never reads a flag.

/// What can be asked for, and how each of the two VMMs has it written.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What it is.
    pub means: &'static str,
    /// In cloud-hypervisor's words, or ours where it has none.
    pub cloud_hypervisor: &'static [&'static str],
    /// In crosvm's words.
    pub crosvm: &'static [&'static str],
}

/// Every flag.
pub const ROWS: [Row; 8] = [
    Row {
        means: "the kernel",
        cloud_hypervisor: &["--kernel FILE"],
        crosvm: &["KERNEL"],
    },
    Row {
        means: "the initial file system",
        cloud_hypervisor: &["--initramfs FILE"],
        crosvm: &["--initrd FILE", "-i FILE"],
    },
    Row {
        means: "the kernel's command line; crosvm's can come several times, and is joined",
        cloud_hypervisor: &["--cmdline TEXT"],
        crosvm: &["--params TEXT", "-p TEXT"],
    },
    Row {
        means: "how many vCPUs, 1 to 254; 1 if not written",
        cloud_hypervisor: &["--cpus boot=N[,max=N]"],
        crosvm: &["--cpus N", "--cpus num-cores=N", "-c N"],
    },
    Row {
        means: "the memory; 512 MiB if not written; crosvm counts MiB",
        cloud_hypervisor: &["--memory size=SIZE[,KEY=VALUE...]"],
        crosvm: &["--mem N", "--mem size=N", "-m N"],
    },
    Row {
        means: "transparent huge pages behind it; on if not written",
        cloud_hypervisor: &["--memory thp=on|off"],
        crosvm: &["--hugepages"],
    },
    Row {
        means: "a directory that the guest shares; source= and dax= are ours",
        cloud_hypervisor: &[
            "--fs tag=TAG,source=DIR[,dax=on]",
            "--fs tag=TAG,socket=FILE[,num_queues=N][,queue_size=N]",
        ],
        crosvm: &["--shared-dir DIR:TAG:type=fs[:dax=true]"],
    },
    Row {
        means: "a device of another process; shmem= is ours",
        cloud_hypervisor: &["--generic-vhost-user socket=FILE,device_type=TYPE,queue_sizes=[N...]"],
        crosvm: &["--vhost-user type=TYPE,socket=FILE[,max-queue-size=N]"],
    },
];

/// A key of `--memory`, and what it means here.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The key, and what it can be.
    pub key: &'static str,
    /// What it means; where this VMM refuses it, why.
    pub means: &'static str,
    /// A value that this VMM refuses, where there is one.
    pub refuses: Option<&'static str>,
}

const fn key(key: &'static str, means: &'static str, refuses: Option<&'static str>) -> Key {
    Key {
        key,
        means,
        refuses,
    }
}

/// Every key of `--memory`, those of cloud-hypervisor first.
pub const KEYS: [Key; 17] = [
    key(
        "size=SIZE",
        "how much: a multiple of 2M, from 16M to 512G; 512M if not written",
        Some("0"),
    ),
    key(
        "file=FILE",
        "refused; cloud-hypervisor reads it and makes nothing of it",
        Some("/f"),
    ),
    key(
        "shared=on|off",
        "without effect: the memory is always shared with devices",
        None,
    ),
    key(
        "hugepages=on|off",
        "from the host's huge pages; off if not written",
        None,
    ),
    key(
        "hugepage_size=2M|1G",
        "of that size, else of the host's usual one; with hugepages=on",
        Some("3M"),
    ),
    key(
        "prefault=on|off",
        "all of it is there before the guest starts; off if not written",
        None,
    ),
    key(
        "reserve=off",
        "on is refused: no swap is reserved",
        Some("on"),
    ),
    key(
        "mergeable=off",
        "on is refused: the host merges private memory only",
        Some("on"),
    ),
    key(
        "thp=on|off",
        "transparent huge pages, where the host has them for shared memory; on if not written",
        None,
    ),
    key(
        "hotplug_method=acpi",
        "virtio-mem is refused: no memory is plugged in later",
        Some("virtio-mem"),
    ),
    key(
        "hotplug_size=SIZE",
        "refused: no memory is plugged in later",
        Some("1G"),
    ),
    key(
        "hotplugged_size=SIZE",
        "refused: no memory is plugged in later",
        Some("1G"),
    ),
    key(
        "backend=fixed|memslot",
        "ours: how a window's memory is changed; fixed if not written",
        None,
    ),
    key(
        "window=SIZE",
        "ours: how large the window of a share with dax is (1G if not written), and the most that a daemon may announce (16G); refused where no device has a window",
        None,
    ),
    key(
        "segment=SIZE",
        "ours: how much of a window has one memslot; 1G if not written",
        None,
    ),
    key(
        "hole=trap|zero|stop",
        "ours: what the guest finds where nothing is mapped: an open bus, zeroes, or its end; trap if not written",
        None,
    ),
    key(
        "zap=all|precise",
        "ours: what deleting a memslot drops; all if not written",
        None,
    ),
];

/// The table as the help shows it.
#[must_use]
pub fn text() -> String {
    let mut text = String::from("Each thing has two spellings, and one command can mix them:\n");
    for row in ROWS {
        text.push_str(&format!("\n  {}\n", row.means));
        for (whose, flags) in [
            ("cloud-hypervisor", row.cloud_hypervisor),
            ("crosvm", row.crosvm),
        ] {
            let flags = flags.join("\n                      ");
            text.push_str(&format!("    {whose:<16}  {flags}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use vm_remap::spec::MemorySpec;

    use super::super::foreign::{CLOUD_HYPERVISOR, CROSVM, Foreign};
    use super::super::tests::{command, typed};
    use super::*;

    /// The longs, shorts and words that clap knows.
    fn known() -> Vec<String> {
        let command = command();
        let theirs = command
            .get_arguments()
            .filter(|argument| argument.get_id() != "help");
        let flags = theirs.flat_map(|argument| {
            let long = argument.get_long().map(|long| format!("--{long}"));
            let short = argument.get_short().map(|short| format!("-{short}"));
            let word = argument.is_positional().then(|| "KERNEL".to_owned());
            [long, short, word].into_iter().flatten()
        });
        let mut flags: Vec<String> = flags.collect();
        flags.sort();
        flags
    }

    #[test]
    fn the_table_has_every_flag_and_no_other() {
        let rows = ROWS.iter();
        let all = rows.flat_map(|row| row.cloud_hypervisor.iter().chain(row.crosvm));
        let mut named: Vec<String> = all
            .filter_map(|flag| flag.split(' ').next())
            .map(str::to_owned)
            .collect();
        named.sort();
        named.dedup();
        assert_eq!(named, known());
        let help = command().render_long_help().to_string();
        for row in ROWS {
            assert!(help.contains(row.means), "{}", row.means);
        }
    }

    #[test]
    fn each_key_of_memory_is_done_or_refused_as_the_table_says() {
        let names = KEYS.map(|key| key.key.split('=').next().unwrap());
        assert_eq!(names, MemorySpec::KEYS);
        for Key { key, refuses, .. } in KEYS {
            let (name, values) = key.split_once('=').unwrap();
            let started = |value: &str| {
                let huge = if name == "hugepage_size" {
                    ",size=1G,hugepages=on"
                } else {
                    ""
                };
                let share = "tag=t,source=/,dax=on";
                let memory = format!("{name}={value}{huge}");
                typed(&["--memory", &memory, "--fs", share, "k"])
            };
            if let Some(value) = refuses {
                let text = started(value).unwrap_err();
                assert!(text.contains(&format!("cannot use {name}=")), "{text}");
            }
            let only_refused = matches!(name, "file" | "hotplug_size" | "hotplugged_size");
            for value in values.split('|').filter(|_| !only_refused) {
                started(&value.replace("SIZE", "1G")).unwrap();
            }
        }
    }

    fn code<'a>(words: impl IntoIterator<Item = &'a str>, between: &str) -> String {
        let words = words.into_iter();
        let words = words.map(|word| format!("`{}`", word.replace('|', "\\|")));
        words.collect::<Vec<_>>().join(between)
    }

    fn foreign_rows<'a>(whose: &'a str, all: &'a [Foreign]) -> impl Iterator<Item = String> + 'a {
        all.iter().map(move |foreign| {
            let options = code(foreign.options.split(' '), " ");
            format!("| {whose} | {options} | {} |", foreign.answer)
        })
    }

    #[test]
    fn the_page_in_docs_says_the_same() {
        let page = include_str!("../../../docs/run-flags.md");
        let flags = ROWS.iter().map(|row| {
            let ours = code(row.cloud_hypervisor.iter().copied(), "<br>");
            let crosvm = code(row.crosvm.iter().copied(), "<br>");
            format!("| {} | {ours} | {crosvm} |", row.means)
        });
        let keys = KEYS.map(|Key { key, means, .. }| format!("| {} | {means} |", code([key], "")));
        let rows: Vec<String> = flags
            .chain(keys)
            .chain(foreign_rows("cloud-hypervisor", &CLOUD_HYPERVISOR))
            .chain(foreign_rows("crosvm", &CROSVM))
            .collect();
        let text = rows.join("\n");
        let there: Vec<&str> = page
            .lines()
            .filter(|line| rows.iter().any(|row| row == line))
            .collect();
        assert_eq!(
            there.join("\n"),
            text,
            "docs/run-flags.md must have:\n{text}"
        );
        let lines = page.lines();
        let lines = lines.filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
        // Each of the three tables has one line of headings.
        assert_eq!(lines.count(), rows.len() + 3);
    }
}
