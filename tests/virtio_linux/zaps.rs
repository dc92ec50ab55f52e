//! Owns the count of the times that KVM threw all of a guest's translations away. Never causes one.

use std::fs;
use std::path::PathBuf;

const TRACING: &str = "/sys/kernel/tracing/instances";
const EVENT: &str = "events/kvmmmu/kvm_mmu_zap_all_fast";
const TRIGGER: &str = "hist:keys=common_pid.execname";

/// Counts from when it is made on, in a tracing instance of its own.
pub(crate) struct RootZaps(PathBuf);

impl RootZaps {
    pub(crate) fn count_from_now() -> Self {
        let place = PathBuf::from(TRACING).join("vm-remap-virtio-linux");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join(EVENT).join("trigger"), TRIGGER).unwrap();
        Self(place)
    }

    pub(crate) fn count(&self) -> u64 {
        let hist = fs::read_to_string(self.0.join(EVENT).join("hist")).unwrap();
        let hits = hist
            .lines()
            .find_map(|line| line.trim().strip_prefix("Hits: "));
        let hits = hits.unwrap_or_else(|| panic!("no count in {hist}"));
        hits.trim().parse().unwrap()
    }
}

impl Drop for RootZaps {
    fn drop(&mut self) {
        fs::write(self.0.join(EVENT).join("trigger"), format!("!{TRIGGER}")).unwrap();
        fs::remove_dir(&self.0).unwrap();
    }
}
