//! Owns the order, the names, the words and the colours of the rivals, the
//! same in the table, on the page and in the picture. Never formats a figure.

use super::canvas::{Colour, palette};
use super::{Backends, Latencies, Report, Rival, Settings, units};

/// One rival as a line of a table or a chart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// The JSON name, or `fixed (peer)`.
    pub(super) name: &'static str,
    /// A few words for a picture.
    pub(super) short: &'static str,
    /// What the caller sees; `None` when the rival did not run at all.
    pub(super) latencies: Option<Latencies>,
    /// What the guest sees; `None` as well for rows without a guest.
    pub(super) rival: Option<Rival>,
    /// Why a figure is not there.
    pub(super) absent: &'static str,
    /// The same in every chart.
    pub(super) colour: Colour,
}

/// What each rival is, a sentence each.
pub(super) const SENTENCES: [(&str, &str); 5] = [
    (
        "memslot",
        "delete + create of the memslot, what VMMs do today",
    ),
    (
        "memslot-precise",
        "the same with KVM_X86_QUIRK_SLOT_ZAP_ALL disabled",
    ),
    (
        "plain",
        "reserve + MAP_FIXED as crosvm, libkrun and QEMU do it",
    ),
    (
        "fixed",
        "vm-remap: memory the VMM owns, and (peer) a descriptor from a peer",
    ),
    (
        "bare",
        "the same system calls with no memslot over the range, the floor",
    ),
];

const NOT_MEASURED: &str = "not measured";

/// One row per rival and, after vm-remap's own, the one for a peer's
/// descriptor.
pub(super) fn rows(report: &Report) -> Vec<Row> {
    let Backends {
        memslot,
        memslot_precise,
        plain,
        fixed,
        bare,
    } = &report.backends;
    let row = |name, short, colour, latencies, rival| Row {
        name,
        short,
        latencies,
        rival,
        absent: NOT_MEASURED,
        colour,
    };
    let under_guest = |name, short, colour, rival: Option<Rival>| {
        row(
            name,
            short,
            colour,
            rival.map(|rival| rival.latencies),
            rival,
        )
    };
    let mut precise = under_guest(
        "memslot-precise",
        "the same, precise zap",
        palette::ORANGE,
        *memslot_precise,
    );
    if !report.host.slot_zap_all_quirk {
        precise.absent = "not offered by this host";
    }
    vec![
        under_guest(
            "memslot",
            "delete + create, today's way",
            palette::RED,
            *memslot,
        ),
        precise,
        under_guest("plain", "reserve + MAP_FIXED", palette::SKY, Some(*plain)),
        under_guest("fixed", "vm-remap", palette::BLUE, Some(fixed.rival)),
        row(
            "fixed (peer)",
            "vm-remap, a peer's descriptor",
            palette::BLUE,
            Some(fixed.peer),
            None,
        ),
        row(
            "bare",
            "the system calls alone",
            palette::GREY,
            Some(*bare),
            None,
        ),
    ]
}

/// How many calls stand behind each latency: `4200`, or `12 to 4200`.
pub(super) fn calls(report: &Report) -> String {
    let counts: Vec<u64> = rows(report)
        .iter()
        .filter_map(|row| row.latencies)
        .flat_map(|latencies| latencies.calls().collect::<Vec<_>>())
        .collect();
    match (counts.iter().min(), counts.iter().max()) {
        (Some(least), Some(most)) if least == most => most.to_string(),
        (Some(least), Some(most)) => format!("{least} to {most}"),
        _ => "0".to_owned(),
    }
}

/// The host and the settings as label and value, for the table and the page.
pub(super) fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let host = &report.host;
    let pages: Vec<String> = host
        .page_sizes
        .iter()
        .map(|&size| units::bytes(size))
        .collect();
    let precise = if host.slot_zap_all_quirk {
        "offered"
    } else {
        "not offered"
    };
    vec![
        (
            "machine",
            format!(
                "{}, {} CPUs, {}",
                host.machine,
                host.cpus,
                units::bytes(host.memory_bytes)
            ),
        ),
        (
            "kernel",
            format!(
                "{}, KVM module {}, TDP MMU {}",
                host.kernel,
                host.kvm_module,
                tdp_mmu(host.tdp_mmu)
            ),
        ),
        ("memslots", format!("{} per VM", host.nr_memslots)),
        ("zap", format!("{}; precise zap {precise}", host.zap)),
        ("page sizes", pages.join(", ")),
        ("workload", workload(&report.settings)),
        ("run", run(report)),
    ]
}

pub(super) fn tdp_mmu(on: Option<bool>) -> &'static str {
    match on {
        Some(true) => "on",
        Some(false) => "off",
        None => "unknown",
    }
}

fn workload(settings: &Settings) -> String {
    format!(
        "{} blob, {} map + unmap per second, {} vCPU{} walking {}",
        units::bytes(settings.blob_bytes),
        settings.rate_per_s,
        settings.vcpus,
        if settings.vcpus == 1 { "" } else { "s" },
        units::bytes(settings.working_set_bytes)
    )
}

fn run(report: &Report) -> String {
    let settings = &report.settings;
    let mut text = format!(
        "{} s in {} rounds, n = {} per latency",
        settings.duration_s,
        settings.rounds,
        calls(report)
    );
    if settings.quick {
        text.push_str(", quick");
    }
    if !report.complete {
        text.push_str(", interrupted");
    }
    text
}
