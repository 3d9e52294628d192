//! A fleet that grows, with clients that come back when they are told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use mainstay::app::App;
use mainstay::control::rebalance::PendingRebalance;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::admin::{asks, gets, raw};
use crate::harness::{
    RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, client_frame, node_frame, resolve, soon,
};
use crate::scrape::Scrape;

/// Nodes `ws1`, `ws2`, …, of which the first are in the config, and clients that never leave.
struct Fleet {
    app: App,
    nodes: Vec<SocketAddr>,
    clients: Vec<Arc<Client>>,
    tasks: JoinSet<()>,
}

/// A client that comes back whenever it is closed with 1012.
#[derive(Default)]
struct Client {
    /// How often that was.
    closed: AtomicUsize,
    /// The node that it is on, from 1; 0 on its way.
    node: AtomicUsize,
    /// The node that it was told to leave.
    left: AtomicUsize,
}

impl Fleet {
    /// `count` nodes, of which `first` are in the config from the start.
    async fn set(count: usize, first: usize, pool: &str) -> Self {
        let (mut nodes, mut tasks) = (Vec::new(), JoinSet::new());
        for number in 1..=count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            nodes.push(listener.local_addr().unwrap());
            tasks.spawn(serve(listener, number));
        }
        let text = config(&nodes[..first], pool);
        let app = soon(App::start(&resolve(&text))).await.unwrap();
        Self { app, nodes, clients: Vec::new(), tasks }
    }

    /// So many clients more, each with its own value of the header `x-user-id`, and all of them there.
    async fn fill(&mut self, count: usize) {
        for _ in 0..count {
            let client = Arc::new(Client::default());
            self.clients.push(Arc::clone(&client));
            self.tasks.spawn(live(self.app.listeners().remove(0), self.clients.len(), client));
        }
        let total = self.clients.len();
        self.until(|counts| counts.values().sum::<usize>() == total).await;
        let is_greeted = |client: &Arc<Client>| client.node.load(Relaxed) > 0;
        soon(async {
            while !self.clients.iter().all(is_greeted) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// The first `count` nodes are in the config now.
    async fn grow(&self, count: usize, pool: &str) {
        let text = config(&self.nodes[..count], pool);
        soon(self.app.reload().apply(resolve(&text))).await.unwrap();
    }

    /// Tunnels by node, once they are so.
    async fn until(&self, are_so: impl Fn(&BTreeMap<String, usize>) -> bool) -> BTreeMap<String, usize> {
        let counts = |scrape: &Scrape| {
            let of_nodes = scrape.samples.iter().filter(|one| one.name == "mainstay_websocket_connections");
            of_nodes.map(|one| (one.labels["node"].clone(), one.value as usize)).collect()
        };
        counts(&Scrape::until(&self.app, |scrape| are_so(&counts(scrape))).await)
    }

    async fn status(&self) -> Value {
        let status = gets(&self.app, "/api/status").await;
        status["pools"][0]["rebalance"].clone()
    }

    /// The status once there is none any more.
    async fn settled(&self) {
        soon(async { while self.status().await != Value::Null {} }).await;
    }

    /// How many clients were closed; none of them twice, and none is where it was.
    fn closed(&self) -> usize {
        for client in &self.clients {
            assert!(client.closed.load(Relaxed) <= 1, "closed twice");
            let is_back = client.left.load(Relaxed) == client.node.load(Relaxed);
            assert!(client.closed.load(Relaxed) == 0 || !is_back, "back on the node that it left");
        }
        self.clients.iter().map(|client| client.closed.load(Relaxed)).sum()
    }

    async fn order(&self, wish: &str) -> (u16, Value) {
        let fields = "Host: localhost\r\nConnection: close\r\nContent-Type: application/json";
        let len = wish.len();
        let head = format!("POST /api/pools/chat/rebalance HTTP/1.1\r\n{fields}\r\nContent-Length: {len}");
        let answer = raw(&self.app, format!("{head}\r\n\r\n{wish}")).await;
        (answer.status, answer.body)
    }
}

fn config(nodes: &[SocketAddr], pool: &str) -> String {
    let node =
        |(index, address): (usize, &SocketAddr)| format!("{{ id: ws{}, address: \"{address}\" }}", index + 1);
    let nodes: Vec<String> = nodes.iter().enumerate().map(node).collect();
    format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         access_log: {{ format: off }}\nshutdown: {{ drain: 1s }}\n\
         pools: {{ chat: {{ nodes: [{}], health: null, slow_start: 0s, {pool} }} }}\n",
        nodes.join(", ")
    )
}

/// A node that takes every tunnel, says its number and answers a Close.
async fn serve(listener: TcpListener, number: usize) {
    let mut tunnels = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        tunnels.spawn(async move {
            let mut node = RawStream(stream);
            if until_blank_line(&mut node).await.is_none() {
                return;
            }
            let greeting = [SWITCHING_PROTOCOLS.as_bytes(), &node_frame(1, &[number as u8])].concat();
            if node.0.write_all(&greeting).await.is_ok() && closed_with(&mut node).await.is_some() {
                let _ = node.0.write_all(&node_frame(8, &1012_u16.to_be_bytes())).await;
            }
        });
    }
}

