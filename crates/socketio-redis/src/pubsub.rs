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
    Acks, Adapter, Flags, Local, NotSent, Offset, Operation, Pending, RemoteAck, Replay, RequestFault, Room,
    Session, SocketFacts, Target, answered,
};
use crate::connection::{Heard, Listener, Via};
use crate::peer::{self, Peer, Shared, counted, publish, replied};
use crate::requests::{Answered, Answers, Heap};
use crate::value::Value;
use crate::wire::WireFault;
use crate::wire::classic::{self, Channels, Request, Response};

/// One namespace of this node among classic adapters.
pub(super) struct Pubsub {
    peer: Arc<Peer>,
    channels: Channels,
    /// Rooms with a socket of this node in them. What is for another room alone is not even read.
    open: RwLock<HashSet<Arc<str>>>,
}

impl Pubsub {
    /// Begins to listen.
    pub fn start(shared: &Arc<Shared>, nsp: &Arc<str>, local: Weak<dyn Local>) -> Arc<Pubsub> {
        let peer = Arc::new(Peer::new(shared, peer::short_name(), nsp, local));
        let channels = Channels::new(&shared.settings.prefix, nsp);
        let adapter = Arc::new(Pubsub { peer, channels, open: RwLock::default() });
        for (via, channel) in adapter.wishes() {
            let listener = adapter.listener();
            drop(adapter.peer.listen(via, &channel, listener));
        }
        adapter
    }

    /// What it listens to; the channel that is counted is the last.
    fn wishes(&self) -> [(Via, String); 4] {
        [
            (Via::Channel, self.channels.response_to(&self.peer.uid)),
            (Via::Channel, self.channels.response.clone()),
            (Via::Pattern, self.channels.pattern()),
            (Via::Channel, self.channels.request.clone()),
        ]
    }

    fn listener(self: &Arc<Self>) -> Listener {
        let adapter = Arc::downgrade(self);
        Arc::new(move |heard| {
            if let Some(adapter) = adapter.upgrade() {
                adapter.hear(heard);
            }
        })
    }

    /// Stops listening.
    pub async fn close(&self) {
        for (via, channel) in self.wishes().iter().rev() {
            let _ = self.peer.forget(*via, channel).await;
        }
    }

    fn hear(&self, heard: Heard) {
        let result = if self.concerns_nobody(&heard) {
            return;
        } else if heard.channel == self.channels.request {
            classic::read_request(&heard.payload).map(|request| self.hear_request(request))
        } else if heard.channel.starts_with(&self.channels.response) {
            classic::read_response(&heard.payload).map(|response| self.hear_response(response))
        } else {
            classic::read_broadcast(&heard.payload).map(|broadcast| self.hear_broadcast(broadcast))
        };
        match result {
            Ok(()) => {}
            Err(WireFault::OtherKind) => self.peer.shared.is_unfit("a streams adapter was heard"),
            Err(fault) => self.peer.could_not_read(&heard.channel, &fault),
        }
    }

    /// A broadcast to a room that this node has not, or one of its own that came back.
    fn concerns_nobody(&self, heard: &Heard) -> bool {
        let is_for_another = |room| !self.open.read().contains(room);
        self.channels.room(&heard.channel).is_some_and(is_for_another)
            || classic::is_broadcast_of(&self.peer.uid, &heard.payload)
    }

    fn hear_broadcast(&self, broadcast: classic::Broadcast) {
        let classic::Broadcast { uid, nsp, data, target, flags } = broadcast;
        if uid != self.peer.uid && *nsp == *self.peer.nsp {
            self.peer.deliver(Operation::Broadcast { data, target, flags });
        }
    }

