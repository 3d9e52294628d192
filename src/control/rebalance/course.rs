//! One rebalance: slice by slice, what each crowded node still has too many is closed, up to what it had at the start.
//!
//! A slice looks anew at who is up and what everybody has, so that clients who left or moved by themselves are not
//! made up for by others, and a reload, a drain or a node that fails is heeded within a slice. What it closes was
//! opened before the beginning: nobody is moved twice. A client that only a key places is moved only where its key
//! falls elsewhere now; any other would come back.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::outlook::{Outlook, Stand};
use super::unfinished::Unfinished;
use crate::config::Rebalance;
use crate::pool::NodeId;
use crate::proxy::upstream::Upstream;
use crate::proxy::{ProxyContext, UpstreamPool};
use crate::relay::{ChoiceOrder, CloseHandle, CloseReason, PacedClose, TunnelChoice, TunnelSelector};
use crate::shutdown::Phase;
use crate::ws::close;

/// Slices of a window, but for the bounds of their length.
const SLICES: u32 = 60;
/// The shortest slice, and the longest: so old are the shares by which clients are kept from a node, at most.
const SLICE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How many seconds after the last close those who are still on their way are kept from crowded nodes: clients wait up to
/// half a minute before they come back.
const STRAGGLERS: u32 = 60;

/// See the module.
pub struct Course {
    pool: Arc<str>,
    rule: Rebalance,
    /// An operator wants it, whatever the config says.
    is_ordered: bool,
    /// Who came later is not moved.
    begun: SystemTime,
    /// The end of the window.
    deadline: SystemTime,
    /// The nodes that give up tunnels.
    crowded: Vec<Crowded>,
    /// No more is closed.
    is_over: AtomicBool,
    stop: CancellationToken,
    /// Nobody is kept from a node any more.
    ended: CancellationToken,
    /// Shuffles who goes, where the quiet do not go first.
    seed: u64,
}

/// A node that gives up tunnels.
struct Crowded {
    node: NodeId,
    /// The most that are closed.
    planned: u32,
    /// Told to close so far.
    closed: AtomicU32,
    /// What was told, as long as some of it is still there.
    handles: Mutex<Vec<CloseHandle>>,
    /// The node as it was last kept from filling up.
    kept: Mutex<Option<Arc<Upstream>>>,
}

/// How far one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The most tunnels that are closed.
    pub planned: u32,
    /// Those that were told to close so far.
    pub closed: u32,
    /// When the last of them is told to at the latest.
    pub deadline: SystemTime,
}

impl Course {
    /// Not begun yet: what `outlook` says is too much, over the window of the rule, of those who came before `begun`.
    pub fn new(
        pool: Arc<str>,
        rule: Rebalance,
        outlook: &Outlook,
        (is_ordered, begun): (bool, SystemTime),
    ) -> Arc<Self> {
        let crowded = outlook.stands.iter().filter(|stand| stand.surplus > 0).map(Crowded::new).collect();
        Arc::new(Self {
            pool,
            rule,
            is_ordered,
            begun,
            deadline: SystemTime::now() + rule.over,
            crowded,
            is_over: AtomicBool::new(false),
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
            seed: RandomState::new().hash_one(rule.over),
        })
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        Progress {
            planned: self.crowded.iter().map(|crowded| crowded.planned).sum(),
            closed: self.crowded.iter().map(|crowded| crowded.closed.load(Relaxed)).sum(),
            deadline: self.deadline,
        }
    }

    /// What it has still to do.
    pub fn unfinished(&self) -> Unfinished {
        let left = |crowded: &Crowded| crowded.planned.saturating_sub(crowded.closed.load(Relaxed));
        Unfinished {
            pool: self.pool.to_string(),
            over: self.deadline.duration_since(SystemTime::now()).unwrap_or_default(),
            tolerance: self.rule.tolerance,
            quiet_first: self.rule.quiet_first,
            is_ordered: self.is_ordered,
            begun: self.begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
            left: self.crowded.iter().map(|crowded| (crowded.node.to_string(), left(crowded))).collect(),
        }
    }

