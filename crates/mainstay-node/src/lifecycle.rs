//! The life of a node, from its settings to its end.
//!
//! 1. the other nodes: in the process, or through Redis ([`InProcessCluster`]).
//! 2. presence, the limiter, counters, the ways in; then requests are served.
//! 3. [`Node::drain`]: `/health` says 503 at once, so that the balancer sends nobody; nobody is let in any more; the
//!    clients are closed with 1012, spread over the drain time.
//! 4. presence is removed, the others are told, the listener closes, and the last answers go out.
//!
//! Every step after 3 has a limit of its own, so the end comes at most [`SHUTDOWN_MARGIN`] after the drain time.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use mainstay_core::listening_process::ListeningProcess;
use mainstay_core::shutdown::Shutdown;
use socketio_redis::RedisAdapter;
use socketio_redis::memory::MemoryAdapter;

use crate::app::ChatApp;
use crate::app::socketio_app::SocketIoApp;
use crate::app::ws_json_app::WsJsonApp;
use crate::auth::Authenticator;
use crate::config::NodeSettings;
use crate::engine_io;
use crate::http_server;
use crate::hub::Hub;
use crate::limits::ConnectionLimiter;
use crate::metrics::Metrics;
use crate::presence::{Presence, PresenceSettings, Roster};
use crate::routes::Routes;
use crate::socketio::{self, SocketIoServer};
use crate::ws_json::{WsJsonServer, WsJsonSettings};
use socketio_redis::adapter::{Adapter, AdapterState};

/// How much later than the drain time the end may be.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(10);
/// Sessions beyond the most clients, which are open while they are told that the node is full.
const EXTRA_SESSIONS: usize = 1_000;
/// How often it is looked whether the node must end.
const UNFIT_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What the nodes of one process share when there is no Redis.
#[derive(Clone)]
pub struct InProcessCluster {
    /// Who is connected to any of them.
    roster: Arc<Roster>,
    /// Their bus.
    memory: Arc<MemoryAdapter>,
}

impl InProcessCluster {
    /// For nodes that let sessions come back for so long.
    pub fn new(recovery: Option<Duration>) -> Self {
        Self { roster: Arc::default(), memory: MemoryAdapter::new(recovery) }
    }

    /// For a node of these settings, and its peers.
    pub fn for_node(settings: &NodeSettings) -> Self {
        Self::new(settings.cluster.recovery)
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its address.
    #[error("cannot listen on {address}: {error}{}", listen_hint(*address, error))]
    Listen {
        /// As it was given.
        address: std::net::SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
}

/// What would be right, where that is known.
fn listen_hint(address: std::net::SocketAddr, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            let found = ListeningProcess::on_tcp(address).map(|found| format!("; {found}"));
            found.unwrap_or_default() + "; processes share a port when each of them has --reuse-port"
        }
        std::io::ErrorKind::AddrNotAvailable => "; no interface of this machine has the address".into(),
        std::io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE".into(),
        _ => String::new(),
    }
}

/// A running node.
pub struct Node {
    routes: Arc<Routes>,
    /// Ends the server.
    stop: CancellationToken,
    /// The server's one task.
    server: Mutex<JoinSet<()>>,
    address: std::net::SocketAddr,
}

impl Node {
    /// Binds the address of the settings and serves.
    ///
    /// # Errors
    ///
    /// Why it does not start.
    pub async fn start(settings: NodeSettings, world: &InProcessCluster) -> Result<Self, StartError> {
        let address = settings.listen;
        let listener = http_server::listen(address, settings.reuse_port);
        let listener = listener.map_err(|error| StartError::Listen { address, error })?;
        Self::start_on(listener, settings, world).await
    }