/// A client that opens its tunnel, again and again.
async fn live(address: String, number: usize, client: Arc<Client>) {
    let mut cookie = String::new();
    loop {
        let Ok(stream) = TcpStream::connect(&address).await else { return };
        let mut tunnel = RawStream(stream);
        let fields = format!("\r\nx-user-id: user-{number}\r\n{cookie}\r\n");
        let request = UPGRADE_REQUEST.replace("\r\n\r\n", &fields);
        if tunnel.0.write_all(request.as_bytes()).await.is_err() {
            return;
        }
        let Some(head) = until_blank_line(&mut tunnel).await else { return };
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        if let Some((_, set)) = head.split_once("set-cookie: ") {
            cookie = format!("cookie: {}\r\n", set.split(';').next().unwrap());
        }
        let mut greeting = [0; 3];
        if tunnel.0.read_exact(&mut greeting).await.is_err() {
            return;
        }
        client.node.store(usize::from(greeting[2]), Relaxed);
        let Some(code) = closed_with(&mut tunnel).await else { return };
        if code != 1012 {
            return;
        }
        client.left.store(client.node.swap(0, Relaxed), Relaxed);
        client.closed.fetch_add(1, Relaxed);
        let _ = tunnel.0.write_all(&client_frame(8, &1012_u16.to_be_bytes())).await;
    }
}