    /// No more is closed; crowded nodes may still be kept from filling up again.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Ends it here; returns when that is so.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }

    /// Runs to the end, or until it is stopped, its pool is gone or the balancer stops.
    pub async fn run(&self, front: &ProxyContext) {
        let _ended = self.ended.clone().drop_guard();
        let _open = Open(self);
        let course = async {
            if self.slices(front).await {
                self.finish(front);
                self.wait_for_stragglers(front).await;
            } else {
                self.break_off(front);
            }
        };
        tokio::select! {
            () = course => {}
            () = self.stop.cancelled() => self.break_off(front),
            () = front.shutdown.wait_for(Phase::Draining) => self.break_off(front),
            // What is left of the surplus is the next process's to move.
            () = front.shutdown.wait_until_superseded() => self.break_off(front),
        }
    }

    /// Whoever was told to close and is not due yet stays.
    fn break_off(&self, front: &ProxyContext) {
        for handle in self.crowded.iter().flat_map(|crowded| crowded.handles.lock().clone()) {
            handle.stop();
        }
        self.finish(front);
    }

    /// No more is told to close; a relay thread may have yet to hear of the last ones.
    fn finish(&self, front: &ProxyContext) {
        if self.is_over.swap(true, Relaxed) {
            return;
        }
        let Progress { planned, closed, .. } = self.progress();
        front.metrics.pool(&self.pool).set_rebalance_left(0);
        tracing::info!(pool = %self.pool, planned, closed, "rebalanced");
    }

    /// All slices; false when nobody wants them any more.
    async fn slices(&self, front: &ProxyContext) -> bool {
        let slice = (self.rule.over / SLICES).clamp(SLICE.0, SLICE.1);
        let count = u32::try_from(self.rule.over.as_nanos().div_ceil(slice.as_nanos())).unwrap_or(u32::MAX);
        let count = count.max(1);
        let slice = self.rule.over / count;
        for number in 1..=count {
            let Some(pool) = self.wanted_by(front) else { return false };
            self.close_some(front, &pool, slice, f64::from(number) / f64::from(count)).await;
            tokio::time::sleep(slice).await;
        }
        true
    }

