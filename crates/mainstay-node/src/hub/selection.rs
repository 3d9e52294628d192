//! Who is meant, and what is done to them on all nodes: the interface for Rust code.
//!
//! ```no_run
//! # async fn example(hub: std::sync::Arc<mainstay_node::hub::Hub>) {
//! use std::time::Duration;
//! let main = hub.main();
//! main.to("room").except("muted").emit("news", [1u64.into(), "two".into()]).await.ok();
//! let answers = main.to("room").timeout(Duration::from_secs(1)).emit_with_ack("ask", []).await;
//! let sockets = main.all().fetch_sockets().await;
//! main.to("room").join(&["other"]).await.ok();
//! main.to("other").disconnect(true).await.ok();
//! # }
//! ```

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::adapter::{
    Acks, Answers, Flags, Local, NotSent, Offset, Operation, RemoteAck, RequestFault, Room, SocketFacts,
    Target,
};
use super::local::ACK_TIME;
use super::namespace::Namespace;
use crate::value::Value;

/// Sockets of all nodes, by rooms. See the module.
#[derive(Clone)]
pub struct Selection<'a> {
    namespace: &'a Namespace,
    target: Target,
    flags: Flags,
    /// Only this node's.
    is_local: bool,
}

/// Whether what was done here is on its way to the other nodes. May be dropped: nothing is taken back by that.
pub struct PublishFuture(PublishState);

enum PublishState {
    Known(Result<Option<Offset>, NotSent>),
    Waiting(oneshot::Receiver<Result<Option<Offset>, NotSent>>),
}

/// Why not every client that was asked has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AckError {
    /// The time is over.
    #[error("operation has timed out")]
    Timeout,
    /// The other nodes were not asked.
    #[error(transparent)]
    NotSent(#[from] NotSent),
}

/// The answers of clients; with a fault come those that were heard.
pub type AckResult = Result<Vec<Value>, (AckError, Vec<Value>)>;

impl<'a> Selection<'a> {
    pub(super) fn new(namespace: &'a Namespace) -> Self {
        Self { namespace, target: Target::default(), flags: Flags::default(), is_local: false }
    }

    /// Those in this room, too.
    pub fn to(self, room: &str) -> Self {
        self.to_room(Room::text(room))
    }

    /// Those in this room, too, whose name may be a number.
    pub fn to_room(mut self, room: Room) -> Self {
        self.target.rooms.push(room);
        self
    }

    /// Not those in this room.
    pub fn except(self, room: &str) -> Self {
        self.except_room(Room::text(room))
    }

    /// Not those in this room, whose name may be a number.
    pub fn except_room(mut self, room: Room) -> Self {
        self.target.except.push(room);
        self
    }

    /// The event may be dropped for a client that is not ready, and is not replayed.
    pub fn volatile(mut self) -> Self {
        self.flags.volatile = true;
        self
    }

    /// Only sockets of this node. Such an event has no offset: it is in no log.
    pub fn local(mut self) -> Self {
        self.is_local = true;
        self
    }

    /// How long answers are waited for; 5 s when nobody says.
    pub fn timeout(mut self, time: Duration) -> Self {
        self.flags.timeout = Some(time);
        self
    }

    /// One client is meant, and the first answer is all that is wanted.
    pub fn single(mut self) -> Self {
        self.flags.expect_single_response = true;
        self
    }

    /// Sends an event. It has its place in the order when this returns; awaited, it says whether the other nodes get it.
    pub fn emit(self, event: &str, arguments: impl IntoIterator<Item = Value>) -> PublishFuture {
        self.emit_data(std::iter::once(Value::from(event)).chain(arguments).collect())
    }

    /// The same, the event's name and arguments in one list.
    pub fn emit_data(self, data: Vec<Value>) -> PublishFuture {
        let Self { namespace, target, flags, is_local } = self;
        if is_local {
            namespace.broadcast(&data, &target, &flags);
            return PublishFuture(PublishState::Known(Ok(None)));
        }
        if namespace.shared.delivers_own {
            let spare =
                Operation::Broadcast { data: data.clone(), target: target.clone(), flags: flags.clone() };
            return namespace.publish(Operation::Broadcast { data, target, flags }, Some(spare));
        }
        namespace.broadcast(&data, &target, &flags);
        namespace.publish(Operation::Broadcast { data, target, flags }, None)
    }

    /// Sends an event that every client is to answer.
    pub async fn emit_with_ack(self, event: &str, arguments: impl IntoIterator<Item = Value>) -> AckResult {
        let data: Vec<Value> = std::iter::once(Value::from(event)).chain(arguments).collect();
        let Self { namespace, target, flags, is_local } = self;
        let end = Instant::now() + flags.timeout.unwrap_or(ACK_TIME);
        let remote = (!is_local).then(|| namespace.adapter.ask(data.clone(), target.clone(), flags.clone()));
        let (count, heard) = namespace.ask(data, &target, &flags);
        let mut answers = AckCollector { end, is_single: flags.expect_single_response, heard: Vec::new() };
        let asked = match remote {
            None => None,
            Some(asking) => match timeout_at(end, asking).await {
                Ok(Ok(acks)) => Some(acks),
                Ok(Err(fault)) => {
                    answers.local(count, heard).await.ok();
                    return Err((fault.into(), answers.heard));
                }
                Err(_) => return Err((AckError::Timeout, answers.heard)),
            },
        };
        let whole = answers.all(asked, count, heard).await;
        whole.map_err(|fault| (fault, std::mem::take(&mut answers.heard)))?;
        Ok(answers.heard)
    }

