//! What the relay says about its tunnels while they run.
//!
//! Each thread walks its slab in stretches, one each turn, so that a listing of many tunnels delays no message. A
//! page holds the lowest ids behind the one before: a tunnel that lives through a listing is in it exactly once.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use super::tunnel::Live;
use super::{Record, STRETCH};

/// Which sessions a listing is about; an absent word means any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those of this pool.
    pub pool: Option<String>,
    /// Those of this node.
    pub node: Option<String>,
}

impl Filter {
    fn matches(&self, record: &Record) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
        is(&self.pool, &record.seat.pool) && is(&self.node, &record.seat.node)
    }
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

/// A page that is asked for.
#[derive(Debug)]
pub(super) struct Query {
    pub filter: Filter,
    /// Only ids above this.
    pub after: Option<u64>,
    /// The most sessions that are wanted.
    pub limit: usize,
}

/// A thread's part in a listing.
#[derive(Debug)]
pub(super) struct Listing {
    query: Arc<Query>,
    reply: oneshot::Sender<Vec<Snapshot>>,
    /// Places below have been looked at.
    at: usize,
    /// The lowest ids so far, the highest of them on top.
    found: BinaryHeap<ById>,
}

impl Listing {
    pub fn new(query: Arc<Query>, reply: oneshot::Sender<Vec<Snapshot>>) -> Self {
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
            let id = live.record.id;
            let is_full = self.found.len() >= self.query.limit;
            let too_high = is_full && self.found.peek().is_some_and(|highest| highest.0.id < id);
            if too_high || self.query.after.is_some_and(|after| id <= after) {
                continue;
            }
            if self.query.filter.matches(&live.record) {
                if is_full {
                    self.found.pop();
                }
                self.found.push(ById(live.snapshot(now, wall)));
            }
        }
        self.at = until;
        until == tunnels.len()
    }

    /// Answers, in no order.
    pub fn finish(self) {
        let found = self.found.into_iter().map(|by_id| by_id.0).collect();
        // Whoever asked may have gone.
        let _ = self.reply.send(found);
    }
}

/// The answers of all threads as one page.
pub(super) async fn page(answers: Vec<oneshot::Receiver<Vec<Snapshot>>>, limit: usize) -> Vec<Snapshot> {
    let mut page = Vec::new();
    for answer in answers {
        // A thread that has ended has no tunnels.
        page.extend(answer.await.unwrap_or_default());
    }
    page.sort_unstable_by_key(|snapshot: &Snapshot| snapshot.id);
    page.truncate(limit);
    page
}

#[derive(Debug)]
struct ById(Snapshot);

impl Ord for ById {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for ById {}
