//! How a node meets the others: the settings of its adapter, of Redis and of presence.

use std::fmt;
use std::time::Duration;

use socketio_redis::client::RedisAddress;
use socketio_redis::settings::{self, AdapterSettings, StreamsSettings, SubscriptionMode};

/// How the node meets the others.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// Where they meet; `None` with [`AdapterKind::Memory`].
    pub redis: Option<RedisPlace>,
    /// How broadcasts travel.
    pub adapter: AdapterKind,
    /// Of the channels.
    pub prefix: String,
    /// Of the streams adapter.
    pub stream_name: String,
    /// Over how many streams the namespaces spread.
    pub stream_count: u32,
    /// About how many entries a stream keeps.
    pub stream_max_len: u64,
    /// The most entries of one read.
    pub read_count: u32,
    /// The streams adapter's questions and answers go over sharded channels.
    pub sharded_pubsub: bool,
    /// Which rooms have a channel of their own in the sharded adapter.
    pub subscription_mode: SubscriptionMode,
    /// How long a lost session may be recovered; `None`: it may not.
    pub recovery: Option<Duration>,
    /// Of the presence keys.
    pub presence_prefix: String,
    /// After how long the presence of a silent node is removed.
    pub presence_lease: Duration,
}

impl ClusterSettings {
    /// How the node speaks through Redis; `None` where its adapter needs none.
    pub(crate) fn adapter_settings(&self) -> Option<AdapterSettings> {
        let kind = match self.adapter {
            AdapterKind::Memory => return None,
            AdapterKind::Pubsub => settings::AdapterKind::Classic,
            AdapterKind::Sharded => settings::AdapterKind::Sharded(self.subscription_mode),
            AdapterKind::Streams => settings::AdapterKind::Streams(StreamsSettings {
                name: self.stream_name.as_str().into(),
                stream_count: self.stream_count,
                max_len: self.stream_max_len,
                read_count: self.read_count,
                recovery: self.recovery,
                sharded_pubsub: self.sharded_pubsub,
                ..StreamsSettings::default()
            }),
        };
        Some(AdapterSettings { channel_prefix: self.prefix.as_str().into(), ..AdapterSettings::new(kind) })
    }
}

/// How broadcasts travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterKind {
    /// Within the process.
    Memory,
    /// As `@socket.io/redis-streams-adapter`.
    Streams,
    /// As `@socket.io/redis-adapter`, `createAdapter`.
    Pubsub,
    /// As `@socket.io/redis-adapter`, `createShardedAdapter`.
    Sharded,
}

impl AdapterKind {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Streams => "streams",
            Self::Pubsub => "pubsub",
            Self::Sharded => "sharded",
        }
    }
}

/// What `--redis` says. It may hold a password, so it is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(pub(super) String);

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisUrl(hidden)")
    }
}

/// Where Redis is, shown without its password.
#[derive(Clone)]
pub struct RedisPlace(pub RedisAddress);

impl fmt::Debug for RedisPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisPlace({})", self.0.name())
    }
}
