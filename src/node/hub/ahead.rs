//! Sessions are kept before they are needed, so that clients of a node that dies without a word go on elsewhere.
//!
//! Node.js writes a session when its connection ends, which a killed process does not live to do. Where the bus outlives
//! the node, each socket's session is written a moment after it came or its rooms changed, and again before the bus
//! forgets it. A client that says good-bye takes its session back. While Redis is away nothing is written; what it lost
//! is there again after half the time that sessions are kept.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::adapter::Session;
use super::namespace::Namespace;
use super::socket::Socket;

/// How long changes are collected: a client that joins ten rooms at once is written once.
const PACE: Duration = Duration::from_millis(500);

/// See the module.
pub(super) struct Ahead {
    /// How long the bus keeps a session.
    keep: Duration,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    /// Those that have come or changed. Each is in here once, as its own mark says.
    changed: Vec<Weak<Socket>>,
    /// Every socket that was written, and when to write it again, the earliest first.
    written: VecDeque<(Instant, Weak<Socket>)>,
}

impl Ahead {
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, queues: Mutex::default() }
    }

    /// A socket has come, or its rooms have changed.
    pub(super) fn changed(&self, socket: &Arc<Socket>) {
        if socket.pid().is_some() && !std::mem::replace(&mut socket.state.lock().is_changed, true) {
            self.queues.lock().changed.push(Arc::downgrade(socket));
        }
    }

    /// Those that are to be written now.
    pub(super) fn due(&self) -> Vec<Arc<Socket>> {
        let (now, mut queues) = (Instant::now(), self.queues.lock());
        let changed = std::mem::take(&mut queues.changed);
        let mut due: Vec<Arc<Socket>> = changed.iter().filter_map(Weak::upgrade).collect();
        for socket in &due {
            let mut state = socket.state.lock();
            state.is_changed = false;
            if !std::mem::replace(&mut state.is_written, true) {
                queues.written.push_back((now + self.keep / 2, Arc::downgrade(socket)));
            }
        }
        while queues.written.front().is_some_and(|(when, _)| *when <= now) {
            let Some((_, socket)) = queues.written.pop_front() else { break };
            if let Some(socket) = socket.upgrade().filter(|socket| !socket.state.lock().is_gone) {
                queues.written.push_back((now + self.keep / 2, Arc::downgrade(&socket)));
                due.push(socket);
            }
        }
        due
    }
}

impl Namespace {
    /// Writes sessions ahead until the hub closes.
    pub(super) fn keep_ahead(self: &Arc<Self>) {
        if self.ahead.is_none() {
            return;
        }
        let (me, end) = (self.me.clone(), self.shared.end.clone());
        let writing = async move {
            let mut ticks = interval(PACE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(namespace) = me.upgrade() else { return };
                namespace.write_due();
            }
        };
        self.shared.tasks.spawn(async move { end.run_until_cancelled(writing).await });
    }

    fn write_due(&self) {
        for socket in self.ahead.iter().flat_map(Ahead::due) {
            if let Some(session) = self.session(&socket) {
                // What is not written now is when its time comes again.
                self.go_on(self.adapter.save_session(session), drop);
            }
        }
    }

    /// A client has said good-bye: nobody is to take its session up.
    pub(super) fn take_back(&self, socket: &Socket) {
        if let Some(pid) = socket.pid().filter(|_| self.ahead.is_some()) {
            self.go_on(self.adapter.forget_session(pid), drop);
        }
    }

    /// What a socket would leave behind; `None` when it has gone, or has no secret to be claimed by.
    fn session(&self, socket: &Socket) -> Option<Session> {
        if socket.state.lock().is_gone {
            return None;
        }
        Some(self.left_by(socket, socket.pid()?))
    }
}
