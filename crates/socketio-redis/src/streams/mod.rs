//! As `@socket.io/redis-streams-adapter` 0.3: broadcasts, joins, leaves and disconnects are entries of a stream, which a
//! node that was away reads on; questions and answers go over channels.
//!
//! Own broadcasts are delivered when they are read back, not when they were written. So the clients of all nodes see one
//! order, and the last offset that a client saw says everything that it saw. Peers notice nothing of it.

use std::sync::{Arc, Weak};

use crate::adapter::{
    AckReplies, BoxFuture, BroadcastFlags, LocalNamespace, NamespaceAdapter, Offset, Operation, RemoteSocket,
    RequestError, Room, SendError, Session, SessionReplay, Target,
};
use crate::connection::{CommandError, SubscriptionKind};
use crate::ephemeral::{self, Messenger};
use crate::peer::{AdapterContext, await_reply, send_error};
use crate::settings::StreamsSettings as Settings;
use crate::value::Value;
use crate::wire::entry;
use crate::wire::envelope::{ClusterMessage, Dialect, Envelope};

mod history;
mod own;
mod reader;
mod recovery;
mod tail;

use own::OwnBroadcasts;

pub(super) use reader::StreamReaders;

/// One namespace of this node among streams adapters.
pub(super) struct StreamsAdapter {
    ephemeral: Arc<Messenger>,
    settings: Settings,
    /// The stream that the namespace is written to.
    stream: Arc<str>,
    /// Its reader: what is written before it has found its place would not be read back.
    readers: Arc<StreamReaders>,
    /// Own broadcasts on their way through Redis.
    own_broadcasts: Arc<OwnBroadcasts>,
}

impl StreamsAdapter {
    /// Begins to listen.
    pub fn start(
        shared: &Arc<AdapterContext>,
        nsp: &Arc<str>,
        local: Weak<dyn LocalNamespace>,
        (settings, readers): (&Settings, &Arc<StreamReaders>),
    ) -> Arc<StreamsAdapter> {
        let via = if settings.sharded_pubsub { SubscriptionKind::Shard } else { SubscriptionKind::Channel };
        let ephemeral = Messenger::start(shared, nsp, local, (Dialect::Streams, via));
        let stream = entry::stream_of(&settings.name, nsp, settings.stream_count).into();
        let adapter = Arc::new(StreamsAdapter {
            ephemeral,
            settings: settings.clone(),
            stream,
            readers: readers.clone(),
            own_broadcasts: Arc::default(),
        });
        readers.register(nsp, &adapter);
        adapter
    }

    /// Stops listening.
    pub async fn close(&self) {
        self.ephemeral.close().await;
    }

    /// An entry of this namespace was read.
    fn on_entry(&self, envelope: Envelope, fields_hash: u64, offset: &Offset) {
        let is_own = envelope.uid == self.ephemeral.peer.uid;
        match envelope.message {
            ClusterMessage::Broadcast { data, request: None, target, flags } => {
                // The hub has delivered it already if it was told that it could not be sent.
                if is_own && !self.own_broadcasts.record_read(fields_hash, offset) {
                    return;
                }
                if let Some(local) = self.ephemeral.peer.local.upgrade() {
                    local.deliver(Operation::Broadcast { data, target, flags }, Some(offset.clone()));
                }
            }
            message if !is_own => self.ephemeral.on_envelope(Envelope { message, ..envelope }),
            _ => {}
        }
    }

    fn add_command(&self, message: &ClusterMessage) -> (redis::Cmd, u64) {
        let (uid, nsp) = (&self.ephemeral.peer.uid, &self.ephemeral.peer.nsp);
        let fields = entry::fields(message, uid, nsp, self.settings.only_plaintext);
        let mut command = redis::cmd("XADD");
        command.arg(&*self.stream).arg("MAXLEN").arg("~").arg(self.settings.max_len).arg("*");
        for (field, text) in &fields {
            command.arg(*field).arg(text);
        }
        (command, own::content_hash(fields[3].1.as_bytes()))
    }

