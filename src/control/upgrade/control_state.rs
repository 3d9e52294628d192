//! What governs the tunnels of the old process and goes on in the new one: drains, rebalances, and the closing of
//! tunnels whose node or route is gone.
//!
//! It comes before the first tunnel. What comes later only adds to the counts: an operator may have changed here what the
//! old process still believes.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::protocol::{DrainRecord, FinalReport, HandedState, NodeRecord};
use crate::config::{self, Drain};
use crate::control::Reload;
use crate::control::rebalance::PendingRebalance;
use crate::control::removal::RemovalSnapshot;
use crate::proxy::drain::{self, ActiveDrain, DrainProgress, DrainSnapshot};

/// Pool, node and route of what is gone from the config. Of a node the route is empty, of a route the node.
pub(super) type TunnelOrigin = [Arc<str>; 3];

/// The state of the old process that goes on here.
pub(super) struct ControlState {
    reload: Arc<Reload>,
    /// The old process sent its state before the tunnels; else it comes with its last word.
    is_early: bool,
    /// The first generation of this process.
    generation: u32,
    /// Cancelled when all tunnels have come that were there.
    settled: CancellationToken,
    /// Cancelled when nothing comes any more.
    ended: CancellationToken,
    /// The drains that go on here, each with what it had closed.
    drains: Vec<(DrainRecord, Arc<ActiveDrain>)>,
    /// To go on with when the tunnels are here.
    rebalances: Vec<PendingRebalance>,
    /// What was gone from the config of the old process.
    left: Vec<RemovalSnapshot>,
    /// The nodes of the old process.
    nodes: Vec<NodeRecord>,
    /// What is gone from the config of this process.
    gone: HashSet<TunnelOrigin>,
}

impl ControlState {
    /// Nothing has come yet. `is_early` is the old process's [`Hello::settles`](super::protocol::Hello::settles), and
    /// `generation` that of its config.
    pub(super) fn new(reload: &Arc<Reload>, is_early: bool, generation: u32) -> Self {
        let (settled, ended) = reload.predecessor().start();
        if !is_early {
            // It does not say when.
            settled.cancel();
        }
        Self {
            reload: Arc::clone(reload),
            is_early,
            generation: generation + 1,
            settled,
            ended,
            drains: Vec::new(),
            rebalances: Vec::new(),
            left: Vec::new(),
            nodes: Vec::new(),
            gone: HashSet::new(),
        }
    }

    /// Continues what governs the tunnels that are going to come.
    pub(super) async fn govern(&mut self, state: HandedState) {
        state.drains.into_iter().for_each(|drain| self.drain(drain));
        self.reload.resume_removals(&state.left, &self.ended).await;
        (self.left, self.nodes, self.rebalances) = (state.left, state.nodes, state.rebalances);
    }

    /// The tunnels of a node that the new config does not have are closed as such.
    fn drain(&mut self, record: DrainRecord) {
        let resumed = drain::resume(self.reload.front(), &snapshot(&record), self.settled.clone());
        self.drains.extend(resumed.map(|drain| (record, drain)));
    }

    /// Adds the last word of the old process.
    pub(super) fn finish(&mut self, report: FinalReport) {
        self.reload.front().metrics.import(report.counted);
        if !self.is_early {
            report.drains.into_iter().for_each(|drain| self.drain(drain));
            self.rebalances = report.rebalances;
            return;
        }
        for now in &report.drains {
            let is_same =
                |(before, _): &&(DrainRecord, _)| before.pool == now.pool && before.node == now.node;
            if let Some((before, drain)) = self.drains.iter().find(is_same) {
                drain.add_closed(now.closed.saturating_sub(before.closed));
            }
        }
    }

    /// All tunnels have come that were there: the rebalances go on.
    pub(super) fn settle(&mut self) {
        for one in std::mem::take(&mut self.rebalances) {
            self.reload.rebalancer().resume(&one);
        }
        self.settled.cancel();
    }

    /// Nothing comes any more.
    pub(super) fn end(&mut self) {
        self.settle();
        self.ended.cancel();
        self.reload.retain_known_metrics();
    }

    /// Begins to close the tunnels whose node or route the new config does not have, as a reload would: those that have
    /// come and those that will.
    pub(super) async fn close_orphans(&mut self, origins: HashSet<TunnelOrigin>) {
        let config = self.reload.config();
        let mut left = Vec::new();
        for [pool, node, route] in origins {
            let known = config.pools.iter().find(|known| known.name == pool);
            let drain = known.map_or_else(Drain::default, |known| known.drain.clone());
            let has_node = |known: &config::Pool| known.nodes.iter().any(|known| known.id.as_str() == &*node);
            let gone = if !known.is_some_and(has_node) {
                [pool, node, "".into()]
            } else if !config.routes.iter().any(|known| known.name() == *route && known.pool == pool) {
                [pool, "".into(), route]
            } else {
                continue;
            };
            if self.gone.insert(gone.clone()) {
                left.push(self.removal(gone, drain));
            }
        }
        if !left.is_empty() {
            self.reload.resume_removals(&left, &self.ended).await;
        }
    }

    /// Of the tunnels of all generations before this process, those that are not being closed already.
    fn removal(&self, [pool, node, route]: TunnelOrigin, drain: Drain) -> RemovalSnapshot {
        let leaves =
            |left: &&RemovalSnapshot| *left.pool == *pool && *left.node == *node && *left.route == *route;
        let since = self.left.iter().filter(leaves).map(|left| left.before).max();
        let known = self.nodes.iter().find(|known| *known.pool == *pool && *known.node == *node);
        RemovalSnapshot {
            pool: pool.to_string(),
            node: node.to_string(),
            address: known.map(|known| known.address.clone()).unwrap_or_default(),
            route: route.to_string(),
            since: since.unwrap_or(0),
            before: self.generation,
            over: drain.over,
            code: drain.code,
            reason: drain.reason,
            closed: 0,
            is_known: since.is_some(),
        }
    }
}

fn snapshot(record: &DrainRecord) -> DrainSnapshot {
    DrainSnapshot {
        pool: record.pool.clone(),
        node: record.node.clone(),
        is_ordered: record.is_ordered,
        order: Drain { over: record.over, code: record.code, reason: record.reason.clone() },
        progress: DrainProgress { elapsed: record.elapsed, closed: record.closed },
    }
}
