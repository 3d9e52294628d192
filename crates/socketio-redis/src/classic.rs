//! As `@socket.io/redis-adapter` 8.3, `createAdapter`: broadcasts on channels that a pattern covers, requests and
//! responses on channels of their own.
//!
//! The number of nodes is the number of subscribers to the channel of requests, so that channel is subscribed to last and
//! left first.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use tokio::sync::mpsc;

use crate::adapter::{
    AckReplies, BoxFuture, BroadcastFlags, LocalNamespace, NamespaceAdapter, Offset, Operation, RemoteAck,
    RemoteSocket, RequestError, Room, SendError, Target, await_answer,
};
use crate::client::{Listener, ReceivedMessage, SubscriptionKind};
use crate::peer::{AdapterContext, Peer, await_count, await_reply, publish_command};
use crate::pending_requests::{Answers, Replies, RequestReply};
use crate::random::short_id;
use crate::value::Value;
use crate::wire::WireError;
use crate::wire::classic::{self, ClassicChannels, Request, Response};

/// One namespace of this node among classic adapters.
pub(super) struct ClassicAdapter {
    peer: Arc<Peer>,
    channels: ClassicChannels,
    /// Rooms with a socket of this node in them. What is for another room alone is not even read.
    open: RwLock<HashSet<Arc<str>>>,
}

impl ClassicAdapter {
    /// Begins to listen.
    pub(crate) fn start(
        shared: &Arc<AdapterContext>,
        nsp: &Arc<str>,
        local: Weak<dyn LocalNamespace>,
    ) -> Arc<ClassicAdapter> {
        let peer = Arc::new(Peer::new(shared, short_id(), nsp, local));
        let channels = ClassicChannels::new(&shared.settings.channel_prefix, nsp);
        let adapter = Arc::new(ClassicAdapter { peer, channels, open: RwLock::default() });
        for (kind, channel) in adapter.subscriptions() {
            let listener = adapter.listener();
            drop(adapter.peer.subscribe(kind, &channel, listener));
        }
        adapter
    }

    /// What it listens to; the channel that is counted is the last.
    fn subscriptions(&self) -> [(SubscriptionKind, String); 4] {
        [
            (SubscriptionKind::Channel, self.channels.response_to(&self.peer.uid)),
            (SubscriptionKind::Channel, self.channels.response.clone()),
            (SubscriptionKind::Pattern, self.channels.pattern()),
            (SubscriptionKind::Channel, self.channels.request.clone()),
        ]
    }

    fn listener(self: &Arc<Self>) -> Listener {
        let adapter = Arc::downgrade(self);
        Arc::new(move |heard| {
            if let Some(adapter) = adapter.upgrade() {
                adapter.on_message(heard);
            }
        })
    }

    fn on_message(&self, heard: ReceivedMessage) {
        let result = if self.is_irrelevant(&heard) {
            return;
        } else if heard.channel == self.channels.request {
            classic::read_request(&heard.payload).map(|request| self.on_request(request))
        } else if heard.channel.starts_with(&self.channels.response) {
            classic::read_response(&heard.payload).map(|response| self.on_response(response))
        } else {
            classic::read_broadcast(&heard.payload).map(|broadcast| self.on_broadcast(broadcast))
        };
        match result {
            Ok(()) => {}
            Err(WireError::OtherKind) => self.peer.shared.mark_incompatible("a streams adapter was heard"),
            Err(fault) => self.peer.report_unreadable(&heard.channel, &fault),
        }
    }

    /// A broadcast to a room that this node has not, or one of its own that came back.
    fn is_irrelevant(&self, heard: &ReceivedMessage) -> bool {
        let is_for_another = |room| !self.open.read().contains(room);
        self.channels.room(&heard.channel).is_some_and(is_for_another)
            || classic::is_broadcast_of(&self.peer.uid, &heard.payload)
    }

    fn on_broadcast(&self, broadcast: classic::ClassicBroadcast) {
        let classic::ClassicBroadcast { uid, nsp, data, target, flags } = broadcast;
        if uid != self.peer.uid && *nsp == *self.peer.nsp {
            self.peer.deliver(Operation::Broadcast { data, target, flags });
        }
    }

