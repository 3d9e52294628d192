//! One rebalance: in each slice of its window, a part of the surplus of each overfull node is closed.
//!
//! Each slice plans anew from the nodes that are up and the tunnels that they have. So clients that leave or move by
//! themselves are not made up for by others, and a reload, a drain or a failing node takes effect within a slice. Only
//! sessions that were opened before the rebalance began are closed: no client is moved twice. A client that only a key
//! places is moved only where its key selects another node now; else it would come back.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::plan::{NodeShare, RebalancePlan};
use super::resume::PendingRebalance;
use crate::config::Rebalance;
use crate::pool::NodeId;
use crate::proxy::upstream::Upstream;
use crate::proxy::{ProxyContext, UpstreamPool};
use crate::relay::{
    ChoiceOrder, CloseHandle, CloseReason, HashKey, PacedClose, TunnelChoice, TunnelSelector,
};
use crate::shutdown::Phase;
use crate::ws::close;

/// Slices of a window, within the bounds of their length.
const SLICES: u32 = 60;
/// The shortest slice and the longest. Clients are kept from a node by shares that are at most one slice old.
const SLICE_LENGTH: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How many seconds after the last close clients are kept from overfull nodes: they wait up to half a minute before they
/// reconnect.
const RECONNECT_SECONDS: u32 = 60;

/// A rebalance that is under way in one pool.
pub(crate) struct RebalanceRun {
    pool: Arc<str>,
    order: RebalanceOrder,
    /// The end of the window.
    deadline: SystemTime,
    /// The nodes that give up tunnels.
    overfull: Vec<OverfullNode>,
    /// Whether the last tunnel was closed.
    is_over: AtomicBool,
    stop: CancellationToken,
    /// Cancelled when clients are not kept from overfull nodes any more.
    ended: CancellationToken,
    /// Shuffles the tunnels, where the quietest do not come first.
    seed: u64,
}

/// How a rebalance is to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RebalanceOrder {
    /// Its window and tolerance, and which tunnels are closed first.
    pub settings: Rebalance,
    /// An operator ordered it, whatever the config says.
    pub is_ordered: bool,
    /// Sessions that were opened later are not moved.
    pub begun: SystemTime,
}

/// A node that gives up tunnels.
struct OverfullNode {
    node: NodeId,
    /// The most tunnels that are closed.
    planned: u32,
    /// Tunnels that are closed or being closed so far.
    closed: AtomicU32,
    /// The closes that are not finished.
    handles: Mutex<Vec<CloseHandle>>,
    /// The node as its tunnels were last limited.
    limited: Mutex<Option<Arc<Upstream>>>,
}

/// How far a rebalance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RebalanceProgress {
    /// The most tunnels that are closed.
    pub planned: u32,
    /// The tunnels that are closed or being closed so far.
    pub closed: u32,
    /// When the last of them is closed at the latest.
    pub deadline: SystemTime,
}

