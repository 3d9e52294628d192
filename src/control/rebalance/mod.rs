//! Rebalancing: the surplus of overfull nodes, and no more, moves to nodes that joined or came back.
//!
//! In a pool whose config wants it, a rebalance begins when the slow start of a node that came up is over; an operator
//! begins one at once. A pool has at most one: another order replaces the one that is under way, and a node that comes up
//! meanwhile is considered at its end.
//!
//! Clients that reconnect anyway move first: while a node is overfull, new sessions go to other nodes whatever their pins
//! say ([`crate::pool::select`]). So no closed client comes back to it, no state is kept of any client, and each reconnect
//! spares another client a close. The rest of the surplus is closed slice by slice (`run`).

mod plan;
mod resume;
mod run;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Rebalance;
use crate::pool::NodeAddress;
use crate::proxy::{ProxyContext, UpstreamPool};
use crate::shutdown::Phase;

use run::{RebalanceOrder, RebalanceRun};

pub(crate) use plan::RebalancePlan;
pub use resume::PendingRebalance;
pub(crate) use run::RebalanceProgress;

/// How often it is checked whether a node has come up.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Why a rebalance was not begun.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RebalanceError {
    /// No such pool.
    #[error("there is no pool `{0}`; the pools are: {1}")]
    NoPool(String, String),
    /// The order is not valid.
    #[error("{0}")]
    InvalidOrder(String),
    /// The process ends, and with it every tunnel.
    #[error("the balancer is stopping; every tunnel is being closed")]
    Stopping,
    /// The process that takes over would not know of it.
    #[error("another process is taking over from this one; ask again, and that one answers")]
    TakenOver,
}

/// Begins, resumes and ends the rebalances of the process.
pub struct Rebalancer {
    context: Arc<ProxyContext>,
    /// The last one of each pool, until the tunnels of its overfull nodes are not limited any more.
    runs: Mutex<HashMap<Arc<str>, Arc<RebalanceRun>>>,
}

impl Rebalancer {
    /// None is under way.
    pub(crate) fn new(context: Arc<ProxyContext>) -> Arc<Self> {
        Arc::new(Self { context, runs: Mutex::default() })
    }

    /// Begins one in a pool at once, as an operator orders: what `overrides` does not say is as the pool's `rebalance`
    /// says. Where no node is above the tolerance, the plan moves no tunnel and none is begun.
    ///
    /// # Errors
    ///
    /// See [`RebalanceError`].
    pub(crate) fn order(
        self: &Arc<Self>,
        pool: &str,
        overrides: &Value,
    ) -> Result<(Rebalance, RebalancePlan), RebalanceError> {
        let state = self.context.state.load_full();
        let Some(pool) = state.pools.get(pool) else {
            let mut known: Vec<&str> = state.pools.keys().map(|name| &**name).collect();
            known.sort_unstable();
            return Err(RebalanceError::NoPool(pool.to_owned(), known.join(", ")));
        };
        let usual = pool.config.rebalance.unwrap_or_default();
        let settings = usual.with(overrides).map_err(RebalanceError::InvalidOrder)?;
        if self.context.shutdown.phase() != Phase::Serving {
            return Err(RebalanceError::Stopping);
        }
        let _governing = self.context.shutdown.govern().ok_or(RebalanceError::TakenOver)?;
        let plan = RebalancePlan::new(pool, settings.tolerance, self.context.now());
        if plan.moves() > 0 {
            self.begin(pool, RebalanceOrder { settings, is_ordered: true, begun: SystemTime::now() }, &plan);
        }
        Ok((settings, plan))
    }

    /// How far the rebalance of this pool is; `None` when none is under way.
    pub(crate) fn progress(&self, pool: &str) -> Option<RebalanceProgress> {
        self.runs.lock().get(pool).filter(|run| !run.is_over()).map(|run| run.progress())
    }

    /// Suspends the rebalances that are under way, and gives what they had still to do: another process resumes them, or
    /// this one when the other fails. None begins here while the other process is taking over
    /// ([`Shutdown::set_handing_over`](crate::shutdown::Shutdown::set_handing_over)).
    pub async fn suspend(&self) -> Vec<PendingRebalance> {
        let runs: Vec<Arc<RebalanceRun>> = self.runs.lock().values().cloned().collect();
        let pending = runs.iter().filter(|run| !run.is_over()).map(|run| run.pending()).collect();
        for run in runs {
            run.stop().await;
        }
        pending
    }

    /// Resumes a suspended one, once the tunnels are here; not where another one has begun since, nor in a pool that the
    /// config does not have any more.
    pub fn resume(self: &Arc<Self>, pending: &PendingRebalance) {
        let state = self.context.state.load_full();
        let Some(pool) = state.pools.get(&*pending.pool) else { return };
        if self.progress(&pool.config.name).is_some() {
            return;
        }
        let (settings, is_ordered, begun) = (pending.settings(), pending.is_ordered, pending.begun());
        let mut plan = RebalancePlan::new(pool, settings.tolerance, self.context.now());
        pending.limit(&mut plan);
        if plan.moves() > 0 {
            self.begin(pool, RebalanceOrder { settings, is_ordered, begun }, &plan);
        }
    }

