//! What the adapters of all kinds share: the client, the settings, and the requests of one namespace.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use redis::{Cmd, Value as Reply};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

use super::settings::AdapterSettings;
use super::wire::WireError;
use crate::adapter::{BoxFuture, LocalNamespace, Operation, RequestError, SendError};
use crate::client::{
    CommandError, Listener, PendingReply, RedisClient, Subscription, SubscriptionKind, WriteRefusal,
};
use crate::metrics::AdapterMetrics;
use crate::pending_requests::{PendingRequests, Replies};
use crate::value::Value;

/// What all adapters of one bus share.
pub(super) struct AdapterContext {
    /// The connection.
    pub redis: Arc<RedisClient>,
    /// What was set.
    pub settings: AdapterSettings,
    /// What is counted.
    pub metrics: Arc<dyn AdapterMetrics>,
    /// Why this node must not go on, once that is known.
    pub incompatibility: RwLock<Option<Arc<str>>>,
    /// Tasks that wait for answers.
    pub tasks: TaskTracker,
}

impl AdapterContext {
    /// This node must not go on: an adapter of another kind uses its channels.
    pub(crate) fn mark_incompatible(&self, seen: &str) {
        let prefix = &self.settings.channel_prefix;
        let why = format!(
            "{seen} on the channels of the prefix {prefix:?}; they and this node break each other; right would be \
             another --prefix for one of the two fleets"
        );
        let mut unfit = self.incompatibility.write();
        if unfit.is_none() {
            error!(%prefix, seen, "another kind of adapter uses the same channels, this server stops");
            *unfit = Some(why.into());
        }
    }

    /// Why this node must not go on.
    pub(crate) fn incompatibility(&self) -> Option<Arc<str>> {
        self.incompatibility.read().clone()
    }
}

/// One namespace of this node, as the others see it.
pub(super) struct Peer {
    /// What its bus has.
    pub shared: Arc<AdapterContext>,
    /// Under which name it speaks.
    pub uid: String,
    /// Its namespace.
    pub nsp: Arc<str>,
    /// Its hub.
    pub local: Weak<dyn LocalNamespace>,
    /// What it has asked.
    pub requests: PendingRequests,
}

impl Peer {
    /// A new one with a name of its own.
    pub(crate) fn new(
        shared: &Arc<AdapterContext>,
        uid: String,
        nsp: &Arc<str>,
        local: Weak<dyn LocalNamespace>,
    ) -> Peer {
        Peer { shared: shared.clone(), uid, nsp: nsp.clone(), local, requests: PendingRequests::default() }
    }

    /// Hands a client's message over. It has its place in the order when this returns.
    pub(crate) fn publish(&self, command: Cmd) -> Result<PendingReply, SendError> {
        if self.shared.incompatibility.read().is_some() {
            self.shared.metrics.record_unpublished();
            return Err(SendError::Unreachable);
        }
        self.shared.redis.enqueue_publish(command, &self.shared.metrics).map_err(|fault| send_error(&fault))
    }

    /// Hands over what another node waits for; if it gets lost, that node's time runs out.
    pub(crate) fn respond(&self, command: Cmd) {
        if self.shared.incompatibility.read().is_none() {
            drop(self.shared.redis.enqueue(command));
        }
    }

    /// Asks for the number of nodes, this one included.
    pub(crate) fn request_server_count(
        &self,
        kind: SubscriptionKind,
        channel: &str,
    ) -> Result<PendingReply, SendError> {
        self.shared.redis.enqueue_subscriber_count(kind, channel).map_err(|fault| send_error(&fault))
    }

    /// Does what another node asks.
    pub(crate) fn deliver(&self, operation: Operation) {
        if let Some(local) = self.local.upgrade() {
            local.deliver(operation, None);
        }
    }

