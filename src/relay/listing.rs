//! What the relay says about its tunnels while they run.
//!
//! Each thread walks its slab in stretches, one each turn, so that a listing of many tunnels delays no message. A
//! page holds the lowest ids behind the one before: a tunnel that lives through a listing is in it exactly once. Who is
//! looking for tunnels to close is given the first of them in another order.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use super::tunnel::Live;
use super::{STRETCH, TunnelSelector};
use crate::affinity::hash::mix;

/// Which tunnels are to be closed first, of those that are not being closed yet.
#[derive(Debug, Clone)]
pub struct TunnelChoice {
    /// The tunnels to choose from.
    pub selector: TunnelSelector,
    /// Which of them come first.
    pub order: ChoiceOrder,
}

/// The order of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceOrder {
    /// The tunnels that have carried no message for longest, or none since they were adopted.
    Quietest,
    /// Any; the seed shuffles them.
    Shuffled(u64),
}

/// A session as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
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
    /// Which affinity source placed it, and how.
    pub affinity: (&'static str, &'static str),
    /// Bytes read from the client and from the node.
    pub bytes: [u64; 2],
    /// Text and binary messages from the client and from the node.
    pub messages: [u64; 2],
    /// When the last of those began, to the turn of the relay's loop; `None` before the first.
    pub last_message_at: Option<SystemTime>,
    /// How long the client took to answer the balancer's last Ping, in whole milliseconds; `None` before that.
    pub round_trip: Option<Duration>,
    /// It is being closed: a Close has passed in both directions, or is the balancer's own.
    pub is_closing: bool,
}

/// What is asked for.
pub(super) struct Query {
    selector: TunnelSelector,
    /// Only ids above this.
    after: Option<u64>,
    /// For tunnels to close; `None` is the order of the ids.
    order: Option<ChoiceOrder>,
    /// The most sessions that are wanted.
    pub limit: usize,
}

impl Query {
    pub fn page(selector: TunnelSelector, after: Option<u64>, limit: usize) -> Self {
        Self { selector, after, order: None, limit }
    }

    pub fn choice(choice: TunnelChoice, limit: usize) -> Self {
        Self { selector: choice.selector, after: None, order: Some(choice.order), limit }
    }

    /// Where the tunnel stands in the order at `now` on its thread's clock; `None` when it is not meant.
    fn rank(&self, live: &Live, now: u64) -> Option<u64> {
        let id = live.record.id;
        let Some(order) = self.order else {
            return Some(id).filter(|id| self.after.is_none_or(|after| *id > after));
        };
        (!live.is_closing()).then(|| match order {
            // The clocks of the threads differ, how long ago something was does not.
            ChoiceOrder::Quietest => u64::MAX - live.quiet_for(now),
            ChoiceOrder::Shuffled(seed) => mix(id ^ seed),
        })
    }
}

/// A thread's part in a listing.
pub(super) struct Listing {
    query: Arc<Query>,
    reply: oneshot::Sender<Vec<(u64, Snapshot)>>,
    /// Places below have been looked at.
    at: usize,
    /// The first so far, the last of them on top.
    found: BinaryHeap<Found>,
}

impl Listing {
    pub fn new(query: Arc<Query>, reply: oneshot::Sender<Vec<(u64, Snapshot)>>) -> Self {
        Self { query, reply, at: 0, found: BinaryHeap::new() }
    }

    /// Looks at a stretch of the slab at `now` on the thread's clock; true when there is nothing more to do.
    pub fn walk(&mut self, tunnels: &[Option<Box<Live>>], now: u64) -> bool {
        if self.reply.is_closed() || self.query.limit == 0 {
            return true;
        }
        let until = tunnels.len().min(self.at + STRETCH);
        // The wall clock may be set, the thread's clock not: their difference is taken anew each time.
        let wall = SystemTime::now();
        for live in tunnels[self.at..until].iter().flatten() {
            if !self.query.selector.matches(&live.record) {
                continue;
            }
            let Some(rank) = self.query.rank(live, now) else { continue };
            let is_full = self.found.len() >= self.query.limit;
            if is_full && self.found.peek().is_some_and(|last| last.0 < rank) {
                continue;
            }
            if is_full {
                self.found.pop();
            }
            self.found.push(Found(rank, live.snapshot(now, wall)));
        }
        self.at = until;
        until == tunnels.len()
    }

    /// Answers, in no order.
    pub fn finish(self) {
        let found = self.found.into_iter().map(|Found(rank, snapshot)| (rank, snapshot)).collect();
        // Whoever asked may have gone.
        let _ = self.reply.send(found);
    }
}

/// The answers of all threads as one page.
pub(super) async fn page(
    answers: Vec<oneshot::Receiver<Vec<(u64, Snapshot)>>>,
    limit: usize,
) -> Vec<(u64, Snapshot)> {
    let mut page = Vec::new();
    for answer in answers {
        // A thread that has ended has no tunnels.
        page.extend(answer.await.unwrap_or_default());
    }
    page.sort_unstable_by_key(|(rank, snapshot): &(u64, Snapshot)| (*rank, snapshot.id));
    page.truncate(limit);
    page
}

/// A tunnel and where it stands in the order.
#[derive(Debug)]
struct Found(u64, Snapshot);

impl Ord for Found {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0, self.1.id).cmp(&(other.0, other.1.id))
    }
}

impl PartialOrd for Found {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Found {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Found {}
