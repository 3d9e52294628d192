//! The metrics of a running balancer: every one of the contract by name, and that each moves when it should.

use std::collections::BTreeSet;

use mainstay::affinity::cookie::NodeTag;
use mainstay::app::App;
use tokio::net::TcpListener;

use crate::admin::asks;
use crate::contract::{CONTRACT, VALUES, metric};
use crate::harness::{
    Harness, RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, accept_request, client_frame, connect_client,
    node_frame, resolve, run, soon,
};
use crate::http_node::HttpNode;
use crate::scrape::Scrape;

/// A balancer whose pools are written in `pools`, each line with four spaces before it.
async fn balancer(pools: &str, routes: &str) -> App {
    run(&config(pools, routes)).await
}

fn config(pools: &str, routes: &str) -> String {
    format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         access_log: {{ format: off }}\nshutdown: {{ drain: 1s }}\npools:\n{pools}routes: [{routes}]\n"
    )
}

/// Sends one plain request with these fields, and gives the whole answer.
async fn ask(app: &App, target: &str, fields: &str) -> String {
    let mut client = connect_client(app).await;
    client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n")).await;
    String::from_utf8(client.read_to_end().await).unwrap()
}

/// Sends one upgrade request, and gives the client once its answer's head is here, with its status.
async fn upgrade(app: &App, path: &str) -> (RawStream, String) {
    let mut client = connect_client(app).await;
    client.send(UPGRADE_REQUEST.replace("/chat", path)).await;
    let head = client.read_head().await;
    let status = head[9..12].to_owned();
    (client, status)
}

