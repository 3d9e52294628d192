//! The changes of a node's health: each is logged once, with its reason.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::Upstream;
use crate::pool::health::{HealthChange, HealthState, NodeHealth};

impl Upstream {
    /// Updates the health for this reason, and its meter, and logs a change.
    pub(crate) fn update_health(
        &self,
        now: Duration,
        reason: &dyn fmt::Display,
        update: impl FnOnce(&mut NodeHealth) -> Option<HealthChange>,
    ) {
        let mut health = self.shared.health.lock();
        if self.shared.is_removed.load(Relaxed) {
            // Its name in the metrics may belong to another address by now.
            return;
        }
        let change = update(&mut health);
        self.meter.set_state(health.node_state(now).as_str());
        let cause = change.and(health.ejection(now)).map(|(_, cause)| cause.to_owned());
        drop(health);
        if let Some(change) = change {
            self.log_health_change(change, reason, cause);
        }
    }

    fn log_health_change(&self, change: HealthChange, reason: &dyn fmt::Display, cause: Option<String>) {
        let (pool, node, address) = (&*self.meter.pool, &*self.meter.node, &self.node.address);
        let reason = match change {
            HealthChange::Ejected => cause.unwrap_or_default(),
            HealthChange::Readmitted { by_probes: false } => "its ejection is over".to_owned(),
            _ => reason.to_string(),
        };
        if matches!(change, HealthChange::Down | HealthChange::Ejected) {
            tracing::warn!(pool, node, %address, %change, reason, "node state changed");
        } else {
            tracing::info!(pool, node, %address, %change, reason, "node state changed");
        }
    }

    /// Its health, for another process.
    pub(crate) fn health_memory(&self) -> HealthState {
        self.shared.health.lock().snapshot()
    }

    /// Continues with the health that another process had.
    pub(crate) fn restore_health(&self, memory: &HealthState, now: Duration) {
        self.update_health(now, &"", |health| {
            health.restore(memory);
            None
        });
    }

    /// Whether it has answered a probe since it was last unreachable.
    pub(crate) fn answers_probes(&self) -> &AtomicBool {
        &self.shared.answers_probes
    }
}
