//! The orderly end on SIGTERM, and the end at once on a second signal.

use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;

use rustix::process::Signal;

use crate::balancer::{Balancer, DEADLINE, Raw, asked, close_code, config, node, path_in, tunnel};

const GET: &str = "GET /file HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[test]
fn a_plain_request_in_flight_is_finished_while_nothing_new_is_taken() {
    let node = node();
    let mut balancer = Balancer::serving(&config(&node, "30s", "health: null"));
    assert!(balancer.admin("/readyz").starts_with("HTTP/1.1 200 "));
    let mut client = balancer.client();
    client.send(GET);
    let (mut answering, _) = asked(&node);
    balancer.signal(Signal::TERM);
    balancer.line("stopping");
    balancer.refuses();
    assert!(balancer.admin("/readyz").starts_with("HTTP/1.1 503 "));
    assert!(balancer.admin("/healthz").starts_with("HTTP/1.1 200 "));
    answering.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
    assert!(client.head().starts_with("HTTP/1.1 200 "));
    assert_eq!(client.rest(), "done");
    assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());
    assert!(
        balancer.log().contains("stopped") && !balancer.log().contains("requests aborted"),
        "{}",
        balancer.log()
    );
    assert!(TcpStream::connect(&balancer.admin).is_err());
}

#[test]
fn a_kept_alive_connection_without_a_request_is_closed_at_once() {
    let node = node();
    let mut balancer = Balancer::serving(&config(&node, "1h", "health: null"));
    let mut used = balancer.client();
    used.send(GET);
    let (mut answering, _) = asked(&node);
    answering.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
    used.head();
    used.expect(b"done");
    let mut silent = balancer.client();
    // A whole request after it shows that the silent one has been accepted.
    used.send(GET);
    let mut answering_too = answering;
    answering_too.head();
    answering_too.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
    used.head();
    used.expect(b"done");
    balancer.signal(Signal::TERM);
    assert_eq!(used.rest(), "");
    assert_eq!(silent.rest(), "");
    assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());
}

#[test]
fn an_endless_event_stream_is_cut_at_the_deadline_and_the_end_is_orderly() {
    for drain in ["300ms", "0s"] {
        let node = node();
        let mut balancer = Balancer::serving(&config(&node, drain, "health: null"));
        let mut client = balancer.client();
        client.send(GET);
        let (mut streaming, _) = asked(&node);
        streaming.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
        client.head();
        client.expect(b"9\r\ndata: 1\n\n\r\n");
        balancer.signal(Signal::TERM);
        assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());
        assert!(balancer.log().contains("requests aborted"), "{}", balancer.log());
        assert_eq!(client.rest(), "", "cut, not finished as if it were whole");
    }
}

#[test]
fn tunnels_are_closed_with_1001_one_after_the_other_in_random_order() {
    const TUNNELS: usize = 16;
    let node = node();
    let mut balancer = Balancer::serving(&config(&node, "6s", "health: null"));
    let (closed, closes) = channel();
    let tunnels: Vec<_> = (0..TUNNELS).map(|_| tunnel(&balancer, &node)).collect();
    for (index, (mut client, node)) in tunnels.into_iter().enumerate() {
        let closed = closed.clone();
        std::thread::spawn(move || {
            let code = close_code(&mut client);
            client.send([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]);
            // The node's side stays until then, as a node would.
            drop(node);
            closed.send((index, code))
        });
    }
    balancer.signal(Signal::TERM);
    let first = closes.recv_timeout(DEADLINE).unwrap();
    let metrics = balancer.admin("/metrics");
    let live = metrics.lines().find(|line| line.starts_with("mainstay_websocket_connections{")).unwrap();
    let live: usize = live.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(live > 0, "they were all closed at once");
    let others = (1..TUNNELS).map(|_| closes.recv_timeout(DEADLINE).unwrap());
    let order: Vec<(usize, u16)> = std::iter::once(first).chain(others).collect();
    assert!(order.iter().all(|(_, code)| *code == 1001), "{order:?}");
    assert!(!order.is_sorted(), "the order of opening: {order:?}");
    assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());
}

#[test]
fn without_a_drain_time_every_tunnel_is_told_and_the_process_ends() {
    let node = node();
    let mut balancer = Balancer::serving(&config(&node, "0s", "health: null"));
    let mut tunnels: Vec<_> = (0..5).map(|_| tunnel(&balancer, &node)).collect();
    // A tunnel that carries a message is in the relay; one that is on its way there has no time to be told.
    for (client, node) in &mut tunnels {
        client.send(b"\x81\x82\0\0\0\0hi");
        node.expect(b"\x81\x82\0\0\0\0hi");
    }
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());
    for (client, _) in &mut tunnels {
        assert_eq!(close_code(client), 1001);
    }
}

