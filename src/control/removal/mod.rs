//! The tunnels of nodes and routes that a reload has removed: they are drained.
//!
//! They close as their pool's `drain` says; where a drain of the node was under way, as that was ordered, over what is
//! left of its window. A session that was on its way under an older generation is included. A node or route that is
//! named again before its tunnels have closed keeps those that are still there: a node that was removed by mistake can
//! be put back.
//!
//! A removal that is under way when another process takes over goes on there ([`RemovalSnapshot`]), over what is left of
//! its window.
//!
//! A node that has another address counts as removed from its old one: its name stands for another process now, and
//! clients that come under the same key are sent to the new address.

mod removed;
mod snapshot;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::{self, Config};
use crate::metrics::NodeMeter;
use crate::pool::{Node, NodeId, NodeState};
use crate::proxy::drain::{ActiveDrain, DrainProgress};
use crate::proxy::{ProxyContext, ProxyState, UpstreamPool};
use crate::relay::TunnelSelector;
use crate::shutdown::Phase;

pub(super) use removed::is_in_config;
use removed::{Generations, Removed, removed_nodes, removed_routes};
pub(super) use snapshot::RemovalSnapshot;

/// How long after its last tunnel the clients of a node may still come back: twice the longest pause of clients that
/// reconnect by themselves (SignalR's last one).
const RECONNECT_TIME: Duration = Duration::from_secs(60);

/// The removals of the process.
#[derive(Default)]
pub(super) struct Removals {
    /// Those that are under way.
    active: Vec<Removal>,
    /// Since which generation a node has been at its address; those of the start are not listed.
    since: HashMap<(Arc<str>, NodeId), u32>,
    /// Each is cancelled when no session sees that generation any more.
    generations: Vec<CancellationToken>,
}

/// A removed node or route while its tunnels are drained.
struct Removal {
    removed: Removed,
    generations: Generations,
    drain: Arc<ActiveDrain>,
}

/// How the tunnels of a removed node or route are drained.
struct RemovalOrder {
    drain: config::Drain,
    /// Tunnels that have closed already, in the process before this one.
    closed: usize,
    /// Where the progress is shown; `None` for what has no metrics of its own.
    meter: Option<Arc<NodeMeter>>,
    /// Each is cancelled when no more tunnels arrive from there: a generation, or the process before this one.
    arrivals: Vec<CancellationToken>,
}

impl Removals {
    /// Swaps the next generation in, and begins to drain the tunnels whose node or route is only in the old config.
    pub(super) fn swap(
        &mut self,
        context: &Arc<ProxyContext>,
        (old, new): (&Config, &Config),
        before: &Arc<ProxyState>,
        next: Arc<ProxyState>,
    ) {
        let generation = next.generation;
        self.active.retain(|removal| !removal.drain.has_ended());
        self.generations.retain(|generation| !generation.is_cancelled());
        self.generations.push(before.retirement());
        let nodes = removed_nodes(old, new).into_iter();
        let nodes: Vec<_> =
            nodes.map(|(pool, node, drain)| (self.since(pool, node), pool, node, drain)).collect();
        self.keep_named_again(old, new, generation);
        context.state.store(Arc::clone(&next));
        // A drain that was under way goes on as it was ordered.
        let nodes: Vec<_> = nodes
            .into_iter()
            .map(|(since, pool, node, drain)| {
                let upstream = before.upstream(pool, node);
                let under_way = upstream.and_then(|upstream| upstream.mark_removed());
                let drain = under_way.map_or_else(|| drain.clone(), |drain| drain.remaining_order());
                // Under a name that the config still has, the metrics are those of the other address.
                let meter = upstream.filter(|_| !is_in_config(new, pool, Some(node.id.as_str())));
                let meter = meter.map(|upstream| Arc::clone(&upstream.meter));
                (Generations { since, before: generation }, Removed::node(pool, node), drain, meter)
            })
            .collect();
        next.activate(&context.metrics, context.now());
        context.metrics.retain(&|pool, node| is_in_config(new, pool, node));
        for (generations, removed, drain, meter) in nodes {
            let order = RemovalOrder { drain, closed: 0, meter, arrivals: self.generations.clone() };
            self.begin(context, removed, generations, order);
        }
        for (route, drain) in removed_routes(old, new) {
            let generations = Generations { since: 0, before: generation };
            let arrivals = self.generations.clone();
            let order = RemovalOrder { drain: drain.clone(), closed: 0, meter: None, arrivals };
            self.begin(context, Removed::route(route), generations, order);
        }
    }

    /// Goes on with a removal of another process, whose tunnels have all arrived when `arrived` is cancelled. A node or
    /// route that the config names (again) stays.
    pub(super) fn resume(
        &mut self,
        context: &Arc<ProxyContext>,
        config: &Config,
        snapshot: &RemovalSnapshot,
        arrived: &CancellationToken,
    ) {
        let Some(removed) = snapshot.removed().filter(|removed| !removed.is_in(config)) else { return };
        let meter = match &removed {
            Removed::Node { pool, node, .. }
                if !snapshot.is_known && !is_in_config(config, pool, Some(node.as_str())) =>
            {
                let meter = context.metrics.node(pool, node.as_str());
                meter.set_state(NodeState::Removed.as_str());
                Some(meter)
            }
            _ => None,
        };
        let (drain, arrivals) = (snapshot.order(), vec![arrived.clone()]);
        let order = RemovalOrder { drain, closed: snapshot.closed, meter, arrivals };
        self.begin(context, removed, snapshot.generations(), order);
    }

