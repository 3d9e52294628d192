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
use outgoing::Publisher;
use wanted::Subscriptions;

pub use line::{RedisConnection, SubscriptionKind};
pub use link::ClientHandle;
pub use outgoing::PendingReply;
pub use place::{AddressError, RedisAddress};
use refusal::RecentRefusal;
pub use refusal::WriteRefusal;
pub(crate) use supervisor::random_u64;
pub use wanted::{Listener, ReceivedMessage, Subscription};

/// How the connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientState {
    /// Not yet connected since the start.
    Connecting,
    /// Connected, and every subscription is proved.
    Up,
    /// Not connected, with the reason.
    Down(String),
}

/// How the subscriptions are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SubscriptionState {
    /// Not all of them were proved since the start.
    Starting,
    /// Everything that is wanted is heard.
    Verified,
    /// Not everything is, with the reason.
    Unverified(String),
}

/// Why a command had no answer.
#[derive(Debug, Error)]
pub enum CommandError {
    /// There is no connection; the command was not sent.
    #[error("Redis is away: {0}")]
    NotConnected(String),
    /// The connection was lost, or the answer did not come in time: the command may have been carried out.
    #[error("Redis did not answer, the command may have been carried out: {0}")]
    Unknown(RedisError),
    /// Too many commands wait already; it was not sent.
    #[error("too many commands for Redis are waiting")]
    QueueFull,
    /// The server refused the command.
    #[error("Redis refused the command: {0}")]
    Refused(RedisError),
}

/// The connection. Dropping it does not end it; [`Redis::close`] does.
pub struct RedisClient {
    /// Where it goes.
    address: RedisAddress,
    /// How long an answer may take.
    response_timeout: Duration,
    /// The live connection, while there is one whose subscriptions are confirmed.
    connection: ArcSwapOption<RedisConnection>,
    /// What is subscribed to on every connection.
    subscriptions: Subscriptions,
    /// Commands whose order counts.
    publisher: Publisher,
    /// How the connection for commands is, and how the subscriptions are.
    parts: Mutex<(ClientState, SubscriptionState)>,
    /// What follows from both.
    state: watch::Sender<ClientState>,
    /// Something has happened that subscriptions may not have survived: prove them again.
    recheck_subscriptions: Notify,
    /// A command failed in a way that may be the connection's fault: check now.
    check_connection: Notify,
    /// The server is the wrong one (a replica now): connect anew, whatever the check says.
    is_replica: AtomicBool,
    /// Writes that the server refused a moment ago.
    refusal: RecentRefusal,
    /// Connections made since the start, for metrics.
    connections: AtomicU64,
    /// Pushes that found no room, for metrics.
    dropped: AtomicU64,
    /// Cancelled once, by [`Redis::close`].
    closed: CancellationToken,
    /// The supervisor.
    tasks: TaskTracker,
}

