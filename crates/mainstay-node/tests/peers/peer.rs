//! A Socket.IO node that is driven over standard input, one JSON object a line, and tells what happens on standard
//! output. It shows the library from outside, and stands beside Node.js servers in `tests/js`.
//!
//! ```text
//! cargo run -p mainstay-node --example peer -- --adapter streams --redis redis://127.0.0.1:6379
//! {"id":1,"op":"emit","rooms":["room"],"event":"news","args":[1,{"$bin":"00ff"}]}
//! ```
//!
//! It says `{"ready":{"port":…}}` first, `{"id":…,"result":…}` or `{"id":…,"error":…}` for each operation, and
//! `{"server":[…]}` for an event of another server. It ends with its standard input.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mainstay_core::origin::Origins;
use mainstay_node::engine_io::{self, EngineServer};
use mainstay_node::hub::{Hub, Namespace, PublishFuture, Selection, ServerEvent, Socket};
use mainstay_node::limits::{ConnectionLimiter, RateLimits};
use mainstay_node::metrics::Metrics;
use mainstay_node::socketio::{
    self, Admission, Application, CONNECT_TIMEOUT, ConnectError, ConnectRequest, PendingLimits, Reply,
    SocketIoServer,
};
use socketio_redis::RedisAdapter;
use socketio_redis::adapter::{Adapter, AdapterState, RemoteSocket, Room};
use socketio_redis::client::RedisAddress;
use socketio_redis::memory::MemoryAdapter;
use socketio_redis::settings::{AdapterKind, AdapterSettings, StreamsSettings, SubscriptionMode};
use socketio_redis::value::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// A node to be driven by a test.
#[derive(Parser)]
struct Arguments {
    /// `memory`, `pubsub`, `sharded` or `streams`.
    #[arg(long, default_value = "memory")]
    adapter: String,
    /// The Redis server.
    #[arg(long, default_value = "")]
    redis: String,
    /// The Redis server is one of a cluster.
    #[arg(long)]
    cluster: bool,
    /// What channel names begin with.
    #[arg(long, default_value = "socket.io")]
    prefix: String,
    /// Seconds for which sessions are kept; 0: they are not.
    #[arg(long, default_value_t = 0)]
    recovery: u64,
    /// What it answers to the events of other servers.
    #[arg(long, default_value = "peer")]
    name: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let limiter = ConnectionLimiter::new(10_000);
    let metrics = Metrics::new(&limiter);
    let bus = bus(&arguments).await?;
    let hub = Hub::new(bus, &["/admin".into()], &metrics);
    for name in ["/", "/admin"] {
        let namespace = hub.namespace(name).expect("it was made with the hub");
        let answer = arguments.name.clone();
        namespace.listen(Arc::new(move |event| heard(event, &answer)));
    }
    let settings = socketio::SocketIoSettings {
        connect_timeout: CONNECT_TIMEOUT,
        pending: PendingLimits { most: 10_000, per_address: 10_000 },
        origins: Origins::default(),
        rates: RateLimits { messages: 0, bytes: 0 },
        limiter,
        metrics,
    };
    let clients = SocketIoServer::new(&hub, settings, Arc::new(Peer::default()));
    let server = EngineServer::new(
        engine_io::EngineSettings { revision_3: true, ..engine_io::EngineSettings::default() },
        clients.clone(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener, server.clone()));
    say(&Value::map([("ready", Value::map([("port", Value::from(u64::from(port)))]))]));
    drive(&hub).await;
    server.shutdown(Duration::ZERO).await;
    clients.close().await;
    hub.close().await;
    Ok(())
}

async fn bus(arguments: &Arguments) -> Result<Arc<dyn Adapter>, Box<dyn std::error::Error>> {
    let recovery = (arguments.recovery > 0).then(|| Duration::from_secs(arguments.recovery));
    let kind = match &*arguments.adapter {
        "pubsub" => AdapterKind::Classic,
        "sharded" => AdapterKind::Sharded(SubscriptionMode::default()),
        "streams" => AdapterKind::Streams(StreamsSettings { recovery, ..StreamsSettings::default() }),
        _ => return Ok(MemoryAdapter::new(recovery)),
    };
    let place = RedisAddress::parse(&arguments.redis, arguments.cluster)?;
    let settings =
        AdapterSettings { channel_prefix: arguments.prefix.as_str().into(), ..AdapterSettings::new(kind) };
    let bus = RedisAdapter::start(place, settings, Arc::new(()));
    bus.wait_until_ready().await;
    Ok(Arc::new(bus))
}

