//! What the sharded and the streams adapter say to each other on channels: envelopes on one channel for all nodes of a
//! namespace, and answers on a private one for each.

use std::sync::{Arc, Weak};

use tokio::task::JoinHandle;

use crate::adapter::{
    Acks, Flags, Local, NotSent, Operation, Pending, RemoteAck, RequestFault, Room, SocketFacts, Target,
    answered,
};
use crate::connection::{Answer, Heard, Listener, Via};
use crate::peer::{self, Peer, Shared, counted, publish, replied};
use crate::pubsub::{rooms_of, servers_answers, sockets_of, whole};
use crate::requests::{Answered, Answers, Heap};
use crate::value::Value;
use crate::wire::WireFault;
use crate::wire::envelope::{self, Channels, Dialect, Envelope, Message};

/// The channels of one namespace of this node.
pub(super) struct Ephemeral {
    /// Who speaks.
    pub peer: Arc<Peer>,
    /// Where.
    pub channels: Channels,
    /// In which way of writing.
    dialect: Dialect,
    /// By which commands.
    via: Via,
    /// How every own envelope ends.
    own_ends: [Vec<u8>; 2],
}

impl Ephemeral {
    /// Begins to listen: first on the private channel, then on the one whose subscribers are counted.
    pub fn start(
        shared: &Arc<Shared>,
        nsp: &Arc<str>,
        local: Weak<dyn Local>,
        (dialect, via): (Dialect, Via),
    ) -> Arc<Ephemeral> {
        let peer = Arc::new(Peer::new(shared, peer::hexadecimal_name(), nsp, local));
        let channels = Channels::new(&shared.settings.prefix, nsp);
        let own_ends = envelope::ends(&peer.uid, nsp);
        let ephemeral = Arc::new(Ephemeral { peer, channels, dialect, via, own_ends });
        drop(ephemeral.listen(&ephemeral.private()));
        drop(ephemeral.listen(&ephemeral.channels.main));
        ephemeral
    }

    /// Listens to a channel with envelopes on it.
    pub fn listen(self: &Arc<Self>, channel: &str) -> JoinHandle<()> {
        let ephemeral = Arc::downgrade(self);
        let listener: Listener = Arc::new(move |heard| {
            if let Some(ephemeral) = ephemeral.upgrade() {
                ephemeral.hear(heard);
            }
        });
        self.peer.listen(self.via, channel, listener)
    }

    /// Does not listen to it any more.
    pub fn forget(&self, channel: &str) -> JoinHandle<()> {
        self.peer.forget(self.via, channel)
    }

    /// Stops listening, first where it is counted.
    pub async fn close(&self) {
        let _ = self.forget(&self.channels.main).await;
        let _ = self.forget(&self.private()).await;
    }

    fn private(&self) -> String {
        self.channels.of(&self.peer.uid)
    }

    fn hear(&self, heard: Heard) {
        // What comes back of what this node said is not even read.
        if self.own_ends.iter().any(|end| heard.payload.ends_with(end)) {
            return;
        }
        match envelope::read(&heard.payload) {
            Ok(Some(envelope)) if heard.channel == self.private() => self.answered(envelope.message),
            Ok(Some(envelope)) => self.hear_envelope(envelope),
            Ok(None) => {}
            Err(WireFault::OtherKind) => self.peer.shared.is_unfit("a classic adapter was heard"),
            Err(fault) => self.peer.could_not_read(&heard.channel, &fault),
        }
    }

    /// Does what an envelope says, unless it is an own one or of another namespace.
    pub fn hear_envelope(&self, envelope: Envelope) {
        let Envelope { uid, nsp, message } = envelope;
        let Some(local) = self.peer.local.upgrade() else { return };
        if uid == self.peer.uid || *nsp != *self.peer.nsp {
            return;
        }
        match message {
            Message::Broadcast { data, request: Some(request), target, flags } => {
                let (count, acks) = local.ask(data, &target, &flags);
                self.answer(&uid, &Message::Count { request: request.clone(), count });
                let answering = self.answering(uid);
                self.peer.pass_on(acks, move |ack| {
                    answering(&Message::Ack { request: request.clone(), packet: Some(ack) });
                });
            }
            Message::Fetch { target, request, .. } => {
                self.answer(&uid, &Message::Sockets { request, sockets: local.fetch(&target) });
            }
            Message::ServerSideEmit { request: Some(request), data } => {
                let (answer, answering) = (local.ask_server(data), self.answering(uid));
                self.peer.shared.tasks.spawn(async move {
                    let packet = answered(answer).await;
                    answering(&Message::ServerSideAnswer { request, packet });
                });
            }
            message => {
                if let Some(operation) = operation(message) {
                    local.deliver(operation, None);
                }
            }
        }
    }

    /// An answer came on the private channel.
    fn answered(&self, message: Message) {
        let (request, answer) = match message {
            Message::Count { request, count } => (request, Answered::Ack(RemoteAck::Count(count))),
            Message::Ack { request, packet } => {
                (request, Answered::Ack(RemoteAck::Ack(packet.unwrap_or_default())))
            }
            Message::Sockets { request, sockets } => (request, Answered::Sockets(sockets)),
            Message::ServerSideAnswer { request, packet } => (request, Answered::Server(packet)),
            // Questions and orders are not for a private channel.
            _ => return,
        };
        self.peer.requests.answered(&request, answer);
    }

