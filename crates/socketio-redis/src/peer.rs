//! What the adapters of all kinds have: an identity, a hub, a connection, and whether this node is fit to speak at all.

use std::sync::{Arc, Weak};
use std::time::Duration;

use aws_lc_rs::rand;
use bytes::Bytes;
use parking_lot::RwLock;
use redis::{Cmd, Value as Reply};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

use super::requests::{Heap, Requests};
use super::settings::Settings;
use super::wire::WireFault;
use crate::adapter::{Local, NotSent, Operation, Pending, RequestFault};
use crate::connection::{Answer, Listener, Redis, RedisFault, Refusal, Via, Wish};
use crate::metrics::AdapterMetrics;
use crate::value::Value;

/// What all adapters of one bus share.
pub(super) struct Shared {
    /// The connection.
    pub redis: Arc<Redis>,
    /// What was set.
    pub settings: Settings,
    /// What is counted.
    pub metrics: Arc<dyn AdapterMetrics>,
    /// Why this node must not go on, once that is known.
    pub unfit: RwLock<Option<Arc<str>>>,
    /// Tasks that wait for answers.
    pub tasks: TaskTracker,
}

impl Shared {
    /// This node must not go on: an adapter of another kind uses its channels.
    pub fn is_unfit(&self, seen: &str) {
        let prefix = &self.settings.prefix;
        let why = format!(
            "{seen} on the channels of the prefix {prefix:?}; they and this node break each other; right would be \
             another --prefix for one of the two fleets"
        );
        let mut unfit = self.unfit.write();
        if unfit.is_none() {
            error!(%prefix, seen, "another kind of adapter uses the same channels, this node stops");
            *unfit = Some(why.into());
        }
    }

    /// Why this node must not go on.
    pub fn unfit(&self) -> Option<Arc<str>> {
        self.unfit.read().clone()
    }
}

/// One namespace of this node, as the others see it.
pub(super) struct Peer {
    /// What its bus has.
    pub shared: Arc<Shared>,
    /// Under which name it speaks.
    pub uid: String,
    /// Its namespace.
    pub nsp: Arc<str>,
    /// Its hub.
    pub local: Weak<dyn Local>,
    /// What it has asked.
    pub requests: Requests,
}

impl Peer {
    /// A new one with a name of its own.
    pub fn new(shared: &Arc<Shared>, uid: String, nsp: &Arc<str>, local: Weak<dyn Local>) -> Peer {
        Peer { shared: shared.clone(), uid, nsp: nsp.clone(), local, requests: Requests::default() }
    }

    /// Hands a client's message over. It has its place in the order when this returns.
    pub fn post(&self, command: Cmd) -> Result<Answer, NotSent> {
        if self.shared.unfit.read().is_some() {
            self.shared.metrics.record_unpublished();
            return Err(NotSent::Away);
        }
        self.shared.redis.post_counted(command, &self.shared.metrics).map_err(|fault| not_sent(&fault))
    }

    /// Hands over what another node waits for; if it gets lost, that node's time runs out.
    pub fn answer(&self, command: Cmd) {
        if self.shared.unfit.read().is_none() {
            drop(self.shared.redis.post(command));
        }
    }

    /// Asks for the number of nodes, this one included.
    pub fn post_count(&self, via: Via, channel: &str) -> Result<Answer, NotSent> {
        self.shared.redis.post_count(via, channel).map_err(|fault| not_sent(&fault))
    }

    /// Does what another node asks.
    pub fn deliver(&self, operation: Operation) {
        if let Some(local) = self.local.upgrade() {
            local.deliver(operation, None);
        }
    }

    /// Passes on the answers of this node's clients, as they come.
    pub fn pass_on(&self, mut acks: mpsc::Receiver<Value>, send: impl Fn(Value) + Send + 'static) {
        self.shared.tasks.spawn(async move {
            while let Some(ack) = acks.recv().await {
                send(ack);
            }
        });
    }

    /// Something came that this node cannot read.
    pub fn could_not_read(&self, channel: &str, fault: &WireFault) {
        self.shared.metrics.record_unreadable();
        debug!(channel, %fault, "a payload of another node says nothing");
    }

    /// Listens to a channel from now on; when the task is done, the server has confirmed it.
    pub fn listen(&self, via: Via, channel: &str, listener: Listener) -> tokio::task::JoinHandle<()> {
        let wish = Wish { via, channel: channel.into() };
        let redis = self.shared.redis.clone();
        redis.want(wish.clone(), listener);
        self.shared.tasks.spawn(async move { redis.confirm(wish).await })
    }

    /// Does not listen any more.
    pub fn forget(&self, via: Via, channel: &str) -> tokio::task::JoinHandle<()> {
        let wish = Wish { via, channel: channel.into() };
        let redis = self.shared.redis.clone();
        redis.unwant(&wish);
        self.shared.tasks.spawn(async move { redis.release(&wish).await })
    }

    /// Sends a question when the number of nodes is known, and takes their answers. With one node nothing is sent.
    pub fn ask(
        self: &Arc<Self>,
        count: Result<Answer, NotSent>,
        request: String,
        question: Cmd,
        patience: Duration,
    ) -> Pending<Heap> {
        let peer = self.clone();
        Box::pin(async move {
            let expected = counted(count?).await?.saturating_sub(1) as usize;
            if expected == 0 {
                return Ok((Vec::new(), None));
            }
            let heard = peer.requests.open(&request);
            replied(peer.post(question)?).await?;
            let (answers, whole) = super::requests::gather(heard, expected, patience).await;
            let fault = (!whole).then_some(RequestFault::Timeout { heard: answers.len(), expected });
            Ok((answers, fault))
        })
    }
}

/// PUBLISH or SPUBLISH.
pub(super) fn publish(via: Via, channel: &str, payload: &Bytes) -> Cmd {
    let mut command = redis::cmd(if via == Via::Shard { "SPUBLISH" } else { "PUBLISH" });
    command.arg(channel).arg(&payload[..]);
    command
}

/// The reply to what was handed over.
pub(super) async fn replied(answer: Answer) -> Result<Reply, NotSent> {
    match answer.await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(fault)) => Err(not_sent(&fault)),
        // The connection is closed for good.
        Err(_) => Err(NotSent::Away),
    }
}

/// The number in a reply to a count; this node counts even if Redis has not heard of it yet.
pub(super) async fn counted(answer: Answer) -> Result<u64, NotSent> {
    match replied(answer).await? {
        Reply::Int(count) => Ok(u64::try_from(count).unwrap_or_default().max(1)),
        _ => Ok(1),
    }
}

/// What the hub is told of a fault.
pub(super) fn not_sent(fault: &RedisFault) -> NotSent {
    match fault {
        RedisFault::Full => NotSent::Full,
        RedisFault::Refused(error) => {
            debug!(%error, "redis refused a command");
            match Refusal::of(error) {
                Some(Refusal::OutOfMemory) => NotSent::OutOfMemory,
                Some(Refusal::ReadOnly) => NotSent::ReadOnly,
                None => NotSent::Away,
            }
        }
        RedisFault::Away(_) | RedisFault::Unknown(_) => NotSent::Away,
    }
}

/// `N` random bytes.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("aws-lc has a source of randomness on every system that this runs on");
    bytes
}

/// A name of the sharded and streams adapters: 16 hexadecimal digits.
pub(super) fn hexadecimal_name() -> String {
    format!("{:016x}", u64::from_be_bytes(random()))
}

/// A name of the classic adapter: 6 of 64 letters.
pub(super) fn short_name() -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    random::<6>().iter().map(|byte| char::from(LETTERS[usize::from(byte % 64)])).collect()
}