    /// Passes on the answers of this node's clients, as they come.
    pub(crate) fn forward_acks(
        &self,
        mut acks: mpsc::Receiver<Value>,
        send: impl Fn(Value) + Send + 'static,
    ) {
        self.shared.tasks.spawn(async move {
            while let Some(ack) = acks.recv().await {
                send(ack);
            }
        });
    }

    /// Something came that this node cannot read.
    pub(crate) fn report_unreadable(&self, channel: &str, fault: &WireError) {
        self.shared.metrics.record_unreadable();
        debug!(channel, %fault, "payload of another server is unreadable");
    }

    /// Listens to a channel from now on; when the task is done, the server has confirmed it.
    pub(crate) fn subscribe(
        &self,
        kind: SubscriptionKind,
        channel: &str,
        listener: Listener,
    ) -> tokio::task::JoinHandle<()> {
        let subscription = Subscription { kind, channel: channel.into() };
        let redis = self.shared.redis.clone();
        redis.subscribe(subscription.clone(), listener);
        self.shared.tasks.spawn(async move { redis.wait_subscribed(subscription).await })
    }

    /// Does not listen any more.
    pub(crate) fn unsubscribe(&self, kind: SubscriptionKind, channel: &str) -> tokio::task::JoinHandle<()> {
        let subscription = Subscription { kind, channel: channel.into() };
        let redis = self.shared.redis.clone();
        redis.unsubscribe(&subscription);
        self.shared.tasks.spawn(async move { redis.wait_unsubscribed(&subscription).await })
    }

    /// Sends a question when the number of nodes is known, and takes their answers. With one node nothing is sent.
    pub(crate) fn request(
        self: &Arc<Self>,
        count: Result<PendingReply, SendError>,
        request: String,
        question: Cmd,
        max_wait: Duration,
    ) -> BoxFuture<Replies> {
        let peer = self.clone();
        Box::pin(async move {
            let expected = await_count(count?).await?.saturating_sub(1) as usize;
            if expected == 0 {
                return Ok((Vec::new(), None));
            }
            let heard = peer.requests.open(&request);
            await_reply(peer.publish(question)?).await?;
            let (answers, whole) = crate::pending_requests::collect_replies(heard, expected, max_wait).await;
            let fault = (!whole).then_some(RequestError::Timeout { received: answers.len(), expected });
            Ok((answers, fault))
        })
    }
}

/// PUBLISH or SPUBLISH.
pub(super) fn publish_command(kind: SubscriptionKind, channel: &str, payload: &Bytes) -> Cmd {
    let mut command = redis::cmd(if kind == SubscriptionKind::Shard { "SPUBLISH" } else { "PUBLISH" });
    command.arg(channel).arg(&payload[..]);
    command
}

/// The reply to what was handed over.
pub(super) async fn await_reply(answer: PendingReply) -> Result<Reply, SendError> {
    match answer.await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(fault)) => Err(send_error(&fault)),
        // The connection is closed for good.
        Err(_) => Err(SendError::Unreachable),
    }
}

/// The number in a reply to a count; this node counts even if Redis has not heard of it yet.
pub(super) async fn await_count(answer: PendingReply) -> Result<u64, SendError> {
    match await_reply(answer).await? {
        Reply::Int(count) => Ok(u64::try_from(count).unwrap_or_default().max(1)),
        _ => Ok(1),
    }
}

/// What the hub is told of a fault.
pub(super) fn send_error(fault: &CommandError) -> SendError {
    match fault {
        CommandError::QueueFull => SendError::QueueFull,
        CommandError::Refused(error) => {
            debug!(%error, "redis refused a command");
            match WriteRefusal::of(error) {
                Some(WriteRefusal::OutOfMemory) => SendError::OutOfMemory,
                Some(WriteRefusal::ReadOnly) => SendError::ReadOnly,
                None => SendError::Unreachable,
            }
        }
        CommandError::NotConnected(_) | CommandError::Unknown(_) => SendError::Unreachable,
    }
}
