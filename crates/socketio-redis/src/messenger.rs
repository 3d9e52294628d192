//! What the sharded and the streams adapter say to each other on channels: envelopes on one channel for all nodes of a
//! namespace, and answers on a private one for each.

use std::sync::{Arc, Weak};

use tokio::task::JoinHandle;

use crate::adapter::{
    AckReplies, BoxFuture, BroadcastFlags, LocalNamespace, Operation, RemoteAck, RemoteSocket, RequestError,
    Room, SendError, Target, await_answer,
};
use crate::classic::{all_or_error, into_rooms, into_server_answers, into_sockets};
use crate::client::{Listener, PendingReply, ReceivedMessage, SubscriptionKind};
use crate::peer::{AdapterContext, Peer, await_count, await_reply, publish_command};
use crate::pending_requests::{Answers, Replies, RequestReply};
use crate::random::hex_id;
use crate::value::Value;
use crate::wire::WireError;
use crate::wire::envelope::{self, ClusterMessage, Dialect, Envelope, EnvelopeChannels};

/// The requests of [`NamespaceAdapter`](crate::adapter::NamespaceAdapter), as a [`Messenger`] in this field answers them.
macro_rules! forward_requests {
    ($messenger:ident) => {
        fn broadcast_with_ack(
            &self,
            data: Vec<$crate::value::Value>,
            target: $crate::adapter::Target,
            flags: $crate::adapter::BroadcastFlags,
        ) -> $crate::adapter::BoxFuture<Result<$crate::adapter::AckReplies, $crate::adapter::SendError>> {
            self.$messenger.broadcast_with_ack(data, target, flags)
        }

        fn fetch_sockets(
            &self,
            target: $crate::adapter::Target,
            flags: $crate::adapter::BroadcastFlags,
        ) -> $crate::adapter::BoxFuture<
            Result<Vec<$crate::adapter::RemoteSocket>, $crate::adapter::RequestError>,
        > {
            self.$messenger.fetch_sockets(target, flags)
        }

        fn server_side_emit_with_ack(
            &self,
            data: Vec<$crate::value::Value>,
        ) -> $crate::adapter::BoxFuture<$crate::adapter::ServerAnswers> {
            self.$messenger.server_side_emit_with_ack(data)
        }

        fn server_count(&self) -> $crate::adapter::BoxFuture<Result<usize, $crate::adapter::RequestError>> {
            self.$messenger.server_count()
        }

        fn all_rooms(
            &self,
        ) -> $crate::adapter::BoxFuture<Result<Vec<$crate::adapter::Room>, $crate::adapter::RequestError>> {
            self.$messenger.all_rooms()
        }
    };
}
pub(crate) use forward_requests;

/// The channels of one namespace of this node.
pub(super) struct Messenger {
    /// Who speaks.
    pub peer: Arc<Peer>,
    /// Where.
    pub channels: EnvelopeChannels,
    /// In which way of writing.
    dialect: Dialect,
    /// By which commands.
    kind: SubscriptionKind,
    /// How every own envelope ends.
    own_ends: [Vec<u8>; 2],
}

impl Messenger {
    /// Begins to listen: first on the private channel, then on the one whose subscribers are counted.
    pub(crate) fn start(
        shared: &Arc<AdapterContext>,
        nsp: &Arc<str>,
        local: Weak<dyn LocalNamespace>,
        dialect: Dialect,
        kind: SubscriptionKind,
    ) -> Arc<Messenger> {
        let peer = Arc::new(Peer::new(shared, hex_id(), nsp, local));
        let channels = EnvelopeChannels::new(&shared.settings.channel_prefix, nsp);
        let own_ends = envelope::ends(&peer.uid, nsp);
        let messenger = Arc::new(Messenger { peer, channels, dialect, kind, own_ends });
        drop(messenger.subscribe(&messenger.private()));
        drop(messenger.subscribe(&messenger.channels.main));
        messenger
    }

    /// Listens to a channel with envelopes on it.
    pub(crate) fn subscribe(self: &Arc<Self>, channel: &str) -> JoinHandle<()> {
        let messenger = Arc::downgrade(self);
        let listener: Listener = Arc::new(move |heard| {
            if let Some(messenger) = messenger.upgrade() {
                messenger.on_message(heard);
            }
        });
        self.peer.subscribe(self.kind, channel, listener)
    }

    /// Does not listen to it any more.
    pub(crate) fn unsubscribe(&self, channel: &str) -> JoinHandle<()> {
        self.peer.unsubscribe(self.kind, channel)
    }

