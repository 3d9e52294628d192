//! The two kinds of connection to Redis: for commands ([`RedisConnection`], to one server or to all masters of a cluster), and for
//! subscriptions ([`SubscriberConnection`], always to one server).
//!
//! They are apart because a server closes a subscriber whose answers pile up, and a cluster client that moves
//! subscriptions by itself says neither which are lost nor which are there twice. Neither kind comes back by itself when
//! it is gone; [`super::RedisClient`] makes a new one.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, ProtocolVersion};
use redis::{PushKind, RedisResult, TlsMode, Value};

use super::address::{AddressKind, RedisAddress, tcp_settings};
use super::slots::NodeAddress;
use super::subscription::SubscriptionKind;

/// How long the whole of a connection's set-up may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// One live connection.
#[derive(Clone)]
pub enum RedisConnection {
    /// To one server.
    Server(MultiplexedConnection),
    /// To every master of a cluster.
    Cluster(ClusterConnection),
}

impl RedisConnection {
    /// Connects. Every answer must come within `max_wait`; `gone` is called when a connection ends.
    pub async fn connect(
        address: &RedisAddress,
        max_wait: Duration,
        gone: Option<OnEnd>,
    ) -> RedisResult<RedisConnection> {
        let on_push = gone.map(|gone| -> OnPush {
            Arc::new(move |push| {
                if push.kind == PushKind::Disconnection {
                    gone();
                }
            })
        });
        let connecting = async {
            match &address.kind {
                AddressKind::Cluster(nodes) => open_cluster(address, nodes, max_wait, on_push).await,
                _ => {
                    open(&server_client(address).await?, max_wait, on_push).await.map(RedisConnection::Server)
                }
            }
        };
        with_timeout(connecting).await
    }

    /// Sends one command and waits for its answer.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        match self {
            RedisConnection::Server(connection) => command.query_async(&mut connection.clone()).await,
            RedisConnection::Cluster(connection) => command.query_async(&mut connection.clone()).await,
        }
    }

    /// Sends several commands in one write; they may not name keys of different slots.
    pub async fn query_pipeline<T: FromRedisValue>(&self, commands: &redis::Pipeline) -> RedisResult<T> {
        match self {
            RedisConnection::Server(connection) => commands.query_async(&mut connection.clone()).await,
            RedisConnection::Cluster(connection) => commands.query_async(&mut connection.clone()).await,
        }
    }

    /// How many connections subscribe to a channel; in a cluster the sum of what its nodes say, each of its own.
    pub async fn subscriber_count(&self, kind: SubscriptionKind, channel: &str) -> RedisResult<u64> {
        let command = count_command(kind, channel);
        match self {
            RedisConnection::Server(connection) => {
                let value = connection.clone().req_packed_command(&command).await?;
                Ok(read_count(&value))
            }
            RedisConnection::Cluster(connection) => {
                // A plain subscription may sit on a replica; one of a slot sits on its master.
                let nodes = match kind {
                    SubscriptionKind::Shard => MultipleNodeRoutingInfo::AllMasters,
                    _ => MultipleNodeRoutingInfo::AllNodes,
                };
                let routing = RoutingInfo::MultiNode((nodes, None));
                let value = connection.clone().route_command(command, routing).await?;
                let Value::Map(answers) = value else { return Ok(0) };
                Ok(answers.iter().map(|(_, answer)| read_count(answer)).sum())
            }
        }
    }

    /// Whether the server is there: a PING that is answered.
    pub async fn ping(&self) -> RedisResult<()> {
        self.query::<Value>(&redis::cmd("PING")).await.map(drop)
    }
}

/// A connection to one server that carries subscriptions and nothing else.
#[derive(Clone)]
pub(super) struct SubscriberConnection {
    connection: MultiplexedConnection,
    /// The server's name, where one of a cluster was chosen.
    host: Arc<str>,
}

impl SubscriberConnection {
    /// Connects to the server of a place; in a cluster to any node that answers. What it pushes goes to `on_push`.
    pub(super) async fn connect(
        address: &RedisAddress,
        max_wait: Duration,
        on_push: OnPush,
    ) -> RedisResult<Self> {
        let AddressKind::Cluster(seeds) = &address.kind else {
            let connecting = async { open(&server_client(address).await?, max_wait, Some(on_push)).await };
            let connection = with_timeout(connecting).await?;
            return Ok(Self { connection, host: Arc::from("") });
        };
        let mut failed = None;
        for seed in seeds {
            match Self::connect_to(address, seed, max_wait, on_push.clone()).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound).into()))
    }

    /// Connects to one node of a cluster.
    pub(super) async fn connect_to_node(
        address: &RedisAddress,
        node: &NodeAddress,
        max_wait: Duration,
        on_push: OnPush,
    ) -> RedisResult<Self> {
        let info =
            address.node_info(node).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
        Self::connect_to(address, &info, max_wait, on_push).await
    }

    async fn connect_to(
        address: &RedisAddress,
        info: &redis::ConnectionInfo,
        max_wait: Duration,
        on_push: OnPush,
    ) -> RedisResult<Self> {
        let host: Arc<str> = match info.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.as_str().into(),
            _ => "".into(),
        };
        let connecting = async { open(&client(address, info)?, max_wait, Some(on_push)).await };
        Ok(Self { connection: with_timeout(connecting).await?, host })
    }

    /// Sends one command and waits for its answer.
    pub(super) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        command.query_async(&mut self.connection.clone()).await
    }

    /// Subscribes to one channel, or takes that back. The confirmation also comes as a push.
    pub(super) async fn set_subscribed(
        &self,
        kind: SubscriptionKind,
        channel: &str,
        is_wanted: bool,
    ) -> RedisResult<()> {
        let name = if is_wanted { kind.subscribe_command() } else { kind.unsubscribe_command() };
        self.query(redis::cmd(name).arg(channel)).await.map(drop)
    }

    /// The server's host, as it was named.
    pub(super) fn host(&self) -> &str {
        &self.host
    }
}

