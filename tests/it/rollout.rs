//! Three nodes are replaced one after another by a new release, and no client moves more than once.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mainstay::app::App;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::admin::{asks, gets};
use crate::harness::{
    RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, client_frame, node_frame, resolve, soon,
};

const CLIENTS: usize = 24;

/// A node that takes every WebSocket, answers a Close, and says its name and its release.
struct Chat {
    name: &'static str,
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Chat {
    async fn start(name: &'static str, release: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut tunnels = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                tunnels.spawn(serve(RawStream(stream), name, release));
            }
        });
        Self { name, address, _tasks: tasks }
    }
}

async fn serve(mut client: RawStream, name: &str, release: &str) {
    if client.read_head().await.starts_with("GET /health ") {
        let answer = format!("HTTP/1.1 200 OK\r\nX-Mainstay-Release: {release}\r\nContent-Length: 0\r\n\r\n");
        return client.send(answer).await;
    }
    client.send(SWITCHING_PROTOCOLS.replace("\r\n\r\n", &format!("\r\nX-Node: {name}\r\n\r\n"))).await;
    let Some(code) = closed(&mut client).await else { return };
    client.send(node_frame(8, &code.to_be_bytes())).await;
}

/// The code of the Close that comes some time; `None` when the stream ends without one.
async fn closed(peer: &mut RawStream) -> Option<u16> {
    peer.0.readable().await.ok()?;
    (peer.0.peek(&mut [0]).await.ok()? > 0).then_some(())?;
    Some(peer.read_close_code().await)
}

/// A client that comes back whenever it is closed, with the cookie that it has, and says where it is.
async fn client(number: usize, front: String, says: UnboundedSender<(usize, String, Option<u16>)>) {
    let (mut cookie, mut code) = (String::new(), None);
    loop {
        let mut tunnel = RawStream(soon(TcpStream::connect(&front)).await.unwrap());
        tunnel.send(UPGRADE_REQUEST.replace("\r\n\r\n", &format!("\r\nCookie: {cookie}\r\n\r\n"))).await;
        let head = tunnel.read_head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let field = |name: &str| {
            let line = head.lines().find(|line| line.to_lowercase().starts_with(name))?;
            line.split([' ', ';']).nth(1).map(str::to_owned)
        };
        cookie = field("set-cookie:").unwrap_or(cookie);
        if says.send((number, field("x-node:").unwrap(), code)).is_err() {
            return;
        }
        code = closed(&mut tunnel).await;
        let Some(code) = code else { return };
        tunnel.send(client_frame(8, &code.to_be_bytes())).await;
        tunnel.wait_closed().await;
    }
}

/// Where every client is, and how often it has come.
struct Crowd {
    heard: UnboundedReceiver<(usize, String, Option<u16>)>,
    homes: BTreeMap<usize, Vec<String>>,
    _tasks: JoinSet<()>,
}

impl Crowd {
    async fn connect(app: &App) -> Self {
        let (says, heard) = unbounded_channel();
        let mut tasks = JoinSet::new();
        for number in 0..CLIENTS {
            tasks.spawn(client(number, app.listeners()[0].clone(), says.clone()));
        }
        let mut crowd = Self { heard, homes: BTreeMap::new(), _tasks: tasks };
        for _ in 0..CLIENTS {
            crowd.hear().await;
        }
        crowd
    }

    async fn hear(&mut self) {
        let (number, node, code) = soon(self.heard.recv()).await.unwrap();
        assert!(code.is_none_or(|code| code == 1012), "{code:?}");
        self.homes.entry(number).or_default().push(node);
    }

    /// Until each of those who are on this node has come back.
    async fn leaves(&mut self, node: &str) {
        let on_it = self.homes.values().filter(|homes| homes.last().is_some_and(|home| home == node)).count();
        assert!(on_it > 0, "nobody is on {node}");
        for _ in 0..on_it {
            self.hear().await;
        }
        assert!(
            self.homes.values().all(|homes| homes.last().is_none_or(|home| home != node)),
            "{:?}",
            self.homes
        );
    }
}

fn config(nodes: &[&Chat], pool: &str, releases: bool) -> mainstay::config::Config {
    let node = |node: &&Chat| {
        let release = if node.name < "d" { "v1" } else { "v2" };
        let release = if releases { format!(", release: {release}") } else { String::new() };
        format!("{{ id: {}, address: \"{}\"{release} }}", node.name, node.address)
    };
    let nodes: Vec<String> = nodes.iter().map(node).collect();
    resolve(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         access_log: {{ format: off }}\nshutdown: {{ drain: 1s }}\npools: {{ chat: {{ nodes: [{}], {pool} }} }}\n",
        nodes.join(", ")
    ))
}

async fn six() -> [Chat; 6] {
    let old = [Chat::start("a", "v1").await, Chat::start("b", "v1").await, Chat::start("c", "v1").await];
    let new = [Chat::start("d", "v2").await, Chat::start("e", "v2").await, Chat::start("f", "v2").await];
    let ([a, b, c], [d, e, f]) = (old, new);
    [a, b, c, d, e, f]
}

fn assert_each_moved_once(crowd: &Crowd) {
    for (number, homes) in &crowd.homes {
        assert_eq!(homes.len(), 2, "{number}: {homes:?}");
        assert!(homes[0].as_str() < "d" && homes[1].as_str() >= "d", "{number}: {homes:?}");
    }
}

#[tokio::test]
async fn a_rollout_by_three_reloads_moves_each_client_once() {
    let [a, b, c, d, e, f] = &six().await;
    for affinity in ["[cookie: { name: m }]", "[]"] {
        let pool = format!("affinity: {affinity}, health: null, drain: {{ over: 100ms }}");
        let app = soon(App::start(&config(&[a, b, c], &pool, true))).await.unwrap();
        let mut crowd = Crowd::connect(&app).await;
        for (left, nodes) in [("a", [d, b, c]), ("b", [d, e, c]), ("c", [d, e, f])] {
            soon(app.reload().apply(config(&nodes, &pool, true))).await.unwrap();
            crowd.leaves(left).await;
        }
        assert_each_moved_once(&crowd);
        drop(crowd);
        app.stop().await;
    }
}

#[tokio::test]
async fn a_rollout_by_drains_goes_by_the_release_that_nodes_say_and_moves_each_client_once() {
    let [a, b, c, d, e, f] = &six().await;
    let pool =
        "affinity: [cookie: { name: m }], drain: { over: 100ms }, health: { interval: 1h }, slow_start: 0s";
    let app = soon(App::start(&config(&[a, b, c], pool, false))).await.unwrap();
    let mut crowd = Crowd::connect(&app).await;
    for (left, nodes) in [("a", vec![a, b, c, d]), ("b", vec![b, c, d, e]), ("c", vec![c, d, e, f])] {
        soon(app.reload().apply(config(&nodes, pool, false))).await.unwrap();
        assert_eq!(asks(&app, "POST", &format!("/api/pools/chat/nodes/{left}/drain"), "").await.status, 202);
        crowd.leaves(left).await;
    }
    assert_each_moved_once(&crowd);
    let status = gets(&app, "/api/status").await;
    assert_eq!(status["pools"][0]["nodes"][1]["release"], "v2");
    drop(crowd);
    app.stop().await;
}