async fn until_blank_line(stream: &mut RawStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.0.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// The code of the Close frame that comes, masked or not; `None` when the stream ends without one.
async fn closed_with(stream: &mut RawStream) -> Option<u16> {
    let head = [stream.0.read_u8().await.ok()?, stream.0.read_u8().await.ok()?];
    assert_eq!(head[0], 0x88);
    let mut rest = vec![0; usize::from(head[1] & 0x7f) + if head[1] & 0x80 == 0 { 0 } else { 4 }];
    stream.0.read_exact(&mut rest).await.ok()?;
    let (mask, payload) = if head[1] & 0x80 == 0 { ([0; 4].as_slice(), &*rest) } else { rest.split_at(4) };
    Some(u16::from_be_bytes([payload[0] ^ mask[0], payload[1] ^ mask[1]]))
}

/// The most tunnels of a node over the average.
fn crowding(counts: &BTreeMap<String, usize>) -> f64 {
    let (most, total) = (counts.values().max().unwrap(), counts.values().sum::<usize>());
    *most as f64 * counts.len() as f64 / total as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_gets_its_share_and_sticky_cookies_bring_nobody_back() {
    let pool = "rebalance: { over: 1s, tolerance: 1.1 }";
    let mut fleet = Fleet::set(4, 3, pool).await;
    fleet.fill(120).await;
    fleet.grow(4, pool).await;
    let counts = fleet.until(|counts| counts.values().sum::<usize>() == 120 && crowding(counts) <= 1.1).await;
    assert_eq!(counts.len(), 4);
    fleet.settled().await;
    let counts = fleet.until(|counts| counts.values().sum::<usize>() == 120).await;
    assert!(crowding(&counts) <= 1.1, "{counts:?}");
    let closed = fleet.closed();
    assert!(closed as f64 <= 120.0 * 1.1 / 4.0, "{closed} of 120 were closed");
    let scrape = Scrape::of(&fleet.app).await;
    let value = |name: &str| scrape.samples.iter().find(|one| one.name == name).unwrap().value;
    assert_eq!(value("mainstay_rebalance_closes_total") as usize, closed);
    assert_eq!(value("mainstay_rebalance_left"), 0.0);
    soon(fleet.app.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_config_no_client_is_moved_until_an_operator_orders_it() {
    let mut fleet = Fleet::set(2, 1, "rebalance: null").await;
    fleet.fill(30).await;
    fleet.grow(2, "rebalance: null").await;
    assert_eq!(fleet.order("{\"over\": 1}").await.0, 400);
    let answer = asks(&fleet.app, "POST", "/api/pools/none/rebalance", "").await;
    assert_eq!((answer.status, answer.error().contains("the pools are: chat")), (404, true));
    assert_eq!((fleet.status().await, fleet.closed()), (Value::Null, 0));
    let (status, plan) = fleet.order("{\"over\": \"0s\", \"quiet_first\": false}").await;
    assert_eq!(status, 202);
    let node =
        |id, connections, moves| json!({ "id": id, "connections": connections, "share": 15, "moves": moves });
    let expected = json!({
        "pool": "chat", "over": "0s", "tolerance": 1.1, "quiet_first": false, "moves": 15,
        "nodes": [node("ws1", 30, 15), node("ws2", 0, 0)],
    });
    assert_eq!(plan, expected);
    // Who comes back while the others leave may be placed on either: within the tolerance nobody is moved for the rest.
    fleet
        .until(|counts| counts.values().sum::<usize>() == 30 && counts.values().all(|count| *count <= 16))
        .await;
    assert!((14..=15).contains(&fleet.closed()), "{}", fleet.closed());
    let (status, plan) = fleet.order("").await;
    assert_eq!((status, &plan["moves"], &plan["over"]), (200, &json!(0), &json!("10m")));
    soon(fleet.app.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_clients_that_a_key_places_only_those_move_whose_key_falls_elsewhere_now() {
    let pool = "rebalance: { over: 500ms }, affinity: [header: { name: x-user-id }]";
    let mut fleet = Fleet::set(4, 3, pool).await;
    fleet.fill(200).await;
    fleet.grow(4, pool).await;
    fleet.until(|counts| counts.get("ws4").is_some_and(|count| *count >= 25)).await;
    fleet.settled().await;
    fleet.until(|counts| counts.values().sum::<usize>() == 200).await;
    let moved = fleet.clients.iter().filter(|client| client.closed.load(Relaxed) > 0);
    assert!(moved.clone().all(|client| client.node.load(Relaxed) == 4));
    assert!(fleet.closed() as f64 <= 200.0 * 1.1 / 4.0, "{}", moved.count());
    soon(fleet.app.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_ends_when_the_config_no_longer_wants_it_and_blocks_no_other() {
    let pool = "rebalance: { over: 100s, tolerance: 1.2 }";
    let mut fleet = Fleet::set(3, 1, pool).await;
    fleet.fill(60).await;
    fleet.grow(2, pool).await;
    soon(async { while fleet.status().await == Value::Null {} }).await;
    let status = fleet.status().await;
    assert_eq!(status["planned"], 30, "{status}");
    // Whoever comes anyway goes where there is room, cookie or not.
    fleet.fill(5).await;
    assert!(fleet.clients[60..].iter().all(|client| client.node.load(Relaxed) == 2));
    fleet.grow(2, "rebalance: null").await;
    fleet.settled().await;
    // One that was ordered takes the place of another, and the end of the process that of all.
    assert_eq!(fleet.order("{\"over\": \"1h\"}").await.0, 202);
    assert_eq!(fleet.order("{\"over\": \"2h\"}").await.0, 202);
    assert_ne!(fleet.status().await, Value::Null);
    soon(fleet.app.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_resumes_a_rebalance_and_moves_no_later_client() {
    let mut fleet = Fleet::set(2, 1, "rebalance: null").await;
    fleet.fill(20).await;
    fleet.grow(2, "rebalance: null").await;
    assert_eq!(fleet.order("{\"over\": \"1h\", \"quiet_first\": false}").await.0, 202);
    let rebalancer = Arc::clone(fleet.app.reload().rebalancer());
    let [pending] = &rebalancer.suspend().await[..] else { panic!("one is under way") };
    assert_eq!(fleet.status().await, Value::Null);
    let left = pending.left["ws1"];
    assert!((9..=10).contains(&left) && pending.is_ordered && pending.over > Duration::from_secs(3_500));
    // Nobody was there before 1970.
    rebalancer.resume(&PendingRebalance { begun: Duration::ZERO, over: Duration::ZERO, ..pending.clone() });
    fleet.settled().await;
    assert!(fleet.closed() <= 1);
    rebalancer.resume(&PendingRebalance { pool: "gone".into(), ..pending.clone() });
    assert_eq!(fleet.status().await, Value::Null);
    rebalancer.resume(&PendingRebalance { over: Duration::from_millis(300), ..pending.clone() });
    fleet.until(|counts| counts.values().sum::<usize>() == 20 && counts["ws1"] <= 11).await;
    fleet.settled().await;
    assert!((9..=10).contains(&fleet.closed()), "{}", fleet.closed());
    soon(fleet.app.stop()).await;
}
