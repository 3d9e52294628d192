//! What the balancer itself runs short of when it dials a node: source ports, source addresses, file descriptors.
//!
//! An operator has to act on it, so it is said in the log, before it happens where that can be seen, and not with
//! every connection.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::metrics::Meter;
use crate::net::dial::{DialFault, Way};
use crate::pool::Address;

/// From one line about the same shortage to the next.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What has been said about one node.
#[derive(Default)]
pub struct DialExhaustion {
    /// Most of the ports toward it are taken.
    is_port_warning_active: AtomicBool,
    /// When it was last said that a connection could not be made.
    last_logged: Mutex<Option<Instant>>,
}

impl DialExhaustion {
    /// Looks at how a dial went: `fault` is why it failed.
    pub fn record_dial(&self, meter: &Meter, address: &Address, way: &Way, fault: Option<&DialFault>) {
        let (pool, node) = (&*meter.pool, &*meter.node);
        if let Some(fault) = fault.filter(|fault| fault.is_own())
            && self.should_log_failure()
        {
            tracing::error!(pool, node, %fault, "the balancer cannot dial a node");
        }
        let Address::Tcp { host, .. } = address else { return };
        let (tunnels, ports) = (u64::from(meter.live()), way.ports_toward(host.parse::<IpAddr>().ok()));
        if self.should_warn_ports(tunnels, ports) {
            tracing::warn!(
                pool,
                node,
                tunnels,
                ports,
                "source ports run short, add source_addresses to the pool"
            );
        }
    }

    /// True once while more than 80 % are taken; below 70 %, it may be said again.
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
    fn ports_that_run_short_are_said_once_until_there_are_more_again() {
        let shortage = DialExhaustion::default();
        let said: Vec<bool> = [0, 8000, 8001, 9000, 10_000, 7500, 8500, 6999, 8001]
            .map(|tunnels| shortage.should_warn_ports(tunnels, 10_000))
            .into();
        assert_eq!(said, [false, false, true, false, false, false, false, false, true]);
    }

    #[test]
    fn a_shortage_is_not_said_with_every_connection() {
        let shortage = DialExhaustion::default();
        assert_eq!([0; 3].map(|_| shortage.should_log_failure()), [true, false, false]);
    }
}
