//! One live connection to Redis: to one server or to all masters of a cluster.
//!
//! It does not come back by itself when it is gone; [`super::Redis`] makes a new one. What the server pushes goes to an
//! [`Inbox`], which is bounded: a node that cannot keep up loses messages, counted, and not its memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, ProtocolVersion};
use redis::{PushInfo, RedisResult, TlsMode, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::place::{Kind, Place, tcp_settings};

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
    /// Connects. Every answer must come within `patience`; what the server pushes goes to `inbox`.
    pub async fn connect(place: &Place, patience: Duration, inbox: Option<Inbox>) -> RedisResult<Line> {
        let connecting = async {
            match &place.kind {
                Kind::One(info) => one(&client(place, info)?, patience, inbox).await,
                Kind::Sentinel { .. } => one(&master(place).await?, patience, inbox).await,
                Kind::Cluster(nodes) => cluster(place, nodes, patience, inbox).await,
            }
        };
        match tokio::time::timeout(CONNECT_TIME, connecting).await {
            Ok(made) => made,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
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

    /// Subscribes to one channel and returns when the server has confirmed it.
    pub async fn subscribe(&self, via: Via, channel: &str) -> RedisResult<()> {
        match (self, via) {
            (Line::One(_), _) => self.ask::<Value>(redis::cmd(via.subscribe()).arg(channel)).await.map(drop),
            (Line::Cluster(connection), Via::Channel) => connection.clone().subscribe(channel).await,
            (Line::Cluster(connection), Via::Pattern) => connection.clone().psubscribe(channel).await,
            (Line::Cluster(connection), Via::Shard) => connection.clone().ssubscribe(channel).await,
        }
    }

    /// Takes a subscription back.
    pub async fn unsubscribe(&self, via: Via, channel: &str) -> RedisResult<()> {
        match (self, via) {
            (Line::One(_), _) => {
                self.ask::<Value>(redis::cmd(via.unsubscribe()).arg(channel)).await.map(drop)
            }
            (Line::Cluster(connection), Via::Channel) => connection.clone().unsubscribe(channel).await,
            (Line::Cluster(connection), Via::Pattern) => connection.clone().punsubscribe(channel).await,
            (Line::Cluster(connection), Via::Shard) => connection.clone().sunsubscribe(channel).await,
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

async fn one(client: &Client, patience: Duration, inbox: Option<Inbox>) -> RedisResult<Line> {
    let mut config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIME))
        .set_response_timeout(Some(patience));
    if let Some(inbox) = inbox {
        config = config.set_push_sender(move |push| inbox.put(push));
    }
    client.get_multiplexed_async_connection_with_config(&config).await.map(Line::One)
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
    inbox: Option<Inbox>,
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
    if let Some(inbox) = inbox {
        builder = builder.push_sender(move |push| inbox.put(push));
    }
    builder.build()?.get_async_connection().await.map(Line::Cluster)
}

/// Where pushes wait until the supervisor takes them.
#[derive(Clone)]
pub struct Inbox {
    sender: UnboundedSender<PushInfo>,
    /// Bytes of payload that wait now.
    waiting: Arc<AtomicUsize>,
    /// Messages that found no room.
    dropped: Arc<AtomicUsize>,
}

/// Bytes of payload that may wait in an [`Inbox`].
const MOST_WAITING: usize = 64 << 20;

impl Inbox {
    /// The inbox of one connection and its other end.
    pub fn new() -> (Inbox, Outlet) {
        let (sender, receiver) = unbounded_channel();
        let inbox = Inbox { sender, waiting: Arc::default(), dropped: Arc::default() };
        (inbox.clone(), Outlet { receiver, waiting: inbox.waiting, dropped: inbox.dropped })
    }

    fn put(&self, push: PushInfo) -> Result<(), redis::aio::SendError> {
        let size = payload_size(&push);
        if self.waiting.fetch_add(size, Relaxed) + size > MOST_WAITING {
            self.waiting.fetch_sub(size, Relaxed);
            self.dropped.fetch_add(1, Relaxed);
            return Ok(());
        }
        self.sender.send(push).map_err(|_| redis::aio::SendError)
    }
}

/// The end of an [`Inbox`] that the supervisor holds.
pub struct Outlet {
    receiver: UnboundedReceiver<PushInfo>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl Outlet {
    /// The next push; none when the connection is gone.
    pub async fn take(&mut self) -> Option<PushInfo> {
        let push = self.receiver.recv().await?;
        self.waiting.fetch_sub(payload_size(&push), Relaxed);
        Some(push)
    }

    /// How many messages found no room since the last time this was asked.
    pub fn dropped(&self) -> u64 {
        self.dropped.swap(0, Relaxed) as u64
    }
}

fn payload_size(push: &PushInfo) -> usize {
    match push.data.last() {
        Some(Value::BulkString(bytes)) => bytes.len(),
        _ => 0,
    }
}