    fn on_request(&self, request: Request) {
        let is_own = request.uid() == Some(&self.peer.uid);
        if is_own || request.request().is_some_and(|request| self.peer.requests.contains(request)) {
            return;
        }
        let Some(local) = self.peer.local.upgrade() else { return };
        match request {
            Request::Join { target, rooms, .. } => local.deliver(Operation::Join { target, rooms }, None),
            Request::Leave { target, rooms, .. } => local.deliver(Operation::Leave { target, rooms }, None),
            Request::Disconnect { target, close, .. } => {
                local.deliver(Operation::Disconnect { target, close }, None);
            }
            Request::JoinOne { request, sid, room } => self
                .apply_legacy(&*local, request, &sid, |target| Operation::Join { target, rooms: vec![room] }),
            Request::LeaveOne { request, sid, room } => self.apply_legacy(&*local, request, &sid, |target| {
                Operation::Leave { target, rooms: vec![room] }
            }),
            Request::DisconnectOne { request, sid, close } => {
                self.apply_legacy(&*local, request, &sid, |target| Operation::Disconnect { target, close })
            }
            Request::Sockets { request, rooms } => {
                let sockets = local.fetch_sockets(&Target { rooms, except: Vec::new() });
                let sids = sockets.into_iter().map(|socket| socket.id.into()).collect();
                self.respond(&Response::Sids { request, sids });
            }
            Request::AllRooms { request, .. } => {
                self.respond(&Response::Rooms { request, rooms: local.rooms() });
            }
            Request::Fetch { request, target, .. } => {
                self.respond(&Response::Sockets { request, sockets: local.fetch_sockets(&target) });
            }
            Request::ServerSideEmit { request: None, data, .. } => {
                local.deliver(Operation::ServerSideEmit { data }, None);
            }
            Request::ServerSideEmit { request: Some(request), data, .. } => {
                self.answer_server_emit(&*local, request, data);
            }
            Request::BroadcastWithAck { request, nsp, data, target, flags, .. } if *nsp == *self.peer.nsp => {
                let (count, acks) = local.broadcast_with_ack(data, &target, &flags);
                self.answer_broadcast(request, count, acks);
            }
            Request::BroadcastWithAck { .. } => {}
        }
    }

    /// What an old peer asks of one socket: done and answered by the node that has it.
    fn apply_legacy(
        &self,
        local: &dyn LocalNamespace,
        request: String,
        sid: &str,
        operation: impl FnOnce(Target) -> Operation,
    ) {
        let target = Target { rooms: vec![Room::text(sid)], except: Vec::new() };
        if !local.fetch_sockets(&target).is_empty() {
            local.deliver(operation(target), None);
            self.respond(&Response::Done { request });
        }
    }

    fn answer_server_emit(&self, local: &dyn LocalNamespace, request: String, data: Vec<Value>) {
        let answer = local.server_side_emit_with_ack(data);
        let (peer, channel) = (self.peer.clone(), self.channels.response.clone());
        self.peer.shared.tasks.spawn(async move {
            let response = Response::ServerSideEmit { request, data: await_answer(answer).await };
            peer.respond(publish_command(SubscriptionKind::Channel, &channel, &response.write()));
        });
    }

    fn answer_broadcast(&self, request: String, count: u64, acks: mpsc::Receiver<Value>) {
        self.respond(&Response::Count { request: request.clone(), count });
        let (peer, channel) = (self.peer.clone(), self.channels.response.clone());
        self.peer.forward_acks(acks, move |ack| {
            let response = Response::Ack { request: request.clone(), packet: Some(ack) };
            peer.respond(publish_command(SubscriptionKind::Channel, &channel, &response.write()));
        });
    }

    /// Answers on the channel that every version listens on.
    fn respond(&self, response: &Response) {
        self.peer.respond(publish_command(
            SubscriptionKind::Channel,
            &self.channels.response,
            &response.write(),
        ));
    }

    fn on_response(&self, response: Response) {
        let request = response.request().to_owned();
        let answer = match response {
            Response::Count { count, .. } => RequestReply::Ack(RemoteAck::Count(count)),
            Response::Ack { packet, .. } => RequestReply::Ack(RemoteAck::Ack(packet.unwrap_or_default())),
            Response::Sockets { sockets, .. } => RequestReply::Sockets(sockets),
            Response::Rooms { rooms, .. } => RequestReply::Rooms(rooms),
            Response::ServerSideEmit { data, .. } => RequestReply::Server(data),
            Response::Sids { .. } | Response::Done { .. } => return,
        };
        self.peer.requests.resolve(&request, answer);
    }

    fn count(&self) -> Result<crate::client::PendingReply, SendError> {
        self.peer.request_server_count(SubscriptionKind::Channel, &self.channels.request)
    }

    fn request(&self, request: &Request) -> redis::Cmd {
        publish_command(SubscriptionKind::Channel, &self.channels.request, &request.write())
    }

    fn uid(&self) -> Option<String> {
        Some(self.peer.uid.clone())
    }
}

impl Drop for ClassicAdapter {
    fn drop(&mut self) {
        // Who is counted must answer, and nobody is left to.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.subscriptions()
                .iter()
                .rev()
                .for_each(|(kind, channel)| drop(self.peer.unsubscribe(*kind, channel)));
        }
    }
}

