//! A paced close: some of the tunnels get a Close frame, evenly spread over a window, and end by its deadline.
//!
//! Drains, removals, rebalances, the end of the process and an operator's kill of one session are all a
//! [`PacedClose`]: which tunnels ([`TunnelSelector`]), over which window, with which Close frame and which grace.
//!
//! Every relay thread counts its selected tunnels; the last to finish counting wakes the others, and then all of them
//! follow one schedule over all selected tunnels together. A tunnel that is adopted later is not touched, unless the
//! close includes later ones: then each of them gets a time in the window too, and is closed at once after it, until
//! the close is stopped.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use super::close_frame::CLOSE_GRACE;
use super::close_reason::CloseReason;
use super::session::SessionInfo;
use super::thread_waker::ThreadWaker;
use crate::affinity::hash::mix;
use crate::rate_limit::CloseSchedule;

/// A predicate over tunnels. It sees what the caller said of a tunnel when it gave it to the relay; the relay itself
/// does not know what that means.
#[derive(Clone)]
pub struct TunnelSelector(Arc<dyn Fn(&SessionInfo) -> bool + Send + Sync>);

impl TunnelSelector {
    /// Selects the tunnels for which `predicate` is true. It is called on relay threads, for hundreds of tunnels in one
    /// tick, so it must be quick.
    pub fn new(predicate: impl Fn(&SessionInfo) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(predicate))
    }

    /// Selects every tunnel.
    pub fn all() -> Self {
        Self::new(|_| true)
    }

    /// Selects the tunnels of these sessions.
    pub fn sessions(ids: HashSet<u64>) -> Self {
        Self::new(move |record| ids.contains(&record.id))
    }

    pub(super) fn matches(&self, record: &SessionInfo) -> bool {
        (self.0)(record)
    }
}

impl fmt::Debug for TunnelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TunnelSelector")
    }
}

/// Which tunnels are closed, when, and with what. Both sides get a Close frame, each between two frames.
#[derive(Debug, Clone)]
pub struct PacedClose {
    /// The tunnels.
    pub selector: TunnelSelector,
    /// Why they end, for their outcomes.
    pub cause: CloseReason,
    /// The code of the Close frame.
    pub code: u16,
    /// The reason in the Close frame.
    pub reason: Arc<str>,
    /// The closes are spread evenly over this time, in random order. Zero: all at once.
    pub window: Duration,
    /// How long each waits for its peers to answer the Close. All have ended after `window` and `grace`.
    pub grace: Duration,
    /// Selected tunnels that are adopted later are closed too, until the close is stopped.
    pub includes_later: bool,
}

impl PacedClose {
    /// A close of the selected tunnels that are there now, all at once, with `CLOSE_GRACE`.
    pub fn new(selector: TunnelSelector, cause: CloseReason, code: u16, reason: &str) -> Self {
        Self {
            selector,
            cause,
            code,
            reason: reason.into(),
            window: Duration::ZERO,
            grace: CLOSE_GRACE,
            includes_later: false,
        }
    }

    /// The same, spread over a window.
    pub fn over(self, window: Duration) -> Self {
        Self { window, ..self }
    }

    /// The same, with another grace.
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// The same, also for tunnels that are adopted later: their sessions may be on the way.
    pub(crate) fn including_later(self) -> Self {
        Self { includes_later: true, ..self }
    }
}

/// A paced close that is under way: how far it is, and the way to stop it. Dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct CloseHandle(Arc<SharedClose>);

impl CloseHandle {
    pub(super) fn new(shared: &Arc<SharedClose>) -> Self {
        Self(Arc::clone(shared))
    }

    /// How many tunnels are selected, as far as they are counted.
    pub(crate) fn selected(&self) -> usize {
        let late = self.0.late.load(Ordering::Acquire);
        clamped(self.0.counted.load(Ordering::Acquire).saturating_add(late))
    }

    /// How many of them are still there, whether they have been sent a Close or not.
    pub fn left(&self) -> usize {
        clamped(self.0.left.load(Ordering::Acquire))
    }

    /// How many of them have ended, or have been kept by [`stop`](Self::stop); a tunnel that went to another process has
    /// done neither.
    pub fn closed(&self) -> usize {
        let migrated = clamped(self.0.migrated.load(Ordering::Acquire));
        self.selected().saturating_sub(self.left()).saturating_sub(migrated)
    }

