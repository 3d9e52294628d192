//! Another config takes effect under live tunnels, and what that closes and what not.

mod files;

use std::time::Duration;

use mainstay::app::App;
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{
    RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, accept_request, assert_closes, assert_relays, not_soon,
    resolve, soon,
};

/// Two nodes, `one` and `two`, and a balancer in front of them.
struct Fleet {
    app: App,
    one: TcpListener,
    two: TcpListener,
}

/// What the config says apart from its nodes.
struct Rest<'a> {
    listeners: &'a str,
    /// More keys at the top.
    top: &'a str,
    /// More keys of the pool.
    pool: &'a str,
}

const REST: Rest = Rest { listeners: "127.0.0.1:0", top: "", pool: "drain: { over: 0s }" };

/// A config with these nodes; a client names its node in the cookie `io`.
fn config(nodes: &[(&str, &TcpListener)], rest: &Rest) -> String {
    let node = |(id, node): &(&str, &TcpListener)| {
        format!("{{ id: {id}, address: \"{}\" }}", node.local_addr().unwrap())
    };
    let nodes: Vec<String> = nodes.iter().map(node).collect();
    let Rest { listeners, top, pool } = rest;
    let health = if pool.contains("health:") { "" } else { ", health: null" };
    format!(
        "listeners: [{{ address: \"{listeners}\" }}]\naccess_log: {{ format: off }}\n{top}\n\
         shutdown: {{ drain: 1s }}\n{}\
         pools: {{ chat: {{ nodes: [{}], affinity: [cookie: {{ name: io, set_by: node }}], {pool}{health} }} }}\n",
        if top.contains("admin:") { "" } else { "admin: { address: \"127.0.0.1:0\" }\n" },
        nodes.join(", ")
    )
}

async fn bound() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

impl Fleet {
    async fn set(rest: &Rest<'_>) -> Self {
        let (one, two) = (bound().await, bound().await);
        let text = config(&[("one", &one), ("two", &two)], rest);
        let app = soon(App::start(&resolve(&text))).await.unwrap();
        Self { app, one, two }
    }

    /// Both nodes.
    fn both(&self) -> [(&str, &TcpListener); 2] {
        [("one", &self.one), ("two", &self.two)]
    }

    /// The changes, as they are said.
    async fn reload(&self, text: &str) -> Vec<String> {
        let changes = soon(self.app.reload().apply(resolve(text))).await.unwrap();
        changes.iter().map(ToString::to_string).collect()
    }

    /// A tunnel to the node that the client names.
    async fn tunnel(&self, id: &str) -> (RawStream, RawStream) {
        tunnel(&self.app, id, if id == "one" { &self.one } else { &self.two }).await
    }

    async fn metrics(&self) -> String {
        let mut admin = RawStream(soon(TcpStream::connect(self.app.admin().unwrap())).await.unwrap());
        admin.send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        String::from_utf8(admin.read_to_end().await).unwrap()
    }
}

async fn client(app: &App, id: &str) -> RawStream {
    let mut client = RawStream(soon(TcpStream::connect(&app.listeners()[0])).await.unwrap());
    client.send(UPGRADE_REQUEST.replace("\r\n\r\n", &format!("\r\nCookie: io={id}\r\n\r\n"))).await;
    client
}

async fn tunnel(app: &App, id: &str, node: &TcpListener) -> (RawStream, RawStream) {
    let mut client = client(app, id).await;
    let mut node = accept_request(node).await;
    node.send(SWITCHING_PROTOCOLS).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    (client, node)
}

