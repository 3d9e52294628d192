//! Events that wait for their answers: which clients were asked under which number.
//!
//! One counter for each namespace, from 0, as in Node. An answer under an unknown number, from a client that was not
//! asked, or a second one, is ignored.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::socket::Socket;
use socketio_redis::value::Value;

/// How long answers are waited for when nobody said. Node gives up after 1 ms, which no answer can meet.
pub(super) const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The events of one namespace that wait for answers.
#[derive(Default)]
pub(super) struct PendingAcks {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, PendingAck>>,
}

struct PendingAck {
    /// Serials of the sockets that have not answered.
    unanswered: BTreeSet<u64>,
    answers: mpsc::Sender<Value>,
    /// All arguments of an answer are wanted, as a list; otherwise the first.
    wants_all_arguments: bool,
    /// What gives up when the time is over.
    timer: Option<AbortHandle>,
}

impl Drop for PendingAck {
    fn drop(&mut self) {
        if let Some(timer) = &self.timer {
            timer.abort();
        }
    }
}

impl PendingAcks {
    /// The next number; every event that wants an answer takes one, also one that nobody gets.
    pub(super) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// These sockets are about to be asked.
    pub(super) fn register(
        &self,
        number: u64,
        sockets: &[Arc<Socket>],
        is_whole: bool,
    ) -> mpsc::Receiver<Value> {
        // Room for every answer, so giving one never waits.
        let (answers, heard) = mpsc::channel(sockets.len().max(1));
        let left: BTreeSet<u64> = sockets.iter().map(|socket| socket.serial).collect();
        if !left.is_empty() {
            self.waiting.lock().insert(
                number,
                PendingAck { unanswered: left, answers, wants_all_arguments: is_whole, timer: None },
            );
        }
        heard
    }

    /// What gives up on a number; stopped when all have answered before.
    pub(super) fn set_timer(&self, number: u64, timer: AbortHandle) {
        match self.waiting.lock().get_mut(&number) {
            Some(waiting) => waiting.timer = Some(timer),
            None => timer.abort(),
        }
    }

    /// A client's answer.
    pub(super) fn record_answer(&self, socket: &Socket, number: u64, mut data: Vec<Value>) {
        let mut waiting = self.waiting.lock();
        let Some(asked) = waiting.get_mut(&number) else { return };
        if asked.unanswered.remove(&socket.serial) {
            let answer = match (asked.wants_all_arguments, data.is_empty()) {
                (true, _) => Value::List(data),
                (false, true) => Value::Null,
                (false, false) => data.swap_remove(0),
            };
            // Whoever asked may have stopped listening.
            let is_wanted = asked.answers.try_send(answer).is_ok();
            if asked.unanswered.is_empty() || !is_wanted {
                waiting.remove(&number);
            }
        }
    }

    /// The time is over.
    pub(super) fn expire(&self, number: u64) {
        self.waiting.lock().remove(&number);
    }
}