    /// Writes a broadcast, and follows it whether anybody waits or not.
    fn broadcast(&self, message: &ClusterMessage) -> BoxFuture<Result<Option<Offset>, SendError>> {
        if !self.readers.has_position(&self.stream) {
            self.ephemeral.peer.shared.metrics.record_unpublished();
            return Box::pin(std::future::ready(Err(SendError::Unreachable)));
        }
        let (command, hash) = self.add_command(message);
        // Before it is handed over, so that it cannot be read before it is known.
        self.own_broadcasts.record_sent(hash);
        let (posted, own) = (self.ephemeral.peer.publish(command), self.own_broadcasts.clone());
        let following = self.ephemeral.peer.shared.tasks.spawn(async move {
            let answer = match posted {
                Err(fault) => Err(fault),
                Ok(answer) => match answer.await {
                    Ok(Ok(id)) => Ok(redis::from_redis_value::<String>(id).map(Offset::from).ok()),
                    // It may be in the stream all the same.
                    Ok(Err(CommandError::Unknown(_))) => {
                        return own.give_up(hash).map(Some).ok_or(SendError::Unreachable);
                    }
                    Ok(Err(fault)) => Err(send_error(&fault)),
                    Err(_) => Err(SendError::Unreachable),
                },
            };
            own.record_answered(hash);
            answer
        });
        Box::pin(async move { following.await.unwrap_or(Err(SendError::Unreachable)) })
    }
}

impl NamespaceAdapter for StreamsAdapter {
    fn send(&self, operation: Operation) -> BoxFuture<Result<Option<Offset>, SendError>> {
        let message = ephemeral::into_message(operation);
        let command = match &message {
            ClusterMessage::Broadcast { .. } => return self.broadcast(&message),
            ClusterMessage::ServerSideEmit { .. } => {
                self.ephemeral.command(&self.ephemeral.channels.main, &message)
            }
            _ => self.add_command(&message).0,
        };
        let posted = self.ephemeral.peer.publish(command);
        Box::pin(async move { await_reply(posted?).await.map(|_| None) })
    }

    fn broadcast_with_ack(
        &self,
        data: Vec<Value>,
        target: Target,
        flags: BroadcastFlags,
    ) -> BoxFuture<Result<AckReplies, SendError>> {
        self.ephemeral.broadcast_with_ack(data, target, flags)
    }

    fn fetch_sockets(
        &self,
        target: Target,
        flags: BroadcastFlags,
    ) -> BoxFuture<Result<Vec<RemoteSocket>, RequestError>> {
        self.ephemeral.fetch_sockets(target, flags)
    }

    fn server_side_emit_with_ack(
        &self,
        data: Vec<Value>,
    ) -> BoxFuture<Result<Vec<Value>, (RequestError, Vec<Value>)>> {
        self.ephemeral.server_side_emit_with_ack(data)
    }

    fn server_count(&self) -> BoxFuture<Result<usize, RequestError>> {
        self.ephemeral.server_count()
    }

    fn all_rooms(&self) -> BoxFuture<Result<Vec<Room>, RequestError>> {
        self.ephemeral.all_rooms()
    }

    fn create_room(&self, _: &Room) -> BoxFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn delete_room(&self, _: &Room) {}

    fn persist_session(&self, session: Session) -> BoxFuture<Result<(), SendError>> {
        recovery::persist(&self.ephemeral.peer, &self.settings, &session)
    }

    fn find_session(&self, pid: &str, offset: &str) -> BoxFuture<Option<Box<dyn SessionReplay>>> {
        recovery::find(self, pid, offset)
    }

    fn delete_session(&self, pid: &str) -> BoxFuture<()> {
        recovery::delete(&self.ephemeral.peer, &self.settings, pid)
    }
}
