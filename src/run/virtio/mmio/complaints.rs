//! Owns how often a guest can make the log grow. Never decides what is wrong.

use log::warn;

/// How many complaints are logged of one device.
const MOST: u32 = 32;

/// What has been said of a device already.
#[derive(Debug, Default)]
pub(super) struct Complaints(u32);

impl Complaints {
    /// Logs `text`, unless enough has been said of this device.
    pub(super) fn add(&mut self, text: impl FnOnce() -> String) {
        if self.0 >= MOST {
            return;
        }
        self.0 = self.0.saturating_add(1);
        let text = text();
        warn!("{text}");
        if self.0 == MOST {
            warn!("this was the last of {MOST} such lines of this device: look at the first ones");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_end() {
        let mut complaints = Complaints::default();
        let mut made = 0;
        for _ in 0..1000 {
            complaints.add(|| {
                made += 1;
                String::new()
            });
        }
        assert_eq!(made, MOST);
    }
}