async fn accept(listener: TcpListener, server: EngineServer) {
    let mut connections = JoinSet::new();
    while let Ok((stream, peer)) = listener.accept().await {
        let server = server.clone();
        let service = service_fn(move |request| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.respond(request, peer).await) }
        });
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
        connections.spawn(async move { drop(connection.await) });
        while connections.try_join_next().is_some() {}
    }
}

/// What the clients of this node talk to, and the joins that are under way.
#[derive(Default)]
struct Peer(parking_lot::Mutex<JoinSet<()>>);

impl Application for Peer {
    fn admit(&self, asking: &ConnectRequest<'_>) -> Result<Admission, ConnectError> {
        let data = asking.auth.and_then(|auth| auth.get("data")).map_or(Value::Map(Vec::new()), decoded);
        Ok(Admission { data, ..Admission::default() })
    }

    fn event(
        &self,
        namespace: &Arc<Namespace>,
        socket: &Arc<Socket>,
        data: Vec<Value>,
        reply: Option<Reply>,
    ) {
        let rooms: Vec<Room> = data[1..].iter().map(room).collect();
        match data[0].as_text() {
            Some("join") => {
                let joining = namespace.join(socket, &rooms);
                // The answer waits until what is sent to the rooms arrives; a sharded channel takes a moment.
                self.0.lock().spawn(async move {
                    joining.await;
                    reply.into_iter().for_each(|reply| reply.send(&[Value::from("joined")]));
                });
            }
            Some("echo") => reply.into_iter().for_each(|reply| reply.send(&data[1..])),
            _ => {}
        }
    }
}

fn heard(event: ServerEvent, name: &str) {
    say(&Value::map([("server", encoded(&Value::List(event.data)))]));
    if let Some(answer) = event.answer {
        // Whoever asked may have given up.
        answer.send(Value::from(name)).ok();
    }
}

/// Carries out what comes on standard input, each operation on a task of its own.
async fn drive(hub: &Arc<Hub>) {
    let (read, mut lines) = mpsc::channel(64);
    std::thread::spawn(move || {
        io::stdin().lines().map_while(Result::ok).try_for_each(|line| read.blocking_send(line))
    });
    let mut tasks = JoinSet::new();
    while let Some(line) = lines.recv().await {
        let Ok(call) = Value::from_json(&line) else {
            say(&Value::map([("error", Value::from("a line is one JSON object"))]));
            continue;
        };
        let hub = hub.clone();
        tasks.spawn(async move {
            let id = call.get("id").cloned().unwrap_or_default();
            let told = match carry_out(&hub, &call).await {
                Ok(result) => ("result", encoded(&result)),
                Err(words) => ("error", Value::from(words)),
            };
            say(&Value::map([("id", id), told]));
        });
        while tasks.try_join_next().is_some() {}
    }
    tasks.join_all().await;
}

async fn carry_out(hub: &Hub, call: &Value) -> Result<Value, String> {
    let name = call.get("nsp").and_then(Value::as_text).unwrap_or("/");
    let namespace = hub.namespace(name).ok_or("there is no such namespace")?;
    let event = call.get("event").and_then(Value::as_text).unwrap_or("event");
    let arguments: Vec<Value> = list(call, "args").iter().map(decoded).collect();
    let into: Vec<&str> = list(call, "into").iter().filter_map(Value::as_text).collect();
    let meant = meant(namespace, call);
    match call.get("op").and_then(Value::as_text).unwrap_or_default() {
        "emit" => told(meant.emit(event, arguments)).await,
        "join" => told(meant.join(&into)).await,
        "leave" => told(meant.leave(&into)).await,
        "disconnect" => {
            let close = call.get("close").and_then(Value::as_bool).unwrap_or(false);
            told(meant.disconnect(close)).await
        }
        "emitWithAck" => Ok(answers(meant.emit_with_ack(event, arguments).await)),
        "fetchSockets" => {
            let sockets = meant.fetch_sockets().await.map_err(|fault| fault.to_string())?;
            Ok(Value::List(sockets.into_iter().map(socket).collect()))
        }
        "serverSideEmit" => told(namespace.server_side_emit(event, arguments)).await,
        "serverSideEmitWithAck" => Ok(answers(namespace.ask_servers(event, arguments).await)),
        "serverCount" => namespace
            .servers()
            .await
            .map(|count| Value::from(count as u64))
            .map_err(|fault| fault.to_string()),
        "allRooms" => {
            let rooms = namespace.all_rooms().await.map_err(|fault| fault.to_string())?;
            Ok(Value::List(rooms.iter().map(|room| Value::from(&*room.name)).collect()))
        }
        "local" => Ok(Value::from(namespace.len() as u64)),
        "isUp" => Ok(Value::from(hub.bus_state() == AdapterState::Up)),
        other => Err(format!("there is no operation {other}")),
    }
}

