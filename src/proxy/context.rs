//! What every connection of the process shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio_util::task::TaskTracker;

use super::admission::AdmissionControl;
use super::state::ProxyState;
use crate::affinity::hash::mix;
use crate::log::access::AccessLog;
use crate::metrics::Metrics;
use crate::relay::Relay;
use crate::shutdown::Shutdown;

/// What every connection of the process shares.
pub struct ProxyContext {
    /// The present generation.
    pub state: ArcSwap<ProxyState>,
    /// Where tunnels live.
    pub(crate) relay: Relay,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The access log.
    pub(crate) access_log: Arc<AccessLog>,
    /// The phase of the process.
    pub shutdown: Shutdown,
    /// The zero of the clock of health.
    pub(crate) started: Instant,
    /// Owns the tasks of client and node connections.
    pub(crate) tasks: TaskTracker,
    /// The limits on connections and handshakes.
    pub(crate) admission: Arc<AdmissionControl>,
    /// Sessions so far.
    ids: AtomicU64,
    /// Random, of this process.
    seed: u64,
}

impl ProxyContext {
    /// Ready to serve `state`. `seed` is random.
    pub fn new(
        state: ProxyState,
        relay: Relay,
        metrics: Arc<Metrics>,
        access_log: Arc<AccessLog>,
        seed: u64,
    ) -> Self {
        Self {
            state: ArcSwap::from_pointee(state),
            relay,
            metrics,
            access_log,
            shutdown: Shutdown::new(),
            started: Instant::now(),
            tasks: TaskTracker::new(),
            admission: AdmissionControl::new(),
            ids: AtomicU64::new(0),
            seed,
        }
    }

    /// Continues the clock of health that another process started this long ago.
    pub(crate) fn continue_clock(&mut self, clock: Duration) {
        self.started = self.started.checked_sub(clock).unwrap_or(self.started);
    }

    /// The clock of health.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Random bytes for globally unique ids. If the system had no source of randomness, which aws-lc reports on none that
    /// this runs on, they would be those of the next session ids.
    pub(super) fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        if aws_lc_rs::rand::fill(&mut bytes).is_err() {
            bytes
                .chunks_mut(8)
                .for_each(|part| part.copy_from_slice(&self.next_id().to_be_bytes()[..part.len()]));
        }
        bytes
    }

    /// A session id, mixed so that it serves as a random number, too.
    pub(super) fn next_id(&self) -> u64 {
        mix(self.seed.wrapping_add(self.ids.fetch_add(1, Relaxed)))
    }
}
