//! The task that writes one node's presence to Redis.
//!
//! What Redis does not know yet is one change for each socket, so that it is bounded by the sockets there are and were;
//! many go in one pipeline, in any order, because the newest connection is told by its time. After a failure, and after
//! a lease that ran out (the others have then tidied up), all of the node's connections are written anew: writing one
//! twice changes nothing. The lease comes first, at the start as after a failure: nobody would tidy up after a node that
//! has connections in Redis and no lease.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::ConnectionLike;
use redis::{Pipeline, RedisResult};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::local_presence::{LocalPresence, PresenceChange};
use super::scripts::PresenceKeys;
use super::user_connection::UserConnection;

/// The most scripts of one pipeline.
const BATCH: usize = 256;
/// How often Redis is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long the end may take, and one call.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The task.
pub(super) struct PresenceWriter {
    stop: CancellationToken,
    /// What the task says at its end: whether nothing is left in Redis.
    ended: Mutex<Option<oneshot::Receiver<bool>>>,
    /// Owns the task.
    tasks: TaskTracker,
}

impl PresenceWriter {
    pub(super) fn start<L>(
        node: &str,
        lease: Duration,
        keys: PresenceKeys,
        own: Arc<LocalPresence>,
        link: L,
    ) -> Self
    where
        L: ConnectionLike + Clone + Send + Sync + 'static,
    {
        let (said, ended) = oneshot::channel();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let task = WriterTask { boot: new_boot_id(node), lease, keys, own, link };
        let end = stop.clone();
        tasks.spawn(async move {
            let _ = said.send(task.run(end).await);
        });
        Self { stop, ended: Mutex::new(Some(ended)), tasks }
    }

    /// Ends the task. The second call finds nothing to do.
    pub(super) async fn close(&self) -> bool {
        self.stop.cancel();
        self.tasks.close();
        let ended = self.ended.lock().take();
        match ended {
            Some(ended) => timeout(TIMEOUT * 2, ended).await.is_ok_and(|said| said == Ok(true)),
            None => true,
        }
    }
}

impl Drop for PresenceWriter {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One life of a node: its name and chance, so that a node that starts anew is told from the one that died.
fn new_boot_id(node: &str) -> String {
    let mut chance = [0_u8; 8];
    // Without chance the name alone has to do; two lives are then told apart by the lease.
    let _ = aws_lc_rs::rand::fill(&mut chance);
    format!("{node}:{:016x}", u64::from_ne_bytes(chance))
}

struct WriterTask<L> {
    boot: String,
    lease: Duration,
    keys: PresenceKeys,
    own: Arc<LocalPresence>,
    link: L,
}

/// A connection as it stands in Redis.
#[derive(Serialize)]
struct StoredConnection<'a> {
    #[serde(flatten)]
    connection: &'a UserConnection,
    boot: &'a str,
}

impl<L: ConnectionLike + Clone + Send + Sync> WriterTask<L> {
    async fn run(mut self, stop: CancellationToken) -> bool {
        let mut outcome = self.renew_lease().await;
        let mut beat = interval(self.lease / 3);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.reset();
        let mut retry = interval(RETRY_INTERVAL);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_behind = false;
        loop {
            if let Err(error) = &outcome
                && !is_behind
            {
                warn!(%error, "presence write failed, all of it is rewritten when redis answers again");
            }
            is_behind = outcome.is_err();
            let own = Arc::clone(&self.own);
            outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return self.remove_from_redis().await,
                _ = beat.tick() => self.renew_lease().await,
                () = own.changed.notified(), if !is_behind => self.write().await,
                _ = retry.tick(), if is_behind => self.renew_lease().await,
            };
        }
    }

    /// Renews the lease and tidies up after the nodes whose lease has run out.
    async fn renew_lease(&mut self) -> RedisResult<()> {
        let millis = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        let renew = self.keys.renew(&self.boot, millis);
        let (held, dead): (u8, Vec<String>) = renew.query_async(&mut self.link).await?;
        if held == 0 {
            self.own.rewrite_all();
        }
        self.write().await?;
        for boot in dead.iter().filter(|boot| **boot != self.boot) {
            debug!(%boot, "presence of a dead node removed");
            while self.keys.reap(boot).query_async::<u8>(&mut self.link).await? == 1 {}
        }
        Ok(())
    }

    /// Writes what Redis does not know yet.
    async fn write(&mut self) -> RedisResult<()> {
        let mut changes = self.own.take_changes();
        while !changes.is_empty() {
            let rest = changes.split_off(changes.len().min(BATCH));
            let mut pipeline = Pipeline::with_capacity(changes.len());
            for change in &changes {
                pipeline.add_command(self.command(change)).ignore();
            }
            if let Err(error) = pipeline.query_async::<()>(&mut self.link).await {
                changes.extend(rest);
                self.own.restore_changes(changes);
                return Err(error);
            }
            changes = rest;
        }
        Ok(())
    }

    fn command(&self, change: &PresenceChange) -> redis::Cmd {
        match change {
            PresenceChange::Arrived(user, connection) => {
                let written = StoredConnection { connection, boot: &self.boot };
                let json = serde_json::to_string(&written).unwrap_or_default();
                self.keys.arrive(&self.boot, user.as_str(), &json, &connection.socket_id)
            }
            PresenceChange::Left { user, socket, was_last } => {
                self.keys.leave(&self.boot, user.as_str(), socket, *was_last)
            }
        }
    }

    /// Takes out of Redis whatever this node has there.
    async fn remove_from_redis(mut self) -> bool {
        self.own.remove_all();
        let ended = async {
            self.write().await?;
            self.keys.end(&self.boot).query_async::<()>(&mut self.link).await
        };
        let outcome = timeout(TIMEOUT, ended).await;
        matches!(outcome, Ok(Ok(())))
    }
}