    /// The removals that are under way, for another process to go on with.
    pub(super) fn snapshots(&self) -> Vec<RemovalSnapshot> {
        let under_way = self.active.iter().filter(|removal| !removal.drain.has_ended());
        under_way
            .map(|removal| RemovalSnapshot::new(&removal.removed, removal.generations, &removal.drain))
            .collect()
    }

    /// The first generation whose tunnels on this node are at its present address.
    fn since(&self, pool: &Arc<str>, node: &Node) -> u32 {
        self.since.get(&(Arc::clone(pool), node.id.clone())).copied().unwrap_or(0)
    }

    /// Notes which nodes are at a new address, and ends the removals of what is named again.
    fn keep_named_again(&mut self, old: &Config, new: &Config, generation: u32) {
        self.since.retain(|(pool, node), _| is_in_config(new, pool, Some(node.as_str())));
        // A node that is in `old` and not in `new` is removed; the other way round it is added.
        for (pool, node, _) in removed_nodes(new, old) {
            let added = Removed::node(pool, node);
            let back = self.active.iter().filter(|removal| removal.removed == added);
            let since = back.inspect(|removal| removal.drain.end());
            let since = since.map(|removal| removal.generations.since).min().unwrap_or(generation);
            self.since.insert((Arc::clone(pool), node.id.clone()), since);
        }
        for removal in &self.active {
            if matches!(&removal.removed, Removed::Route { .. }) && removal.removed.is_in(new) {
                removal.drain.end();
            }
        }
    }

    /// Begins to drain the tunnels of some generations of what was removed.
    fn begin(
        &mut self,
        context: &Arc<ProxyContext>,
        removed: Removed,
        generations: Generations,
        order: RemovalOrder,
    ) {
        let RemovalOrder { drain, closed, meter, arrivals } = order;
        let is_node = matches!(removed, Removed::Node { .. });
        let removing = is_node.then(|| NodeRemoval::begin(context, removed.pool()));
        let before = DrainProgress { elapsed: Duration::ZERO, closed };
        let tunnels = tunnels_of(removed.clone(), generations);
        let drain = Arc::new(ActiveDrain::begin(&context.relay, tunnels, drain, before));
        if let Some(meter) = &meter {
            meter.set_drain(Some(drain.gauge()));
        }
        context.tasks.spawn(watch_removal(
            Arc::clone(context),
            Arc::clone(&drain),
            arrivals,
            meter,
            removing,
        ));
        self.active.push(Removal { removed, generations, drain });
    }
}

/// Selects the tunnels of a removed node or route that were opened under some generations.
fn tunnels_of(removed: Removed, generations: Generations) -> TunnelSelector {
    TunnelSelector::new(move |session| {
        generations.contains(session.generation)
            && removed.has(&session.node_connection.pool, &session.node_connection.node, &session.route)
    })
}

/// Ends the drain of a removed node or route when its last tunnel has closed, or when all tunnels are being closed
/// anyway. The metrics of a node end with its last tunnel.
async fn watch_removal(
    context: Arc<ProxyContext>,
    drain: Arc<ActiveDrain>,
    arrivals: Vec<CancellationToken>,
    meter: Option<Arc<NodeMeter>>,
    removing: Option<NodeRemoval>,
) {
    let finished = async {
        for arrival in arrivals {
            arrival.cancelled().await;
        }
        // The last of them are in the slabs then.
        context.relay.wait_one_tick().await;
        drain.finished().await;
    };
    let is_finished = tokio::select! {
        () = finished => true,
        () = drain.ended() => false,
        () = context.shutdown.wait_for(Phase::Draining) => false,
        // The process that has taken over goes on with it.
        () = context.shutdown.wait_until_superseded() => false,
    };
    drain.end();
    drop(meter);
    if is_finished && removing.is_some() {
        tokio::select! {
            () = tokio::time::sleep(RECONNECT_TIME) => {}
            () = context.shutdown.wait_for(Phase::Draining) => {}
            () = context.shutdown.wait_until_superseded() => {}
        }
    }
}

/// Tells its pool that a node was removed and its clients are still to come back, until this is dropped.
struct NodeRemoval {
    context: Arc<ProxyContext>,
    pool: Arc<str>,
}

impl NodeRemoval {
    fn begin(context: &Arc<ProxyContext>, pool: &Arc<str>) -> Self {
        let removal = Self { context: Arc::clone(context), pool: Arc::clone(pool) };
        removal.record(|pool| pool.rollout.begin_removal());
        removal
    }

    fn record(&self, change: fn(&UpstreamPool)) {
        if let Some(pool) = self.context.state.load().pools.get(&self.pool) {
            change(pool);
            pool.update_rollout();
        }
    }
}

impl Drop for NodeRemoval {
    fn drop(&mut self) {
        self.record(|pool| pool.rollout.end_removal());
    }
}
