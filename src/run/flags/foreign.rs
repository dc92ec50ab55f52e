//! Owns the options of cloud-hypervisor and crosvm that this VMM does not have, and what to use
//! instead of each. Never parses a command line.

/// Options with one answer.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    /// The options, with a blank between them.
    pub options: &'static str,
    /// Why there are none here, and what to write instead.
    pub answer: &'static str,
}

const DISK: &str = "this VMM has no disks; share a directory with --fs tag=TAG,source=DIR, or take a \
                    disk of another process with --vhost-user type=block,socket=FILE";
const NET: &str = "this VMM has no network; take one of another process with --vhost-user \
                   type=net,socket=FILE";
const PMEM: &str = "this VMM has no persistent memory; --fs tag=TAG,source=DIR,dax=on maps files \
                    into the guest";
const GPU: &str = "this VMM has no graphics; take them from another process with --vhost-user \
                   type=gpu,socket=FILE";
const SOUND: &str = "this VMM has no sound; take it from another process with --vhost-user \
                     type=sound,socket=FILE";
const VIDEO: &str = "this VMM has no video codecs; take one of another process with --vhost-user \
                     type=media,socket=FILE";
const INPUT: &str = "this VMM has no input devices; take one of another process with --vhost-user \
                     type=input,socket=FILE";
const VSOCK: &str = "this VMM has no vsock; take one of another process with --vhost-user \
                     type=vsock,socket=FILE";
const CONSOLE: &str = "this VMM has one serial port and no choice of others; write console=ttyS0 on \
                       the kernel's command line, with --cmdline or --params";
const PCI: &str = "this VMM places its devices itself; leave the option out";
const VFIO: &str = "this VMM hands no devices of the host to the guest; --vhost-user \
                    type=TYPE,socket=FILE takes one of another process";
const MEMORY: &str =
    "this VMM has one piece of memory; --memory SPEC has the choices there are for it";
const SANDBOX: &str = "this VMM has no sandbox of its own; leave the option out";
const CPU: &str = "this VMM has vCPUs of one kind and places none; --cpus boot=N says how many";
const CONTROL: &str = "this VMM takes no commands while it runs; leave the option out";
const LOG: &str = "this VMM logs to the standard error; RUST_LOG=debug in the environment says how \
                   much";
const FIRMWARE: &str = "this VMM starts a kernel directly; write --kernel FILE";
const SNAPSHOT: &str = "this VMM neither saves nor restores a guest";
const PLATFORM: &str = "this VMM has no such choice for its machine; leave the option out";
const BALLOON: &str = "this VMM has no balloon; --memory size=SIZE says how much memory there is";
const PROTECTED: &str = "this VMM starts no protected guests; leave the option out";
const TPM: &str = "this VMM has no TPM; take one of another process with --vhost-user \
                   type=tpm,socket=FILE";
const RNG: &str = "this VMM has no source of random numbers; take one of another process with \
                   --vhost-user type=rng,socket=FILE";
const WATCHDOG: &str = "this VMM does not watch its guest; leave the option out";
const POWER: &str = "this VMM does not manage power, nor lie about it; leave the option out";

const fn foreign(options: &'static str, answer: &'static str) -> Foreign {
    Foreign { options, answer }
}

/// Cloud-hypervisor's, of commit ae44c29.
pub const CLOUD_HYPERVISOR: [Foreign; 19] = [
    foreign("--disk --rate-limit-group", DISK),
    foreign("--net", NET),
    foreign("--pmem --ivshmem", PMEM),
    foreign("--vsock", VSOCK),
    foreign("--console --serial --debug-console", CONSOLE),
    foreign("--pci-segment", PCI),
    foreign("--device --user-device --vdpa", VFIO),
    foreign("--memory-zone --numa", MEMORY),
    foreign("--landlock --landlock-rules --seccomp", SANDBOX),
    foreign(
        "--api-socket --event-monitor --gdb --dbus-object-path --dbus-service-name \
         --dbus-system-bus",
        CONTROL,
    ),
    foreign("--log-file --log-format -v", LOG),
    foreign("--firmware --igvm", FIRMWARE),
    foreign("--restore", SNAPSHOT),
    foreign(
        "--platform --fw-cfg-config --rtc --pvpanic --pvmemcontrol --no-shutdown",
        PLATFORM,
    ),
    foreign("--balloon", BALLOON),
    foreign("--host-data", PROTECTED),
    foreign("--tpm", TPM),
    foreign("--rng", RNG),
    foreign("--watchdog", WATCHDOG),
];