/// The offset of what was sent, or why it was not.
async fn told(sent: PublishFuture) -> Result<Value, String> {
    let offset = sent.await.map_err(|fault| fault.to_string())?;
    Ok(offset.map_or(Value::Null, |offset| Value::from(&*offset)))
}

fn meant<'a>(namespace: &'a Namespace, call: &Value) -> Selection<'a> {
    let mut meant = namespace.all();
    for one in list(call, "rooms") {
        meant = meant.to_room(room(one));
    }
    for one in list(call, "except") {
        meant = meant.except_room(room(one));
    }
    if call.get("volatile").is_some() {
        meant = meant.volatile();
    }
    if call.get("local").is_some() {
        meant = meant.local();
    }
    match call.get("timeout").and_then(Value::as_u64) {
        Some(time) => meant.timeout(Duration::from_millis(time)),
        None => meant,
    }
}

fn answers<F: std::fmt::Display>(answered: Result<Vec<Value>, (F, Vec<Value>)>) -> Value {
    match answered {
        Ok(answers) => Value::map([("answers", Value::List(answers))]),
        Err((fault, answers)) => {
            Value::map([("answers", Value::List(answers)), ("fault", Value::from(fault.to_string()))])
        }
    }
}

fn socket(facts: RemoteSocket) -> Value {
    let rooms = facts.rooms.iter().map(|room| Value::from(&*room.name)).collect();
    Value::map([
        ("id", Value::from(&*facts.id)),
        ("handshake", facts.handshake),
        ("rooms", Value::List(rooms)),
        ("data", facts.data),
    ])
}

fn list<'a>(call: &'a Value, key: &str) -> &'a [Value] {
    call.get(key).and_then(Value::as_list).unwrap_or_default()
}

/// A room's name is text or a number.
fn room(value: &Value) -> Room {
    match value {
        Value::Text(name) => Room::text(name),
        number => Room { name: number.to_json().into(), numeric: true },
    }
}

/// `{"$bin":"00ff"}` as bytes, at any depth.
fn decoded(value: &Value) -> Value {
    match value {
        Value::List(items) => Value::List(items.iter().map(decoded).collect()),
        Value::Map(entries) => match value.get("$bin").and_then(Value::as_text).and_then(bytes) {
            Some(bytes) => Value::Binary(bytes),
            None => Value::Map(entries.iter().map(|(key, value)| (key.clone(), decoded(value))).collect()),
        },
        other => other.clone(),
    }
}

/// Bytes as `{"$bin":"00ff"}`, at any depth.
fn encoded(value: &Value) -> Value {
    match value {
        Value::List(items) => Value::List(items.iter().map(encoded).collect()),
        Value::Map(entries) => {
            Value::Map(entries.iter().map(|(key, value)| (key.clone(), encoded(value))).collect())
        }
        Value::Binary(bytes) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            Value::map([("$bin", Value::from(hex))])
        }
        other => other.clone(),
    }
}

fn bytes(hex: &str) -> Option<Bytes> {
    let digits = |place: usize| u8::from_str_radix(hex.get(place..place + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(digits).collect::<Option<Vec<u8>>>().map(Bytes::from)
}

fn say(value: &Value) {
    let mut out = io::stdout().lock();
    // Whoever listened may have gone; then standard input ends, too.
    writeln!(out, "{}", value.to_json()).and_then(|()| out.flush()).ok();
}