/// Called for everything that a server pushes.
pub(super) type OnPush = Arc<dyn Fn(redis::PushInfo) + Send + Sync>;

/// Called when a connection ends.
pub(super) type OnEnd = Arc<dyn Fn() + Send + Sync>;

/// The question how many connections of one server subscribe to a channel.
pub(super) fn count_command(kind: SubscriptionKind, channel: &str) -> Cmd {
    let mut command = redis::cmd("PUBSUB");
    command.arg(if kind == SubscriptionKind::Shard { "SHARDNUMSUB" } else { "NUMSUB" }).arg(channel);
    command
}

/// The number in the answer to NUMSUB, which is `[channel, number]`, or a map from one to the other.
pub(super) fn read_count(answer: &Value) -> u64 {
    let count = match answer {
        Value::Array(parts) => parts.get(1),
        Value::Map(entries) => entries.first().map(|(_, count)| count),
        _ => None,
    };
    match count {
        Some(Value::Int(count)) => u64::try_from(*count).unwrap_or_default(),
        _ => 0,
    }
}

fn client(address: &RedisAddress, info: &redis::ConnectionInfo) -> RedisResult<Client> {
    match (&address.certificates, info.addr()) {
        (Some(certificates), ConnectionAddr::TcpTls { .. }) => {
            Client::build_with_tls(info.clone(), certificates.clone())
        }
        _ => Client::open(info.clone()),
    }
}

async fn with_timeout<T>(connecting: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(made) => made,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

/// The one server of a place that is no cluster.
async fn server_client(address: &RedisAddress) -> RedisResult<Client> {
    match &address.kind {
        AddressKind::Server(info) => client(address, info),
        _ => master_client(address).await,
    }
}

async fn open(
    client: &Client,
    max_wait: Duration,
    on_push: Option<OnPush>,
) -> RedisResult<MultiplexedConnection> {
    let mut config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(max_wait));
    if let Some(on_push) = on_push {
        config = config.set_push_sender(move |push| {
            on_push(push);
            Ok::<(), redis::aio::SendError>(())
        });
    }
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Asks the sentinels who the master is, and checks that it is one.
async fn master_client(address: &RedisAddress) -> RedisResult<Client> {
    let AddressKind::Sentinel { sentinels, master, info } = &address.kind else {
        unreachable!("only called for a address of this kind")
    };
    let settings = info.redis_settings();
    let mut builder =
        SentinelClientBuilder::new(sentinels.iter().cloned(), master, SentinelServerType::Master)?
            .set_client_to_redis_protocol(ProtocolVersion::RESP3)
            .set_client_to_redis_db(settings.db())
            .set_client_to_redis_tcp_settings(tcp_settings());
    if let Some(user) = settings.username() {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = settings.password() {
        builder = builder.set_client_to_redis_password(password);
    }
    if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        if let Some(certificates) = &address.certificates {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
    }
    builder.build()?.async_get_client().await
}

async fn open_cluster(
    address: &RedisAddress,
    nodes: &[redis::ConnectionInfo],
    max_wait: Duration,
    on_push: Option<OnPush>,
) -> RedisResult<RedisConnection> {
    let mut builder = ClusterClientBuilder::new(nodes.iter().cloned())
        .use_protocol(ProtocolVersion::RESP3)
        .tcp_settings(tcp_settings())
        .connection_timeout(CONNECT_TIMEOUT)
        .response_timeout(max_wait)
        .overall_response_timeout(Some(max_wait))
        // A failover shows within a second or two; what takes longer is for the caller to know.
        .retries(3);
    if let Some(certificates) = &address.certificates {
        builder = builder.certs(certificates.clone());
    }
    if let Some(on_push) = on_push {
        builder = builder.push_sender(move |push| {
            on_push(push);
            Ok::<(), redis::aio::SendError>(())
        });
    }
    builder.build()?.get_async_connection().await.map(RedisConnection::Cluster)
}
