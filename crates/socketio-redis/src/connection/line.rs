//! The two kinds of connection to Redis: for commands ([`Line`], to one server or to all masters of a cluster), and for
//! subscriptions ([`SubscriptionLine`], always to one server).
//!
//! They are apart because a server closes a subscriber whose answers pile up, and a cluster client that moves
//! subscriptions by itself says neither which are lost nor which are there twice. Neither kind comes back by itself when
//! it is gone; [`super::Redis`] makes a new one.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, ProtocolVersion};
use redis::{PushKind, RedisResult, TlsMode, Value};

use super::inbox::{Event, Inbox};
use super::place::{Kind, Place, tcp_settings};
use super::slots::NodeAddress;

/// How long the whole of a connection's set-up may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// The way in which a channel is subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Via {
    /// SUBSCRIBE.
    Channel,
    /// PSUBSCRIBE.
    Pattern,
    /// SSUBSCRIBE, where each channel lives on the master of its slot.
    Shard,
}

impl Via {
    fn subscribe(self) -> &'static str {
        match self {
            Via::Channel => "SUBSCRIBE",
            Via::Pattern => "PSUBSCRIBE",
            Via::Shard => "SSUBSCRIBE",
        }
    }

    fn unsubscribe(self) -> &'static str {
        match self {
            Via::Channel => "UNSUBSCRIBE",
            Via::Pattern => "PUNSUBSCRIBE",
            Via::Shard => "SUNSUBSCRIBE",
        }
    }
}

/// One live connection.
#[derive(Clone)]
pub enum Line {
    /// To one server.
    One(MultiplexedConnection),
    /// To every master of a cluster.
    Cluster(ClusterConnection),
}

impl Line {
    /// Connects. Every answer must come within `patience`; `gone` is called when a connection ends.
    pub async fn connect(place: &Place, patience: Duration, gone: Option<OnEnd>) -> RedisResult<Line> {
        let on_push = gone.map(|gone| -> OnPush {
            Arc::new(move |push| {
                if push.kind == PushKind::Disconnection {
                    gone();
                }
            })
        });
        let connecting = async {
            match &place.kind {
                Kind::Cluster(nodes) => cluster(place, nodes, patience, on_push).await,
                _ => one(&server(place).await?, patience, on_push).await.map(Line::One),
            }
        };
        in_time(connecting).await
    }

    /// Sends one command and waits for its answer.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        match self {
            Line::One(connection) => command.query_async(&mut connection.clone()).await,
            Line::Cluster(connection) => command.query_async(&mut connection.clone()).await,
        }
    }

    /// Sends several commands in one write; they may not name keys of different slots.
    pub async fn ask_all<T: FromRedisValue>(&self, commands: &redis::Pipeline) -> RedisResult<T> {
        match self {
            Line::One(connection) => commands.query_async(&mut connection.clone()).await,
            Line::Cluster(connection) => commands.query_async(&mut connection.clone()).await,
        }
    }

    /// How many connections subscribe to a channel; in a cluster the sum of what its nodes say, each of its own.
    pub async fn subscribers(&self, via: Via, channel: &str) -> RedisResult<u64> {
        let command = numsub(via, channel);
        match self {
            Line::One(connection) => {
                let value = connection.clone().req_packed_command(&command).await?;
                Ok(count_in(&value))
            }
            Line::Cluster(connection) => {
                // A plain subscription may sit on a replica; one of a slot sits on its master.
                let nodes = match via {
                    Via::Shard => MultipleNodeRoutingInfo::AllMasters,
                    _ => MultipleNodeRoutingInfo::AllNodes,
                };
                let routing = RoutingInfo::MultiNode((nodes, None));
                let value = connection.clone().route_command(command, routing).await?;
                let Value::Map(answers) = value else { return Ok(0) };
                Ok(answers.iter().map(|(_, answer)| count_in(answer)).sum())
            }
        }
    }

    /// Whether the server is there: a PING that is answered.
    pub async fn ping(&self) -> RedisResult<()> {
        self.ask::<Value>(&redis::cmd("PING")).await.map(drop)
    }
}

/// A connection to one server that carries subscriptions and nothing else.
#[derive(Clone)]
pub struct SubscriptionLine {
    connection: MultiplexedConnection,
    /// The server's name, where one of a cluster was chosen.
    host: Arc<str>,
}

