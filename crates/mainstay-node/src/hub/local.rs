//! What is done to this node's sockets when another node asks, or when this one does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::event::Event;
use super::namespace::{Namespace, ServerEvent};
use super::pending_acks::ACK_TIMEOUT;
use super::socket::Socket;
use socketio_redis::adapter::{
    BroadcastFlags, LocalNamespace, Offset, Operation, RemoteSocket, Room, Target,
};
use socketio_redis::offset;
use socketio_redis::value::Value;

impl LocalNamespace for Namespace {
    fn deliver(&self, operation: Operation, offset: Option<Offset>) {
        match operation {
            Operation::Broadcast { data, target, flags } => match offset {
                Some(offset) => self.deliver_logged(data, target, &flags, offset),
                None => self.broadcast(&data, &target, &flags),
            },
            operation => self.apply(&operation),
        }
    }

    fn broadcast_with_ack(
        &self,
        data: Vec<Value>,
        target: &Target,
        flags: &BroadcastFlags,
    ) -> (u64, mpsc::Receiver<Value>) {
        let number = self.pending_acks.next_id();
        let (able, unable): (Vec<_>, Vec<_>) =
            self.room_index.select(target).into_iter().partition(|socket| socket.client().can_answer());
        let heard = self.pending_acks.register(number, &able, false);
        if !able.is_empty() {
            self.expire_ack_after(flags.timeout.unwrap_or(ACK_TIMEOUT), number);
        }
        self.send(&able, &Event::asking(self.name(), &data, number), false);
        self.send(&unable, &Event::new(self.name(), &data, None), false);
        (able.len() as u64, heard)
    }

    fn fetch_sockets(&self, target: &Target) -> Vec<RemoteSocket> {
        self.room_index.select(target).iter().map(|socket| socket.facts()).collect()
    }

    fn rooms(&self) -> Vec<Room> {
        self.room_index.rooms()
    }

    fn server_side_emit_with_ack(&self, data: Vec<Value>) -> Option<oneshot::Receiver<Value>> {
        let listener = self.listener.read().clone()?;
        let (answer, heard) = oneshot::channel();
        listener(ServerEvent { data, answer: Some(answer) });
        Some(heard)
    }
}

impl Namespace {
    /// Delivers an event to this node's sockets.
    pub(super) fn broadcast(&self, data: &[Value], target: &Target, flags: &BroadcastFlags) {
        let sockets = self.room_index.select(target);
        self.send(&sockets, &Event::new(self.name(), data, None), flags.volatile);
    }

    /// Delivers an event that is in the log. Volatile ones do not move a client's offset. Sessions that are being taken
    /// up meanwhile find it in the notes.
    fn deliver_logged(&self, data: Vec<Value>, target: Target, flags: &BroadcastFlags, offset: Offset) {
        let restoring = self.replays.read();
        let place = offset::parse_offset(&offset);
        let is_new = |socket: &Arc<Socket>| socket.replayed_to.get().is_none_or(|seen| place > Some(*seen));
        let mut sockets = self.room_index.select(&target);
        sockets.retain(is_new);
        let shown = (self.context.recovers && !flags.volatile).then_some(&*offset);
        self.send(&sockets, &Event::new(self.name(), &data, shown), flags.volatile);
        if let Some(place) = place.filter(|_| !flags.volatile) {
            restoring.note(place, offset, data, target);
        }
    }

    /// Does something other than a broadcast to this node's sockets.
    pub(super) fn apply(&self, operation: &Operation) {
        match operation {
            Operation::Broadcast { data, target, flags } => self.broadcast(data, target, flags),
            Operation::Join { target, rooms } => {
                for socket in self.room_index.select(target) {
                    // Nobody waits for it; the other nodes are told all the same.
                    drop(self.join(&socket, rooms));
                }
            }
            Operation::Leave { target, rooms } => {
                self.room_index.select(target).iter().for_each(|socket| self.leave(socket, rooms));
            }
            Operation::Disconnect { target, close } => {
                for socket in self.room_index.select(target) {
                    socket.client().disconnect(&socket, *close);
                }
            }
            Operation::ServerSideEmit { data } => {
                let listener = self.listener.read().clone();
                if let Some(listener) = listener {
                    listener(ServerEvent { data: data.clone(), answer: None });
                }
            }
        }
    }

    pub(super) fn expire_ack_after(&self, time: Duration, number: u64) {
        let (me, end) = (self.weak_self.clone(), self.context.end.clone());
        let waiting = self.context.tasks.spawn(async move {
            end.run_until_cancelled(tokio::time::sleep(time)).await;
            if let Some(namespace) = me.upgrade() {
                namespace.pending_acks.expire(number);
            }
        });
        self.pending_acks.set_timer(number, waiting.abort_handle());
    }
}
