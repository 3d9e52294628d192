//! As `@socket.io/redis-adapter` 8.3, `createShardedAdapter`: SPUBLISH and SSUBSCRIBE, so that a Redis Cluster carries
//! each channel on one shard only. Rooms have channels of their own, which a node subscribes to while it has a member.

use std::sync::{Arc, Weak};

use crate::adapter::{BoxFuture, LocalNamespace, NamespaceAdapter, Offset, Operation, Room, SendError};
use crate::client::SubscriptionKind;
use crate::messenger::{Messenger, forward_requests, into_message};
use crate::peer::{AdapterContext, await_reply};
use crate::settings::SubscriptionMode;
use crate::wire::envelope::{ClusterMessage, Dialect};

/// UTF-16 units of a socket's id. Senders in the dynamic mode take every name of that length for one.
const ID_UNITS: usize = 20;

/// One namespace of this node among sharded adapters.
pub(super) struct ShardedAdapter {
    messenger: Arc<Messenger>,
    mode: SubscriptionMode,
}

impl ShardedAdapter {
    /// Begins to listen.
    pub(crate) fn start(
        shared: &Arc<AdapterContext>,
        nsp: &Arc<str>,
        local: Weak<dyn LocalNamespace>,
        mode: SubscriptionMode,
    ) -> Arc<ShardedAdapter> {
        let messenger = Messenger::start(shared, nsp, local, Dialect::Sharded, SubscriptionKind::Shard);
        Arc::new(ShardedAdapter { messenger, mode })
    }

    /// The channel of a room, if it has one of its own. A room whose name is as long as an id has one in Node.js too, but
    /// nobody sends to it.
    fn room_channel(&self, room: &Room) -> Option<String> {
        let has_one = match self.mode {
            SubscriptionMode::Static => false,
            SubscriptionMode::DynamicPrivate => true,
            SubscriptionMode::Dynamic => room.name.encode_utf16().count() != ID_UNITS,
        };
        has_one.then(|| self.messenger.channels.of(&room.name))
    }

    fn target_channel(&self, message: &ClusterMessage) -> String {
        let room = match message {
            ClusterMessage::Broadcast { target, request: None, .. } => match &*target.rooms {
                [room] => self.room_channel(room),
                _ => None,
            },
            _ => None,
        };
        room.unwrap_or_else(|| self.messenger.channels.main.clone())
    }
}

impl NamespaceAdapter for ShardedAdapter {
    fn send(&self, operation: Operation) -> BoxFuture<Result<Option<Offset>, SendError>> {
        let message = into_message(operation);
        let command = self.messenger.command(&self.target_channel(&message), &message);
        let posted = self.messenger.peer.publish(command);
        Box::pin(async move { await_reply(posted?).await.map(|_| None) })
    }

    forward_requests!(messenger);

    fn create_room(&self, room: &Room) -> BoxFuture<()> {
        match self.room_channel(room) {
            None => Box::pin(std::future::ready(())),
            Some(channel) => {
                let confirmed = self.messenger.subscribe(&channel);
                Box::pin(async move { drop(confirmed.await) })
            }
        }
    }

    fn delete_room(&self, room: &Room) {
        if let Some(channel) = self.room_channel(room) {
            drop(self.messenger.unsubscribe(&channel));
        }
    }

    fn close(&self) -> BoxFuture<()> {
        let messenger = self.messenger.clone();
        Box::pin(async move { messenger.close().await })
    }
}
