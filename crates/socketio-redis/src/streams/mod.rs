//! As `@socket.io/redis-streams-adapter` 0.3: broadcasts, joins, leaves and disconnects are entries of a stream, which a
//! node that was away reads on; questions and answers go over channels.
//!
//! Own broadcasts are delivered when they are read back, not when they were written. So the clients of all nodes see one
//! order, and the last offset that a client saw says everything that it saw. Peers notice nothing of it.

use std::sync::{Arc, Weak};

use crate::adapter::{
    Acks, Adapter, Flags, Local, NotSent, Offset, Operation, Pending, Replay, RequestFault, Room, Session,
    SocketFacts, Target,
};
use crate::connection::{RedisFault, Via};
use crate::ephemeral::{self, Ephemeral};
use crate::peer::{Shared, not_sent, replied};
use crate::settings::Streams as Settings;
use crate::value::Value;
use crate::wire::entry;
use crate::wire::envelope::{Dialect, Envelope, Message};

mod history;
mod own;
mod reader;
mod recovery;
mod tail;

use own::Own;

pub(super) use reader::Readers;

/// One namespace of this node among streams adapters.
pub(super) struct Streams {
    ephemeral: Arc<Ephemeral>,
    settings: Settings,
    /// The stream that the namespace is written to.
    stream: Arc<str>,
    /// Its reader: what is written before it has found its place would not be read back.
    readers: Arc<Readers>,
    /// Own broadcasts on their way through Redis.
    own: Arc<Own>,
}

impl Streams {
    /// Begins to listen.
    pub fn start(
        shared: &Arc<Shared>,
        nsp: &Arc<str>,
        local: Weak<dyn Local>,
        (settings, readers): (&Settings, &Arc<Readers>),
    ) -> Arc<Streams> {
        let via = if settings.sharded_pubsub { Via::Shard } else { Via::Channel };
        let ephemeral = Ephemeral::start(shared, nsp, local, (Dialect::Streams, via));
        let stream = entry::stream_of(&settings.name, nsp, settings.count).into();
        let adapter = Arc::new(Streams {
            ephemeral,
            settings: settings.clone(),
            stream,
            readers: readers.clone(),
            own: Arc::default(),
        });
        readers.add(nsp, &adapter);
        adapter
    }

    /// Stops listening.
    pub async fn close(&self) {
        self.ephemeral.close().await;
    }

    /// An entry of this namespace was read.
    fn read(&self, envelope: Envelope, fields_hash: u64, offset: &Offset) {
        let is_own = envelope.uid == self.ephemeral.peer.uid;
        match envelope.message {
            Message::Broadcast { data, request: None, target, flags } => {
                // The hub has delivered it already if it was told that it could not be sent.
                if is_own && !self.own.was_read(fields_hash, offset) {
                    return;
                }
                if let Some(local) = self.ephemeral.peer.local.upgrade() {
                    local.deliver(Operation::Broadcast { data, target, flags }, Some(offset.clone()));
                }
            }
            message if !is_own => self.ephemeral.hear_envelope(Envelope { message, ..envelope }),
            _ => {}
        }
    }

    fn add(&self, message: &Message) -> (redis::Cmd, u64) {
        let (uid, nsp) = (&self.ephemeral.peer.uid, &self.ephemeral.peer.nsp);
        let fields = entry::fields(message, uid, nsp, self.settings.only_plaintext);
        let mut command = redis::cmd("XADD");
        command.arg(&*self.stream).arg("MAXLEN").arg("~").arg(self.settings.max_len).arg("*");
        for (field, text) in &fields {
            command.arg(*field).arg(text);
        }
        (command, own::hash(fields[3].1.as_bytes()))
    }

    /// Writes a broadcast, and follows it whether anybody waits or not.
    fn broadcast(&self, message: &Message) -> Pending<Result<Option<Offset>, NotSent>> {
        if !self.readers.is_in_place(&self.stream) {
            self.ephemeral.peer.shared.metrics.record_unpublished();
            return Box::pin(std::future::ready(Err(NotSent::Away)));
        }
        let (command, hash) = self.add(message);
        // Before it is handed over, so that it cannot be read before it is known.
        self.own.is_sent(hash);
        let (posted, own) = (self.ephemeral.peer.post(command), self.own.clone());
        let following = self.ephemeral.peer.shared.tasks.spawn(async move {
            let answer = match posted {
                Err(fault) => Err(fault),
                Ok(answer) => match answer.await {
                    Ok(Ok(id)) => Ok(redis::from_redis_value::<String>(id).map(Offset::from).ok()),
                    // It may be in the stream all the same.
                    Ok(Err(RedisFault::Unknown(_))) => {
                        return own.was_given_up(hash).map(Some).ok_or(NotSent::Away);
                    }
                    Ok(Err(fault)) => Err(not_sent(&fault)),
                    Err(_) => Err(NotSent::Away),
                },
            };
            own.is_answered(hash);
            answer
        });
        Box::pin(async move { following.await.unwrap_or(Err(NotSent::Away)) })
    }
}

impl Adapter for Streams {
    fn send(&self, operation: Operation) -> Pending<Result<Option<Offset>, NotSent>> {
        let message = ephemeral::message(operation);
        let command = match &message {
            Message::Broadcast { .. } => return self.broadcast(&message),
            Message::ServerSideEmit { .. } => self.ephemeral.command(&self.ephemeral.channels.main, &message),
            _ => self.add(&message).0,
        };
        let posted = self.ephemeral.peer.post(command);
        Box::pin(async move { replied(posted?).await.map(|_| None) })
    }

    fn ask(&self, data: Vec<Value>, target: Target, flags: Flags) -> Pending<Result<Acks, NotSent>> {
        self.ephemeral.ask(data, target, flags)
    }

    fn fetch(&self, target: Target, flags: Flags) -> Pending<Result<Vec<SocketFacts>, RequestFault>> {
        self.ephemeral.fetch(target, flags)
    }

    fn ask_servers(&self, data: Vec<Value>) -> Pending<Result<Vec<Value>, (RequestFault, Vec<Value>)>> {
        self.ephemeral.ask_servers(data)
    }

    fn servers(&self) -> Pending<Result<usize, RequestFault>> {
        self.ephemeral.servers()
    }

    fn rooms(&self) -> Pending<Result<Vec<Room>, RequestFault>> {
        self.ephemeral.rooms()
    }

    fn room_opened(&self, _: &Room) -> Pending<()> {
        Box::pin(std::future::ready(()))
    }

    fn room_emptied(&self, _: &Room) {}

    fn save_session(&self, session: Session) -> Pending<Result<(), NotSent>> {
        recovery::save(&self.ephemeral.peer, &self.settings, &session)
    }

    fn find_session(&self, pid: &str, offset: &str) -> Pending<Option<Box<dyn Replay>>> {
        recovery::find(self, pid, offset)
    }

    fn forget_session(&self, pid: &str) -> Pending<()> {
        recovery::forget(&self.ephemeral.peer, &self.settings, pid)
    }
}