    /// Serves on a listener that is there.
    ///
    /// # Errors
    ///
    /// Why it does not start.
    pub async fn start_on(
        listener: TcpListener,
        settings: NodeSettings,
        world: &InProcessCluster,
    ) -> Result<Self, StartError> {
        let address =
            listener.local_addr().map_err(|error| StartError::Listen { address: settings.listen, error })?;
        let idle = settings.clients.idle;
        let routes = Arc::new(build_routes(settings, world));
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(http_server::serve(listener, Arc::clone(&routes), idle, stop.clone()));
        info!(node = %routes.settings.id, %address, "node open");
        Ok(Self { routes, stop, server: Mutex::new(tasks), address })
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Ends the node, its clients spread over the drain time. Says whether everything ended in order and in time.
    pub async fn drain(&self) -> bool {
        let over = self.routes.settings.clients.drain;
        self.routes.shutdown.begin();
        let in_order = timeout(over + SHUTDOWN_MARGIN, self.shut_down(over)).await;
        self.routes.shutdown.stop();
        in_order == Ok(true)
    }

    async fn shut_down(&self, over: Duration) -> bool {
        let Routes { engine, ws_json, socketio, socketio_app, presence, hub, .. } = &*self.routes;
        tokio::join!(engine.shutdown(over), ws_json.shutdown(over));
        socketio.close().await;
        socketio_app.close().await;
        let is_tidy = presence.close().await;
        hub.close().await;
        self.stop.cancel();
        let server = std::mem::take(&mut *self.server.lock());
        server.join_all().await;
        is_tidy
    }

    /// Returns when the node must not go on, with the reason: what it would say breaks other servers, or theirs it.
    pub async fn wait_until_unfit(&self) -> Arc<str> {
        let mut look = interval(UNFIT_CHECK_INTERVAL);
        loop {
            look.tick().await;
            if let AdapterState::Incompatible { reason: why } = self.routes.hub.bus_state() {
                return why;
            }
        }
    }
}

fn build_routes(settings: NodeSettings, world: &InProcessCluster) -> Routes {
    let limiter = ConnectionLimiter::new(settings.clients.max_connections);
    let metrics = Metrics::new(&limiter);
    let (bus, presence) = connect_peers(&settings, world, &metrics);
    let presence = Arc::new(presence);
    let hub = Hub::new(bus, &settings.clients.namespaces, &metrics);
    let max_rooms = settings.clients.max_rooms;
    let application = Arc::new(ChatApp::new(&settings.id, &hub, &presence, max_rooms));
    let auth = Arc::new(Authenticator::new(&settings.auth));
    let socketio_app = Arc::new(SocketIoApp::new(&auth, &application, &metrics));
    let socketio = SocketIoServer::new(
        &hub,
        socketio_settings(&settings, &limiter, &metrics),
        Arc::clone(&socketio_app) as _,
    );
    let engine = engine_io::EngineServer::new(engine_settings(&settings), Arc::clone(&socketio) as _);
    let ws_json = WsJsonServer::new(
        ws_json_settings(&settings, auth, &limiter, &metrics),
        Arc::new(WsJsonApp::new(&hub, &application)),
    );
    let shutdown = Shutdown::new();
    Routes {
        settings,
        limiter,
        metrics,
        hub,
        application,
        engine,
        socketio,
        socketio_app,
        ws_json,
        presence,
        shutdown,
    }
}

/// The way to the other nodes, and where presence is kept: both in the process, or both in Redis.
fn connect_peers(
    settings: &NodeSettings,
    world: &InProcessCluster,
    metrics: &Metrics,
) -> (Arc<dyn Adapter>, Presence) {
    let cluster = &settings.cluster;
    let wanted = cluster.redis.as_ref().zip(cluster.adapter_settings());
    let Some((redis, wanted)) = wanted else {
        let presence = Presence::in_memory(&settings.id, Arc::clone(&world.roster));
        return (world.memory.another_server(), presence);
    };
    let bus = RedisAdapter::start(redis.0.clone(), wanted, Arc::new(metrics.adapter.clone()));
    let place = PresenceSettings {
        prefix: &cluster.presence_prefix,
        is_cluster: redis.0.is_cluster(),
        lease: cluster.presence_lease,
    };
    let presence = Presence::in_redis(&settings.id, &place, bus.client_handle());
    (Arc::new(bus), presence)
}

fn socketio_settings(
    settings: &NodeSettings,
    limiter: &Arc<ConnectionLimiter>,
    metrics: &Metrics,
) -> socketio::SocketIoSettings {
    socketio::SocketIoSettings {
        connect_timeout: settings.clients.connect_timeout,
        pending: settings.clients.pending,
        origins: settings.clients.origins.clone(),
        rates: settings.clients.rates,
        limiter: Arc::clone(limiter),
        metrics: metrics.clone(),
    }
}

fn ws_json_settings(
    settings: &NodeSettings,
    auth: Arc<Authenticator>,
    limiter: &Arc<ConnectionLimiter>,
    metrics: &Metrics,
) -> WsJsonSettings {
    let clients = &settings.clients;
    WsJsonSettings {
        node: Arc::clone(&settings.id),
        auth,
        origins: clients.origins.clone(),
        max_payload: clients.max_payload,
        backlog: clients.backlog,
        ping_interval: clients.ping_interval,
        ping_timeout: clients.ping_timeout,
        idle: clients.idle,
        rates: clients.rates,
        limiter: Arc::clone(limiter),
        metrics: metrics.clone(),
    }
}

fn engine_settings(settings: &NodeSettings) -> engine_io::EngineSettings {
    let clients = &settings.clients;
    // Pages that may connect may also poll. Where any may, other origins still have to use a WebSocket: nobody has said
    // that their pages may read answers that come with the user's cookies.
    let named = (clients.origins.iter().len() > 0).then(|| clients.origins.clone());
    let cors = named.map(|origins| engine_io::Cors { origins, credentials: true });
    engine_io::EngineSettings {
        revision_3: clients.eio3,
        binding: clients.binding.clone(),
        ping_interval: clients.ping_interval,
        ping_timeout: clients.ping_timeout,
        idle: Some(clients.idle),
        max_payload: u32::try_from(clients.max_payload).unwrap_or(u32::MAX),
        queue_bytes: clients.backlog,
        cors,
        // Those over the most are told so by Socket.IO, which takes a session; a flood of them is bounded here.
        sessions: clients.max_connections.saturating_add(clients.pending.most).saturating_add(EXTRA_SESSIONS),
        ..engine_io::EngineSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

    use super::*;
    use crate::config::tests::settings;

    const PATIENCE: Duration = Duration::from_secs(20);

    type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

    async fn node(world: &InProcessCluster, flags: &[&str]) -> Node {
        Node::start(settings(flags).unwrap(), world).await.unwrap()
    }

    async fn ask(node: &Node, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(node.address()).await.unwrap();
        let whole = format!("{request}\r\nHost: n\r\nConnection: close\r\n\r\n");
        stream.write_all(whole.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        (answer[9..12].parse().unwrap(), answer)
    }

    async fn heard(socket: &mut Socket) -> Value {
        let message = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    async fn open(node: &Node, user: &str) -> Socket {
        let url = format!("ws://{}/ws?user={user}", node.address());
        let mut socket = connect_async(url).await.unwrap().0;
        assert_eq!(heard(&mut socket).await["user"], user);
        socket
    }

    async fn say(socket: &mut Socket, message: Value) -> Value {
        socket.send(Message::text(message.to_string())).await.unwrap();
        heard(socket).await
    }

    #[tokio::test]
    async fn the_nodes_of_one_process_share_rooms_and_users() {
        let world = InProcessCluster::new(None);
        let (one, two) = (node(&world, &[]).await, node(&world, &[]).await);
        let (mut ann, mut bob) = (open(&one, "ann").await, open(&two, "bob").await);
        let join = json!({ "type": "join", "room": "r" });
        assert_eq!(say(&mut ann, join.clone()).await["type"], "ok");
        assert_eq!(say(&mut bob, join).await["type"], "ok");
        assert_eq!(say(&mut ann, json!({ "type": "publish", "room": "r", "data": 7 })).await["type"], "ok");
        let message = heard(&mut bob).await;
        assert_eq!((&message["type"], &message["data"]), (&json!("message"), &json!(7)));
        assert_eq!(message["from"]["user"], "ann");
        let told = say(&mut bob, json!({ "type": "direct", "user": "ann", "data": "psst" })).await;
        assert_eq!(told["delivered"], 1);
        assert_eq!(heard(&mut ann).await["type"], "direct");
        let elsewhere = say(&mut bob, json!({ "type": "publish", "room": "x", "data": 1 })).await;
        assert_eq!(elsewhere["error"], "join x before you publish to it");
        for node in [one, two] {
            drop((node.drain().await, node));
        }
    }

    #[tokio::test]
    async fn a_node_that_drains_says_so_at_once_and_ends_when_its_clients_have_gone() {
        let world = InProcessCluster::new(None);
        let node = node(&world, &["--drain", "2s", "--release", "v7"]).await;
        let mut clients = [open(&node, "ann").await, open(&node, "ann").await];
        let (status, answer) = ask(&node, "GET /health HTTP/1.1").await;
        assert_eq!(status, 200);
        assert!(
            answer.contains("x-mainstay-load: 2/50000") && answer.contains("x-mainstay-release: v7"),
            "{answer}"
        );
        let watching = async {
            let last = async |socket: &mut Socket| loop {
                match socket.next().await.unwrap().unwrap() {
                    Message::Close(frame) => break u16::from(frame.unwrap().code),
                    _ => continue,
                }
            };
            let [first, second] = &mut clients;
            tokio::select! {
                code = last(first) => assert_eq!(code, 1012),
                code = last(second) => assert_eq!(code, 1012),
            }
            ask(&node, "GET /health HTTP/1.1").await
        };
        let (in_order, (status, answer)) =
            timeout(PATIENCE, async { tokio::join!(node.drain(), watching) }).await.unwrap();
        assert!(in_order);
        assert_eq!(status, 503);
        assert!(answer.contains("x-mainstay-state: draining"), "{answer}");
        assert!(world.roster.lock().is_empty(), "nobody is left in the roll");
        assert!(TcpStream::connect(node.address()).await.is_err());
    }

    #[tokio::test]
    async fn each_path_has_its_methods_and_unknown_ones_are_not_found() {
        let world = InProcessCluster::new(None);
        let node = node(&world, &["--api-token-file", "token"]).await;
        for (request, status) in [
            ("GET /metrics HTTP/1.1", 200),
            ("HEAD /health HTTP/1.1", 200),
            ("POST /health HTTP/1.1", 405),
            ("GET /ws HTTP/1.1", 426),
            ("GET /ws/schema.json HTTP/1.1", 200),
            ("GET /socket.io/ HTTP/1.1", 400),
            ("GET /api/users/ann HTTP/1.1", 401),
            ("GET /api/users/ann HTTP/1.1\r\nAuthorization: Bearer an-api-token-0123456789", 200),
            ("GET /api/nothing HTTP/1.1\r\nAuthorization: Bearer an-api-token-0123456789", 404),
            ("GET /api/publish HTTP/1.1\r\nAuthorization: Bearer an-api-token-0123456789", 405),
            ("GET / HTTP/1.1", 404),
        ] {
            assert_eq!(ask(&node, request).await.0, status, "{request}");
        }
        assert!(ask(&node, "GET /metrics HTTP/1.1").await.1.contains("\nwebsocket_connections 0\n"));
    }
}
