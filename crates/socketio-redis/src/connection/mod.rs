//! The node's connections to Redis, which come back whatever happens to them: one for commands, and those that the
//! subscriptions need (`subscriber`).
//!
//! 1. connect (one server, the master that sentinels name, or a cluster), within a few seconds;
//! 2. serve; every few seconds, and whenever a command failed in a way that may be the connection's fault, check;
//! 3. when a check fails or the connection ends: say so, wait (longer each time, with jitter, for ever), and begin anew.
//!
//! Rules: it is up while commands are answered and every subscription that is wanted is proved. A command never waits for a connection that is not there, it fails with [`RedisFault::Away`], so that local
//! clients go on; nothing is tried a second time, because a broadcast that came twice cannot be told from two.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, RedisError};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

mod inbox;
mod line;
mod link;
mod outgoing;
mod refusal;
mod place;
mod slots;
mod subscriber;
mod supervisor;
mod wanted;

use crate::metrics::AdapterMetrics;
use outgoing::Outgoing;
use wanted::Wanted;

pub use line::{Line, Via};
pub use link::Link;
pub use outgoing::Answer;
pub use place::{Place, PlaceFault};
pub use refusal::Refusal;
use refusal::Refusals;
pub(crate) use supervisor::draw;
pub use wanted::{Heard, Listener, Wish};

/// How the connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisState {
    /// Not yet connected since the start.
    Connecting,
    /// Connected, and every subscription is proved.
    Up,
    /// Not connected, with the reason.
    Away(String),
}

/// How the subscriptions are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Listening {
    /// Not all of them were proved since the start.
    NotYet,
    /// Everything that is wanted is heard.
    Proved,
    /// Not everything is, with the reason.
    Unproved(String),
}

/// Why a command had no answer.
#[derive(Debug, Error)]
pub enum RedisFault {
    /// There is no connection; the command was not sent.
    #[error("Redis is away: {0}")]
    Away(String),
    /// The connection was lost, or the answer did not come in time: the command may have been carried out.
    #[error("Redis did not answer, the command may have been carried out: {0}")]
    Unknown(RedisError),
    /// Too many commands wait already; it was not sent.
    #[error("too many commands for Redis are waiting")]
    Full,
    /// The server refused the command.
    #[error("Redis refused the command: {0}")]
    Refused(RedisError),
}

/// The connection. Dropping it does not end it; [`Redis::close`] does.
pub struct Redis {
    /// Where it goes.
    place: Place,
    /// How long an answer may take.
    patience: Duration,
    /// The live connection, while there is one whose subscriptions are confirmed.
    line: ArcSwapOption<Line>,
    /// What is subscribed to on every connection.
    wanted: Wanted,
    /// Commands whose order counts.
    outgoing: Outgoing,
    /// How the connection for commands is, and how the subscriptions are.
    parts: Mutex<(RedisState, Listening)>,
    /// What follows from both.
    state: watch::Sender<RedisState>,
    /// Something has happened that subscriptions may not have survived: prove them again.
    doubted: Notify,
    /// A command failed in a way that may be the connection's fault: check now.
    suspect: Notify,
    /// The server is the wrong one (a replica now): connect anew, whatever the check says.
    wrong: AtomicBool,
    /// Writes that the server refused a moment ago.
    refusals: Refusals,
    /// Connections made since the start, for metrics.
    connections: AtomicU64,
    /// Pushes that found no room, for metrics.
    dropped: AtomicU64,
    /// Cancelled once, by [`Redis::close`].
    closed: CancellationToken,
    /// The supervisor.
    tasks: TaskTracker,
}

