//! Closing a part of the tunnels, evenly over a time: which, how, and how far that has come.
//!
//! Every relay thread counts its own; the last to have counted wakes the others, and then all of them follow one
//! schedule over all their tunnels together. Who is told to close was there when the closing began: a tunnel that
//! is adopted later is not touched, so the caller first sees to it that no new one comes. Only a closing that stands
//! takes in those that were on their way, until it is stopped: each at a time of what is left of the window, and
//! behind the window at once.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::round::Round;
use super::{Command, Record, Relay, Why};
use crate::affinity::hash::mix;
use crate::pace::Schedule;

/// Which tunnels are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All of them. They end because of a shutdown.
    All,
    /// Those of a pool. They are drained.
    Pool(Arc<str>),
    /// Those of one node of a pool. They are drained.
    Node {
        /// The pool's name.
        pool: Arc<str>,
        /// The node's name.
        node: Arc<str>,
    },
    /// Those of one route to a pool. They are drained.
    Route {
        /// The pool's name.
        pool: Arc<str>,
        /// The route, as [`Record::route`] has it.
        route: Arc<str>,
    },
    /// Those of `of` that were opened under a generation from `since` on and before `before`.
    Opened {
        /// Which of them.
        of: Box<Which>,
        /// The first generation that is meant.
        since: u32,
        /// The first that is not.
        before: u32,
    },
    /// Those of these sessions. They are moved.
    Sessions(Arc<HashSet<u64>>),
    /// The one of this session. It is killed.
    Session(u64),
}

impl Which {
    pub(super) fn matches(&self, record: &Record) -> bool {
        match self {
            Self::All => true,
            Self::Pool(pool) => record.seat.pool == *pool,
            Self::Node { pool, node } => record.seat.node == *node && record.seat.pool == *pool,
            Self::Route { pool, route } => record.route == *route && record.seat.pool == *pool,
            Self::Opened { of, since, before } => {
                (*since..*before).contains(&record.generation) && of.matches(record)
            }
            Self::Sessions(ids) => ids.contains(&record.id),
            Self::Session(id) => record.id == *id,
        }
    }

    pub(super) fn why(&self) -> Why {
        match self {
            Self::All => Why::Shutdown,
            Self::Pool(_) | Self::Node { .. } | Self::Route { .. } => Why::Drained,
            Self::Opened { of, .. } => of.why(),
            Self::Sessions(_) => Why::Rebalanced,
            Self::Session(_) => Why::Killed,
        }
    }
}

/// How tunnels are closed by the balancer: a Close frame to both sides, each between two frames.
#[derive(Debug, Clone)]
pub struct Closing {
    /// The close code for both sides.
    pub code: u16,
    /// The reason in the Close frame.
    pub reason: Arc<str>,
    /// The closes are spread evenly over this time, in random order. Zero: all at once.
    pub over: Duration,
    /// How long each waits for its peers to answer the Close. All have ended after `over` and `grace`.
    pub grace: Duration,
}

impl Relay {
    /// Begins to end every tunnel, also those that are still to come; [`join`](Self::join) returns when the last
    /// is gone.
    pub fn close(&self, closing: &Closing) {
        self.begin(Which::All, closing, true);
    }

    /// Begins to close some of the tunnels, spread over all threads together; the threads live on.
    ///
    /// Tunnels that are adopted later are not touched: first see to it that no new session comes to what is being
    /// closed, and ask again for those that were on their way.
    pub fn close_some(&self, which: Which, closing: &Closing) -> Departures {
        self.begin(which, closing, false)
    }

    /// The same also for tunnels that are adopted later, until it is stopped: a session may have been on its way.
    pub fn close_on(&self, which: Which, closing: &Closing) -> Departures {
        self.tell_all(self.plan(which, closing).standing(), false)
    }

    fn begin(&self, which: Which, closing: &Closing, is_last: bool) -> Departures {
        self.tell_all(self.plan(which, closing), is_last)
    }

    fn plan(&self, which: Which, closing: &Closing) -> Plan {
        let wakes = self.threads.iter().map(|thread| Arc::clone(&thread.wake)).collect();
        let seed = RandomState::new().hash_one(closing.over);
        Plan::new(which, closing.clone(), seed, wakes)
    }

    fn tell_all(&self, plan: Plan, is_last: bool) -> Departures {
        let plan = Arc::new(plan);
        for thread in &self.threads {
            thread.tell(Command::Close(Box::new(Round::new(Arc::clone(&plan), is_last))));
        }
        Departures::new(&plan)
    }
}

/// A closing that is under way: how far it is, and the way to stop it. Dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Departures(Arc<Plan>);

impl Departures {
    pub(super) fn new(plan: &Arc<Plan>) -> Self {
        Self(Arc::clone(plan))
    }

    /// How many tunnels are meant, as far as they are counted.
    pub fn matched(&self) -> usize {
        let late = self.0.late.load(Ordering::Acquire);
        clamped(self.0.matched.load(Ordering::Acquire).saturating_add(late))
    }

