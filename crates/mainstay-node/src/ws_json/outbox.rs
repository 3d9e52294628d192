//! What waits for one client: text messages in order, bounded in bytes.
//!
//! Whoever sends never waits. A message that does not fit says that the client does not read; it is then cut, because
//! to leave out one message would be a gap that nobody sees.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Beside its bytes, what a waiting message costs.
const OVERHEAD: usize = 64;

/// The messages that wait for one client.
#[derive(Debug)]
pub(super) struct Outbox {
    state: Mutex<OutboxState>,
    /// Something is to be written, or the end has come.
    changed: Notify,
    /// The most bytes that wait.
    most: usize,
}

#[derive(Debug, Default)]
struct OutboxState {
    waiting: VecDeque<Bytes>,
    /// Of those that wait.
    bytes: usize,
    /// Why nothing more is taken.
    end: Option<OutboxEnd>,
}

/// Why the node ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutboxEnd {
    /// The client does not read.
    Slow,
    /// The node ends.
    Restart,
    /// The client may not stay: a Close with 1008 and these words.
    Policy(&'static str),
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OutboxStep {
    /// Write this.
    Message(Bytes),
    /// Close for this reason; what was sent before has been written.
    End(OutboxEnd),
}

impl Outbox {
    /// With room for so many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), most }
    }

    /// Puts a message behind the others. Says whether it was taken; at the first that is not, the connection ends.
    pub(super) fn send(&self, message: &Bytes) -> bool {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return false;
        }
        let bytes = state.bytes + message.len() + OVERHEAD;
        if bytes > self.most {
            state.waiting = VecDeque::new();
            state.end = Some(OutboxEnd::Slow);
        } else {
            state.bytes = bytes;
            state.waiting.push_back(message.clone());
        }
        let taken = state.end.is_none();
        drop(state);
        self.changed.notify_one();
        taken
    }

    /// Ends the connection when what was sent before is written. The first reason stays.
    pub(super) fn end(&self, end: OutboxEnd) {
        self.state.lock().end.get_or_insert(end);
        self.changed.notify_one();
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.waiting.is_empty() && state.end.is_none()
    }

    /// Waits for what is to be done next. Safe to drop and to call again.
    pub(super) async fn next(&self) -> OutboxStep {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            self.changed.notified().await;
        }
    }

    /// What is to be done now, if anything.
    pub(super) fn try_next(&self) -> Option<OutboxStep> {
        let mut state = self.state.lock();
        if let Some(message) = state.waiting.pop_front() {
            state.bytes -= message.len() + OVERHEAD;
            if state.waiting.is_empty() {
                // An idle connection keeps no buffer.
                state.waiting = VecDeque::new();
            }
            return Some(OutboxStep::Message(message));
        }
        state.end.map(OutboxStep::End)
    }

    /// Waits until the client has to be cut, even in the middle of a write.
    pub(super) async fn wait_until_cut(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state.lock().end == Some(OutboxEnd::Slow) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_out_in_order_and_then_the_end() {
        let outbox = Outbox::new(1 << 20);
        for n in 0..3 {
            assert!(outbox.send(&Bytes::from(format!("{n}"))));
        }
        outbox.end(OutboxEnd::Restart);
        outbox.end(OutboxEnd::Slow);
        assert!(!outbox.send(&Bytes::from_static(b"late")));
        for n in 0..3 {
            assert_eq!(outbox.next().await, OutboxStep::Message(format!("{n}").into()));
        }
        assert_eq!(outbox.next().await, OutboxStep::End(OutboxEnd::Restart));
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_who_does_not_read_is_cut() {
        let outbox = Outbox::new(1000);
        let taken = (0..100).take_while(|_| outbox.send(&Bytes::from_static(&[b'x'; 36]))).count();
        assert_eq!(taken, 10);
        outbox.wait_until_cut().await;
        assert_eq!(outbox.try_next(), Some(OutboxStep::End(OutboxEnd::Slow)));
    }

    #[tokio::test]
    async fn what_is_read_makes_room() {
        let outbox = Outbox::new(1000);
        for _ in 0..100 {
            assert!(outbox.send(&Bytes::from_static(&[b'x'; 900])));
            assert!(matches!(outbox.next().await, OutboxStep::Message(_)));
        }
    }
}