/// Crosvm's, of commit f1e797a; the last line has those that versions of 2022 to 2024 had for each device.
pub const CROSVM: [Foreign; 25] = [
    foreign(
        "--block -b --disk -d --root -r --rwdisk --rwroot --scsi-block --android-fstab --pstore",
        DISK,
    ),
    foreign(
        "--net --host-ip --netmask --mac --tap-fd --tap-name --net-vq-pairs --vhost-net \
         --vhost-net-device --slirp-capture-file",
        NET,
    ),
    foreign(
        "--pmem --pmem-device --pmem-ext2 --rw-pmem-device --file-backed-mapping",
        PMEM,
    ),
    foreign(
        "--gpu --gpu-display --gpu-render-server --gpu-cgroup-path --gpu-server-cgroup-path \
         --wayland-sock --x-display --android-display-service --display-window-keyboard \
         --display-window-mouse",
        GPU,
    ),
    foreign("--sound --virtio-snd", SOUND),
    foreign(
        "--video-decoder --video-encoder --media-decoder --v4l2-proxy --simple-media-device",
        VIDEO,
    ),
    foreign(
        "--input --evdev --keyboard --mouse --multi-touch --single-touch --trackpad --switches \
         --rotary",
        INPUT,
    ),
    foreign("--vsock --cid --vhost-vsock-device --vhost-vsock-fd", VSOCK),
    foreign("--serial", CONSOLE),
    foreign(
        "--pci --pci-hotplug-slots --pci-start --stub-pci-device --mmio-address-range \
         --disable-virtio-intx --break-linux-pci-config-io",
        PCI,
    ),
    foreign(
        "--vfio --vfio-isolate-hotplug --vfio-platform --vfio-platform-pm --coiommu",
        VFIO,
    ),
    foreign(
        "--swap --swiotlb --lock-guest-memory --unmap-guest-memory-on-fork \
         --force-disable-readonly-mem --mte",
        MEMORY,
    ),
    foreign(
        "--disable-sandbox --pivot-root --seccomp-log-failures --seccomp-policy-dir",
        SANDBOX,
    ),
    foreign(
        "--core-scheduling --per-vm-core-scheduling --cpu-affinity --cpu-capacity --cpu-cluster \
         --cpu-frequencies-khz --cpu-ipc-ratio --dynamic-power-coefficient --virt-cpufreq \
         --virt-cpufreq-upstream --host-cpu-topology --no-smt --rt-cpus --delay-rt --boost-uclamp \
         --vcpu-cgroup-path --task-profiles --itmt --enable-hwp --nested --no-pmu \
         --force-calibrated-tsc-leaf --bus-lock-ratelimit",
        CPU,
    ),
    foreign(
        "--socket -s --gdb --suspended --suspended-vcpus --exit-stats --service-pipe-name \
         --crash-pipe-name",
        CONTROL,
    ),
    foreign(
        "--log-file --kernel-log-file --logs-directory --syslog-tag",
        LOG,
    ),
    foreign("--bios --pflash", FIRMWARE),
    foreign("--restore", SNAPSHOT),
    foreign(
        "--acpi-table --async-executor --dev-pm --device-tree-overlay --dump-device-tree-blob \
         --fdt-position --enable-fw-cfg --fw-cfg --smbios --oem-strings --irqchip \
         --split-irqchip --hypervisor --kvm-device --name --no-i8042 --no-rtc --no-usb --no-rng \
         --pvclock --smccc-trng --ffa --vhost-scmi --host-guid --process-invariants-handle \
         --process-invariants-size --product-channel --product-name --product-version",
        PLATFORM,
    ),
    foreign(
        "--balloon-bias-mib --balloon-control --balloon-page-reporting --balloon-ws-num-bins \
         --balloon-ws-reporting --init-mem --no-balloon",
        BALLOON,
    ),
    foreign(
        "--protected-vm --protected-vm-with-firmware --protected-vm-without-firmware \
         --unprotected-vm-with-firmware",
        PROTECTED,
    ),
    foreign("--vtpm-proxy", TPM),
    foreign("--battery --s2idle", POWER),
    foreign(
        "--vhost-user-connect-timeout-ms",
        "this VMM waits ten seconds for the device's process, and looks for it each second once it is gone; leave the option out",
    ),
    foreign(
        "--vhost-user-fs --vhost-user-gpu --vhost-user-blk --vhost-user-net --vhost-user-console \
         --vhost-user-snd --vhost-user-video-decoder --vhost-user-vsock --vhost-user-wl --vhost-user-mac80211-hwsim",
        "one option is for all of them: --vhost-user type=TYPE,socket=FILE",
    ),
];

/// Why `option`, with its dashes, is not an option here, if it is one of theirs.
#[must_use]
pub fn answer(option: &str) -> Option<String> {
    let find = |all: &[Foreign]| {
        let mut all = all.iter();
        let mut has = all.find(|foreign| foreign.options.split(' ').any(|one| one == option));
        has.take().map(|foreign| foreign.answer)
    };
    let (whose, answer) = match (find(&CLOUD_HYPERVISOR), find(&CROSVM)) {
        (Some(answer), Some(_)) => ("cloud-hypervisor's and crosvm's", answer),
        (Some(answer), None) => ("cloud-hypervisor's", answer),
        (None, Some(answer)) => ("crosvm's", answer),
        (None, None) => return None,
    };
    Some(format!("cannot use {option}, which is {whose}: {answer}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_option_has_one_answer_that_says_whose_it_is() {
        for all in [&CLOUD_HYPERVISOR[..], &CROSVM[..]] {
            let mut seen = HashSet::new();
            for option in all.iter().flat_map(|foreign| foreign.options.split(' ')) {
                assert!(option.starts_with('-'), "{option:?}");
                assert!(seen.insert(option), "{option} comes twice");
                assert!(answer(option).unwrap().contains(option));
            }
        }
        let both = answer("--serial").unwrap();
        assert!(
            both.starts_with("cannot use --serial, which is cloud-hypervisor's and crosvm's: "),
            "{both}"
        );
        assert_eq!(
            answer("--disable-sandbox").unwrap(),
            "cannot use --disable-sandbox, which is crosvm's: this VMM has no sandbox of its own; \
             leave the option out"
        );
        assert_eq!(answer("--memory"), None);
    }
}