#[tokio::test]
async fn i9_a_reload_closes_no_tunnel_whose_route_and_node_are_still_there() {
    let fleet = Fleet::set(&REST).await;
    let (mut stays, leaving) = (fleet.tunnel("one").await, fleet.tunnel("two").await);
    let three = bound().await;
    let text = config(&[("three", &three), ("one", &fleet.one)], &REST).replace(
        "chat: {",
        "chat: { timeouts: { idle: 2h }, messages: { max_size: 1MiB }, balance: random_two, slow_start: 0s,",
    );
    let text = format!("{text}limits: {{ head_time: 5s }}\ntrusted_proxies: [10.0.0.0/8]\n");
    let changes = fleet.reload(&text).await;
    assert!(changes.contains(&format!("pool chat: node three added ({})", three.local_addr().unwrap())));
    assert!(changes.contains(&"pool chat: timeouts.idle is 2h now, was 1h".into()), "{changes:?}");
    assert_closes(leaving, 1012).await;
    assert_relays(&mut stays).await;
    let mut new = tunnel(&fleet.app, "three", &three).await;
    assert_relays(&mut new).await;
    // Whoever names the node that is gone is placed on another.
    let mut moved = client(&fleet.app, "two").await;
    let (node, _) = soon(async {
        tokio::select! { node = fleet.one.accept() => node, node = three.accept() => node }
    })
    .await
    .unwrap();
    let mut node = RawStream(node);
    node.read_head().await;
    node.send(SWITCHING_PROTOCOLS).await;
    assert!(moved.read_head().await.starts_with("HTTP/1.1 101 "));
    not_soon(fleet.two.accept()).await;
    fleet.app.stop().await;
}