    /// Begins one in place of the one that is under way.
    fn begin(self: &Arc<Self>, pool: &UpstreamPool, order: RebalanceOrder, plan: &RebalancePlan) {
        let name = Arc::clone(&pool.config.name);
        let run = RebalanceRun::new(Arc::clone(&name), order, plan);
        let before = self.runs.lock().insert(Arc::clone(&name), Arc::clone(&run));
        let (moves, over) = (plan.moves(), order.settings.over);
        tracing::info!(pool = %name, moves, ?over, "rebalance started");
        let this = Arc::clone(self);
        self.context.tasks.spawn(async move {
            if let Some(before) = before {
                before.stop().await;
            }
            run.run(&this.context).await;
            let mut runs = this.runs.lock();
            if runs.get(&name).is_some_and(|last| Arc::ptr_eq(last, &run)) {
                runs.remove(&name);
            }
        });
    }

    /// Begins a rebalance after nodes have come up, until draining begins.
    pub(crate) async fn watch_nodes(self: Arc<Self>) {
        let mut tracker = UpNodeTracker::default();
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.check_nodes(&mut tracker),
                () = self.context.shutdown.wait_for(Phase::Draining) => return,
                () = self.context.shutdown.wait_until_superseded() => return,
            }
        }
    }

    fn check_nodes(self: &Arc<Self>, tracker: &mut UpNodeTracker) {
        let Some(_governing) = self.context.shutdown.govern() else { return };
        let (state, now) = (self.context.state.load_full(), self.context.now());
        tracker.update(state.pools.values().map(|pool| &**pool), now);
        for (name, pool) in &state.pools {
            let Some(settings) = pool.config.rebalance else { continue };
            let is_due = tracker.due.get(name).is_some_and(|due| *due <= now);
            if !is_due || self.progress(name).is_some() {
                continue;
            }
            tracker.due.remove(name);
            let plan = RebalancePlan::new(pool, settings.tolerance, now);
            if plan.moves() > 0 {
                self.begin(
                    pool,
                    RebalanceOrder { settings, is_ordered: false, begun: SystemTime::now() },
                    &plan,
                );
            }
        }
    }
}

/// Which nodes were up at the last check, and which pools are due for a rebalance.
#[derive(Default)]
struct UpNodeTracker {
    /// By pool; a node at another address is another node.
    up: HashMap<Arc<str>, Vec<NodeAddress>>,
    /// When the slow start of the first node that came up is over, on the clock of health.
    due: HashMap<Arc<str>, Duration>,
}

impl UpNodeTracker {
    /// Compares with the last check. In a pool that is new, or that had no node up, no node counts as having come up:
    /// there is no client to move.
    fn update<'a>(&mut self, pools: impl Iterator<Item = &'a UpstreamPool>, now: Duration) {
        let mut seen = HashMap::new();
        for pool in pools {
            let name = &pool.config.name;
            let up = pool.upstreams.iter().filter(|upstream| upstream.is_up(now));
            let up: Vec<NodeAddress> = up.map(|upstream| upstream.node.address.clone()).collect();
            let before = self.up.get(name).filter(|before| !before.is_empty());
            let has_new = before.is_some_and(|before| up.iter().any(|address| !before.contains(address)));
            if has_new && pool.config.rebalance.is_some() {
                // A node that flaps does not postpone it for ever.
                self.due.entry(Arc::clone(name)).or_insert(now + pool.config.slow_start);
            }
            seen.insert(Arc::clone(name), up);
        }
        self.due.retain(|name, _| seen.contains_key(name));
        self.up = seen;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::metrics::Metrics;
    use crate::pool::health::{FailureEvidence, NodeFailure};
    use crate::proxy::ProxyState;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn state(pool: &str) -> ProxyState {
        let text = format!(
            "pools: {{ chat: {{ nodes: [{{ id: a, address: \"a:1\" }}, {{ id: b, address: \"b:1\" }}], health: null, \
             passive: {{ failures: 1, eject: 10s }}, slow_start: 5s, {pool} }} }}"
        );
        let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        let config = config::resolve("test", text.as_bytes(), &|_| None, &no_file).unwrap();
        ProxyState::new(&config, &Metrics::new(1))
    }

    /// Real traffic ejects the first node.
    fn fail(pool: &UpstreamPool, now: Duration) {
        let failure = NodeFailure { evidence: FailureEvidence::Dial, description: "connection refused" };
        pool.upstreams[0].update_health(now, &"", |health| health.record_failure(&failure, now, true));
    }

    #[test]
    fn a_pool_is_due_when_the_slow_start_of_a_node_that_came_back_is_over() {
        for (pool, due) in [("rebalance: {}", Some(s(17))), ("rebalance: null", None)] {
            let state = state(pool);
            let pool = &state.pools["chat"];
            let mut tracker = UpNodeTracker::default();
            let mut update = |now| {
                tracker.update([&**pool].into_iter(), now);
                tracker.due.get("chat").copied()
            };
            assert_eq!(update(s(0)), None, "a node that is up at the first check has not come up");
            fail(pool, s(1));
            assert_eq!(update(s(2)), None);
            assert_eq!(update(s(12)), due);
            // It flaps, and that puts nothing off.
            fail(pool, s(13));
            assert_eq!((update(s(14)), update(s(24))), (due, due));
        }
    }
}
