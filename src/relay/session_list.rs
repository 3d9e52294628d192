//! Listings of the tunnels while they run.
//!
//! Each thread scans its slab in chunks, one each tick, so that a listing of many tunnels delays no message. A page
//! holds the lowest ids above the page before: a tunnel that lives through a listing is in it exactly once. A choice of
//! tunnels to close is the first page in another order.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use super::paced_close::TunnelSelector;
use super::tick::SLAB_CHUNK;
use super::tunnel::ActiveTunnel;
use crate::affinity::hash::mix;

/// Which tunnels to close first, of those that are not being closed yet.
#[derive(Debug, Clone)]
pub struct TunnelChoice {
    /// The tunnels to choose from.
    pub selector: TunnelSelector,
    /// Which of them come first.
    pub order: ChoiceOrder,
}

/// The order of a [`TunnelChoice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceOrder {
    /// The tunnels that have carried no message for longest, or none since they were adopted.
    Quietest,
    /// A random order, by this seed.
    Shuffled(u64),
}

/// A session as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSnapshot {
    /// Unique in the process; the order of a listing.
    pub id: u64,
    /// The client, as the front desk believes it to be.
    pub client: IpAddr,
    /// The pool.
    pub pool: Arc<str>,
    /// The node.
    pub node: Arc<str>,
    /// The route that the request matched.
    pub route: Arc<str>,
    /// Generation of the state that it was opened under.
    pub generation: u32,
    /// When the upgrade request was read.
    pub opened_at: SystemTime,
    /// The affinity source that selected the node, and its outcome.
    pub affinity: (&'static str, &'static str),
    /// Bytes read from the client and from the node.
    pub bytes: [u64; 2],
    /// Text and binary messages from the client and from the node.
    pub messages: [u64; 2],
    /// When the last of those began, to a tick of the relay's event loop; `None` before the first.
    pub last_message_at: Option<SystemTime>,
    /// How long the client took to answer the balancer's last Ping, in whole milliseconds; `None` before that.
    pub round_trip: Option<Duration>,
    /// It is being closed: a Close has passed in both directions, or is the balancer's own.
    pub is_closing: bool,
}

/// What a listing asks for.
pub(super) struct ListQuery {
    selector: TunnelSelector,
    /// Only ids above this.
    after: Option<u64>,
    /// For tunnels to close; `None` is the order of the ids.
    order: Option<ChoiceOrder>,
    /// The most sessions that are wanted.
    pub limit: usize,
}

impl ListQuery {
    pub(super) fn page(selector: TunnelSelector, after: Option<u64>, limit: usize) -> Self {
        Self { selector, after, order: None, limit }
    }

    pub(super) fn choice(choice: TunnelChoice, limit: usize) -> Self {
        Self { selector: choice.selector, after: None, order: Some(choice.order), limit }
    }

    /// The tunnel's rank at `now` on its thread's clock; `None` when it is not wanted.
    fn rank(&self, tunnel: &ActiveTunnel, now: u64) -> Option<u64> {
        let id = tunnel.info.id;
        let Some(order) = self.order else {
            return Some(id).filter(|id| self.after.is_none_or(|after| *id > after));
        };
        (!tunnel.is_closing()).then(|| match order {
            // The clocks of the threads differ; how long ago something was does not.
            ChoiceOrder::Quietest => u64::MAX - tunnel.message_idle_time(now),
            ChoiceOrder::Shuffled(seed) => mix(id ^ seed),
        })
    }
}

/// A thread's part in a listing.
pub(super) struct ListJob {
    query: Arc<ListQuery>,
    reply: oneshot::Sender<Vec<RankedSession>>,
    /// Slots below have been scanned.
    next_slot: usize,
    /// The first sessions so far, the last of them on top.
    found: BinaryHeap<RankedSession>,
}

impl ListJob {
    pub(super) fn new(query: Arc<ListQuery>, reply: oneshot::Sender<Vec<RankedSession>>) -> Self {
        Self { query, reply, next_slot: 0, found: BinaryHeap::new() }
    }

    /// Scans a chunk of the slab at `now` on the thread's clock. Returns true when nothing is left to do.
    pub(super) fn scan_chunk(&mut self, tunnels: &[Option<Box<ActiveTunnel>>], now: u64) -> bool {
        if self.reply.is_closed() || self.query.limit == 0 {
            return true;
        }
        let end = tunnels.len().min(self.next_slot + SLAB_CHUNK);
        // The wall clock may be set, the thread's clock not: their difference is taken anew each time.
        let wall = SystemTime::now();
        for tunnel in tunnels[self.next_slot..end].iter().flatten() {
            if !self.query.selector.matches(&tunnel.info) {
                continue;
            }
            let Some(rank) = self.query.rank(tunnel, now) else { continue };
            let is_full = self.found.len() >= self.query.limit;
            if is_full && self.found.peek().is_some_and(|last| last.rank < rank) {
                continue;
            }
            if is_full {
                self.found.pop();
            }
            self.found.push(RankedSession { rank, snapshot: tunnel.snapshot(now, wall) });
        }
        self.next_slot = end;
        end == tunnels.len()
    }

    /// Answers, in no order.
    pub(super) fn finish(self) {
        // The asker may have given up meanwhile.
        let _ = self.reply.send(self.found.into_vec());
    }
}

/// Merges the answers of all threads into one page.
pub(super) async fn merge_page(
    answers: Vec<oneshot::Receiver<Vec<RankedSession>>>,
    limit: usize,
) -> Vec<RankedSession> {
    let mut page = Vec::new();
    for answer in answers {
        // A thread that has ended has no tunnels.
        page.extend(answer.await.unwrap_or_default());
    }
    page.sort_unstable();
    page.truncate(limit);
    page
}

/// A session and its rank in the order of a listing.
#[derive(Debug)]
pub(super) struct RankedSession {
    rank: u64,
    pub snapshot: SessionSnapshot,
}

impl Ord for RankedSession {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.rank, self.snapshot.id).cmp(&(other.rank, other.snapshot.id))
    }
}

impl PartialOrd for RankedSession {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for RankedSession {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for RankedSession {}