#[test]
fn peers_that_answer_nothing_do_not_keep_the_process() {
    let node = node();
    let mut balancer = Balancer::serving(&config(&node, "1s", "health: null"));
    let mut tunnels: Vec<_> = (0..3).map(|_| tunnel(&balancer, &node)).collect();
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());
    for (client, _) in &mut tunnels {
        assert_eq!(close_code(client), 1001);
    }
}

#[test]
fn a_second_signal_ends_at_once_with_1() {
    for second in [Signal::TERM, Signal::INT] {
        let node = node();
        let mut balancer = Balancer::serving(&config(&node, "1h", "health: null"));
        let (mut client, _node) = tunnel(&balancer, &node);
        balancer.signal(Signal::TERM);
        balancer.line("stopping");
        balancer.signal(second);
        assert_eq!(balancer.exit_code(), 1, "{}", balancer.log());
        assert!(balancer.log().ends_with("mainstay: ended at once, as asked by a second signal"));
        client.rest();
    }
}

#[test]
fn a_signal_before_it_serves_ends_it_with_0() {
    let node = node();
    let config = config(&node, "1h", "health: { http: {}, timeout: 1h }");
    let mut balancer = Balancer::start(&config, |_| {});
    let (_unanswered, head) = asked(&node);
    assert!(head.starts_with("GET /health "), "{head}");
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());
}

#[test]
fn an_address_in_use_is_said_with_its_line_who_has_it_and_what_to_do() {
    let node = node();
    let taken = node.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let socket = path_in(&folder, "a.sock");
    let _unix = UnixListener::bind(&socket).unwrap();
    let config = config(&node, "1s", "health: null").replacen("127.0.0.1:0", &taken, 1).replacen(
        "127.0.0.1:0",
        &format!("unix:{socket}"),
        1,
    );
    let mut balancer = Balancer::start(&config, |_| {});
    assert_eq!(balancer.exit_code(), 1);
    let log = balancer.log();
    let file = path_in(&balancer.folder, "balancer.yaml");
    let own = format!("(process {}) listens on", std::process::id());
    let said: Vec<&str> = log.lines().filter(|line| line.starts_with(&file)).collect();
    let [port, path] = said[..] else { panic!("{log}") };
    let start = format!("{file}:1:24: cannot listen on {taken}: the port is in use: ");
    assert!(
        port.starts_with(&start) && port.ends_with(&format!("{own} {taken}; stop it, or write another port")),
        "{port}"
    );
    let start = format!("{file}:2:19: cannot listen on unix:{socket}: the path is in use: ");
    assert!(path.starts_with(&start) && path.ends_with("; stop it, or write another path"), "{path}");
    assert!(path.contains(&own), "{path}");
    drop(Raw::new(TcpStream::connect(&taken).unwrap()));
}

#[test]
fn each_reason_why_an_address_cannot_be_listened_on_says_what_would_be_right() {
    let (node, folder) = (node(), tempfile::tempdir().unwrap());
    let is_root = rustix::process::geteuid().is_root();
    let unix = |path: &str| format!("unix:{}", path_in(&folder, path));
    std::fs::write(path_in(&folder, "notes.txt"), "keep").unwrap();
    for (address, more, said) in [
        ("192.0.2.1:80".to_owned(), "", "no interface of this machine has the address"),
        (unix("no/such/a.sock"), "", "make it (RuntimeDirectory= of the unit)"),
        (unix("notes.txt"), "", "a file that is no socket is there"),
        (
            unix("a.sock"),
            ", group: no-such-group-here",
            "there is no group `no-such-group-here` on this machine",
        ),
        ("127.0.0.1:1".to_owned(), "", "give the process CAP_NET_BIND_SERVICE"),
    ] {
        if address.ends_with(":1") && is_root {
            continue;
        }
        let listener = format!("\"{address}\"{more}");
        let config = config(&node, "1s", "health: null").replacen("\"127.0.0.1:0\"", &listener, 1);
        let mut balancer = Balancer::start(&config, |_| {});
        assert_eq!(balancer.exit_code(), 1, "{}", balancer.log());
        let log = balancer.log();
        assert!(log.contains("balancer.yaml:1:24: cannot listen on ") && log.contains(said), "{log}");
    }
    assert_eq!(std::fs::read(path_in(&folder, "notes.txt")).unwrap(), b"keep");

    let log = path_in(&folder, "no/such/access.log");
    let config = config(&node, "1s", "health: null").replacen("format: off", &format!("path: {log}"), 1);
    let mut balancer = Balancer::start(&config, |_| {});
    assert_eq!(balancer.exit_code(), 1);
    let said = format!("balancer.yaml: access_log: cannot be opened: {log}: No such file or directory");
    assert!(
        balancer.log().contains(&said) && balancer.log().contains("LogsDirectory="),
        "{}",
        balancer.log()
    );
}