    /// When the last of them will have ended. A time that the clock cannot show is given as now.
    pub fn deadline(&self) -> SystemTime {
        let close = &self.0.close;
        let (now, left) = (
            SystemTime::now(),
            close.window.saturating_add(close.grace).saturating_sub(self.0.begun.elapsed()),
        );
        now.checked_add(left).unwrap_or(now)
    }

    /// Keeps the tunnels that have not been sent a Close yet.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        self.0.wake();
    }

    /// How many tunnels are selected, once all threads have counted: 0 means that there is no such tunnel.
    pub async fn counted(&self) -> usize {
        self.until(SharedClose::is_counted).await;
        self.selected()
    }

    /// Waits until none of the selected tunnels is left.
    pub async fn finished(&self) {
        self.until(|shared| shared.is_counted() && shared.left.load(Ordering::Acquire) == 0).await;
    }

    async fn until(&self, reached: impl Fn(&SharedClose) -> bool) {
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

/// What all threads share of a paced close.
#[derive(Debug)]
pub(super) struct SharedClose {
    pub close: PacedClose,
    /// When it was asked for.
    pub begun: Instant,
    /// Shuffles the order.
    seed: u64,
    /// Threads that have not counted yet.
    uncounted: AtomicUsize,
    /// Tunnels that have been counted; each has a place in the schedule.
    counted: AtomicU64,
    /// Tunnels that came later, where they are included.
    late: AtomicU64,
    /// Of those, and of the ones that a thread is counting, the ones that have not ended.
    left: AtomicU64,
    /// Of those that were counted or came later, the ones that went to another process.
    migrated: AtomicU64,
    /// Tunnels that have not been sent a Close are kept.
    stopped: AtomicBool,
    /// Wakes the threads.
    wakers: Vec<ThreadWaker>,
    /// All have counted, or none is left.
    change: Notify,
}

impl SharedClose {
    /// A close by the threads that these wakers wake.
    pub(super) fn new(close: PacedClose, seed: u64, wakers: Vec<ThreadWaker>) -> Self {
        Self {
            close,
            begun: Instant::now(),
            seed,
            uncounted: AtomicUsize::new(wakers.len()),
            counted: AtomicU64::new(0),
            late: AtomicU64::new(0),
            left: AtomicU64::new(0),
            migrated: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            wakers,
            change: Notify::new(),
        }
    }

    /// Whether a tunnel that is adopted now is closed, too.
    pub(super) fn includes(&self, record: &SessionInfo) -> bool {
        self.is_open() && self.close.selector.matches(record)
    }

    /// Whether tunnels that are adopted now may be included.
    pub(super) fn is_open(&self) -> bool {
        self.close.includes_later && !self.is_stopped()
    }

    /// When, after the start of the window, a tunnel that came later is closed: evenly drawn, like the others.
    pub(super) fn due_late(&self, id: u64) -> Duration {
        let slots = 1 << 16;
        let slot = mix(self.seed ^ id) % slots;
        self.close.window.mul_f64(slot as f64 / slots as f64)
    }

    /// Counts a tunnel that has come later and will end.
    pub(super) fn add_late(&self) {
        self.late.fetch_add(1, Ordering::AcqRel);
        self.add();
    }

    /// Counts a tunnel that will end.
    pub(super) fn add(&self) {
        self.left.fetch_add(1, Ordering::AcqRel);
    }

    /// A tunnel that was [added](Self::add) has ended, or is kept.
    pub(super) fn remove(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.change.notify_waiters();
        }
    }

    /// A tunnel that was [added](Self::add) has gone to another process.
    pub(super) fn remove_migrated(&self) {
        self.migrated.fetch_add(1, Ordering::AcqRel);
        self.remove();
    }

    /// A thread has counted its tunnels; each thread says so once. Gives the first of their places in the schedule.
    pub(super) fn report(&self, count: u64) -> u64 {
        let first = self.counted.fetch_add(count, Ordering::AcqRel);
        if self.uncounted.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.change.notify_waiters();
            self.wake();
        }
        first
    }

    /// All threads have reported.
    pub(super) fn is_counted(&self) -> bool {
        self.uncounted.load(Ordering::Acquire) == 0
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The schedule over all threads; final once all have counted.
    pub(super) fn schedule(&self) -> CloseSchedule {
        CloseSchedule::new(self.counted.load(Ordering::Acquire), self.close.window, self.seed)
    }

    fn wake(&self) {
        self.wakers.iter().for_each(ThreadWaker::wake);
    }
}
