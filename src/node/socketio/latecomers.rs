//! Connections that are in no namespace yet, in the order in which their time runs out.
//!
//! All get the same time, so a queue and one task are enough, where a timer each would cost every idle connection.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::session::Session;

/// See the module.
#[derive(Default)]
pub(super) struct Latecomers {
    queue: Mutex<VecDeque<(Instant, Weak<Session>)>>,
    /// The queue is not empty any more.
    added: Notify,
}

impl Latecomers {
    /// A connection has so much time from now on.
    pub(super) fn add(&self, time: Duration, session: &Arc<Session>) {
        self.queue.lock().push_back((Instant::now() + time, Arc::downgrade(session)));
        self.added.notify_one();
    }

    /// Closes whoever is late, for ever.
    pub(super) async fn watch(&self) {
        loop {
            let first = self.queue.lock().front().map(|(deadline, _)| *deadline);
            let Some(deadline) = first else {
                self.added.notified().await;
                continue;
            };
            sleep_until(deadline).await;
            let late = self.queue.lock().pop_front();
            if let Some(session) = late.and_then(|(_, session)| session.upgrade()) {
                session.time_is_over();
            }
        }
    }
}