impl SubscriptionLine {
    /// Connects to the server of a place; in a cluster to any node that answers. What it pushes goes to `inbox`.
    pub(super) async fn connect(place: &Place, patience: Duration, inbox: Inbox) -> RedisResult<Self> {
        let Kind::Cluster(seeds) = &place.kind else {
            let connecting = async { one(&server(place).await?, patience, Some(into(inbox))).await };
            let connection = in_time(connecting).await?;
            return Ok(Self { connection, host: Arc::from("") });
        };
        let mut failed = None;
        for seed in seeds {
            match Self::to(place, seed, patience, inbox.clone()).await {
                Ok(line) => return Ok(line),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound).into()))
    }

    /// Connects to one node of a cluster.
    pub(super) async fn to_node(
        place: &Place,
        node: &NodeAddress,
        patience: Duration,
        inbox: Inbox,
    ) -> RedisResult<Self> {
        let info = place.node(node).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
        Self::to(place, &info, patience, inbox).await
    }

    async fn to(
        place: &Place,
        info: &redis::ConnectionInfo,
        patience: Duration,
        inbox: Inbox,
    ) -> RedisResult<Self> {
        let host: Arc<str> = match info.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.as_str().into(),
            _ => "".into(),
        };
        let connecting = async { one(&client(place, info)?, patience, Some(into(inbox))).await };
        Ok(Self { connection: in_time(connecting).await?, host })
    }

    /// Sends one command and waits for its answer.
    pub async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        command.query_async(&mut self.connection.clone()).await
    }

    /// Subscribes to one channel, or takes that back. The confirmation also comes as a push.
    pub async fn set(&self, via: Via, channel: &str, is_wanted: bool) -> RedisResult<()> {
        let name = if is_wanted { via.subscribe() } else { via.unsubscribe() };
        self.ask(redis::cmd(name).arg(channel)).await.map(drop)
    }

    /// The server's host, as it was named.
    pub fn host(&self) -> &str {
        &self.host
    }
}

/// Called for everything that a server pushes.
type OnPush = Arc<dyn Fn(redis::PushInfo) + Send + Sync>;

/// Called when a connection ends.
pub(super) type OnEnd = Arc<dyn Fn() + Send + Sync>;

fn into(inbox: Inbox) -> OnPush {
    Arc::new(move |push| inbox.put(Event::Push(push)))
}

/// The question how many connections of one server subscribe to a channel.
pub(super) fn numsub(via: Via, channel: &str) -> Cmd {
    let mut command = redis::cmd("PUBSUB");
    command.arg(if via == Via::Shard { "SHARDNUMSUB" } else { "NUMSUB" }).arg(channel);
    command
}

/// The number in the answer to NUMSUB, which is `[channel, number]`, or a map from one to the other.
pub(super) fn count_in(answer: &Value) -> u64 {
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

fn client(place: &Place, info: &redis::ConnectionInfo) -> RedisResult<Client> {
    match (&place.certificates, info.addr()) {
        (Some(certificates), ConnectionAddr::TcpTls { .. }) => {
            Client::build_with_tls(info.clone(), certificates.clone())
        }
        _ => Client::open(info.clone()),
    }
}

async fn in_time<T>(connecting: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match tokio::time::timeout(CONNECT_TIME, connecting).await {
        Ok(made) => made,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

/// The one server of a place that is no cluster.
async fn server(place: &Place) -> RedisResult<Client> {
    match &place.kind {
        Kind::One(info) => client(place, info),
        _ => master(place).await,
    }
}

async fn one(
    client: &Client,
    patience: Duration,
    on_push: Option<OnPush>,
) -> RedisResult<MultiplexedConnection> {
    let mut config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIME))
        .set_response_timeout(Some(patience));
    if let Some(on_push) = on_push {
        config = config.set_push_sender(move |push| {
            on_push(push);
            Ok::<(), redis::aio::SendError>(())
        });
    }
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Asks the sentinels who the master is, and checks that it is one.
async fn master(place: &Place) -> RedisResult<Client> {
    let Kind::Sentinel { sentinels, master, info } = &place.kind else {
        unreachable!("only called for a place of this kind")
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
        if let Some(certificates) = &place.certificates {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
    }
    builder.build()?.async_get_client().await
}

async fn cluster(
    place: &Place,
    nodes: &[redis::ConnectionInfo],
    patience: Duration,
    on_push: Option<OnPush>,
) -> RedisResult<Line> {
    let mut builder = ClusterClientBuilder::new(nodes.iter().cloned())
        .use_protocol(ProtocolVersion::RESP3)
        .tcp_settings(tcp_settings())
        .connection_timeout(CONNECT_TIME)
        .response_timeout(patience)
        .overall_response_timeout(Some(patience))
        // A failover shows within a second or two; what takes longer is for the caller to know.
        .retries(3);
    if let Some(certificates) = &place.certificates {
        builder = builder.certs(certificates.clone());
    }
    if let Some(on_push) = on_push {
        builder = builder.push_sender(move |push| {
            on_push(push);
            Ok::<(), redis::aio::SendError>(())
        });
    }
    builder.build()?.get_async_connection().await.map(Line::Cluster)
}