impl Redis {
    /// Begins to connect. An answer to a command may take `patience`.
    pub fn start(place: Place, patience: Duration) -> Arc<Redis> {
        let (outgoing, queue) = Outgoing::new();
        let redis = Arc::new(Redis {
            place,
            outgoing,
            patience,
            line: ArcSwapOption::empty(),
            wanted: Wanted::default(),
            parts: Mutex::new((RedisState::Connecting, Listening::NotYet)),
            state: watch::Sender::new(RedisState::Connecting),
            doubted: Notify::new(),
            suspect: Notify::new(),
            wrong: AtomicBool::new(false),
            refusals: Refusals::default(),
            connections: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        redis.tasks.spawn(supervisor::supervise(redis.clone()));
        let closed = redis.closed.clone();
        let sending = outgoing::send_all(redis.clone(), queue);
        redis.tasks.spawn(async move { closed.run_until_cancelled(sending).await });
        let (closed, subscriber) = (redis.closed.clone(), subscriber::keep(redis.clone()));
        redis.tasks.spawn(async move { closed.run_until_cancelled(subscriber).await });
        redis.tasks.close();
        redis
    }

    /// Where it goes.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// How it is now.
    pub fn state(&self) -> RedisState {
        self.state.borrow().clone()
    }

    /// Why the server refuses what is written, if it did so a moment ago and has taken nothing since.
    pub fn refusing(&self) -> Option<String> {
        self.refusals.now()
    }

    /// To await a change of the state.
    pub fn watch(&self) -> watch::Receiver<RedisState> {
        self.state.subscribe()
    }

    /// Connections made since the start.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Messages that were heard and found no room, because the node could not keep up.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Sends one command and waits for its answer.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisFault> {
        let line = self.line()?;
        line.ask(command).await.map_err(|error| self.fault(error))
    }

    /// Sends several commands in one write; the keys of them must be of one slot.
    pub async fn ask_all<T: FromRedisValue>(&self, commands: &redis::Pipeline) -> Result<T, RedisFault> {
        let line = self.line()?;
        line.ask_all(commands).await.map_err(|error| self.fault(error))
    }

    /// Hands a command over: it is sent after all that were handed over before, whether its answer is awaited or not.
    pub fn post(&self, command: Cmd) -> Result<Answer, RedisFault> {
        self.outgoing.post(command, None)
    }

    /// The same for a client's message, which is counted.
    pub fn post_counted(
        &self,
        command: Cmd,
        metrics: &Arc<dyn AdapterMetrics>,
    ) -> Result<Answer, RedisFault> {
        self.outgoing.post(command, Some(metrics.clone()))
    }

    /// The same for the question how many connections, of all nodes, subscribe to a channel.
    pub fn post_count(&self, via: Via, channel: &str) -> Result<Answer, RedisFault> {
        self.outgoing.post_count(via, channel)
    }

    /// How many connections, of all nodes, subscribe to a channel.
    pub async fn subscribers(&self, via: Via, channel: &str) -> Result<u64, RedisFault> {
        let line = self.line()?;
        line.subscribers(via, channel).await.map_err(|error| self.fault(error))
    }

    /// Wants to hear a channel from now on, whatever becomes of the connections.
    pub fn want(&self, wish: Wish, listener: Listener) {
        self.wanted.add(wish, listener);
    }

    /// Returns when the server has confirmed a subscription that is wanted, or when Redis is away.
    pub async fn confirm(&self, wish: Wish) {
        if let Some(confirmed) = self.wanted.confirmation(&wish) {
            self.unless_away(confirmed).await;
        }
    }

    /// The same for everything that is wanted now.
    pub async fn confirm_all(&self) {
        for wish in self.wanted.all() {
            self.confirm(wish).await;
        }
    }

    /// Does not want to hear it any more.
    pub fn unwant(&self, wish: &Wish) {
        self.wanted.remove(wish);
    }

    /// Returns when no connection has the subscription any more, when it is wanted again, or when Redis is away.
    pub async fn release(&self, wish: &Wish) {
        if let Some(released) = self.wanted.release(wish) {
            self.unless_away(released).await;
        }
    }

    async fn unless_away<T>(&self, waiting: impl Future<Output = T>) {
        let mut state = self.state.subscribe();
        tokio::select! {
            _ = waiting => {}
            _ = state.wait_for(|state| matches!(state, RedisState::Away(_))) => {}
            () = self.closed.cancelled() => {}
        }
    }

    /// Ends the connection and waits for the supervisor.
    pub async fn close(&self) {
        self.closed.cancel();
        self.tasks.wait().await;
    }

    /// A connection of its own for commands that wait on the server; their answers may take `patience`.
    pub async fn line_of_its_own(&self, patience: Duration) -> Result<Line, RedisError> {
        Line::connect(&self.place, patience, None).await
    }

    fn line(&self) -> Result<Arc<Line>, RedisFault> {
        self.line.load_full().ok_or_else(|| match &self.parts.lock().0 {
            RedisState::Away(reason) => RedisFault::Away(reason.clone()),
            RedisState::Connecting | RedisState::Up => RedisFault::Away("not yet connected".to_owned()),
        })
    }

    /// Sorts an error, and has the connection checked if it may be the connection's.
    fn fault(&self, error: RedisError) -> RedisFault {
        if is_refusal(&error) {
            self.refusals.refused(&error);
            match error.code() {
                // After a failover the old master answers so.
                Some("READONLY") => {
                    self.wrong.store(true, Relaxed);
                    self.suspect.notify_one();
                }
                Some("LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOAUTH") => self.suspect.notify_one(),
                _ => {}
            }
            return RedisFault::Refused(error);
        }
        self.suspect.notify_one();
        RedisFault::Unknown(error)
    }

    fn is_away(&self, reason: String) {
        self.line.store(None);
        self.commands_are(RedisState::Away(reason));
    }

    /// How the connection for commands is now.
    fn commands_are(&self, state: RedisState) {
        let mut parts = self.parts.lock();
        parts.0 = state;
        self.settle(&parts);
    }

    /// How the subscriptions are now.
    fn listens(&self, listening: Listening) {
        let mut parts = self.parts.lock();
        parts.1 = listening;
        self.settle(&parts);
    }

    fn settle(&self, parts: &(RedisState, Listening)) {
        let now = match parts {
            (RedisState::Up, Listening::Proved) => RedisState::Up,
            (RedisState::Up, Listening::NotYet) => RedisState::Connecting,
            (RedisState::Up, Listening::Unproved(reason)) => RedisState::Away(reason.clone()),
            (state, _) => state.clone(),
        };
        // Said once for a reason, not at every attempt.
        let has_changed = self.state.send_if_modified(|state| {
            let has_changed = *state != now;
            state.clone_from(&now);
            has_changed
        });
        match now {
            RedisState::Away(reason) if has_changed => {
                warn!(redis = %self.place.name(), reason, "redis is away");
            }
            RedisState::Up if has_changed => info!(redis = %self.place.name(), "redis is up"),
            _ => {}
        }
    }
}

/// Whether the server answered, with a no.
fn is_refusal(error: &RedisError) -> bool {
    !error.is_io_error() && !error.is_timeout() && !error.is_connection_dropped() && error.code().is_some()
}
