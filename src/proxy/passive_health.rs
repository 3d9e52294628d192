//! Passive health checks: how real traffic counts for the health of a node, and how many nodes it may eject.
//!
//! A failed dial is the balancer's own observation. A failed answer may be what one client wanted: it counts once for
//! each client, see [`crate::pool::health::FailureEvidence`]. A dial that fails for want of ports or descriptors of the
//! balancer does not count.

use std::time::Duration;

use super::context::ProxyContext;
use super::session::ProxySession;
use super::state::UpstreamPool;
use crate::net::connection_limit::client_prefix;
use crate::net::dial::DialError;
use crate::pool::health::{FailureEvidence, NodeFailure};

impl ProxySession {
    /// No connection to the node could be made.
    pub(super) fn record_dial_failure(&self, context: &ProxyContext, node: usize, error: &DialError) {
        if !error.is_local() {
            self.record_failure(
                context,
                node,
                &NodeFailure { evidence: FailureEvidence::Dial, description: &error.to_string() },
            );
        }
    }

    /// The node did not answer this client, or its answer is none.
    pub(super) fn record_bad_answer(&self, context: &ProxyContext, node: usize, what: &str) {
        let evidence = FailureEvidence::Response(client_prefix(self.client.address));
        self.record_failure(context, node, &NodeFailure { evidence, description: what });
    }

    fn record_failure(&self, context: &ProxyContext, node: usize, failure: &NodeFailure<'_>) {
        let now = context.now();
        // One at a time, so that no two nodes are ejected where one may be.
        let _one = self.pool.passive_lock.lock();
        let may_eject = self.pool.may_eject(node, now);
        self.pool.upstreams[node].update_health(now, &failure.description, |health| {
            health.record_failure(failure, now, may_eject)
        });
    }

    /// Real traffic went well.
    pub(super) fn record_success(&self, context: &ProxyContext, node: usize) {
        self.pool.upstreams[node].update_health(context.now(), &"", |health| {
            health.record_success();
            None
        });
    }
}

impl UpstreamPool {
    /// Whether `node` may be ejected: another is up, and not too many are ejected already.
    fn may_eject(&self, node: usize, now: Duration) -> bool {
        let others = || self.upstreams.iter().enumerate().filter(|(index, _)| *index != node);
        let ejected = others().filter(|(_, other)| other.health().ejection(now).is_some()).count();
        self.config.thresholds().may_eject(self.upstreams.len(), ejected)
            && others().any(|(_, other)| other.is_up(now))
    }
}
