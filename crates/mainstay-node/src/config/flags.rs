//! The node's command line: each knob as it is written, with its default and its environment variable.
//!
//! Values are read here (a duration, a size, a name); what only makes sense together is checked in
//! [`super::NodeSettings::resolve`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::cluster::{AdapterKind, RedisUrl};
use super::read;
use crate::auth::JwtAlgorithm;
use socketio_redis::settings::SubscriptionMode;

/// All flags of a node.
#[derive(Debug, Clone, Args)]
pub struct NodeFlags {
    /// The node's name in answers, presence and metrics; each node of a fleet has its own
    #[arg(long, env = "MAINSTAY_NODE_ID", value_name = "NAME", value_parser = read::id)]
    pub id: String,
    /// Where to listen; port 0 is a free one
    #[arg(long, env = "MAINSTAY_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:3001")]
    pub listen: SocketAddr,
    /// Share the port with other processes of this user (SO_REUSEPORT): the kernel spreads new connections over them
    #[arg(long)]
    pub reuse_port: bool,
    /// The release that runs, told to the balancer (X-Mainstay-Release)
    #[arg(long, env = "MAINSTAY_RELEASE", value_name = "NAME", value_parser = read::id)]
    pub release: Option<String>,
    /// Serve the chat page on `/`
    #[arg(long)]
    pub page: bool,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would be the help of the whole command")]
    pub cluster: ClusterFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would be the help of the whole command")]
    pub clients: ClientFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment here would be the help of the whole command")]
    pub auth: AuthFlags,
}

/// How the node meets the others.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterFlags {
    /// Redis, where the nodes meet: `redis://[user:password@]host[:port][/db]`, `rediss://…` for TLS,
    /// `redis+sentinel://host,host/master`, `redis+unix:///path`; several with commas are a Redis Cluster
    #[arg(long, env = "MAINSTAY_REDIS_URL", value_name = "URL", value_parser = read::redis, hide_env_values = true)]
    pub redis: Option<RedisUrl>,
    /// The one server that `--redis` names is part of a Redis Cluster
    #[arg(long, requires = "redis")]
    pub redis_cluster: bool,
    /// The authorities that may sign Redis' certificate, in PEM; else those that browsers trust
    #[arg(long, value_name = "FILE", requires = "redis")]
    pub redis_ca: Option<PathBuf>,
    /// The file with Redis' password, which a URL would show in the list of processes
    #[arg(long, env = "MAINSTAY_REDIS_PASSWORD_FILE", value_name = "FILE", requires = "redis")]
    pub redis_password_file: Option<PathBuf>,
    /// How broadcasts travel: `streams` with Redis and `memory` without, unless said
    #[arg(long, env = "MAINSTAY_ADAPTER", value_name = "KIND")]
    pub adapter: Option<AdapterKind>,
    /// The channels' prefix, as `key` or `channelPrefix` of the Node.js adapters
    #[arg(long, value_name = "TEXT", default_value = "socket.io", value_parser = read::prefix)]
    pub prefix: String,
    /// The stream, as `streamName` of the Node.js streams adapter
    #[arg(long, value_name = "NAME", default_value = "socket.io", value_parser = read::prefix)]
    pub stream_name: String,
    /// Over how many streams the namespaces spread, as `streamCount`
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub stream_count: u32,
    /// About how many entries a stream keeps, as `maxLen`
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub stream_max_len: u64,
    /// The most entries of one read, as `readCount`
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub read_count: u32,
    /// Of the streams adapter: questions and answers go over sharded channels, as `useShardedPubSub`
    #[arg(long)]
    pub sharded_pubsub: bool,
    /// Which rooms have a channel of their own in the sharded adapter, as `subscriptionMode`; all nodes must say the same
    #[arg(long, value_name = "MODE", default_value = "dynamic", value_parser = subscription_mode())]
    pub subscription_mode: SubscriptionMode,
    /// How long a lost connection may come back and miss nothing; 0s: never. 2m on `streams` and `memory`, unless said
    #[arg(long, value_name = "TIME", value_parser = read::duration)]
    pub recovery: Option<Duration>,
    /// Presence is kept in `PREFIX:connections` and `PREFIX:{user}`
    #[arg(long, value_name = "PREFIX", default_value = "user", value_parser = read::prefix)]
    pub presence_prefix: String,
    /// The presence of a node that says nothing any more is removed after this
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = read::duration)]
    pub presence_lease: Duration,
}

