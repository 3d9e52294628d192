//! The table of open sessions, by sid: bounded, and split so that connections on different cores do not wait for one
//! another.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::engine_io::session::sid::Sid;

/// How many parts the table has: one for each value of a sid's last character, which counts up.
const SHARDS: usize = 64;

/// The open sessions of one server.
pub(crate) struct SessionTable<S> {
    /// The parts; a sid's last character says which.
    shards: [Mutex<HashMap<Sid, Arc<S>>>; SHARDS],
    /// Sessions in all parts together.
    count: AtomicUsize,
    /// Sessions that may be open at once.
    most: usize,
}

impl<S> SessionTable<S> {
    /// An empty table for up to `most` sessions.
    pub(crate) fn new(most: usize) -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), count: AtomicUsize::new(0), most }
    }

    /// Takes a new session in; `false` when the table is full.
    pub(crate) fn insert(&self, sid: Sid, session: Arc<S>) -> bool {
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        self.shard(sid).lock().insert(sid, session);
        true
    }

    /// Lets a session go; it may already have gone.
    pub(crate) fn remove(&self, sid: Sid) {
        if self.shard(sid).lock().remove(&sid).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The session of that name.
    pub(crate) fn find(&self, sid: Sid) -> Option<Arc<S>> {
        self.shard(sid).lock().get(&sid).cloned()
    }

    /// How many sessions are open.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether one more would be refused.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// Every session that is open now.
    pub(crate) fn snapshot(&self) -> Vec<Arc<S>> {
        self.shards.iter().flat_map(|shard| shard.lock().values().cloned().collect::<Vec<_>>()).collect()
    }

    fn shard(&self, sid: Sid) -> &Mutex<HashMap<Sid, Arc<S>>> {
        let last = sid.as_str().as_bytes().last().copied().unwrap_or_default();
        &self.shards[usize::from(last) % SHARDS]
    }
}
