//! Owns what the status register may become. Never starts or resets a device itself.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
};

const FOUND: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
const KNOWN: u32 =
    FOUND | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED;

/// How far the driver has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status(u32);

/// What a write to the register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Reset,
    /// Nothing but the bits has changed.
    Stay,
    /// The driver is through, and the device is to work.
    Start,
}

impl Status {
    pub(super) fn bits(self) -> u32 {
        self.0
    }

    /// The driver says which features it takes.
    pub(super) fn takes_features(self) -> bool {
        self.has(FOUND) && !self.has(VIRTIO_CONFIG_S_FEATURES_OK)
    }

    /// The driver sets the queues up.
    pub(super) fn takes_queues(self) -> bool {
        self.has(VIRTIO_CONFIG_S_FEATURES_OK) && !self.is_running()
    }

    /// The driver has said that it is through.
    pub(super) fn is_running(self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER_OK)
    }

    /// Takes what the driver writes. Bits that are set stay set until a reset; a bit that comes out
    /// of turn is not set.
    pub(super) fn write(&mut self, value: u32, features_are_good: bool) -> Step {
        if value == 0 {
            *self = Self::default();
            return Step::Reset;
        }
        let mut wanted = Self(self.0 | (value & KNOWN));
        let settled = self.has(VIRTIO_CONFIG_S_FEATURES_OK);
        let may_settle = wanted.has(FOUND) && features_are_good;
        if !settled && !may_settle {
            wanted.0 &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        // The features come before the queues, and those before the end: not in one step.
        if !settled || wanted.has(VIRTIO_CONFIG_S_FAILED) {
            wanted.0 &= !VIRTIO_CONFIG_S_DRIVER_OK | self.0;
        }
        let starts = wanted.is_running() && !self.is_running();
        *self = wanted;
        if starts { Step::Start } else { Step::Stay }
    }

    fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn write_lets_a_driver_through_in_its_order() {
        let mut status = Status::default();
        assert_eq!(status.write(1, true), Step::Stay);
        assert_eq!(status.write(3, true), Step::Stay);
        assert!(status.takes_features());
        assert_eq!(status.write(11, true), Step::Stay);
        assert!(status.takes_queues());
        assert_eq!(status.write(15, true), Step::Start);
        assert_eq!(status.bits(), 15);
        assert_eq!(status.write(15, true), Step::Stay);
        assert_eq!(status.write(0, true), Step::Reset);
        assert_eq!(status.bits(), 0);
    }

    #[test]
    fn write_refuses_features_that_are_not_good_and_steps_out_of_turn() {
        let mut status = Status::default();
        status.write(3, true);
        status.write(11, false);
        assert_eq!(status.bits(), 3);
        assert_eq!(status.write(15, true), Step::Stay);
        assert_eq!(status.bits(), 11);
        assert_eq!(status.write(0x8f, true), Step::Stay);
        assert_eq!(status.bits(), 0x8b);
    }

    proptest! {
        #[test]
        fn a_device_starts_once_and_with_good_features_only(
            writes in proptest::collection::vec((any::<u32>(), any::<bool>()), 0..64)
        ) {
            let mut status = Status::default();
            let mut started = false;
            for (value, good) in writes {
                let before = status;
                match status.write(value, good) {
                    Step::Reset => started = false,
                    Step::Start => {
                        prop_assert!(!started && before.takes_queues());
                        started = true;
                    }
                    Step::Stay => prop_assert_eq!(status.bits() & before.bits(), before.bits()),
                }
                prop_assert_eq!(started, status.is_running());
                prop_assert_eq!(status.bits() & !KNOWN, 0);
            }
        }
    }
}