/// What clients may do.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Clients")]
pub struct ClientFlags {
    /// The most clients; one more is closed with 1008 "Server at capacity"
    #[arg(long, env = "MAINSTAY_MAX_CONNECTIONS", value_name = "COUNT", default_value_t = 50_000)]
    pub max_connections: usize,
    /// How long a Socket.IO connection may take to be admitted to a namespace; it holds no seat of --max-connections until
    /// then
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = read::duration)]
    pub connect_timeout: Duration,
    /// The most Socket.IO connections that are not admitted yet; with one more, the oldest is closed. A tenth of
    /// --max-connections and at least 1000, unless said
    #[arg(long, value_name = "COUNT", value_parser = read::count)]
    pub max_pending: Option<usize>,
    /// The same of one client address (of IPv6: one /64 network). A tenth of --max-pending and at least 100, unless said
    #[arg(long, value_name = "COUNT", value_parser = read::count)]
    pub max_pending_per_address: Option<usize>,
    /// A polling session goes on only from the address that opened it
    #[arg(long)]
    pub bind_address: bool,
    /// A polling session goes on only with the value of this cookie that opened it, as it does with `Authorization` and
    /// `?token=`
    #[arg(long, value_name = "NAME", value_parser = read::cookie)]
    pub bind_cookie: Option<String>,
    /// Peers whose X-Forwarded-For says where a client is; none: the balancer is taken for the client. Loopback and private
    /// networks, unless said
    #[arg(long, value_name = "NETWORK", value_delimiter = ',', value_parser = read::network)]
    pub trusted_proxies: Option<Vec<IpNet>>,
    /// The longest message of a client, and the most that it may post at once by polling
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = read::size)]
    pub max_payload: u64,
    /// How often a client is asked for a sign of life
    #[arg(long, value_name = "TIME", default_value = "25s", value_parser = read::duration)]
    pub ping_interval: Duration,
    /// How long it may take to give one
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = read::duration)]
    pub ping_timeout: Duration,
    /// A connection from which nothing came for so long, no sign of life either, is closed
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = read::duration)]
    pub idle: Duration,
    /// On SIGTERM the clients are closed (1012) spread over this time
    #[arg(long, env = "MAINSTAY_DRAIN", value_name = "TIME", default_value = "30s", value_parser = read::duration)]
    pub drain: Duration,
    /// What may wait for a client that does not read; more, and it is cut
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = read::size)]
    pub backlog: u64,
    /// The most rooms that one client may join
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_rooms: u32,
    /// The most messages a second of one client; one that sends more is closed (1008). 0: no limit
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    pub messages_per_second: u32,
    /// The most bytes a second of one client, the same way. 0B: no limit
    #[arg(long, value_name = "SIZE", default_value = "0B", value_parser = read::size)]
    pub bytes_per_second: u64,
    /// Socket.IO namespaces that clients may join, beside `/`
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = read::namespace)]
    pub namespaces: Vec<String>,
    /// Serve Engine.IO 3 clients (socket.io-client 2), too. By polling they post all that waits at once, whatever its
    /// length: let --max-payload be larger
    #[arg(long)]
    pub eio3: bool,
    /// A web page's origin that may connect, like `https://example.com`; any when none is given
    #[arg(long, env = "MAINSTAY_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub origin: Vec<String>,
}

/// Who may come in.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Authentication")]
pub struct AuthFlags {
    /// Clients must show a JSON Web Token that this key verifies: the secret (HS256) or the public key in PEM
    #[arg(long, env = "MAINSTAY_JWT_KEY_FILE", value_name = "FILE", requires = "jwt_algorithm")]
    pub jwt_key_file: Option<PathBuf>,
    /// The one algorithm that tokens are signed with
    #[arg(long, env = "MAINSTAY_JWT_ALGORITHM", value_name = "NAME", requires = "jwt_key_file")]
    pub jwt_algorithm: Option<JwtAlgorithm>,
    /// The `iss` that tokens must have
    #[arg(long, value_name = "NAME", requires = "jwt_key_file")]
    pub jwt_issuer: Option<String>,
    /// The `aud` that tokens must have; without it, a token that has one is refused
    #[arg(long, value_name = "NAME", requires = "jwt_key_file")]
    pub jwt_audience: Option<String>,
    /// How far this machine's clock and the issuer's may be apart
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = read::duration)]
    pub jwt_leeway: Duration,
    /// The tokens that open /api to back-end code, one a line; without it, /api is closed
    #[arg(long, env = "MAINSTAY_API_TOKEN_FILE", value_name = "FILE")]
    pub api_token_file: Option<PathBuf>,
}

impl ValueEnum for AdapterKind {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Memory, Self::Streams, Self::Pubsub, Self::Sharded]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.word()))
    }
}

/// Reads the words of `subscriptionMode`.
fn subscription_mode() -> impl TypedValueParser<Value = SubscriptionMode> {
    PossibleValuesParser::new(["dynamic", "dynamic-private", "static"]).map(|word| match word.as_str() {
        "dynamic-private" => SubscriptionMode::DynamicPrivate,
        "static" => SubscriptionMode::Static,
        _ => SubscriptionMode::Dynamic,
    })
}

impl ValueEnum for JwtAlgorithm {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Hs256, Self::Rs256, Self::EdDsa]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.word()))
    }
}
