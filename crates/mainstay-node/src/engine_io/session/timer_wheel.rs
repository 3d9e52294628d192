//! One clock and one coarse wheel for the heartbeats and deadlines of every connection, so that no connection has a
//! timer of its own.
//!
//! A connection is in the slot of the time at which it wants to be looked at. When its time moves back (a pong came)
//! it stays where it is, is looked at early, says so and is put further on: one look in a heartbeat, and no search.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Slots of the ring. A time further off than the ring is long is looked at when the ring has come round.
const SLOTS: u64 = 256;

/// The ring of slots and the clock that turns it.
pub(crate) struct TimerWheel<S> {
    /// The clock's zero.
    start: Instant,
    /// How much time one slot is.
    step: Duration,
    /// What waits.
    ring: Mutex<Ring<S>>,
}

struct Ring<S> {
    /// A connection that has ended meanwhile is a name without a body here until its slot comes.
    slots: Vec<Vec<Weak<S>>>,
    /// The first step that has not been looked at.
    next: u64,
}

impl<S> TimerWheel<S> {
    /// A wheel fine enough for times of `shortest`.
    pub(crate) fn new(shortest: Duration) -> Self {
        let step = (shortest / 16).clamp(Duration::from_millis(5), Duration::from_millis(250));
        let slots = (0..SLOTS).map(|_| Vec::new()).collect();
        Self { start: Instant::now(), step, ring: Mutex::new(Ring { slots, next: 0 }) }
    }

    /// Milliseconds since the wheel was made.
    pub(crate) fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Has the session checked when the clock says `due` or a step later.
    pub(crate) fn insert(&self, session: &Arc<S>, due: u64) {
        self.put(Arc::downgrade(session), due);
    }

    fn put(&self, session: Weak<S>, due: u64) {
        // Rounded up: a step is looked at when its time has come, so nobody is looked at too early.
        let step = due.div_ceil(self.step.as_millis() as u64);
        let mut ring = self.ring.lock();
        let step = step.clamp(ring.next, ring.next + SLOTS - 1);
        ring.slots[(step % SLOTS) as usize].push(session);
    }

    /// Runs until it is dropped. `check` does what is due for a session, and says when to check it again.
    pub(crate) async fn run(&self, check: impl Fn(&Arc<S>, u64) -> Option<u64>) {
        let mut ticks = interval(self.step);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.advance(&check);
        }
    }

    fn advance(&self, check: &impl Fn(&Arc<S>, u64) -> Option<u64>) {
        let last = self.now() / self.step.as_millis() as u64;
        loop {
            let mut ring = self.ring.lock();
            if ring.next > last {
                return;
            }
            let slot = (ring.next % SLOTS) as usize;
            let due = std::mem::take(&mut ring.slots[slot]);
            ring.next += 1;
            drop(ring);
            for waiting in due {
                let Some(session) = waiting.upgrade() else { continue };
                if let Some(next) = check(&session, self.now()) {
                    self.put(waiting, next);
                }
            }
        }
    }
}
