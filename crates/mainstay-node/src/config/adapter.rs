//! The settings of the adapter, from what the flags say.

use socketio_redis::settings::{Kind, Settings, Streams};

use super::{AdapterKind, ClusterSettings};

impl ClusterSettings {
    /// How the node speaks through Redis; `None` where its adapter needs none.
    pub fn adapter_settings(&self) -> Option<Settings> {
        let kind = match self.adapter {
            AdapterKind::Memory => return None,
            AdapterKind::Pubsub => Kind::Pubsub,
            AdapterKind::Sharded => Kind::Sharded(self.subscription_mode),
            AdapterKind::Streams => Kind::Streams(Streams {
                name: self.stream_name.as_str().into(),
                count: self.stream_count,
                max_len: self.stream_max_len,
                read_count: self.read_count,
                recovery: self.recovery,
                sharded_pubsub: self.sharded_pubsub,
                ..Streams::default()
            }),
        };
        Some(Settings { prefix: self.prefix.as_str().into(), ..Settings::new(kind) })
    }
}