#[tokio::test]
async fn every_metric_of_the_contract_is_exposed_with_its_type_and_labels() {
    let server = HttpNode::start(Some("1/2")).await;
    let harness = Harness::start("").await;
    let pools = format!(
        "  chat: {{ nodes: [{{ id: a, address: \"{}\" }}], health: null }}\n  \
         web: {{ nodes: [{{ id: b, address: \"{}\" }}], health: {{ http: {{ path: / }} }} }}\n",
        harness.node.local_addr().unwrap(),
        server.address
    );
    let app = balancer(&pools, "{ path: /chat, pool: chat }, { path: /, pool: web }").await;
    ask(&app, "/", "").await;
    let (opened, at_node) = tokio::join!(upgrade(&app, "/chat"), async {
        let mut node = accept_request(&harness.node).await;
        node.send(SWITCHING_PROTOCOLS).await;
        node
    });
    drop((opened, at_node));
    assert_eq!(asks(&app, "POST", "/api/pools/chat/nodes/a/drain", "").await.status, 202);
    let scrape = Scrape::until(&app, |scrape| scrape.sum("mainstay_closes_total", &[]) == 1.0).await;

    let types: Vec<(&str, &str)> = scrape.types.iter().map(|(name, kind)| (&**name, &**kind)).collect();
    let mut expected: Vec<_> = CONTRACT.iter().map(|metric| (metric.name, metric.kind)).collect();
    expected.sort_unstable();
    assert_eq!(types, expected, "the contract and nothing but the contract");
    for sample in &scrape.samples {
        let metric = metric(&sample.name).unwrap_or_else(|| panic!("{sample:?}"));
        let le = sample.name.ends_with("_bucket").then_some("le");
        let labels: BTreeSet<&str> = metric.labels.iter().copied().chain(le).collect();
        assert_eq!(sample.labels.keys().map(String::as_str).collect::<BTreeSet<_>>(), labels, "{sample:?}");
        for (label, values) in VALUES {
            let value = sample.labels.get(*label).map(String::as_str);
            assert!(value.is_none_or(|value| values.contains(&value)), "{sample:?}");
        }
    }
    assert_eq!(scrape.value("mainstay_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
    assert_eq!(scrape.value("mainstay_config_generation", &[]), Some(1.0));
    assert_eq!(scrape.value("mainstay_access_log_dropped_total", &[]), Some(0.0));
    assert!(scrape.value("process_open_fds", &[]).unwrap() >= 3.0);
}

#[tokio::test]
async fn handshakes_are_counted_by_how_they_end() {
    let harness = Harness::start("").await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let pools = format!(
        "  chat: {{ nodes: [{{ id: a, address: \"{}\", max_connections: 1 }}], health: null }}\n  \
         lost: {{ nodes: [{{ id: b, address: \"{closed}\" }}], health: null }}\n",
        harness.node.local_addr().unwrap()
    );
    let app = balancer(&pools, "{ path: /chat, pool: chat }, { path: /lost, pool: lost }").await;
    let answers = [
        ("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n".to_owned(), "403"),
        (SWITCHING_PROTOCOLS.replace("s3pP", "AAAA"), "502"),
        (SWITCHING_PROTOCOLS.to_owned(), "101"),
    ];
    let mut open = Vec::new();
    for (answer, expected) in answers {
        let node = async {
            let mut node = accept_request(&harness.node).await;
            node.send(answer).await;
            node
        };
        let ((client, status), node) = tokio::join!(upgrade(&app, "/chat"), node);
        assert_eq!(status, expected);
        // What was refused gives its place on the node back once the client has its answer.
        if status == "101" {
            open.push((client, node));
        } else {
            let mut client = client;
            client.wait_closed().await;
        }
    }
    assert_eq!(upgrade(&app, "/chat").await.1, "503", "it is full");
    assert_eq!(upgrade(&app, "/lost").await.1, "502");
    assert_eq!(upgrade(&app, "/nowhere").await.1, "404");
    let mut wrong = connect_client(&app).await;
    wrong.send(UPGRADE_REQUEST.replace("Version: 13", "Version: 8")).await;
    assert!(wrong.read_head().await.starts_with("HTTP/1.1 426 "));

    let scrape = Scrape::of(&app).await;
    let counted = |pool: &str| {
        ["upgraded", "refused", "failed", "limited"].map(|result| {
            scrape.value("mainstay_handshakes_total", &[("pool", pool), ("result", result)]).unwrap()
        })
    };
    assert_eq!(counted("chat"), [1.0, 2.0, 1.0, 1.0]);
    assert_eq!(counted("lost"), [0.0, 0.0, 1.0, 0.0]);
    assert_eq!(counted(""), [0.0, 1.0, 0.0, 0.0]);
    let seconds = |end: &str, labels: &[(&str, &str)]| {
        scrape.value(&format!("mainstay_handshake_seconds_{end}"), &[&[("pool", "chat")], labels].concat())
    };
    assert_eq!(seconds("count", &[]), Some(1.0), "only what was upgraded is timed");
    assert!(seconds("sum", &[]).unwrap() > 0.0);
    let bounds: Vec<f64> = scrape
        .with("mainstay_handshake_seconds_bucket", &[("pool", "chat")])
        .iter()
        .map(|bucket| bucket.labels["le"].parse().unwrap())
        .collect();
    assert_eq!((bounds[0], bounds[bounds.len() - 2], bounds[bounds.len() - 1]), (0.001, 10.0, f64::INFINITY));
    assert!(bounds.is_sorted());
    assert_eq!(seconds("bucket", &[("le", "+Inf")]), Some(1.0));
    assert_eq!(scrape.value("mainstay_websocket_connections", &[("node", "a")]), Some(1.0));
    assert_eq!(scrape.value("mainstay_node_utilization", &[("node", "a")]), Some(1.0));
    assert_eq!(scrape.value("mainstay_node_utilization", &[("node", "b")]), None, "it has no limit");
}

/// The ways in which a tunnel ends here, as the labels say them.
const WAYS: [(&str, &str); 6] = [
    ("client", "1000"),
    ("node", "3xxx"),
    ("client", "4xxx"),
    ("node", "1006"),
    ("balancer", "1002"),
    ("balancer", "1009"),
];

#[tokio::test]
async fn i7_every_session_that_opened_is_counted_once_when_it_ends() {
    let harness = Harness::start("    messages: { max_size: 1KiB }\n").await;
    for round in 0..5 * WAYS.len() {
        let (mut client, mut node) = harness.open_tunnel().await;
        match round % WAYS.len() {
            0 => client.send(client_frame(8, &1000u16.to_be_bytes())).await,
            1 => node.send(node_frame(8, &3999u16.to_be_bytes())).await,
            2 => client.send(client_frame(8, &4000u16.to_be_bytes())).await,
            3 => {}
            // A Ping in fragments, and the header of a message of 2000 bytes.
            4 => client.send([0x09, 0x80, 0, 0, 0, 0]).await,
            _ => client.send([0x82, 0xfe, 0x07, 0xd0, 0, 0, 0, 0]).await,
        }
        drop(node);
        client.wait_closed().await;
    }
    let scrape =
        Scrape::until(&harness.app, |scrape| scrape.sum("mainstay_websocket_connections", &[]) == 0.0).await;
    let upgraded = scrape.sum("mainstay_handshakes_total", &[("result", "upgraded")]);
    assert_eq!(upgraded, (5 * WAYS.len()) as f64);
    assert_eq!(scrape.sum("mainstay_closes_total", &[]), upgraded);
    let sides = |side| scrape.sum("mainstay_closes_total", &[("side", side)]);
    assert_eq!(["client", "node", "balancer"].map(sides), [10.0, 10.0, 10.0], "{scrape:#?}");
    for (side, code) in WAYS {
        let labels = [("pool", "chat"), ("node", "ws1"), ("side", side), ("code", code)];
        assert_eq!(scrape.value("mainstay_closes_total", &labels), Some(5.0), "{side} {code}");
    }
}

#[tokio::test]
async fn bytes_and_messages_are_counted_by_direction_and_kind() {
    let harness = Harness::start("").await;
    let mut client = harness.connect().await;
    let early = client_frame(1, b"early");
    client.send([UPGRADE_REQUEST.as_bytes(), &early].concat()).await;
    let mut node = harness.accept_request().await;
    let greeting = node_frame(2, b"greeting");
    node.send([SWITCHING_PROTOCOLS.as_bytes(), &greeting].concat()).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    // A message in two frames is one.
    let from_client = [
        &client_frame(1, b"a")[..],
        &[0x01, 0x81, 0, 0, 0, 0, b'b'],
        &client_frame(9, b""),
        &client_frame(0, b"c"),
    ]
    .concat();
    client.send(&from_client).await;
    node.expect(&[&early[..], &from_client].concat()).await;
    let from_node =
        [node_frame(10, b""), node_frame(1, b"d"), node_frame(8, &1000u16.to_be_bytes())].concat();
    node.send(&from_node).await;
    client.expect(&[&greeting[..], &from_node].concat()).await;
    let close = client_frame(8, &1000u16.to_be_bytes());
    client.send(&close).await;
    node.expect(&close).await;
    drop(node);
    client.wait_closed().await;
    let scrape = Scrape::until(&harness.app, |scrape| scrape.sum("mainstay_closes_total", &[]) == 1.0).await;
    let bytes = |direction| scrape.value("mainstay_bytes_total", &[("direction", direction)]).unwrap();
    let sent = [early.len() + from_client.len() + close.len(), greeting.len() + from_node.len()];
    assert_eq!(["in", "out"].map(bytes), sent.map(|len| len as f64));
    let messages = |direction| {
        ["text", "binary", "ping", "pong", "close"].map(|kind| {
            scrape.value("mainstay_messages_total", &[("direction", direction), ("kind", kind)]).unwrap()
        })
    };
    assert_eq!(messages("in"), [3.0, 0.0, 1.0, 0.0, 1.0]);
    assert_eq!(messages("out"), [1.0, 1.0, 0.0, 1.0, 1.0]);
}

#[tokio::test]
async fn plain_requests_are_counted_by_the_class_of_their_status() {
    let server = HttpNode::start(None).await;
    let pools = format!("  web: {{ nodes: [{{ id: a, address: \"{}\" }}], health: null }}\n", server.address);
    let app = balancer(&pools, "{ path: /status/, pool: web }").await;
    for (status, times) in [("200", 3), ("204", 1), ("302", 1), ("404", 2), ("500", 1), ("503", 1)] {
        for _ in 0..times {
            let answer = ask(&app, &format!("/status/{status}"), "").await;
            assert_eq!(&answer[9..12], status);
            assert!(answer.to_lowercase().contains("\r\ndate: "), "RFC 9110, section 6.6.1: {answer}");
        }
    }
    assert!(ask(&app, "/elsewhere", "").await.starts_with("HTTP/1.1 404 "));
    let scrape = Scrape::of(&app).await;
    let counted = |pool| {
        ["1xx", "2xx", "3xx", "4xx", "5xx"].map(|class| {
            scrape.value("mainstay_requests_total", &[("pool", pool), ("status", class)]).unwrap()
        })
    };
    assert_eq!(counted("web"), [0.0, 4.0, 1.0, 2.0, 2.0]);
    assert_eq!(counted(""), [0.0, 0.0, 0.0, 1.0, 0.0]);
    assert_eq!(scrape.sum("mainstay_handshakes_total", &[]), 0.0);
}

#[tokio::test]
async fn affinity_is_counted_for_each_source_and_outcome() {
    let servers = [HttpNode::start(None).await, HttpNode::start(None).await];
    let [a, b] = [servers[0].address, servers[1].address];
    let nodes =
        format!("nodes: [{{ id: a, address: \"{a}\" }}, {{ id: b, address: \"{b}\" }}], health: null");
    let pools = format!(
        "  chat: {{ {nodes}, affinity: [cookie: {{}}, cookie: {{ name: io, set_by: node }}, engine_io: {{}}, \
         header: {{ name: x-user }}, query: {{ name: user }}, client_ip: {{}}] }}\n  \
         free: {{ {nodes}, affinity: [] }}\n"
    );
    let app = balancer(&pools, "{ path: /free, pool: free }, { pool: chat }").await;
    let first = ask(&app, "/", "").await;
    let cookie = first.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = cookie.split(';').next().unwrap();
    let sid = format!("/?EIO=4&transport=polling&sid=abc.{}", NodeTag::of("chat", "b"));
    for (target, fields) in [
        ("/", format!("Cookie: {cookie}\r\n")),
        ("/", "Cookie: io=b\r\n".into()),
        ("/", "Cookie: io=gone\r\n".into()),
        (&*sid, String::new()),
        ("/", "X-User: ann\r\n".into()),
        ("/?user=ann", String::new()),
        ("/free", String::new()),
    ] {
        assert!(ask(&app, target, &fields).await.starts_with("HTTP/1.1 200 "), "{target} {fields}");
    }
    let scrape = Scrape::of(&app).await;
    let expected = [
        ("chat", "client_ip", "hashed"),
        ("chat", "cookie", "kept"),
        ("chat", "engine_io", "kept"),
        ("chat", "header", "hashed"),
        ("chat", "node_cookie", "kept"),
        ("chat", "node_cookie", "moved"),
        ("chat", "query", "hashed"),
        ("free", "none", "placed"),
    ];
    for (pool, source, outcome) in expected {
        let labels = [("pool", pool), ("source", source), ("outcome", outcome)];
        assert_eq!(scrape.value("mainstay_affinity_total", &labels), Some(1.0), "{labels:?}");
    }
    assert_eq!(scrape.with("mainstay_affinity_total", &[]).len(), expected.len(), "and no other");
}

#[tokio::test]
async fn probes_states_and_the_nodes_own_load_are_shown() {
    let server = HttpNode::start(Some("30/40")).await;
    let silent = HttpNode::start(None).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let pools = format!(
        "  web:\n    nodes: [{{ id: says, address: \"{}\", max_connections: 1000 }}, \
         {{ id: silent, address: \"{}\", max_connections: 1000 }}, {{ id: gone, address: \"{closed}\" }}]\n    \
         health: {{ http: {{ path: /health }}, interval: 50ms }}\n",
        server.address, silent.address
    );
    let app = balancer(&pools, "{ pool: web }").await;
    let probes = |scrape: &Scrape, node: &str, result: &str| {
        scrape.value("mainstay_health_checks_total", &[("node", node), ("result", result)]).unwrap()
    };
    let scrape = Scrape::until(&app, |scrape| {
        probes(scrape, "says", "ok") > 1.0 && probes(scrape, "gone", "failed") > 1.0
    })
    .await;
    assert_eq!((probes(&scrape, "says", "failed"), probes(&scrape, "gone", "ok")), (0.0, 0.0));
    let states = |node: &str| {
        ["up", "down", "draining", "removed"].map(|state| {
            scrape.value("mainstay_node_state", &[("pool", "web"), ("node", node), ("state", state)]).unwrap()
        })
    };
    assert_eq!(states("says"), [1.0, 0.0, 0.0, 0.0]);
    assert_eq!(states("gone"), [0.0, 1.0, 0.0, 0.0]);
    let utilization = |node| scrape.value("mainstay_node_utilization", &[("node", node)]);
    assert_eq!(["says", "silent", "gone"].map(utilization), [Some(0.75), Some(0.0), None]);
}

#[tokio::test]
async fn counters_survive_a_reload_and_what_was_removed_leaves_the_exposition() {
    let servers = [HttpNode::start(None).await, HttpNode::start(None).await];
    let [a, b] = [servers[0].address, servers[1].address];
    let nodes = |names: &str| {
        let all = [("a", a), ("b", b)].into_iter().filter(|(id, _)| names.contains(id));
        let all: Vec<String> =
            all.map(|(id, address)| format!("{{ id: {id}, address: \"{address}\" }}")).collect();
        config(&format!("  web: {{ nodes: [{}], health: null }}\n", all.join(", ")), "{ pool: web }")
    };
    let app = run(&nodes("ab")).await;
    for _ in 0..4 {
        ask(&app, "/", "").await;
    }
    soon(app.reload().apply(resolve(&nodes("a")))).await.unwrap();
    ask(&app, "/", "").await;
    let has_left =
        |scrape: &Scrape| !scrape.samples.iter().any(|s| s.labels.get("node").is_some_and(|n| n == "b"));
    let scrape = Scrape::until(&app, has_left).await;
    assert_eq!(scrape.value("mainstay_requests_total", &[("pool", "web"), ("status", "2xx")]), Some(5.0));
    assert_eq!(scrape.value("mainstay_config_generation", &[]), Some(2.0));
    let reloads = |scrape: &Scrape| {
        let of = |result| scrape.value("mainstay_config_reloads_total", &[("result", result)]).unwrap();
        (of("applied"), of("rejected"), scrape.value("mainstay_config_last_reload_success", &[]).unwrap())
    };
    assert_eq!(reloads(&scrape), (1.0, 0.0, 1.0));
    let taken = nodes("ab").replacen("127.0.0.1:0", &b.to_string(), 1);
    assert!(soon(app.reload().apply(resolve(&taken))).await.is_err(), "the address is in use");
    let scrape = Scrape::of(&app).await;
    assert_eq!(reloads(&scrape), (1.0, 1.0, 0.0));
    assert_eq!(scrape.value("mainstay_config_generation", &[]), Some(2.0));
}