impl RedisClient {
    /// Begins to connect. An answer to a command may take `patience`.
    pub fn start(place: RedisAddress, patience: Duration) -> Arc<RedisClient> {
        let (outgoing, queue) = Publisher::new();
        let redis = Arc::new(RedisClient {
            address: place,
            publisher: outgoing,
            response_timeout: patience,
            connection: ArcSwapOption::empty(),
            subscriptions: Subscriptions::default(),
            parts: Mutex::new((ClientState::Connecting, SubscriptionState::Starting)),
            state: watch::Sender::new(ClientState::Connecting),
            recheck_subscriptions: Notify::new(),
            check_connection: Notify::new(),
            is_replica: AtomicBool::new(false),
            refusal: RecentRefusal::default(),
            connections: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        redis.tasks.spawn(supervisor::run(redis.clone()));
        let closed = redis.closed.clone();
        let sending = outgoing::run(redis.clone(), queue);
        redis.tasks.spawn(async move { closed.run_until_cancelled(sending).await });
        let (closed, subscriber) = (redis.closed.clone(), subscriber::run(redis.clone()));
        redis.tasks.spawn(async move { closed.run_until_cancelled(subscriber).await });
        redis.tasks.close();
        redis
    }

    /// Where it goes.
    pub fn address(&self) -> &RedisAddress {
        &self.address
    }

    /// How it is now.
    pub fn state(&self) -> ClientState {
        self.state.borrow().clone()
    }

    /// Why the server refuses what is written, if it did so a moment ago and has taken nothing since.
    pub fn write_refusal(&self) -> Option<String> {
        self.refusal.current()
    }

    /// To await a change of the state.
    pub fn watch(&self) -> watch::Receiver<ClientState> {
        self.state.subscribe()
    }

    /// Connections made since the start.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Messages that were heard and found no room, because the node could not keep up.
    pub fn dropped_messages(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Sends one command and waits for its answer.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, CommandError> {
        let line = self.live_connection()?;
        line.query(command).await.map_err(|error| self.classify_error(error))
    }

    /// Sends several commands in one write; the keys of them must be of one slot.
    pub async fn query_pipeline<T: FromRedisValue>(
        &self,
        commands: &redis::Pipeline,
    ) -> Result<T, CommandError> {
        let line = self.live_connection()?;
        line.query_pipeline(commands).await.map_err(|error| self.classify_error(error))
    }

    /// Hands a command over: it is sent after all that were handed over before, whether its answer is awaited or not.
    pub fn enqueue(&self, command: Cmd) -> Result<PendingReply, CommandError> {
        self.publisher.enqueue(command, None)
    }

    /// The same for a client's message, which is counted.
    pub fn enqueue_publish(
        &self,
        command: Cmd,
        metrics: &Arc<dyn AdapterMetrics>,
    ) -> Result<PendingReply, CommandError> {
        self.publisher.enqueue(command, Some(metrics.clone()))
    }

    /// The same for the question how many connections, of all nodes, subscribe to a channel.
    pub fn enqueue_subscriber_count(
        &self,
        via: SubscriptionKind,
        channel: &str,
    ) -> Result<PendingReply, CommandError> {
        self.publisher.enqueue_subscriber_count(via, channel)
    }

    /// How many connections, of all nodes, subscribe to a channel.
    pub async fn subscriber_count(&self, via: SubscriptionKind, channel: &str) -> Result<u64, CommandError> {
        let line = self.live_connection()?;
        line.subscriber_count(via, channel).await.map_err(|error| self.classify_error(error))
    }

    /// Wants to hear a channel from now on, whatever becomes of the connections.
    pub fn subscribe(&self, wish: Subscription, listener: Listener) {
        self.subscriptions.insert(wish, listener);
    }

    /// Returns when the server has confirmed a subscription that is wanted, or when Redis is away.
    pub async fn wait_subscribed(&self, wish: Subscription) {
        if let Some(confirmed) = self.subscriptions.wait_for_confirmation(&wish) {
            self.wait_while_connected(confirmed).await;
        }
    }

    /// The same for everything that is wanted now.
    pub async fn wait_all_subscribed(&self) {
        for wish in self.subscriptions.all() {
            self.wait_subscribed(wish).await;
        }
    }

    /// Does not want to hear it any more.
    pub fn unsubscribe(&self, wish: &Subscription) {
        self.subscriptions.remove(wish);
    }

    /// Returns when no connection has the subscription any more, when it is wanted again, or when Redis is away.
    pub async fn wait_unsubscribed(&self, wish: &Subscription) {
        if let Some(released) = self.subscriptions.wait_for_release(wish) {
            self.wait_while_connected(released).await;
        }
    }

    async fn wait_while_connected<T>(&self, waiting: impl Future<Output = T>) {
        let mut state = self.state.subscribe();
        tokio::select! {
            _ = waiting => {}
            _ = state.wait_for(|state| matches!(state, ClientState::Down(_))) => {}
            () = self.closed.cancelled() => {}
        }
    }

    /// Ends the connection and waits for the supervisor.
    pub async fn close(&self) {
        self.closed.cancel();
        self.tasks.wait().await;
    }

    /// A connection of its own for commands that wait on the server; their answers may take `patience`.
    pub async fn open_connection(&self, patience: Duration) -> Result<RedisConnection, RedisError> {
        RedisConnection::connect(&self.address, patience, None).await
    }

    fn live_connection(&self) -> Result<Arc<RedisConnection>, CommandError> {
        self.connection.load_full().ok_or_else(|| match &self.parts.lock().0 {
            ClientState::Down(reason) => CommandError::NotConnected(reason.clone()),
            ClientState::Connecting | ClientState::Up => {
                CommandError::NotConnected("not yet connected".to_owned())
            }
        })
    }

    /// Sorts an error, and has the connection checked if it may be the connection's.
    fn classify_error(&self, error: RedisError) -> CommandError {
        if is_refusal(&error) {
            self.refusal.record(&error);
            match error.code() {
                // After a failover the old master answers so.
                Some("READONLY") => {
                    self.is_replica.store(true, Relaxed);
                    self.check_connection.notify_one();
                }
                Some("LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOAUTH") => {
                    self.check_connection.notify_one()
                }
                _ => {}
            }
            return CommandError::Refused(error);
        }
        self.check_connection.notify_one();
        CommandError::Unknown(error)
    }

    fn set_down(&self, reason: String) {
        self.connection.store(None);
        self.set_command_state(ClientState::Down(reason));
    }

    /// How the connection for commands is now.
    fn set_command_state(&self, state: ClientState) {
        let mut parts = self.parts.lock();
        parts.0 = state;
        self.update_state(&parts);
    }

    /// How the subscriptions are now.
    fn set_subscription_state(&self, listening: SubscriptionState) {
        let mut parts = self.parts.lock();
        parts.1 = listening;
        self.update_state(&parts);
    }

    fn update_state(&self, parts: &(ClientState, SubscriptionState)) {
        let now = match parts {
            (ClientState::Up, SubscriptionState::Verified) => ClientState::Up,
            (ClientState::Up, SubscriptionState::Starting) => ClientState::Connecting,
            (ClientState::Up, SubscriptionState::Unverified(reason)) => ClientState::Down(reason.clone()),
            (state, _) => state.clone(),
        };
        // Said once for a reason, not at every attempt.
        let has_changed = self.state.send_if_modified(|state| {
            let has_changed = *state != now;
            state.clone_from(&now);
            has_changed
        });
        match now {
            ClientState::Down(reason) if has_changed => {
                warn!(redis = %self.address.name(), reason, "redis is away");
            }
            ClientState::Up if has_changed => info!(redis = %self.address.name(), "redis is up"),
            _ => {}
        }
    }
}

/// Whether the server answered, with a no.
fn is_refusal(error: &RedisError) -> bool {
    !error.is_io_error() && !error.is_timeout() && !error.is_connection_dropped() && error.code().is_some()
}
