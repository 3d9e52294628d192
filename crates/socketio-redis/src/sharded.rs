//! As `@socket.io/redis-adapter` 8.3, `createShardedAdapter`: SPUBLISH and SSUBSCRIBE, so that a Redis Cluster carries
//! each channel on one shard only. Rooms have channels of their own, which a node subscribes to while it has a member.

use std::sync::{Arc, Weak};

use crate::adapter::{
    Acks, Adapter, Flags, Local, NotSent, Offset, Operation, Pending, Replay, RequestFault, Room, Session,
    SocketFacts, Target,
};
use crate::connection::Via;
use crate::ephemeral::{Ephemeral, message};
use crate::peer::{Shared, replied};
use crate::settings::Mode;
use crate::value::Value;
use crate::wire::envelope::{Dialect, Message};

/// UTF-16 units of a socket's id. Senders in the dynamic mode take every name of that length for one.
const ID_UNITS: usize = 20;

/// One namespace of this node among sharded adapters.
pub(super) struct Sharded {
    ephemeral: Arc<Ephemeral>,
    mode: Mode,
}

impl Sharded {
    /// Begins to listen.
    pub fn start(shared: &Arc<Shared>, nsp: &Arc<str>, local: Weak<dyn Local>, mode: Mode) -> Arc<Sharded> {
        let ephemeral = Ephemeral::start(shared, nsp, local, (Dialect::Sharded, Via::Shard));
        Arc::new(Sharded { ephemeral, mode })
    }

    /// Stops listening.
    pub async fn close(&self) {
        self.ephemeral.close().await;
    }

    /// The channel of a room, if it has one of its own. A room whose name is as long as an id has one in Node.js too, but
    /// nobody sends to it.
    fn channel(&self, room: &Room) -> Option<String> {
        let has_one = match self.mode {
            Mode::Static => false,
            Mode::DynamicPrivate => true,
            Mode::Dynamic => room.name.encode_utf16().count() != ID_UNITS,
        };
        has_one.then(|| self.ephemeral.channels.of(&room.name))
    }

    fn channel_of(&self, message: &Message) -> String {
        let room = match message {
            Message::Broadcast { target, request: None, .. } => match &*target.rooms {
                [room] => self.channel(room),
                _ => None,
            },
            _ => None,
        };
        room.unwrap_or_else(|| self.ephemeral.channels.main.clone())
    }
}

impl Adapter for Sharded {
    fn send(&self, operation: Operation) -> Pending<Result<Option<Offset>, NotSent>> {
        let message = message(operation);
        let command = self.ephemeral.command(&self.channel_of(&message), &message);
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

    fn room_opened(&self, room: &Room) -> Pending<()> {
        match self.channel(room) {
            None => Box::pin(std::future::ready(())),
            Some(channel) => {
                let confirmed = self.ephemeral.listen(&channel);
                Box::pin(async move { drop(confirmed.await) })
            }
        }
    }

    fn room_emptied(&self, room: &Room) {
        if let Some(channel) = self.channel(room) {
            drop(self.ephemeral.forget(&channel));
        }
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