    /// Keeps them from crowded nodes, as these are from second to second.
    async fn wait_for_stragglers(&self, front: &ProxyContext) {
        for _ in 0..STRAGGLERS {
            let Some(pool) = self.wanted_by(front) else { return };
            let outlook = self.outlook(front, &pool);
            self.crowded.iter().for_each(|crowded| crowded.keep_in(&pool, &outlook));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The pool as it is now; `None` when it is gone, or the config no longer wants what nobody has ordered.
    fn wanted_by(&self, front: &ProxyContext) -> Option<Arc<UpstreamPool>> {
        let pool = front.state.load().pools.get(&self.pool).cloned()?;
        (self.is_ordered || pool.config.rebalance.is_some()).then_some(pool)
    }

    /// Of those that stay: who is told to leave may be back already while it still counts where it was.
    fn outlook(&self, front: &ProxyContext, pool: &UpstreamPool) -> Outlook {
        let leaving = |node: &NodeId| {
            let crowded = self.crowded.iter().find(|crowded| crowded.node == *node);
            crowded.map_or(0, Crowded::leaving)
        };
        Outlook::of_staying(pool, self.rule.tolerance, front.now(), leaving)
    }

    /// Closes what of the surplus is due when this part of the window is over.
    async fn close_some(&self, front: &ProxyContext, pool: &Arc<UpstreamPool>, slice: Duration, part: f64) {
        let outlook = self.outlook(front, pool);
        for crowded in &self.crowded {
            crowded.keep_in(pool, &outlook);
            let Some(stand) = outlook.of_node(&crowded.node) else { continue };
            let count = crowded.due(stand, part);
            if count == 0 {
                continue;
            }
            let selector = self.selector(pool, &outlook, stand);
            let order =
                if self.rule.quiet_first { ChoiceOrder::Quietest } else { ChoiceOrder::Shuffled(self.seed) };
            let chosen = front.relay.choose(TunnelChoice { selector, order }, count as usize).await;
            if chosen.is_empty() {
                continue;
            }
            let chosen = TunnelSelector::sessions(chosen.into_iter().collect());
            let close = PacedClose::new(chosen, CloseReason::Rebalanced, close::SERVICE_RESTART, "rebalance");
            let handle = front.relay.close(close.over(slice));
            crowded.handles.lock().push(handle.clone());
            // As long as a thread has not counted its part, they look as if they had left.
            let told = u32::try_from(handle.counted().await).unwrap_or(u32::MAX);
            crowded.closed.fetch_add(told, Relaxed);
            front.metrics.pool(&self.pool).record_rebalance_closes(told);
        }
        let Progress { planned, closed, .. } = self.progress();
        front.metrics.pool(&self.pool).set_rebalance_left(planned - closed);
    }

    /// Selects the tunnels that may be closed on a node: those that were there before the beginning, and whose clients
    /// will come to another node.
    fn selector(&self, pool: &Arc<UpstreamPool>, outlook: &Outlook, crowded: &Stand) -> TunnelSelector {
        let (begun, pool) = (self.begun, Arc::clone(pool));
        let (name, node, index) = (Arc::clone(&self.pool), crowded.node.clone(), crowded.index);
        let mut up = vec![false; pool.nodes.len()];
        let mut has_room = up.clone();
        for stand in &outlook.stands {
            up[stand.index] = true;
            has_room[stand.index] = stand.index != index && stand.live < stand.share;
        }
        TunnelSelector::new(move |record| {
            let is_on_node =
                *record.node_connection.node == *node.as_str() && record.node_connection.pool == name;
            let comes_elsewhere = |key| {
                pool.nodes
                    .owner_of_key(key, |node| up[node])
                    .is_some_and(|owner_of_key| has_room[owner_of_key])
            };
            is_on_node && record.opened_at < begun && record.key.is_none_or(comes_elsewhere)
        })
    }
}

impl Crowded {
    fn new(stand: &Stand) -> Self {
        Self {
            node: stand.node.clone(),
            planned: stand.surplus,
            closed: AtomicU32::new(0),
            handles: Mutex::default(),
            kept: Mutex::default(),
        }
    }

    /// How many were told to leave and are still there.
    fn leaving(&self) -> u32 {
        let mut handles = self.handles.lock();
        handles.retain(|handle| handle.left() > 0);
        handles.iter().map(CloseHandle::left).sum::<usize>().try_into().unwrap_or(u32::MAX)
    }

    /// How many more are to be told to close when this part of the window is over: not more than it still has too
    /// many.
    fn due(&self, stand: &Stand, part: f64) -> u32 {
        let needed = stand.live.saturating_sub(stand.share);
        let by_now = (f64::from(self.planned) * part).round() as u32;
        needed.min(by_now.saturating_sub(self.closed.load(Relaxed)))
    }

    /// Keeps the node from filling up above its share, as long as it is up.
    fn keep_in(&self, pool: &UpstreamPool, outlook: &Outlook) {
        let Some(stand) = outlook.of_node(&self.node) else { return self.let_go() };
        let node = &pool.upstreams[stand.index];
        node.set_tunnel_limit(Some(stand.share));
        *self.kept.lock() = Some(Arc::clone(node));
    }

    fn let_go(&self) {
        if let Some(node) = self.kept.lock().take() {
            node.set_tunnel_limit(None);
        }
    }
}

/// While it exists, crowded nodes are kept from filling up.
struct Open<'a>(&'a Course);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.crowded.iter().for_each(Crowded::let_go);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_grows_evenly_and_is_never_more_than_what_is_too_much_still() {
        let stand =
            |live| Stand { node: "a".parse().unwrap(), index: 0, live, share: 30, surplus: live - 30 };
        let crowded = Crowded::new(&stand(40));
        let mut closed = 0;
        for (tenth, live) in [(1, 40), (2, 39), (5, 38), (6, 31), (7, 30), (10, 45)] {
            let due = crowded.due(&stand(live), f64::from(tenth) / 10.0);
            crowded.closed.fetch_add(due, Relaxed);
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