    fn hear_request(&self, request: Request) {
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
            Request::JoinOne { request, sid, room } => {
                self.old(&*local, request, &sid, |target| Operation::Join { target, rooms: vec![room] })
            }
            Request::LeaveOne { request, sid, room } => {
                self.old(&*local, request, &sid, |target| Operation::Leave { target, rooms: vec![room] })
            }
            Request::DisconnectOne { request, sid, close } => {
                self.old(&*local, request, &sid, |target| Operation::Disconnect { target, close })
            }
            Request::Sockets { request, rooms } => {
                let sockets = local.fetch(&Target { rooms, except: Vec::new() });
                let sids = sockets.into_iter().map(|socket| socket.id.into()).collect();
                self.respond(&Response::Sids { request, sids });
            }
            Request::AllRooms { request, .. } => {
                self.respond(&Response::Rooms { request, rooms: local.rooms() });
            }
            Request::Fetch { request, target, .. } => {
                self.respond(&Response::Sockets { request, sockets: local.fetch(&target) });
            }
            Request::ServerSideEmit { request: None, data, .. } => {
                local.deliver(Operation::ServerSideEmit { data }, None);
            }
            Request::ServerSideEmit { request: Some(request), data, .. } => {
                self.ask_server(&*local, request, data);
            }
            Request::BroadcastWithAck { request, nsp, data, target, flags, .. } if *nsp == *self.peer.nsp => {
                self.ask_clients(request, local.ask(data, &target, &flags));
            }
            Request::BroadcastWithAck { .. } => {}
        }
    }

    /// What an old peer asks of one socket: done and answered by the node that has it.
    fn old(
        &self,
        local: &dyn Local,
        request: String,
        sid: &str,
        operation: impl FnOnce(Target) -> Operation,
    ) {
        let target = Target { rooms: vec![Room::text(sid)], except: Vec::new() };
        if !local.fetch(&target).is_empty() {
            local.deliver(operation(target), None);
            self.respond(&Response::Done { request });
        }
    }

    fn ask_server(&self, local: &dyn Local, request: String, data: Vec<Value>) {
        let answer = local.ask_server(data);
        let (peer, channel) = (self.peer.clone(), self.channels.response.clone());
        self.peer.shared.tasks.spawn(async move {
            let response = Response::ServerSideEmit { request, data: answered(answer).await };
            peer.answer(publish(Via::Channel, &channel, &response.write()));
        });
    }

    fn ask_clients(&self, request: String, (count, acks): (u64, mpsc::Receiver<Value>)) {
        self.respond(&Response::Count { request: request.clone(), count });
        let (peer, channel) = (self.peer.clone(), self.channels.response.clone());
        self.peer.pass_on(acks, move |ack| {
            let response = Response::Ack { request: request.clone(), packet: Some(ack) };
            peer.answer(publish(Via::Channel, &channel, &response.write()));
        });
    }

    /// Answers on the channel that every version listens on.
    fn respond(&self, response: &Response) {
        self.peer.answer(publish(Via::Channel, &self.channels.response, &response.write()));
    }

    fn hear_response(&self, response: Response) {
        let request = response.request().to_owned();
        let answer = match response {
            Response::Count { count, .. } => Answered::Ack(RemoteAck::Count(count)),
            Response::Ack { packet, .. } => Answered::Ack(RemoteAck::Ack(packet.unwrap_or_default())),
            Response::Sockets { sockets, .. } => Answered::Sockets(sockets),
            Response::Rooms { rooms, .. } => Answered::Rooms(rooms),
            Response::ServerSideEmit { data, .. } => Answered::Server(data),
            Response::Sids { .. } | Response::Done { .. } => return,
        };
        self.peer.requests.answered(&request, answer);
    }

    fn count(&self) -> Result<crate::connection::Answer, NotSent> {
        self.peer.post_count(Via::Channel, &self.channels.request)
    }

    fn request(&self, request: &Request) -> redis::Cmd {
        publish(Via::Channel, &self.channels.request, &request.write())
    }

    fn uid(&self) -> Option<String> {
        Some(self.peer.uid.clone())
    }
}

impl Drop for Pubsub {
    fn drop(&mut self) {
        // Who is counted must answer, and nobody is left to.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.wishes().iter().rev().for_each(|(via, channel)| drop(self.peer.forget(*via, channel)));
        }
    }
}