    /// How many of them are still there, whether they have been told to close or not.
    pub fn left(&self) -> usize {
        clamped(self.0.left.load(Ordering::Acquire))
    }

    /// How many of them have ended, or have been kept by [`stop`](Self::stop); who went to another process has done
    /// neither.
    pub fn closed(&self) -> usize {
        let given_away = clamped(self.0.given_away.load(Ordering::Acquire));
        self.matched().saturating_sub(self.left()).saturating_sub(given_away)
    }

    /// When the last will have ended.
    pub fn deadline(&self) -> Instant {
        self.0.begun + self.0.closing.over + self.0.closing.grace
    }

    /// Keeps those that have not been told to close yet.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        self.0.wake();
    }

    /// How many tunnels are meant, once all threads have counted: 0 means that there is no such tunnel.
    pub async fn counted(&self) -> usize {
        self.until(Plan::is_counted).await;
        self.matched()
    }

    /// Waits until none is left.
    pub async fn finished(&self) {
        self.until(|plan| plan.is_counted() && plan.left.load(Ordering::Acquire) == 0).await;
    }

    async fn until(&self, reached: impl Fn(&Plan) -> bool) {
        loop {
            let change = self.0.change.notified();
            if reached(&self.0) {
                return;
            }
            change.await;
        }
    }
}

fn clamped(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// What all threads share of a closing.
#[derive(Debug)]
pub(super) struct Plan {
    pub which: Which,
    pub closing: Closing,
    /// When it was asked for.
    pub begun: Instant,
    /// Shuffles the order.
    seed: u64,
    /// Tunnels that come later belong to it too, until it is stopped.
    is_standing: bool,
    /// Threads that have not counted yet.
    uncounted: AtomicUsize,
    /// Tunnels that have been counted; each has a place in the schedule.
    matched: AtomicU64,
    /// Tunnels that came later, to a closing that stands.
    late: AtomicU64,
    /// Of those, and of the ones that a thread is counting, the ones that have not ended.
    left: AtomicU64,
    /// Of those that were counted or came later, the ones that are another process's now.
    given_away: AtomicU64,
    /// Whoever has not been told to close is kept.
    stopped: AtomicBool,
    /// Wakes the threads.
    wakes: Vec<Arc<OwnedFd>>,
    /// All have counted, or none is left.
    change: Notify,
}

impl Plan {
    /// A plan for the threads that these wake.
    pub fn new(which: Which, closing: Closing, seed: u64, wakes: Vec<Arc<OwnedFd>>) -> Self {
        Self {
            which,
            closing,
            begun: Instant::now(),
            seed,
            is_standing: false,
            uncounted: AtomicUsize::new(wakes.len()),
            matched: AtomicU64::new(0),
            late: AtomicU64::new(0),
            left: AtomicU64::new(0),
            given_away: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            wakes,
            change: Notify::new(),
        }
    }

    /// The same for tunnels that come later, too, until it is stopped.
    pub fn standing(self) -> Self {
        Self { is_standing: true, ..self }
    }

    /// A tunnel that comes now belongs to it.
    pub fn welcomes(&self, record: &Record) -> bool {
        self.is_standing && !self.is_stopped() && self.which.matches(record)
    }

    /// It goes on without a tunnel: others may come.
    pub fn stands(&self) -> bool {
        self.is_standing && !self.is_stopped()
    }

    /// When, after the start of the window, one that came later is closed: evenly drawn, like the others.
    pub fn due_late(&self, id: u64) -> Duration {
        let slots = 1 << 16;
        let slot = mix(self.seed ^ id) % slots;
        self.closing.over.mul_f64(slot as f64 / slots as f64)
    }

    /// One tunnel more that has come later and will end.
    pub fn add_late(&self) {
        self.late.fetch_add(1, Ordering::AcqRel);
        self.add();
    }

    /// One tunnel more that will end.
    pub fn add(&self) {
        self.left.fetch_add(1, Ordering::AcqRel);
    }

    /// One that was [added](Self::add) has ended, or is kept.
    pub fn remove(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.change.notify_waiters();
        }
    }

    /// One that was [added](Self::add) is another process's.
    pub fn give_away(&self) {
        self.given_away.fetch_add(1, Ordering::AcqRel);
        self.remove();
    }

    /// A thread has counted its tunnels; each thread says so once. Gives the first of their places in the schedule.
    pub fn report(&self, count: u64) -> u64 {
        let first = self.matched.fetch_add(count, Ordering::AcqRel);
        if self.uncounted.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.change.notify_waiters();
            self.wake();
        }
        first
    }

    /// All threads have reported.
    pub fn is_counted(&self) -> bool {
        self.uncounted.load(Ordering::Acquire) == 0
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The order over all threads; final once all are counted.
    pub fn schedule(&self) -> Schedule {
        Schedule::new(self.matched.load(Ordering::Acquire), self.closing.over, self.seed)
    }

    fn wake(&self) {
        self.wakes.iter().for_each(|wake| super::wake(wake));
    }
}
