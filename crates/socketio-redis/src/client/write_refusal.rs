//! Writes that the server refuses although it is there: it has no memory left, or may not write.

use std::time::Duration;

use parking_lot::Mutex;
use redis::RedisError;
use tokio::time::Instant;
use tracing::warn;

/// How long one refusal counts, unless a write is taken before.
const RECENT: Duration = Duration::from_secs(15);

/// Why writes are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteRefusal {
    /// `maxmemory` is reached.
    OutOfMemory,
    /// It is a replica, or it cannot save or replicate what is written.
    ReadOnly,
}

impl WriteRefusal {
    /// What an error of the server says; none if it is about the command.
    pub fn of(error: &RedisError) -> Option<WriteRefusal> {
        match error.code()? {
            "OOM" => Some(WriteRefusal::OutOfMemory),
            "READONLY" | "MISCONF" | "NOREPLICAS" => Some(WriteRefusal::ReadOnly),
            _ => None,
        }
    }
}

/// The last refusal.
#[derive(Default)]
pub(super) struct RecentRefusal {
    last: Mutex<Option<(String, Instant)>>,
}

impl RecentRefusal {
    /// The server refused something.
    pub(super) fn record(&self, error: &RedisError) {
        if WriteRefusal::of(error).is_some() {
            let reason = format!("Redis refuses writes: {error}");
            let before = self.last.lock().replace((reason.clone(), Instant::now()));
            if before.is_none() {
                warn!(reason, "redis refuses writes");
            }
        }
    }

    /// The server has taken a message.
    pub(super) fn clear(&self) {
        let mut last = self.last.lock();
        if last.is_some() {
            *last = None;
        }
    }

    /// What is so now.
    pub(super) fn current(&self) -> Option<String> {
        let mut last = self.last.lock();
        if last.as_ref().is_some_and(|(_, when)| when.elapsed() > RECENT) {
            *last = None;
        }
        last.as_ref().map(|(reason, _)| reason.clone())
    }
}
