//! The phases of the process's life, as a latch that every task and thread can look at or wait for.
//!
//! Serving, then draining, then stopped: a phase is never taken back, so whoever asks late still sees it. What a
//! phase means is each part's own business (the listeners close when draining begins, the admin server answers
//! until everything has stopped); this file only says which phase it is.
//!
//! Beside the phases there is relief: another process has taken over for good, so this one accepts nobody and begins
//! nothing new, and finishes what it has begun. It comes at most once, in the phase of serving as a rule. Before it there
//! is a time when the other process is taking over and may still fail: then nothing that governs tunnels may be changed
//! here, because the other would not hear of it ([`Shutdown::govern`]); that is taken back when it fails.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How far the process is on its way to the end; the order is the order of the declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Takes new connections.
    Serving,
    /// Takes none any more, and ends those it has.
    Draining,
    /// Everything has ended; what is left to do is to join.
    Stopped,
}

/// The latch. Clones share one phase; any of them may advance it.
#[derive(Debug, Clone)]
pub struct Shutdown {
    /// Holds the present phase; waiters subscribe to it, and it counts as open without any.
    phase: watch::Sender<Phase>,
    /// Cancelled when another process has taken over.
    relief: CancellationToken,
    /// Another process is taking over. Borrowed while something that governs tunnels is being changed.
    is_handing: watch::Sender<bool>,
}

/// While it is kept, no other process begins to take over.
pub type GovernGuard<'a> = watch::Ref<'a, bool>;

impl Shutdown {
    /// A latch that says [`Phase::Serving`].
    pub fn new() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            relief: CancellationToken::new(),
            is_handing: watch::Sender::new(false),
        }
    }

    /// Draining begins now. Does nothing when it has begun before.
    pub fn begin(&self) {
        self.advance(Phase::Draining);
    }

    /// Everything has stopped.
    pub fn stop(&self) {
        self.advance(Phase::Stopped);
    }

    /// The phase at this moment; for threads that look at it once a turn.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until the phase is `phase` or a later one; returns at once when it already is. Safe to drop and to
    /// call again, as a `select!` arm does.
    pub async fn wait_for(&self, phase: Phase) {
        // An error would mean that the sender is gone, and this very call borrows one.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Another process is taking over from now on; or it has failed to, and this one goes on.
    pub fn set_handing_over(&self, is_handing: bool) {
        self.is_handing.send_replace(is_handing);
    }

    /// Waits until another process begins to take over. Safe to drop and to call again.
    pub async fn wait_for_handover(&self) {
        // As for the phase.
        let _ = self.is_handing.subscribe().wait_for(|is_handing| *is_handing).await;
    }

    /// The right to change what governs tunnels (drains, rebalances), which another process that takes over gets from
    /// this one; `None` while one takes over, and from then on. Not to be kept across a wait.
    pub fn govern(&self) -> Option<GovernGuard<'_>> {
        Some(self.is_handing.borrow()).filter(|is_handing| !**is_handing && !self.is_superseded())
    }

    /// Another process has taken over for good.
    pub fn supersede(&self) {
        self.relief.cancel();
    }

    /// Whether another process has taken over.
    pub fn is_superseded(&self) -> bool {
        self.relief.is_cancelled()
    }

    /// Waits until another process has taken over. Safe to drop and to call again.
    pub async fn wait_until_superseded(&self) {
        self.relief.cancelled().await;
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|now| {
            let forward = to > *now;
            if forward {
                *now = to;
            }
            forward
        });
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn a_phase_is_never_taken_back() {
        let shutdown = Shutdown::new();
        assert_eq!(shutdown.phase(), Phase::Serving);
        shutdown.stop();
        shutdown.begin();
        assert_eq!(shutdown.phase(), Phase::Stopped);
    }

    #[test]
    fn nobody_governs_while_another_process_takes_over_or_has() {
        let shutdown = Shutdown::new();
        assert!(shutdown.govern().is_some());
        shutdown.clone().set_handing_over(true);
        assert!(shutdown.govern().is_none());
        shutdown.set_handing_over(false);
        assert!(shutdown.govern().is_some(), "it has failed to");
        shutdown.supersede();
        assert!(shutdown.govern().is_none());
    }

    #[test]
    fn waiting_for_a_phase_ends_with_it_and_not_before() {
        let shutdown = Shutdown::new();
        let mut waiting = pin!(shutdown.wait_for(Phase::Draining));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Pending);
        shutdown.clone().begin();
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(()));
    }

    #[tokio::test]
    async fn who_asks_late_is_told_at_once_and_a_later_phase_includes_the_earlier() {
        let shutdown = Shutdown::new();
        shutdown.wait_for(Phase::Serving).await;
        shutdown.stop();
        shutdown.wait_for(Phase::Draining).await;
        shutdown.wait_for(Phase::Stopped).await;
        assert_eq!(shutdown.phase(), Phase::Stopped);
    }

    #[tokio::test]
    async fn every_waiter_is_woken() {
        let shutdown = Shutdown::new();
        let mut waiters = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let shutdown = shutdown.clone();
            waiters.spawn(async move { shutdown.wait_for(Phase::Stopped).await });
        }
        tokio::task::yield_now().await;
        shutdown.begin();
        shutdown.stop();
        assert_eq!(waiters.join_all().await.len(), 8);
    }
}
