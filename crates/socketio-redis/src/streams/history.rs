//! Reading what is older than the tails: a few questions at a time, on a connection of their own. A long answer is in
//! nobody's way there, and however many clients come back at once, they wait in line.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tracing::debug;

use crate::client::{RedisClient, RedisConnection};

/// Questions that are answered at the same time.
const AT_ONCE: usize = 4;

/// Clients that ask for their sessions at the same time. More would wait for each other's answers in Redis, and their
/// time would run out there.
const CLAIMS_AT_ONCE: usize = 16;

/// Reads older entries of all streams of an adapter.
pub(super) struct HistoryReader {
    redis: Arc<RedisClient>,
    max_wait: Duration,
    line: Mutex<Option<RedisConnection>>,
    places: Semaphore,
    /// Of clients that look for their sessions, or take them.
    claims: Semaphore,
}

impl HistoryReader {
    /// It connects when it is asked first.
    pub(super) fn new(redis: &Arc<RedisClient>, max_wait: Duration) -> Self {
        Self {
            redis: redis.clone(),
            max_wait,
            line: Mutex::default(),
            places: Semaphore::new(AT_ONCE),
            claims: Semaphore::new(CLAIMS_AT_ONCE),
        }
    }

    /// Waits until one more client may ask for its session.
    pub(super) async fn claim_permit(&self) -> Option<SemaphorePermit<'_>> {
        self.claims.acquire().await.ok()
    }

    /// Asks in turn; once more on a new connection if there is no answer. None if there is none then.
    pub(super) async fn query(&self, command: &Cmd) -> Option<Value> {
        let _place = self.places.acquire().await.ok()?;
        for is_second in [false, true] {
            let line = match self.line(is_second).await {
                Ok(line) => line,
                Err(error) => {
                    debug!(%error, "cannot connect to read older stream entries");
                    continue;
                }
            };
            match line.query(command).await {
                Ok(reply) => return Some(reply),
                Err(error) => debug!(%error, "cannot read older stream entries"),
            }
        }
        None
    }

    async fn line(&self, is_new: bool) -> Result<RedisConnection, redis::RedisError> {
        let mut line = self.line.lock().await;
        match &*line {
            Some(there) if !is_new => Ok(there.clone()),
            _ => Ok(line.insert(self.redis.open_connection(self.max_wait).await?).clone()),
        }
    }
}
