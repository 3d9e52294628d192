//! The client: what its tasks share, and what the adapters ask of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, RedisError};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::address::RedisAddress;
use super::error::{CommandError, is_refusal};
use super::publish_queue::{PendingReply, Publisher, PublisherQueue};
use super::redis_connection::RedisConnection;
use super::subscription::{Subscription, SubscriptionKind};
use super::subscriptions::{Listener, Subscriptions};
use super::write_refusal::RecentRefusal;
use crate::metrics::AdapterMetrics;

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
pub(super) enum SubscriptionState {
    /// Not all of them were proved since the start.
    Starting,
    /// Everything that is wanted is heard.
    Verified,
    /// Not everything is, with the reason.
    Unverified(String),
}

/// A client. Dropping it does not end it; [`RedisClient::close`] does.
pub struct RedisClient {
    /// Where it goes.
    pub(super) address: RedisAddress,
    /// How long an answer may take.
    pub(super) response_timeout: Duration,
    /// The live connection, while there is one whose subscriptions are confirmed.
    pub(super) connection: ArcSwapOption<RedisConnection>,
    /// What is subscribed to on every connection.
    pub(super) subscriptions: Subscriptions,
    /// Commands whose order counts.
    pub(super) publisher: Publisher,
    /// How the connection for commands is, and how the subscriptions are.
    pub(super) parts: Mutex<(ClientState, SubscriptionState)>,
    /// What follows from both.
    pub(super) state: watch::Sender<ClientState>,
    /// Something has happened that subscriptions may not have survived: prove them again.
    pub(super) recheck_subscriptions: Notify,
    /// A command failed in a way that may be the connection's fault: check now.
    pub(super) check_connection: Notify,
    /// The server is the wrong one (a replica now): connect anew, whatever the check says.
    pub(super) is_replica: AtomicBool,
    /// Writes that the server refused a moment ago.
    pub(super) refusal: RecentRefusal,
    /// Connections made since the start, for metrics.
    pub(super) connections: AtomicU64,
    /// Pushes that found no room, for metrics.
    pub(super) dropped: AtomicU64,
    /// Cancelled once, by [`RedisClient::close`].
    pub(super) closed: CancellationToken,
    /// The supervisor.
    pub(super) tasks: TaskTracker,
}

impl RedisClient {
    /// A client that is not connected, and the commands that it is given.
    pub(super) fn new(address: RedisAddress, max_wait: Duration) -> (Arc<RedisClient>, PublisherQueue) {
        let (publisher, queue) = Publisher::new();
        let redis = Arc::new(RedisClient {
            address,
            publisher,
            response_timeout: max_wait,
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
        (redis, queue)
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
        let connection = self.live_connection()?;
        connection.query(command).await.map_err(|error| self.classify_error(error))
    }

    /// Sends several commands in one write; the keys of them must be of one slot.
    pub async fn query_pipeline<T: FromRedisValue>(
        &self,
        commands: &redis::Pipeline,
    ) -> Result<T, CommandError> {
        let connection = self.live_connection()?;
        connection.query_pipeline(commands).await.map_err(|error| self.classify_error(error))
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
        kind: SubscriptionKind,
        channel: &str,
    ) -> Result<PendingReply, CommandError> {
        self.publisher.enqueue_subscriber_count(kind, channel)
    }

    /// How many connections, of all nodes, subscribe to a channel.
    pub async fn subscriber_count(&self, kind: SubscriptionKind, channel: &str) -> Result<u64, CommandError> {
        let connection = self.live_connection()?;
        connection.subscriber_count(kind, channel).await.map_err(|error| self.classify_error(error))
    }

    /// Subscribes from now on, on every connection that is made.
    pub fn subscribe(&self, subscription: Subscription, listener: Listener) {
        self.subscriptions.insert(subscription, listener);
    }

    /// Returns when the server has confirmed a subscription, or when there is no connection.
    pub async fn wait_subscribed(&self, subscription: Subscription) {
        if let Some(confirmed) = self.subscriptions.wait_for_confirmation(&subscription) {
            self.wait_while_connected(confirmed).await;
        }
    }

    /// The same for every subscription.
    pub async fn wait_all_subscribed(&self) {
        for subscription in self.subscriptions.all() {
            self.wait_subscribed(subscription).await;
        }
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, subscription: &Subscription) {
        self.subscriptions.remove(subscription);
    }

    /// Returns when no connection has the subscription any more, when it was added again, or when there is no connection.
    pub async fn wait_unsubscribed(&self, subscription: &Subscription) {
        if let Some(released) = self.subscriptions.wait_for_release(subscription) {
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

    /// A connection of its own for commands that wait on the server; their answers may take `max_wait`.
    pub async fn open_connection(&self, max_wait: Duration) -> Result<RedisConnection, RedisError> {
        RedisConnection::connect(&self.address, max_wait, None).await
    }

    pub(super) fn live_connection(&self) -> Result<Arc<RedisConnection>, CommandError> {
        self.connection.load_full().ok_or_else(|| match &self.parts.lock().0 {
            ClientState::Down(reason) => CommandError::NotConnected(reason.clone()),
            ClientState::Connecting | ClientState::Up => {
                CommandError::NotConnected("not yet connected".to_owned())
            }
        })
    }

    /// Sorts an error, and has the connection checked if it may be the connection's.
    pub(super) fn classify_error(&self, error: RedisError) -> CommandError {
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

    pub(super) fn set_down(&self, reason: String) {
        self.connection.store(None);
        self.set_command_state(ClientState::Down(reason));
    }

    /// How the connection for commands is now.
    pub(super) fn set_command_state(&self, state: ClientState) {
        let mut parts = self.parts.lock();
        parts.0 = state;
        self.update_state(&parts);
    }

    /// How the subscriptions are now.
    pub(super) fn set_subscription_state(&self, subscriptions: SubscriptionState) {
        let mut parts = self.parts.lock();
        parts.1 = subscriptions;
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
                warn!(redis = %self.address.name(), reason, "redis unreachable, reconnecting");
            }
            ClientState::Up if has_changed => info!(redis = %self.address.name(), "redis connected"),
            _ => {}
        }
    }
}
