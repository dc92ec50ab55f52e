//! Owns what a daemon can tell beside its requests for shared memory: that the configuration has
//! changed. Never reads the configuration.

use std::sync::Arc;

use vhost::vhost_user::{HandlerResult, VhostUserFrontendReqHandler};

use crate::run::virtio::mmio::Interrupt;

/// Passes the daemon's news on to the guest.
#[derive(Debug)]
pub(super) struct ConfigNews(pub(super) Arc<Interrupt>);

impl VhostUserFrontendReqHandler for ConfigNews {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        self.0.config_changed();
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_of_the_configuration_is_an_interrupt() {
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let news = ConfigNews(Arc::clone(&interrupt));
        assert_eq!(news.handle_config_change().unwrap(), 0);
        assert_eq!(interrupt.line().read().unwrap(), 1);
    }
}