impl Adapter for Pubsub {
    fn send(&self, operation: Operation) -> Pending<Result<Option<Offset>, NotSent>> {
        let uid = self.uid();
        let command = match operation {
            Operation::Broadcast { data, target, flags } => {
                let payload =
                    classic::write_broadcast(&self.peer.uid, &self.peer.nsp, &data, &target, &flags);
                publish(Via::Channel, &self.channels.of_target(&target), &payload)
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
        let posted = self.peer.post(command);
        Box::pin(async move { replied(posted?).await.map(|_| None) })
    }

    fn ask(&self, data: Vec<Value>, target: Target, flags: Flags) -> Pending<Result<Acks, NotSent>> {
        let (request, nsp) = (peer::short_name(), self.peer.nsp.to_string());
        let heard = self.peer.requests.open_acks(&request);
        let uid = self.uid();
        let question = self.request(&Request::BroadcastWithAck { uid, request, nsp, data, target, flags });
        let posted = self.peer.post(question);
        let count = self.count();
        Box::pin(async move {
            replied(posted?).await?;
            Ok(Acks { nodes: counted(count?).await? as usize - 1, heard })
        })
    }

    fn fetch(&self, target: Target, _: Flags) -> Pending<Result<Vec<SocketFacts>, RequestFault>> {
        let request = peer::short_name();
        let question = self.request(&Request::Fetch { uid: self.uid(), request: request.clone(), target });
        let patience = self.peer.shared.settings.request_timeout;
        let asked = self.peer.ask(self.count(), request, question, patience);
        Box::pin(async move { whole(asked.await, sockets_of) })
    }

    fn ask_servers(&self, data: Vec<Value>) -> Pending<Result<Vec<Value>, (RequestFault, Vec<Value>)>> {
        let request = peer::short_name();
        let question =
            self.request(&Request::ServerSideEmit { uid: self.uid(), request: Some(request.clone()), data });
        let patience = self.peer.shared.settings.request_timeout;
        let asked = self.peer.ask(self.count(), request, question, patience);
        Box::pin(async move { servers_answers(asked.await) })
    }

    fn servers(&self) -> Pending<Result<usize, RequestFault>> {
        let count = self.count();
        Box::pin(async move { Ok(counted(count?).await? as usize) })
    }

    fn rooms(&self) -> Pending<Result<Vec<Room>, RequestFault>> {
        let request = peer::short_name();
        let question = self.request(&Request::AllRooms { uid: self.uid(), request: request.clone() });
        let patience = self.peer.shared.settings.request_timeout;
        let asked = self.peer.ask(self.count(), request, question, patience);
        Box::pin(async move { whole(asked.await, rooms_of) })
    }

    fn room_opened(&self, room: &Room) -> Pending<()> {
        // The pattern covers every room already.
        self.open.write().insert(room.name.clone());
        Box::pin(std::future::ready(()))
    }

    fn room_emptied(&self, room: &Room) {
        self.open.write().remove(&room.name);
    }

    fn save_session(&self, _: Session) -> Pending<Result<(), NotSent>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn find_session(&self, _: &str, _: &str) -> Pending<Option<Box<dyn Replay>>> {
        Box::pin(std::future::ready(None))
    }

    fn forget_session(&self, _: &str) -> Pending<()> {
        Box::pin(std::future::ready(()))
    }
}

/// All answers together; a fault if any is missing.
pub(super) fn whole<T>(heap: Heap, part: impl Fn(Answered) -> Vec<T>) -> Result<Vec<T>, RequestFault> {
    match heap? {
        (answers, None) => Ok(answers.into_iter().flat_map(part).collect()),
        (_, Some(fault)) => Err(fault),
    }
}

pub(super) fn sockets_of(answer: Answered) -> Vec<SocketFacts> {
    if let Answered::Sockets(sockets) = answer { sockets } else { Vec::new() }
}

pub(super) fn rooms_of(answer: Answered) -> Vec<Room> {
    match answer {
        Answered::Rooms(rooms) => rooms,
        // The other adapters have no question for rooms; they are those of the sockets.
        Answered::Sockets(sockets) => sockets.into_iter().flat_map(|socket| socket.rooms).collect(),
        _ => Vec::new(),
    }
}

/// The servers' answers; with a fault those that came.
pub(super) fn servers_answers(heap: Heap) -> Answers {
    let (answers, fault) = heap.map_err(|fault| (fault.into(), Vec::new()))?;
    let value = |answer| if let Answered::Server(value) = answer { Some(value) } else { None };
    let values = answers.into_iter().filter_map(value).collect();
    match fault {
        None => Ok(values),
        Some(fault) => Err((fault, values)),
    }
}