    /// The sockets that are meant, of all nodes.
    pub async fn fetch_sockets(self) -> Result<Vec<SocketFacts>, RequestFault> {
        let mut sockets = self.namespace.fetch(&self.target);
        if !self.is_local {
            sockets.extend(self.namespace.adapter.fetch(self.target, self.flags).await?);
        }
        Ok(sockets)
    }

    /// Puts them into rooms.
    pub fn join(self, rooms: &[&str]) -> PublishFuture {
        let rooms = rooms.iter().map(|room| Room::text(room)).collect();
        let target = self.target.clone();
        self.change(Operation::Join { target, rooms })
    }

    /// Takes them out of rooms.
    pub fn leave(self, rooms: &[&str]) -> PublishFuture {
        let rooms = rooms.iter().map(|room| Room::text(room)).collect();
        let target = self.target.clone();
        self.change(Operation::Leave { target, rooms })
    }

    /// Takes them out of the namespace; `close` ends their connections, too.
    pub fn disconnect(self, close: bool) -> PublishFuture {
        let target = self.target.clone();
        self.change(Operation::Disconnect { target, close })
    }

    fn change(self, operation: Operation) -> PublishFuture {
        self.namespace.apply(&operation);
        if self.is_local {
            PublishFuture(PublishState::Known(Ok(None)))
        } else {
            self.namespace.publish(operation, None)
        }
    }
}

impl Namespace {
    /// An event for the other servers.
    pub fn server_side_emit(&self, event: &str, arguments: impl IntoIterator<Item = Value>) -> PublishFuture {
        let data = std::iter::once(Value::from(event)).chain(arguments).collect();
        self.publish(Operation::ServerSideEmit { data }, None)
    }

    /// An event for the other servers, and their answers.
    pub async fn ask_servers(&self, event: &str, arguments: impl IntoIterator<Item = Value>) -> Answers {
        let data = std::iter::once(Value::from(event)).chain(arguments).collect();
        self.adapter.ask_servers(data).await
    }

    /// How many servers there are, this one included.
    pub async fn servers(&self) -> Result<usize, RequestFault> {
        self.adapter.servers().await
    }

    /// The rooms of all nodes, the sockets' own among them.
    pub async fn all_rooms(&self) -> Result<Vec<Room>, RequestFault> {
        let mut rooms = self.adapter.rooms().await?;
        rooms.extend(Local::rooms(self));
        rooms.sort_unstable();
        rooms.dedup();
        Ok(rooms)
    }

    /// Sends an operation to the other nodes. What cannot be sent is counted by the adapter, and `spare` is done here
    /// instead.
    fn publish(&self, operation: Operation, spare: Option<Operation>) -> PublishFuture {
        let (told, waiting) = oneshot::channel();
        let me = self.weak_self.clone();
        self.drive(self.adapter.send(operation), move |sent| {
            if let (Err(_), Some(namespace), Some(spare)) = (&sent, me.upgrade(), spare) {
                namespace.apply(&spare);
            }
            told.send(sent).ok();
        });
        PublishFuture(PublishState::Waiting(waiting))
    }
}

impl Future for PublishFuture {
    type Output = Result<Option<Offset>, NotSent>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            PublishState::Known(result) => Poll::Ready(result.clone()),
            // The sender is dropped unheard only when the runtime ends.
            PublishState::Waiting(waiting) => {
                Pin::new(waiting).poll(context).map(|told| told.unwrap_or(Err(NotSent::Away)))
            }
        }
    }
}

/// Answers as they come in, up to a time.
struct AckCollector {
    end: Instant,
    /// The first is enough.
    is_single: bool,
    heard: Vec<Value>,
}

impl AckCollector {
    fn is_enough(&self) -> bool {
        self.is_single && !self.heard.is_empty()
    }

    /// Those of this node's clients.
    async fn local(&mut self, count: u64, mut heard: mpsc::Receiver<Value>) -> Result<(), AckError> {
        for _ in 0..count {
            if self.is_enough() {
                break;
            }
            match timeout_at(self.end, heard.recv()).await {
                Ok(Some(answer)) => self.heard.push(answer),
                Ok(None) | Err(_) => return Err(AckError::Timeout),
            }
        }
        Ok(())
    }

    /// Those of all nodes: every node's count, and as many answers as the counts say. Both sources are heard at the same
    /// time, so that what is partial is so because of the time alone.
    async fn all(
        &mut self,
        asked: Option<Acks>,
        count: u64,
        mut heard: mpsc::Receiver<Value>,
    ) -> Result<(), AckError> {
        let Some(Acks { nodes, heard: mut remote }) = asked else { return self.local(count, heard).await };
        let (mut counts, mut wanted) = (0, count);
        let (mut is_local_over, mut is_remote_over) = (false, false);
        while (counts < nodes || (self.heard.len() as u64) < wanted) && !self.is_enough() {
            if is_local_over && is_remote_over {
                return Err(AckError::Timeout);
            }
            let next = async {
                tokio::select! {
                    answer = heard.recv(), if !is_local_over => AckEvent::Local(answer),
                    told = remote.recv(), if !is_remote_over => AckEvent::Remote(told),
                }
            };
            match timeout_at(self.end, next).await.map_err(|_| AckError::Timeout)? {
                AckEvent::Local(Some(answer)) | AckEvent::Remote(Some(RemoteAck::Ack(answer))) => {
                    self.heard.push(answer)
                }
                AckEvent::Remote(Some(RemoteAck::Count(more))) => {
                    counts += 1;
                    wanted += more;
                }
                AckEvent::Local(None) => is_local_over = true,
                AckEvent::Remote(None) => is_remote_over = true,
            }
        }
        Ok(())
    }
}

/// What came next; `None`: nothing more comes from there.
enum AckEvent {
    Local(Option<Value>),
    Remote(Option<RemoteAck>),
}
