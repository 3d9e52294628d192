//! The running binary is replaced, by real processes: no tunnel is closed, and no byte is lost, doubled or moved.
//!
//! The nodes and the clients are of this process. Each tunnel carries numbered messages in both directions, each of
//! which is checked together with all before it; a copy of the binary stands in the test's folder, so that another
//! program can take its place.

mod chain;
mod ends;
mod governs;
mod keys;
mod owners;
mod stage;
mod starting;
mod traffic;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::balancer::{
    Balancer, DEADLINE, Raw, answered, asked, asking, close_code, config, node, size, tunnel,
};
use stage::{Stage, copy};
use traffic::{Traffic, Wire, plain};

/// Open tunnels, as traffic takes them.
fn tunnels(stage: &Stage, count: usize) -> Vec<(Box<dyn Wire>, Raw)> {
    let open = |_| {
        let (client, node) = tunnel(&stage.balancer, &stage.node);
        (Box::new(client.0) as Box<dyn Wire>, node)
    };
    (0..count).map(open).collect()
}

#[test]
fn tunnels_under_traffic_live_through_upgrades_and_a_new_client_is_served() {
    let (count, rounds) = (size("MAINSTAY_TUNNELS", 300), size("MAINSTAY_UPGRADES", 5));
    let stage = Stage::quiet();
    let traffic = Traffic::over(tunnels(&stage, count));
    for round in 1..=rounds {
        traffic.flows();
        let (done, told) = stage.upgrade();
        assert!(done, "{told}\n{}", stage.balancer.log());
        assert!(told.contains(&format!("tunnels that went over: {count}")), "{told}");
        println!("upgrade {round}: {told}");
        let process = stage.serving();
        stage.alone(process);
        stage.shows("mainstay_websocket_connections{pool=\"chat\",node=\"ws1\"}", count as u64);
        stage.shows("mainstay_upgrades_total{result=\"done\"}", round as u64);
        // Every process counts on.
        let upgraded = "mainstay_handshakes_total{pool=\"chat\",result=\"upgraded\"}";
        stage.shows(upgraded, (count + round - 1) as u64);
        let (client, mut node) = tunnel(&stage.balancer, &stage.node);
        drop(client);
        node.rest();
        if round == rounds.div_ceil(2) {
            stage.upgrade_in_vain();
        }
    }
    traffic.flows();
    println!("{}", traffic.end());
}

/// A client that speaks this version of TLS to the balancer, and knows its certificate.
fn secure(
    address: &str,
    cert: &rcgen::Certificate,
    version: &'static SupportedProtocolVersion,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let client = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    StreamOwned::new(client, socket)
}

#[test]
fn tunnels_with_tls_1_3_and_1_2_live_through_upgrades_under_traffic() {
    let (count, rounds) = (size("MAINSTAY_TUNNELS", 60), size("MAINSTAY_UPGRADES", 4));
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let papers = tempfile::tempdir().unwrap();
    let (cert, key) = (papers.path().join("cert.pem"), papers.path().join("key.pem"));
    fs::write(&cert, issued.cert.pem()).unwrap();
    fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
    let tls =
        format!("0\", tls: {{ certificates: [{{ cert: {}, key: {} }}] }} }}]", cert.display(), key.display());
    let stage = Stage::with("health: null", |text| text.replacen("0\" }]", &tls, 1));
    let open = |index: usize| {
        let version = if index.is_multiple_of(2) { &rustls::version::TLS13 } else { &rustls::version::TLS12 };
        let mut client = secure(&stage.balancer.address, &issued.cert, version);
        client
            .write_all(
                b"GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .unwrap();
        let (mut node, _) = asked(&stage.node);
        node.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        );
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
        (Box::new(client) as Box<dyn Wire>, node)
    };
    let traffic = Traffic::over((0..count).map(open).collect());
    for round in 1..=rounds {
        traffic.flows();
        let (done, told) = stage.upgrade();
        assert!(done, "{told}\n{}", stage.balancer.log());
        assert!(told.contains(&format!("tunnels that went over: {count}")), "{told}");
        println!("upgrade {round} with TLS: {told}");
        stage.alone(stage.serving());
    }
    traffic.flows();
    println!("{}", traffic.end());
}

#[test]
fn a_binary_that_fails_its_check_or_is_none_leaves_the_old_process_serving_and_says_why() {
    let stage = Stage::quiet();
    let before = stage.serving();
    let traffic = Traffic::over(tunnels(&stage, 30));
    let path = stage.balancer.folder.path().join("balancer.yaml");
    let text = fs::read_to_string(&path).unwrap();
    stage.install(b"#!/bin/sh\nexit 7\n");
    let (done, told) = stage.upgrade();
    assert!(!done && told.contains("exit status: 7"), "{told}");
    stage.install(b"no program at all");
    let (done, told) = stage.upgrade();
    assert!(!done && told.contains("cannot be started"), "{told}");
    stage.install(&fs::read(env!("CARGO_BIN_EXE_mainstay")).unwrap());
    fs::write(&path, format!("{text}nonsense: 1\n")).unwrap();
    let (done, told) = stage.upgrade();
    assert!(!done && told.contains("nonsense"), "{told}");
    fs::write(&path, &text).unwrap();
    traffic.flows();
    assert_eq!(stage.serving(), before);
    stage.shows("mainstay_upgrades_total{result=\"failed\"}", 3);
    drop(tunnel(&stage.balancer, &stage.node));
    let (done, told) = stage.upgrade();
    assert!(done, "{told}");
    assert_ne!(stage.serving(), before);
    traffic.flows();
    assert!(traffic.end().contains("rounds"));
}

