//! What the balancer itself runs short of when it dials a node: source ports, source addresses, file descriptors.
//!
//! An operator has to act on it, so it is logged: before it happens where that can be seen, and not with every
//! connection.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::NodeMeter;
use crate::net::dial::{DialError, Dialer};
use crate::pool::NodeAddress;

/// The least time between two log lines about the same shortage.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What was logged about one node.
#[derive(Default)]
pub(super) struct DialExhaustion {
    /// More than 80 % of the ports toward it are taken, which was logged.
    is_port_warning_active: AtomicBool,
    /// When a failed dial was last logged.
    last_logged: Mutex<Option<Instant>>,
}

impl DialExhaustion {
    /// Records a dial; `error` is why it failed.
    pub(super) fn record_dial(
        &self,
        meter: &NodeMeter,
        address: &NodeAddress,
        dialer: &Dialer,
        error: Option<&DialError>,
    ) {
        let (pool, node) = (&*meter.pool, &*meter.node);
        if let Some(error) = error.filter(|error| error.is_local())
            && self.should_log_failure()
        {
            tracing::error!(pool, node, %error, "dial failed: the balancer is out of resources");
        }
        let NodeAddress::Tcp { host, .. } = address else { return };
        let (tunnels, ports) = (u64::from(meter.live()), dialer.available_ports(host.parse::<IpAddr>().ok()));
        if self.should_warn_ports(tunnels, ports) {
            tracing::warn!(
                pool,
                node,
                tunnels,
                ports,
                "source ports nearly exhausted, add source_addresses to the pool"
            );
        }
    }

    /// True once while more than 80 % are taken; after less than 70 %, it can be true again.
    fn should_warn_ports(&self, tunnels: u64, ports: u64) -> bool {
        match tunnels.saturating_mul(10) {
            taken if taken > ports.saturating_mul(8) => !self.is_port_warning_active.swap(true, Relaxed),
            taken if taken < ports.saturating_mul(7) => {
                self.is_port_warning_active.store(false, Relaxed);
                false
            }
            _ => false,
        }
    }

    fn should_log_failure(&self) -> bool {
        let mut said = self.last_logged.lock();
        let is_due = said.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if is_due {
            *said = Some(Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_shortage_is_logged_once_until_it_is_over() {
        let exhaustion = DialExhaustion::default();
        let logged: Vec<bool> = [0, 8000, 8001, 9000, 10_000, 7500, 8500, 6999, 8001]
            .map(|tunnels| exhaustion.should_warn_ports(tunnels, 10_000))
            .into();
        assert_eq!(logged, [false, false, true, false, false, false, false, false, true]);
    }

    #[test]
    fn a_failed_dial_is_logged_once_a_minute() {
        let exhaustion = DialExhaustion::default();
        assert_eq!([0; 3].map(|_| exhaustion.should_log_failure()), [true, false, false]);
    }
}