    /// The command that publishes a message.
    pub fn command(&self, channel: &str, message: &Message) -> redis::Cmd {
        publish(self.via, channel, &envelope::write(message, &self.peer.uid, &self.peer.nsp, self.dialect))
    }

    fn answer(&self, to: &str, message: &Message) {
        self.peer.answer(self.command(&self.channels.of(to), message));
    }

    /// The way back to a node, for a task that answers it later.
    fn answering(&self, to: String) -> impl Fn(&Message) + Send + 'static {
        let (peer, channel, via, dialect) =
            (self.peer.clone(), self.channels.of(&to), self.via, self.dialect);
        move |message| {
            let payload = envelope::write(message, &peer.uid, &peer.nsp, dialect);
            peer.answer(publish(via, &channel, &payload));
        }
    }

    fn count(&self) -> Result<Answer, NotSent> {
        self.peer.post_count(self.via, &self.channels.main)
    }

    /// Asks all nodes on the main channel.
    fn question(&self, message: &Message, request: String, flags: &Flags) -> Pending<Heap> {
        let patience = flags.timeout.unwrap_or(self.peer.shared.settings.request_timeout);
        self.peer.ask(self.count(), request, self.command(&self.channels.main, message), patience)
    }

    /// See [`crate::adapter::Adapter::ask`].
    pub fn ask(&self, data: Vec<Value>, target: Target, flags: Flags) -> Pending<Result<Acks, NotSent>> {
        let request = peer::hexadecimal_name();
        let heard = self.peer.requests.open_acks(&request);
        let message = Message::Broadcast { data, request: Some(request), target, flags };
        let posted = self.peer.post(self.command(&self.channels.main, &message));
        let count = self.count();
        Box::pin(async move {
            replied(posted?).await?;
            Ok(Acks { nodes: counted(count?).await? as usize - 1, heard })
        })
    }

    /// See [`crate::adapter::Adapter::fetch`].
    pub fn fetch(&self, target: Target, flags: Flags) -> Pending<Result<Vec<SocketFacts>, RequestFault>> {
        let asked = self.fetched(target, flags);
        Box::pin(async move { whole(asked.await, sockets_of) })
    }

    fn fetched(&self, target: Target, flags: Flags) -> Pending<Heap> {
        let request = peer::hexadecimal_name();
        let message = Message::Fetch { target, flags: flags.clone(), request: request.clone() };
        self.question(&message, request, &flags)
    }

    /// See [`crate::adapter::Adapter::ask_servers`].
    pub fn ask_servers(&self, data: Vec<Value>) -> Pending<Answers> {
        let request = peer::hexadecimal_name();
        let message = Message::ServerSideEmit { request: Some(request.clone()), data };
        let asked = self.question(&message, request, &Flags::default());
        Box::pin(async move { servers_answers(asked.await) })
    }

    /// See [`crate::adapter::Adapter::servers`].
    pub fn servers(&self) -> Pending<Result<usize, RequestFault>> {
        let count = self.count();
        Box::pin(async move { Ok(counted(count?).await? as usize) })
    }

    /// See [`crate::adapter::Adapter::rooms`].
    pub fn rooms(&self) -> Pending<Result<Vec<Room>, RequestFault>> {
        let asked = self.fetched(Target::default(), Flags::default());
        Box::pin(async move {
            let mut rooms = whole(asked.await, rooms_of)?;
            rooms.sort();
            rooms.dedup();
            Ok(rooms)
        })
    }
}

impl Drop for Ephemeral {
    fn drop(&mut self) {
        // Who is counted must answer, and nobody is left to.
        if tokio::runtime::Handle::try_current().is_ok() {
            drop(self.forget(&self.channels.main));
            drop(self.forget(&self.private()));
        }
    }
}

/// The operation that a message asks for, if it asks for one that wants no answer.
pub(super) fn operation(message: Message) -> Option<Operation> {
    Some(match message {
        Message::Broadcast { data, target, flags, .. } => Operation::Broadcast { data, target, flags },
        Message::Join { target, rooms } => Operation::Join { target, rooms },
        Message::Leave { target, rooms } => Operation::Leave { target, rooms },
        Message::Disconnect { target, close } => Operation::Disconnect { target, close },
        Message::ServerSideEmit { data, .. } => Operation::ServerSideEmit { data },
        _ => return None,
    })
}

/// The message of an operation.
pub(super) fn message(operation: Operation) -> Message {
    match operation {
        Operation::Broadcast { data, target, flags } => {
            Message::Broadcast { data, request: None, target, flags }
        }
        Operation::Join { target, rooms } => Message::Join { target, rooms },
        Operation::Leave { target, rooms } => Message::Leave { target, rooms },
        Operation::Disconnect { target, close } => Message::Disconnect { target, close },
        Operation::ServerSideEmit { data } => Message::ServerSideEmit { request: None, data },
    }
}