impl RebalanceRun {
    /// A rebalance that has not begun: it closes the surplus of `plan`.
    pub(crate) fn new(pool: Arc<str>, order: RebalanceOrder, plan: &RebalancePlan) -> Arc<Self> {
        let overfull = plan.nodes.iter().filter(|share| share.surplus > 0).map(OverfullNode::new).collect();
        let window = order.settings.over;
        Arc::new(Self {
            pool,
            order,
            deadline: SystemTime::now() + window,
            overfull,
            is_over: AtomicBool::new(false),
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
            seed: RandomState::new().hash_one(window),
        })
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> RebalanceProgress {
        RebalanceProgress {
            planned: self.overfull.iter().map(|node| node.planned).sum(),
            closed: self.overfull.iter().map(|node| node.closed.load(Relaxed)).sum(),
            deadline: self.deadline,
        }
    }

    /// What it has still to do.
    pub(crate) fn pending(&self) -> PendingRebalance {
        let left = |node: &OverfullNode| node.planned.saturating_sub(node.closed.load(Relaxed));
        let RebalanceOrder { settings, is_ordered, begun } = self.order;
        PendingRebalance {
            pool: self.pool.to_string(),
            over: self.deadline.duration_since(SystemTime::now()).unwrap_or_default(),
            tolerance: settings.tolerance,
            quiet_first: settings.quiet_first,
            is_ordered,
            begun: begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
            left: self.overfull.iter().map(|node| (node.node.to_string(), left(node))).collect(),
        }
    }

    /// Whether the last tunnel was closed; the tunnels of overfull nodes may still be limited.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Stops it; returns when it has ended.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }

    /// Runs to the end, or until it is stopped, its pool is gone or the balancer stops.
    pub(crate) async fn run(&self, context: &ProxyContext) {
        let _ended = self.ended.clone().drop_guard();
        let _limited = LimitGuard(self);
        let run = async {
            if self.run_slices(context).await {
                self.finish(context);
                self.limit_until_reconnected(context).await;
            } else {
                self.abort(context);
            }
        };
        tokio::select! {
            () = run => {}
            () = self.stop.cancelled() => self.abort(context),
            () = context.shutdown.wait_for(Phase::Draining) => self.abort(context),
            // The process that has taken over moves the rest of the surplus.
            () = context.shutdown.wait_until_superseded() => self.abort(context),
        }
    }

    /// Tunnels that have not been sent a Close yet stay.
    fn abort(&self, context: &ProxyContext) {
        for handle in self.overfull.iter().flat_map(|node| node.handles.lock().clone()) {
            handle.stop();
        }
        self.finish(context);
    }

    /// Marks it as over; a relay thread may still have to begin the last closes.
    fn finish(&self, context: &ProxyContext) {
        if self.is_over.swap(true, Relaxed) {
            return;
        }
        let RebalanceProgress { planned, closed, .. } = self.progress();
        context.metrics.pool(&self.pool).set_rebalance_left(0);
        tracing::info!(pool = %self.pool, planned, closed, "rebalance finished");
    }

    /// Runs all slices; false when neither the operator nor the config wants them any more.
    async fn run_slices(&self, context: &ProxyContext) -> bool {
        let slice = (self.order.settings.over / SLICES).clamp(SLICE_LENGTH.0, SLICE_LENGTH.1);
        let count =
            u32::try_from(self.order.settings.over.as_nanos().div_ceil(slice.as_nanos())).unwrap_or(u32::MAX);
        let count = count.max(1);
        let slice = self.order.settings.over / count;
        for number in 1..=count {
            let Some(pool) = self.wanting_pool(context) else { return false };
            self.run_slice(context, &pool, slice, f64::from(number) / f64::from(count)).await;
            tokio::time::sleep(slice).await;
        }
        true
    }

    /// Limits the tunnels of overfull nodes, second by second, until the clients have reconnected.
    async fn limit_until_reconnected(&self, context: &ProxyContext) {
        for _ in 0..RECONNECT_SECONDS {
            let Some(pool) = self.wanting_pool(context) else { return };
            let plan = self.plan(context, &pool);
            self.overfull.iter().for_each(|node| node.limit(&pool, &plan));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The pool as it is now; `None` when it was removed, or the config does not want a rebalance that no operator has
    /// ordered.
    fn wanting_pool(&self, context: &ProxyContext) -> Option<Arc<UpstreamPool>> {
        let pool = context.state.load().pools.get(&self.pool).cloned()?;
        (self.order.is_ordered || pool.config.rebalance.is_some()).then_some(pool)
    }

    /// The plan as of now, without tunnels that are being closed: their clients may be back already.
    fn plan(&self, context: &ProxyContext, pool: &UpstreamPool) -> RebalancePlan {
        let closing = |node: &NodeId| {
            let overfull = self.overfull.iter().find(|overfull| overfull.node == *node);
            overfull.map_or(0, OverfullNode::closing)
        };
        RebalancePlan::without_closing(pool, self.order.settings.tolerance, context.now(), closing)
    }

    /// Closes the part of the surplus that is due when this part of the window is over.
    async fn run_slice(&self, context: &ProxyContext, pool: &Arc<UpstreamPool>, slice: Duration, part: f64) {
        let plan = self.plan(context, pool);
        for node in &self.overfull {
            node.limit(pool, &plan);
            let Some(share) = plan.share_of(&node.node) else { continue };
            let count = node.due(share, part);
            if count == 0 {
                continue;
            }
            let selector = self.selector(pool, &plan, share);
            let order = if self.order.settings.quiet_first {
                ChoiceOrder::Quietest
            } else {
                ChoiceOrder::Shuffled(self.seed)
            };
            let chosen = context.relay.choose(TunnelChoice { selector, order }, count as usize).await;
            if chosen.is_empty() {
                continue;
            }
            let chosen = TunnelSelector::sessions(chosen.into_iter().collect());
            let close = PacedClose::new(chosen, CloseReason::Rebalanced, close::SERVICE_RESTART, "rebalance");
            let handle = context.relay.close(close.over(slice));
            node.handles.lock().push(handle.clone());
            // Until every thread has counted, the tunnels look as if they had ended.
            let closed = u32::try_from(handle.counted().await).unwrap_or(u32::MAX);
            node.closed.fetch_add(closed, Relaxed);
            context.metrics.pool(&self.pool).record_rebalance_closes(closed);
        }
        let RebalanceProgress { planned, closed, .. } = self.progress();
        context.metrics.pool(&self.pool).set_rebalance_left(planned - closed);
    }

    /// Selects the tunnels that may be closed on a node: those that were there before the beginning, and whose clients
    /// will come to another node.
    fn selector(&self, pool: &Arc<UpstreamPool>, plan: &RebalancePlan, share: &NodeShare) -> TunnelSelector {
        let (begun, pool) = (self.order.begun, Arc::clone(pool));
        let (name, node, index) = (Arc::clone(&self.pool), share.node.clone(), share.index);
        let mut up = vec![false; pool.nodes.len()];
        let mut has_room = up.clone();
        for other in &plan.nodes {
            up[other.index] = true;
            has_room[other.index] = other.index != index && other.tunnels < other.share;
        }
        TunnelSelector::new(move |session| {
            let is_on_node =
                *session.node_connection.node == *node.as_str() && session.node_connection.pool == name;
            let moves_elsewhere =
                |key| pool.nodes.owner_of_key(key, |node| up[node]).is_some_and(|owner| has_room[owner]);
            is_on_node
                && session.opened_at < begun
                && session.key.map(HashKey::get).is_none_or(moves_elsewhere)
        })
    }
}

impl OverfullNode {
    fn new(share: &NodeShare) -> Self {
        Self {
            node: share.node.clone(),
            planned: share.surplus,
            closed: AtomicU32::new(0),
            handles: Mutex::default(),
            limited: Mutex::default(),
        }
    }

    /// How many of its tunnels are being closed.
    fn closing(&self) -> u32 {
        let mut handles = self.handles.lock();
        handles.retain(|handle| handle.left() > 0);
        handles.iter().map(CloseHandle::left).sum::<usize>().try_into().unwrap_or(u32::MAX)
    }

    /// How many more tunnels are to be closed when this part of the window is over: at most what it still has above its
    /// share.
    fn due(&self, share: &NodeShare, part: f64) -> u32 {
        let needed = share.tunnels.saturating_sub(share.share);
        let by_now = (f64::from(self.planned) * part).round() as u32;
        needed.min(by_now.saturating_sub(self.closed.load(Relaxed)))
    }

    /// Limits the tunnels of the node to its share, as long as it is up.
    fn limit(&self, pool: &UpstreamPool, plan: &RebalancePlan) {
        let Some(share) = plan.share_of(&self.node) else { return self.remove_limit() };
        let node = &pool.upstreams[share.index];
        node.set_tunnel_limit(Some(share.share));
        *self.limited.lock() = Some(Arc::clone(node));
    }

    fn remove_limit(&self) {
        if let Some(node) = self.limited.lock().take() {
            node.set_tunnel_limit(None);
        }
    }
}

/// Removes the limits of overfull nodes when it is dropped.
struct LimitGuard<'a>(&'a RebalanceRun);

impl Drop for LimitGuard<'_> {
    fn drop(&mut self) {
        self.0.overfull.iter().for_each(OverfullNode::remove_limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_due_part_grows_evenly_and_never_exceeds_the_present_surplus() {
        let share = |tunnels| NodeShare {
            node: "a".parse().unwrap(),
            index: 0,
            tunnels,
            share: 30,
            surplus: tunnels - 30,
        };
        let overfull = OverfullNode::new(&share(40));
        let mut closed = 0;
        for (tenth, tunnels) in [(1, 40), (2, 39), (5, 38), (6, 31), (7, 30), (10, 45)] {
            let due = overfull.due(&share(tunnels), f64::from(tenth) / 10.0);
            overfull.closed.fetch_add(due, Relaxed);
            closed += due;
            let expected = match tenth {
                1 | 2 | 5 => tenth,
                // Others have left by themselves: only one is too much, then none.
                6 | 7 => 6,
                // However many have come, no more than were planned.
                _ => 10,
            };
            assert_eq!(closed, expected, "after {tenth} tenths");
        }
    }
}
