//! What the admin API shows and changes: the running config, and the upgrader.

use std::sync::Arc;
use std::time::SystemTime;

use crate::control::Reload;
use crate::control::upgrade::Upgrader;
use crate::proxy::ProxyContext;
use crate::shutdown::Phase;

/// What the admin API shows and changes.
pub(crate) struct AdminContext {
    /// The running config, and the way to another one.
    pub reload: Arc<Reload>,
    /// Replaces the running binary.
    pub upgrader: Upgrader,
    /// When the process started.
    pub started_at: SystemTime,
}

impl AdminContext {
    /// The running proxy.
    pub(super) fn proxy(&self) -> &Arc<ProxyContext> {
        self.reload.front()
    }

    /// Whether new sessions can be served.
    ///
    /// # Errors
    ///
    /// Why not: starting, draining, no node up.
    pub(super) fn readiness(&self) -> Result<(), &'static str> {
        let proxy = self.proxy();
        if proxy.shutdown.phase() != Phase::Serving {
            return Err("draining");
        }
        if !self.reload.is_open() {
            return Err("starting");
        }
        let now = proxy.now();
        let is_up = proxy.state.load().pools.values().any(|pool| pool.count_up(now) > 0);
        if is_up { Ok(()) } else { Err("no node is up") }
    }
}