    /// Stops listening, first where it is counted.
    pub(crate) async fn close(&self) {
        let _ = self.unsubscribe(&self.channels.main).await;
        let _ = self.unsubscribe(&self.private()).await;
    }

    fn private(&self) -> String {
        self.channels.of(&self.peer.uid)
    }

    fn on_message(&self, heard: ReceivedMessage) {
        // What comes back of what this node said is not even read.
        if self.own_ends.iter().any(|end| heard.payload.ends_with(end)) {
            return;
        }
        match envelope::read(&heard.payload) {
            Ok(Some(envelope)) if heard.channel == self.private() => self.on_reply(envelope.message),
            Ok(Some(envelope)) => self.on_envelope(envelope),
            Ok(None) => {}
            Err(WireError::OtherKind) => self.peer.shared.mark_incompatible("a classic adapter was heard"),
            Err(fault) => self.peer.report_unreadable(&heard.channel, &fault),
        }
    }

    /// Does what an envelope says, unless it is an own one or of another namespace.
    pub(crate) fn on_envelope(&self, envelope: Envelope) {
        let Envelope { uid, nsp, message } = envelope;
        let Some(local) = self.peer.local.upgrade() else { return };
        if uid == self.peer.uid || *nsp != *self.peer.nsp {
            return;
        }
        match message {
            ClusterMessage::Broadcast { data, request: Some(request), target, flags } => {
                let (count, acks) = local.broadcast_with_ack(data, &target, &flags);
                self.send_reply(&uid, &ClusterMessage::Count { request: request.clone(), count });
                let answering = self.reply_sender(uid);
                self.peer.forward_acks(acks, move |ack| {
                    answering(&ClusterMessage::Ack { request: request.clone(), packet: Some(ack) });
                });
            }
            ClusterMessage::Fetch { target, request, .. } => {
                self.send_reply(
                    &uid,
                    &ClusterMessage::Sockets { request, sockets: local.fetch_sockets(&target) },
                );
            }
            ClusterMessage::ServerSideEmit { request: Some(request), data } => {
                let (answer, answering) = (local.server_side_emit_with_ack(data), self.reply_sender(uid));
                self.peer.shared.tasks.spawn(async move {
                    let packet = await_answer(answer).await;
                    answering(&ClusterMessage::ServerSideAnswer { request, packet });
                });
            }
            message => {
                if let Some(operation) = into_operation(message) {
                    local.deliver(operation, None);
                }
            }
        }
    }

    /// An answer came on the private channel.
    fn on_reply(&self, message: ClusterMessage) {
        let (request, answer) = match message {
            ClusterMessage::Count { request, count } => (request, RequestReply::Ack(RemoteAck::Count(count))),
            ClusterMessage::Ack { request, packet } => {
                (request, RequestReply::Ack(RemoteAck::Ack(packet.unwrap_or_default())))
            }
            ClusterMessage::Sockets { request, sockets } => (request, RequestReply::Sockets(sockets)),
            ClusterMessage::ServerSideAnswer { request, packet } => (request, RequestReply::Server(packet)),
            // Questions and orders are not for a private channel.
            _ => return,
        };
        self.peer.requests.resolve(&request, answer);
    }

    /// The command that publishes a message.
    pub(crate) fn command(&self, channel: &str, message: &ClusterMessage) -> redis::Cmd {
        publish_command(
            self.kind,
            channel,
            &envelope::write(message, &self.peer.uid, &self.peer.nsp, self.dialect),
        )
    }

    fn send_reply(&self, to: &str, message: &ClusterMessage) {
        self.peer.respond(self.command(&self.channels.of(to), message));
    }