#[test]
fn a_new_process_that_is_killed_before_it_took_over_costs_nothing() {
    // The probe of a node that never answers holds the new process up between its start and its readiness.
    let stage = Stage::set("health: { http: {}, timeout: 20s, interval: 20s }, passive: { failures: 0 }");
    let before = stage.serving();
    let (done, told) = stage.upgrade_and_kill();
    assert!(!done && told.contains("signal: 9"), "{told}");
    assert_eq!(stage.serving(), before);
    stage.alone(before);
}

#[test]
fn a_request_in_flight_is_answered_by_the_old_process_and_a_handshake_becomes_a_tunnel_of_the_new_one() {
    let stage = Stage::quiet();
    let mut plain = stage.balancer.client();
    plain.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    let (mut slow, _) = asked(&stage.node);
    let client = asking(&stage.balancer);
    let (node, _) = asked(&stage.node);
    let (done, told) = stage.upgrade();
    assert!(done, "{told}");
    slow.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell");
    let answer = plain.rest();
    assert!(
        answer.contains("200 OK") && answer.contains("connection: close") && answer.ends_with("well"),
        "{answer}"
    );
    let (mut client, mut node) = answered(client, node);
    stage.alone(stage.serving());
    node.send(self::plain(7));
    client.expect(&self::plain(7));
}

#[test]
fn a_signal_does_the_same_and_the_new_process_ends_in_order() {
    let mut stage = Stage::quiet();
    let (mut client, mut node) = tunnel(&stage.balancer, &stage.node);
    let before = stage.serving();
    stage.balancer.signal(Signal::USR2);
    stage.balancer.line("all tunnels handed over, process exits");
    let process = stage.serving();
    assert_ne!(process, before);
    node.send(plain(1));
    client.expect(&plain(1));
    kill_process(Pid::from_raw(process).unwrap(), Signal::TERM).unwrap();
    assert_eq!(close_code(&mut client), 1001);
    assert_eq!(client.rest(), "going away");
}

#[test]
fn the_service_manager_hears_of_the_new_process_and_that_one_feeds_its_watchdog() {
    let (folder, node) = (tempfile::tempdir().unwrap(), node());
    let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let hears = |part: &str| loop {
        let mut buffer = [0; 4096];
        let len = socket.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        if text.contains(part) {
            return text;
        }
    };
    let binary = folder.path().join("mainstay");
    copy(Path::new(env!("CARGO_BIN_EXE_mainstay")), &binary);
    let mut command = Command::new(&binary);
    command.env("NOTIFY_SOCKET", folder.path().join("notify")).env("WATCHDOG_USEC", "1000000");
    let mut balancer = Balancer::spawn(&config(&node, "1s", "health: null"), command);
    balancer.wait_until_serving();
    let before = balancer.pid();
    hears("READY=1");
    balancer.signal(Signal::USR2);
    hears("RELOADING=1");
    let told = hears("MAINPID=");
    let process: i32 = told.lines().find_map(|line| line.strip_prefix("MAINPID=")).unwrap().parse().unwrap();
    assert!(process != before.cast_signed() && told.contains("READY=1"), "{told}");
    balancer.line("all tunnels handed over, process exits");
    assert_eq!(balancer.exit_code_or_orphan(), 0);
    for _ in 0..3 {
        hears("WATCHDOG=1");
    }
    kill_process(Pid::from_raw(process).unwrap(), Signal::TERM).unwrap();
    hears("STOPPING=1");
}

#[test]
fn a_rebalance_under_way_goes_on_in_the_new_process() {
    let stage = Stage::quiet();
    let _tunnels = tunnels(&stage, 6);
    let path = stage.balancer.folder.path().join("balancer.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let other = node();
    let more = format!("nodes: [{{ id: ws2, address: \"{}\" }}, ", other.local_addr().unwrap());
    fs::write(&path, text.replace("nodes: [", &more)).unwrap();
    let admin = stage.balancer.admin.as_str();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    assert!(command.args(["reload", "--admin", admin]).status().unwrap().success());
    let mut order = Raw::new(TcpStream::connect(admin).unwrap());
    let wish = "{\"over\": \"1h\"}";
    order.send(format!(
        "POST /api/pools/chat/rebalance HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{wish}",
        wish.len()
    ));
    let answer = order.rest();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    let (done, told) = stage.upgrade();
    assert!(done && told.contains("tunnels that went over: 6"), "{told}");
    stage.alone(stage.serving());
    let end = Instant::now() + DEADLINE;
    while !stage.balancer.admin("/api/status").contains("\"rebalance\":{") {
        assert!(Instant::now() < end, "it has ended:\n{}", stage.balancer.log());
        std::thread::yield_now();
    }
    stage.shows("mainstay_rebalance_left{pool=\"chat\"}", 3);
}
