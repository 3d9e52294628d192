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

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::ack_collector::{AckCollector, AckError, AckResult};
use super::event::Event;
use super::namespace::Namespace;
use super::pending_acks::ACK_TIMEOUT;
use super::publish_future::PublishFuture;
use super::socket::Socket;
use socketio_redis::adapter::{
    BroadcastFlags, LocalNamespace, Operation, RemoteSocket, RequestError, Room, Target,
};
use socketio_redis::value::Value;

/// Sockets of all nodes, by rooms.
#[derive(Clone)]
pub struct Selection<'a> {
    namespace: &'a Namespace,
    target: Target,
    flags: BroadcastFlags,
    /// Only this node's.
    is_local: bool,
}

impl Namespace {
    /// Every socket of every node.
    pub fn all(&self) -> Selection<'_> {
        Selection::new(self)
    }

    /// The sockets in a room. More rooms can be named; a socket in several of them is meant once.
    pub fn to(&self, room: &str) -> Selection<'_> {
        self.all().to(room)
    }

    /// Every socket that is not in a room.
    pub fn except(&self, room: &str) -> Selection<'_> {
        self.all().except(room)
    }

    /// Sends an event to one socket of this node. Where sessions can be taken up again it goes through the log, so that
    /// it is not lost with the connection.
    pub fn emit_to(&self, socket: &Arc<Socket>, event: &str, arguments: impl IntoIterator<Item = Value>) {
        if self.context.recovers {
            let data = std::iter::once(Value::from(event)).chain(arguments).collect();
            drop(self.to(socket.id()).emit_data(data));
        } else {
            self.emit_to_unlogged(socket, event, arguments);
        }
    }

    /// Sends an event to one socket of this node, and to nothing that would keep it: it is lost with the connection.
    pub(crate) fn emit_to_unlogged(
        &self,
        socket: &Arc<Socket>,
        event: &str,
        arguments: impl IntoIterator<Item = Value>,
    ) {
        let data: Vec<Value> = std::iter::once(Value::from(event)).chain(arguments).collect();
        self.send(std::slice::from_ref(socket), &Event::new(self.name(), &data, None), false);
    }

    /// Sends an event to one socket of this node and waits for its answer, with all its arguments.
    pub async fn emit_to_with_ack(
        &self,
        socket: &Arc<Socket>,
        time: Duration,
        event: &str,
        arguments: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<Value>, AckError> {
        let data: Vec<Value> = std::iter::once(Value::from(event)).chain(arguments).collect();
        let (number, sockets) = (self.pending_acks.next_id(), std::slice::from_ref(socket));
        let mut heard = self.pending_acks.register(number, sockets, true);
        self.expire_ack_after(time, number);
        self.send(sockets, &Event::asking(self.name(), &data, number), false);
        match heard.recv().await {
            Some(Value::List(answer)) => Ok(answer),
            _ => Err(AckError::Timeout),
        }
    }
}

impl<'a> Selection<'a> {
    pub(super) fn new(namespace: &'a Namespace) -> Self {
        Self { namespace, target: Target::default(), flags: BroadcastFlags::default(), is_local: false }
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

    /// Sends an event. It has its place in the order when this returns; awaited, it says whether the other nodes get it.
    pub fn emit(self, event: &str, arguments: impl IntoIterator<Item = Value>) -> PublishFuture {
        self.emit_data(std::iter::once(Value::from(event)).chain(arguments).collect())
    }

    /// The same, the event's name and arguments in one list.
    pub(crate) fn emit_data(self, data: Vec<Value>) -> PublishFuture {
        let Self { namespace, target, flags, is_local } = self;
        if is_local {
            namespace.broadcast(&data, &target, &flags);
            return PublishFuture::not_needed();
        }
        if namespace.context.delivers_own {
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
        let end = Instant::now() + flags.timeout.unwrap_or(ACK_TIMEOUT);
        let remote = (!is_local)
            .then(|| namespace.adapter.broadcast_with_ack(data.clone(), target.clone(), flags.clone()));
        let (count, heard) = namespace.broadcast_with_ack(data, &target, &flags);
        let mut answers = AckCollector { end, heard: Vec::new() };
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
    pub async fn fetch_sockets(self) -> Result<Vec<RemoteSocket>, RequestError> {
        let mut sockets = self.namespace.fetch_sockets(&self.target);
        if !self.is_local {
            sockets.extend(self.namespace.adapter.fetch_sockets(self.target, self.flags).await?);
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
        if self.is_local { PublishFuture::not_needed() } else { self.namespace.publish(operation, None) }
    }
}
