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
