//! As `@socket.io/redis-streams-adapter` 0.3: broadcasts, joins, leaves and disconnects are entries of a stream, which a
//! node that was away reads on; questions and answers go over channels.
//!
//! Own broadcasts are delivered when they are read back, not when they were written. So the clients of all nodes see one
//! order, and the last offset that a client saw says everything that it saw. Peers notice nothing of it.

use std::sync::{Arc, Weak};

use crate::adapter::{
    BoxFuture, LocalNamespace, NamespaceAdapter, Offset, Operation, SendError, Session, SessionReplay,
};
use crate::client::{CommandError, SubscriptionKind};
use crate::messenger::{Messenger, forward_requests, into_message};
use crate::peer::{AdapterContext, await_reply, send_error};
use crate::settings::StreamsSettings as Settings;
use crate::wire::WireError;
use crate::wire::entry;
use crate::wire::envelope::{ClusterMessage, Dialect, Envelope};

mod history;
mod own_broadcasts;
mod reader;
mod recovery;
mod tail;

use own_broadcasts::OwnBroadcasts;
use recovery::ReplaySource;

use reader::EntryHandler;

pub(super) use reader::StreamReaders;

/// One namespace of this node among streams adapters.
pub(super) struct StreamsAdapter {
    messenger: Arc<Messenger>,
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
    pub(crate) fn start(
        shared: &Arc<AdapterContext>,
        nsp: &Arc<str>,
        local: Weak<dyn LocalNamespace>,
        settings: &Settings,
        readers: &Arc<StreamReaders>,
    ) -> Arc<StreamsAdapter> {
        let kind = if settings.sharded_pubsub { SubscriptionKind::Shard } else { SubscriptionKind::Channel };
        let messenger = Messenger::start(shared, nsp, local, Dialect::Streams, kind);
        let stream = entry::stream_of(&settings.name, nsp, settings.stream_count).into();
        let adapter = Arc::new(StreamsAdapter {
            messenger,
            settings: settings.clone(),
            stream,
            readers: readers.clone(),
            own_broadcasts: Arc::default(),
        });
        let handler: Weak<dyn EntryHandler> = Arc::downgrade(&(adapter.clone() as Arc<dyn EntryHandler>));
        readers.register(nsp, handler);
        adapter
    }

    fn add_command(&self, message: &ClusterMessage) -> (redis::Cmd, u64) {
        let (uid, nsp) = (&self.messenger.peer.uid, &self.messenger.peer.nsp);
        let fields = entry::fields(message, uid, nsp, self.settings.only_plaintext);
        let mut command = redis::cmd("XADD");
        command.arg(&*self.stream).arg("MAXLEN").arg("~").arg(self.settings.max_len).arg("*");
        for (field, text) in &fields {
            command.arg(*field).arg(text);
        }
        (command, own_broadcasts::content_hash(fields[3].1.as_bytes()))
    }

    /// Writes a broadcast, and follows it whether anybody waits or not.
    fn broadcast(&self, message: &ClusterMessage) -> BoxFuture<Result<Option<Offset>, SendError>> {
        if !self.readers.has_position(&self.stream) {
            self.messenger.peer.shared.metrics.record_unpublished();
            return Box::pin(std::future::ready(Err(SendError::Unreachable)));
        }
        let (command, hash) = self.add_command(message);
        // Before it is handed over, so that it cannot be read before it is known.
        self.own_broadcasts.record_sent(hash);
        let (posted, own) = (self.messenger.peer.publish(command), self.own_broadcasts.clone());
        let following = self.messenger.peer.shared.tasks.spawn(async move {
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

impl EntryHandler for StreamsAdapter {
    fn apply_entry(&self, envelope: Envelope, hash: u64, offset: &Offset) {
        let is_own = envelope.uid == self.messenger.peer.uid;
        match envelope.message {
            ClusterMessage::Broadcast { data, request: None, target, flags } => {
                // The hub has delivered it already if it was told that it could not be sent.
                if is_own && !self.own_broadcasts.record_read(hash, offset) {
                    return;
                }
                if let Some(local) = self.messenger.peer.local.upgrade() {
                    local.deliver(Operation::Broadcast { data, target, flags }, Some(offset.clone()));
                }
            }
            message if !is_own => self.messenger.on_envelope(Envelope { message, ..envelope }),
            _ => {}
        }
    }

    fn report_unreadable(&self, error: &WireError) {
        self.messenger.peer.report_unreadable("stream", error);
    }
}

impl NamespaceAdapter for StreamsAdapter {
    fn send(&self, operation: Operation) -> BoxFuture<Result<Option<Offset>, SendError>> {
        let message = into_message(operation);
        let command = match &message {
            ClusterMessage::Broadcast { .. } => return self.broadcast(&message),
            ClusterMessage::ServerSideEmit { .. } => {
                self.messenger.command(&self.messenger.channels.main, &message)
            }
            _ => self.add_command(&message).0,
        };
        let posted = self.messenger.peer.publish(command);
        Box::pin(async move { await_reply(posted?).await.map(|_| None) })
    }

    forward_requests!(messenger);

    fn persist_session(&self, session: Session) -> BoxFuture<Result<(), SendError>> {
        recovery::persist(&self.messenger.peer, &self.settings, &session)
    }

    fn find_session(&self, pid: &str, offset: &str) -> BoxFuture<Option<Box<dyn SessionReplay>>> {
        let source = ReplaySource::new(&self.messenger.peer, &self.readers, &self.stream);
        recovery::find(source, &self.settings, pid, offset)
    }

    fn delete_session(&self, pid: &str) -> BoxFuture<()> {
        recovery::delete(&self.messenger.peer, &self.settings, pid)
    }

    fn close(&self) -> BoxFuture<()> {
        let messenger = self.messenger.clone();
        Box::pin(async move { messenger.close().await })
    }
}