    /// The way back to a node, for a task that answers it later.
    fn reply_sender(&self, to: String) -> impl Fn(&ClusterMessage) + Send + 'static {
        let (peer, channel, kind, dialect) =
            (self.peer.clone(), self.channels.of(&to), self.kind, self.dialect);
        move |message| {
            let payload = envelope::write(message, &peer.uid, &peer.nsp, dialect);
            peer.respond(publish_command(kind, &channel, &payload));
        }
    }

    fn count(&self) -> Result<PendingReply, SendError> {
        self.peer.request_server_count(self.kind, &self.channels.main)
    }

    /// Asks all nodes on the main channel.
    fn request_all(
        &self,
        message: &ClusterMessage,
        request: String,
        flags: &BroadcastFlags,
    ) -> BoxFuture<Replies> {
        let max_wait = flags.timeout.unwrap_or(self.peer.shared.settings.request_timeout);
        self.peer.request(self.count(), request, self.command(&self.channels.main, message), max_wait)
    }

    /// Implements [`NamespaceAdapter::broadcast_with_ack`](crate::adapter::NamespaceAdapter::broadcast_with_ack).
    pub(crate) fn broadcast_with_ack(
        &self,
        data: Vec<Value>,
        target: Target,
        flags: BroadcastFlags,
    ) -> BoxFuture<Result<AckReplies, SendError>> {
        let request = hex_id();
        let heard = self.peer.requests.open_acks(&request);
        let message = ClusterMessage::Broadcast { data, request: Some(request), target, flags };
        let posted = self.peer.publish(self.command(&self.channels.main, &message));
        let count = self.count();
        Box::pin(async move {
            await_reply(posted?).await?;
            Ok(AckReplies { servers: await_count(count?).await? as usize - 1, replies: heard })
        })
    }

    /// Implements [`NamespaceAdapter::fetch_sockets`](crate::adapter::NamespaceAdapter::fetch_sockets).
    pub(crate) fn fetch_sockets(
        &self,
        target: Target,
        flags: BroadcastFlags,
    ) -> BoxFuture<Result<Vec<RemoteSocket>, RequestError>> {
        let asked = self.request_sockets(target, flags);
        Box::pin(async move { all_or_error(asked.await, into_sockets) })
    }

    fn request_sockets(&self, target: Target, flags: BroadcastFlags) -> BoxFuture<Replies> {
        let request = hex_id();
        let message = ClusterMessage::Fetch { target, flags: flags.clone(), request: request.clone() };
        self.request_all(&message, request, &flags)
    }

    /// Implements [`NamespaceAdapter::server_side_emit_with_ack`](crate::adapter::NamespaceAdapter::server_side_emit_with_ack).
    pub(crate) fn server_side_emit_with_ack(&self, data: Vec<Value>) -> BoxFuture<Answers> {
        let request = hex_id();
        let message = ClusterMessage::ServerSideEmit { request: Some(request.clone()), data };
        let asked = self.request_all(&message, request, &BroadcastFlags::default());
        Box::pin(async move { into_server_answers(asked.await) })
    }

    /// Implements [`NamespaceAdapter::server_count`](crate::adapter::NamespaceAdapter::server_count).
    pub(crate) fn server_count(&self) -> BoxFuture<Result<usize, RequestError>> {
        let count = self.count();
        Box::pin(async move { Ok(await_count(count?).await? as usize) })
    }

    /// Implements [`NamespaceAdapter::all_rooms`](crate::adapter::NamespaceAdapter::all_rooms).
    pub(crate) fn all_rooms(&self) -> BoxFuture<Result<Vec<Room>, RequestError>> {
        let asked = self.request_sockets(Target::default(), BroadcastFlags::default());
        Box::pin(async move {
            let mut rooms = all_or_error(asked.await, into_rooms)?;
            rooms.sort();
            rooms.dedup();
            Ok(rooms)
        })
    }
}

impl Drop for Messenger {
    fn drop(&mut self) {
        // Who is counted must answer, and nobody is left to.
        if tokio::runtime::Handle::try_current().is_ok() {
            drop(self.unsubscribe(&self.channels.main));
            drop(self.unsubscribe(&self.private()));
        }
    }
}

/// The operation that a message asks for, if it asks for one that wants no answer.
pub(super) fn into_operation(message: ClusterMessage) -> Option<Operation> {
    Some(match message {
        ClusterMessage::Broadcast { data, target, flags, .. } => Operation::Broadcast { data, target, flags },
        ClusterMessage::Join { target, rooms } => Operation::Join { target, rooms },
        ClusterMessage::Leave { target, rooms } => Operation::Leave { target, rooms },
        ClusterMessage::Disconnect { target, close } => Operation::Disconnect { target, close },
        ClusterMessage::ServerSideEmit { data, .. } => Operation::ServerSideEmit { data },
        _ => return None,
    })
}

/// The message of an operation.
pub(super) fn into_message(operation: Operation) -> ClusterMessage {
    match operation {
        Operation::Broadcast { data, target, flags } => {
            ClusterMessage::Broadcast { data, request: None, target, flags }
        }
        Operation::Join { target, rooms } => ClusterMessage::Join { target, rooms },
        Operation::Leave { target, rooms } => ClusterMessage::Leave { target, rooms },
        Operation::Disconnect { target, close } => ClusterMessage::Disconnect { target, close },
        Operation::ServerSideEmit { data } => ClusterMessage::ServerSideEmit { request: None, data },
    }
}
