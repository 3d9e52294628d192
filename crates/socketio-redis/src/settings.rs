//! What can be set of a bus through Redis, with the defaults of the Node.js packages.

use std::sync::Arc;
use std::time::Duration;

/// Which adapter's formats are spoken.
#[derive(Debug, Clone, PartialEq)]
pub enum AdapterKind {
    /// `@socket.io/redis-adapter`, `createAdapter`.
    Classic,
    /// Its `createShardedAdapter`.
    Sharded(SubscriptionMode),
    /// `@socket.io/redis-streams-adapter` 0.3.
    Streams(StreamsSettings),
}

/// Which rooms have a channel of their own in the sharded adapter. All nodes must have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SubscriptionMode {
    /// Those whose names do not look like a socket's id.
    #[default]
    Dynamic,
    /// All of them.
    DynamicPrivate,
    /// None.
    Static,
}

/// What can be set of the streams adapter. All nodes must have the same names and count.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamsSettings {
    /// The stream's name, or what the names of several begin with.
    pub name: Arc<str>,
    /// How many streams the namespaces are spread over.
    pub stream_count: u32,
    /// Entries that a stream keeps, roughly.
    pub max_len: u64,
    /// Entries that are read at once.
    pub read_count: u32,
    /// How long a read waits for the next entry.
    pub block: Duration,
    /// Bytes are flattened into JSON.
    pub only_plaintext: bool,
    /// Ephemeral messages go through sharded channels.
    pub sharded_pubsub: bool,
    /// What the keys of sessions begin with.
    pub session_prefix: Arc<str>,
    /// How long a client may take to come back; none if sessions are not kept.
    pub recovery: Option<Duration>,
}

impl Default for StreamsSettings {
    fn default() -> Self {
        Self {
            name: "socket.io".into(),
            stream_count: 1,
            max_len: 10_000,
            read_count: 100,
            block: Duration::from_secs(5),
            only_plaintext: false,
            sharded_pubsub: false,
            session_prefix: "sio:session:".into(),
            recovery: Some(Duration::from_secs(120)),
        }
    }
}

/// What can be set of a bus.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSettings {
    /// Which adapter's formats.
    pub kind: AdapterKind,
    /// What the names of channels begin with: `key` and `channelPrefix` of the packages.
    pub channel_prefix: Arc<str>,
    /// How long the answers of other nodes are waited for.
    pub request_timeout: Duration,
    /// How long Redis may take to answer.
    pub response_timeout: Duration,
}

impl AdapterSettings {
    /// The defaults of an adapter.
    pub fn new(kind: AdapterKind) -> AdapterSettings {
        AdapterSettings {
            kind,
            channel_prefix: "socket.io".into(),
            request_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(2),
        }
    }
}