impl NamespaceAdapter for ClassicAdapter {
    fn send(&self, operation: Operation) -> BoxFuture<Result<Option<Offset>, SendError>> {
        let uid = self.uid();
        let command = match operation {
            Operation::Broadcast { data, target, flags } => {
                let payload =
                    classic::write_broadcast(&self.peer.uid, &self.peer.nsp, &data, &target, &flags);
                publish_command(SubscriptionKind::Channel, &self.channels.of_target(&target), &payload)
            }
            Operation::Join { target, rooms } => self.request(&Request::Join { uid, target, rooms }),
            Operation::Leave { target, rooms } => self.request(&Request::Leave { uid, target, rooms }),
            Operation::Disconnect { target, close } => {
                self.request(&Request::Disconnect { uid, target, close })
            }
            Operation::ServerSideEmit { data } => {
                self.request(&Request::ServerSideEmit { uid, request: None, data })
            }
        };
        let posted = self.peer.publish(command);
        Box::pin(async move { await_reply(posted?).await.map(|_| None) })
    }

    fn broadcast_with_ack(
        &self,
        data: Vec<Value>,
        target: Target,
        flags: BroadcastFlags,
    ) -> BoxFuture<Result<AckReplies, SendError>> {
        let (request, nsp) = (short_id(), self.peer.nsp.to_string());
        let heard = self.peer.requests.open_acks(&request);
        let uid = self.uid();
        let question = self.request(&Request::BroadcastWithAck { uid, request, nsp, data, target, flags });
        let posted = self.peer.publish(question);
        let count = self.count();
        Box::pin(async move {
            await_reply(posted?).await?;
            Ok(AckReplies { servers: await_count(count?).await? as usize - 1, replies: heard })
        })
    }

    fn fetch_sockets(
        &self,
        target: Target,
        _: BroadcastFlags,
    ) -> BoxFuture<Result<Vec<RemoteSocket>, RequestError>> {
        let request = short_id();
        let question = self.request(&Request::Fetch { uid: self.uid(), request: request.clone(), target });
        let max_wait = self.peer.shared.settings.request_timeout;
        let asked = self.peer.request(self.count(), request, question, max_wait);
        Box::pin(async move { all_or_error(asked.await, into_sockets) })
    }

    fn server_side_emit_with_ack(
        &self,
        data: Vec<Value>,
    ) -> BoxFuture<Result<Vec<Value>, (RequestError, Vec<Value>)>> {
        let request = short_id();
        let question =
            self.request(&Request::ServerSideEmit { uid: self.uid(), request: Some(request.clone()), data });
        let max_wait = self.peer.shared.settings.request_timeout;
        let asked = self.peer.request(self.count(), request, question, max_wait);
        Box::pin(async move { into_server_answers(asked.await) })
    }

    fn server_count(&self) -> BoxFuture<Result<usize, RequestError>> {
        let count = self.count();
        Box::pin(async move { Ok(await_count(count?).await? as usize) })
    }

    fn all_rooms(&self) -> BoxFuture<Result<Vec<Room>, RequestError>> {
        let request = short_id();
        let question = self.request(&Request::AllRooms { uid: self.uid(), request: request.clone() });
        let max_wait = self.peer.shared.settings.request_timeout;
        let asked = self.peer.request(self.count(), request, question, max_wait);
        Box::pin(async move { all_or_error(asked.await, into_rooms) })
    }

    fn create_room(&self, room: &Room) -> BoxFuture<()> {
        // The pattern covers every room already.
        self.open.write().insert(room.name.clone());
        Box::pin(std::future::ready(()))
    }

    fn delete_room(&self, room: &Room) {
        self.open.write().remove(&room.name);
    }

    fn close(&self) -> BoxFuture<()> {
        let (peer, subscriptions) = (self.peer.clone(), self.subscriptions());
        Box::pin(async move {
            for (kind, channel) in subscriptions.iter().rev() {
                let _ = peer.unsubscribe(*kind, channel).await;
            }
        })
    }
}

/// All answers together; a fault if any is missing.
pub(super) fn all_or_error<T>(
    heap: Replies,
    part: impl Fn(RequestReply) -> Vec<T>,
) -> Result<Vec<T>, RequestError> {
    match heap? {
        (answers, None) => Ok(answers.into_iter().flat_map(part).collect()),
        (_, Some(fault)) => Err(fault),
    }
}

pub(super) fn into_sockets(answer: RequestReply) -> Vec<RemoteSocket> {
    if let RequestReply::Sockets(sockets) = answer { sockets } else { Vec::new() }
}

pub(super) fn into_rooms(answer: RequestReply) -> Vec<Room> {
    match answer {
        RequestReply::Rooms(rooms) => rooms,
        // The other adapters have no question for rooms; they are those of the sockets.
        RequestReply::Sockets(sockets) => sockets.into_iter().flat_map(|socket| socket.rooms).collect(),
        _ => Vec::new(),
    }
}

/// The servers' answers; with a fault those that came.
pub(super) fn into_server_answers(heap: Replies) -> Answers {
    let (answers, fault) = heap.map_err(|fault| (fault.into(), Vec::new()))?;
    let value = |answer| if let RequestReply::Server(value) = answer { Some(value) } else { None };
    let values = answers.into_iter().filter_map(value).collect();
    match fault {
        None => Ok(values),
        Some(fault) => Err((fault, values)),
    }
}