#[tokio::test]
async fn i9_live_counts_survive_a_reload_and_a_removed_node_leaves_the_metrics_with_its_last_tunnel() {
    let fleet = Fleet::set(&Rest { pool: "drain: { over: 1h }", ..REST }).await;
    let (_stays, _first) = (fleet.tunnel("one").await, fleet.tunnel("two").await);
    let mut second = fleet.tunnel("two").await;
    assert_relays(&mut second).await;
    let drained_at_once = Rest { pool: "drain: { over: 0s }", ..REST };
    fleet.reload(&config(&[("one", &fleet.one)], &Rest { pool: "drain: { over: 1h }", ..REST })).await;
    let metrics = fleet.metrics().await;
    for line in [
        "mainstay_websocket_connections{pool=\"chat\",node=\"one\"} 1\n",
        "mainstay_node_state{pool=\"chat\",node=\"two\",state=\"removed\"} 1\n",
        "mainstay_node_state{pool=\"chat\",node=\"two\",state=\"up\"} 0\n",
        "mainstay_config_generation 2\n",
        "mainstay_config_reloads_total{result=\"applied\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
    // Named again, and taken out again: now at once.
    fleet.reload(&config(&fleet.both(), &drained_at_once)).await;
    fleet.reload(&config(&[("one", &fleet.one)], &drained_at_once)).await;
    let bytes = "mainstay_bytes_total{pool=\"chat\",direction=\"in\"} 8\n";
    let gone = async {
        loop {
            let metrics = fleet.metrics().await;
            assert!(metrics.contains(bytes), "a pool's sums never go back: {metrics}");
            if !metrics.contains("node=\"two\"") {
                break;
            }
        }
    };
    let (client, node) = second;
    tokio::join!(soon(gone), async {
        drop(client);
        drop(node);
        drop(_first);
    });
    let metrics = fleet.metrics().await;
    assert!(metrics.contains("mainstay_websocket_connections{pool=\"chat\",node=\"one\"} 1\n"), "{metrics}");
    fleet.app.stop().await;
}

#[tokio::test]
async fn i11_a_tunnel_of_a_removed_node_ends_by_the_deadline_when_no_peer_answers() {
    let rest = Rest { pool: "drain: { over: 0s }", ..REST };
    let fleet = Fleet::set(&rest).await;
    let (mut client, mut node) = fleet.tunnel("two").await;
    fleet.reload(&config(&[("one", &fleet.one)], &rest)).await;
    assert_eq!((client.read_close_code().await, node.read_close_code().await), (1012, 1012));
    client.wait_closed().await;
    fleet.app.stop().await;
}

#[tokio::test]
async fn a_node_that_is_put_back_keeps_the_tunnels_that_have_not_left() {
    let rest = Rest { pool: "drain: { over: 4s }", ..REST };
    let fleet = Fleet::set(&rest).await;
    let mut tunnels = Vec::new();
    for _ in 0..20 {
        tunnels.push(fleet.tunnel("two").await);
    }
    fleet.reload(&config(&[("one", &fleet.one)], &rest)).await;
    let changes = fleet.reload(&config(&fleet.both(), &rest)).await;
    assert_eq!(changes, [format!("pool chat: node two added ({})", fleet.two.local_addr().unwrap())]);
    let mut left = Vec::new();
    for (client, node) in tunnels {
        let was_told = tokio::time::timeout(Duration::from_millis(1), client.0.peek(&mut [0])).await;
        if was_told.is_err() {
            left.push((client, node));
        }
    }
    assert!(left.len() > 10, "{} are left", left.len());
    // One every 200 ms would be told.
    let told = left.iter().map(|(client, _)| Box::pin(async { client.0.peek(&mut [0]).await }));
    let mut told: Vec<_> = told.collect();
    let any = std::future::poll_fn(|cx| {
        let is_ready = told.iter_mut().any(|told| told.as_mut().poll(cx).is_ready());
        if is_ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    });
    assert!(tokio::time::timeout(Duration::from_millis(700), any).await.is_err(), "one was told to leave");
    drop(told);
    assert_relays(&mut left[0]).await;
    fleet.app.stop().await;
}

#[tokio::test]
async fn a_node_that_moves_leaves_its_old_place_and_takes_clients_at_the_new_one() {
    let fleet = Fleet::set(&REST).await;
    let (mut stays, at_the_old) = (fleet.tunnel("one").await, fleet.tunnel("two").await);
    let new = bound().await;
    let changes = fleet.reload(&config(&[("one", &fleet.one), ("two", &new)], &REST)).await;
    let (to, from) = (new.local_addr().unwrap(), fleet.two.local_addr().unwrap());
    assert_eq!(changes, [format!("pool chat: node two moved to {to}, was at {from}")]);
    assert_closes(at_the_old, 1012).await;
    let mut at_the_new = tunnel(&fleet.app, "two", &new).await;
    // Another reload does not take the new place for the old one.
    fleet
        .reload(&config(
            &[("one", &fleet.one), ("two", &new)],
            &Rest { top: "trusted_proxies: [::1]", ..REST },
        ))
        .await;
    assert_relays(&mut at_the_new).await;
    assert_relays(&mut stays).await;
    let metrics = fleet.metrics().await;
    let up = "mainstay_node_state{pool=\"chat\",node=\"two\",state=\"up\"} 1\n";
    assert!(metrics.contains(up), "{metrics}");
    // Back to where it was: those at the place in between leave, and nobody else.
    fleet.reload(&config(&fleet.both(), &REST)).await;
    assert_closes(at_the_new, 1012).await;
    assert_relays(&mut stays).await;
    fleet.app.stop().await;
}

#[tokio::test]
async fn tunnels_of_a_route_that_is_gone_leave_and_those_of_a_wider_or_another_pool_s_stay() {
    let (one, two) = (bound().await, bound().await);
    let text = |routes: &str| {
        let pool = |name: &str, node: &TcpListener| {
            let address = node.local_addr().unwrap();
            format!(
                "{name}: {{ nodes: [{{ id: n, address: \"{address}\" }}], health: null, \
                 drain: {{ over: 0s, code: 3001, reason: gone }} }}"
            )
        };
        format!(
            "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: null\naccess_log: {{ format: off }}\n\
             shutdown: {{ drain: 1s }}\nroutes: [{routes}]\npools: {{ {}, {} }}\n",
            pool("a", &one),
            pool("b", &two)
        )
    };
    let narrow = "{ host: a.example, path: /chat, pool: a }, { path: /, pool: b }";
    let app = soon(App::start(&resolve(&text(narrow)))).await.unwrap();
    let mut first = tunnel(&app, "x", &one).await;
    // A route that takes all that the narrow one took, to the same pool.
    let wider = "{ host: a.example, pool: a }, { path: /, pool: b }";
    soon(app.reload().apply(resolve(&text(wider)))).await.unwrap();
    assert_relays(&mut first).await;
    let mut second = tunnel(&app, "x", &one).await;
    // The same host and path lead to another pool: new clients go there.
    let other = "{ host: a.example, pool: b }, { path: /other, pool: a }";
    let changes = soon(app.reload().apply(resolve(&text(other)))).await.unwrap();
    assert!(changes.iter().any(|change| change.to_string() == "route a.example: pool is b now, was a"));
    let mut third = tunnel(&app, "x", &two).await;
    assert_relays(&mut second).await;
    assert_relays(&mut third).await;
    // Nothing leads there any more.
    soon(app.reload().apply(resolve(&text("{ path: /other, pool: a }, { path: /b, pool: b }"))))
        .await
        .unwrap();
    assert_closes(third, 3001).await;
    app.stop().await;
    drop(first);
}

#[tokio::test]
async fn i3_a_session_sees_one_generation_from_its_request_to_its_adoption() {
    let node = bound().await;
    let text = |cookie: &str| {
        format!(
            "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: null\naccess_log: {{ format: off }}\n\
             shutdown: {{ drain: 1s }}\npools: {{ chat: {{ nodes: [{{ id: n, address: \"{}\" }}], \
             health: null, affinity: [cookie: {{ name: {cookie} }}] }} }}\n",
            node.local_addr().unwrap()
        )
    };
    let app = soon(App::start(&resolve(&text("before")))).await.unwrap();
    let mut early = client(&app, "x").await;
    let mut at_node = accept_request(&node).await;
    soon(app.reload().apply(resolve(&text("after")))).await.unwrap();
    at_node.send(SWITCHING_PROTOCOLS).await;
    let head = early.read_head().await.to_lowercase();
    assert!(head.contains("set-cookie: before=") && !head.contains("after="), "{head}");
    let mut late = client(&app, "x").await;
    let mut late_at_node = accept_request(&node).await;
    late_at_node.send(SWITCHING_PROTOCOLS).await;
    assert!(late.read_head().await.to_lowercase().contains("set-cookie: after="));
    assert_relays(&mut (early, at_node)).await;
    app.stop().await;
}

#[tokio::test]
async fn i3_a_session_on_its_way_to_a_node_that_is_taken_out_arrives_and_then_leaves_with_the_others() {
    let fleet = Fleet::set(&REST).await;
    let mut early = client(&fleet.app, "two").await;
    let mut at_node = accept_request(&fleet.two).await;
    fleet.reload(&config(&[("one", &fleet.one)], &REST)).await;
    at_node.send(SWITCHING_PROTOCOLS).await;
    assert!(early.read_head().await.starts_with("HTTP/1.1 101 "));
    assert_closes((early, at_node), 1012).await;
    fleet.app.stop().await;
}

#[tokio::test]
async fn a_node_that_joins_is_probed_before_the_reload_is_over() {
    let rest = Rest { pool: "health: { tcp: {}, interval: 1h, timeout: 1s }", ..REST };
    let fleet = Fleet::set(&rest).await;
    let (open, shut) = (bound().await, bound().await);
    let nodes = [("one", &fleet.one), ("two", &fleet.two), ("open", &open), ("shut", &shut)];
    let text = config(&nodes, &rest);
    drop(shut);
    fleet.reload(&text).await;
    let metrics = fleet.metrics().await;
    for (node, state) in [("one", "up"), ("open", "up"), ("shut", "down")] {
        let line = format!("mainstay_node_state{{pool=\"chat\",node=\"{node}\",state=\"{state}\"}} 1\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    let asked_once = "mainstay_health_checks_total{pool=\"chat\",node=\"one\",result=\"ok\"} 1\n";
    assert!(metrics.contains(asked_once), "who was there is not asked anew: {metrics}");
    fleet.app.stop().await;
}
