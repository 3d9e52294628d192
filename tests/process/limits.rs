//! The file limit, lowered for the child and hit: it is said, it passes, and nobody who is there is harmed.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread::JoinHandle;

use crate::balancer::{Balancer, Raw, asked, config, node, tunnel};

const REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const YES: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A balancer that may open 300 files.
fn with_300_files(config: &str) -> Balancer {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 300 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_mainstay")]);
    let mut balancer = Balancer::spawn(config, command);
    balancer.wait_until_serving();
    balancer
}

/// Answers every upgrade at `node` with yes and keeps the tunnels, as long as the test runs. A connection that ends
/// before it has asked is none.
fn answer_all(node: TcpListener) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = node.accept() {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            if head.ends_with(b"\r\n\r\n") && stream.write_all(YES.as_bytes()).is_ok() {
                kept.push(stream);
            }
        }
    })
}

fn echo(client: &mut Raw, node: &mut Raw) {
    client.send(b"\x81\x82\0\0\0\0hi");
    node.expect(b"\x81\x82\0\0\0\0hi");
    node.send(b"\x81\x02ho");
    client.expect(b"\x81\x02ho");
}

#[test]
fn at_the_file_limit_everybody_is_answered_in_the_end_and_no_node_is_blamed() {
    let node = node();
    let text = config(&node, "1s", "health: null, passive: { failures: 1, eject: 1h }");
    let mut balancer = with_300_files(&format!("limits: {{ connections: 1000 }}\n{text}"));
    let warned = balancer.line("config exceeds the file limit");
    assert!(warned.contains("1000 connections need 2081 file descriptors, the limit is 300"), "{warned}");
    let _nodes = answer_all(node);
    let mut clients: Vec<Raw> = (0..400).map(|_| balancer.client()).collect();
    clients.iter_mut().for_each(|client| client.send(REQUEST));
    balancer.line("accept paused: file descriptor limit reached");
    // Those who leave make room for those who still wait to be accepted.
    let (mut open, mut sent_away) = (0, 0);
    for mut client in clients {
        let head = client.head();
        match head.get(9..12) {
            Some("101") => {
                open += 1;
                // An end alone would leave the tunnel half open: the node says nothing.
                client.reset();
            }
            Some("503") => {
                assert!(head.contains("\r\nretry-after: "), "{head}");
                sent_away += 1;
            }
            _ => panic!("{head}"),
        }
    }
    assert!(open > 10 && sent_away > 0, "{open} and {sent_away}");
    loop {
        let mut late = balancer.client();
        late.send(REQUEST);
        if late.head().starts_with("HTTP/1.1 101 ") {
            break;
        }
    }
    let metrics = balancer.admin("/metrics");
    assert!(
        metrics.contains("mainstay_node_state{pool=\"chat\",node=\"ws1\",state=\"up\"} 1\n"),
        "{metrics}"
    );
    assert_eq!(balancer.log().matches("accept paused").count(), 1, "{}", balancer.log());
}

#[test]
fn silent_clients_at_the_file_limit_are_cut_and_those_behind_them_are_served() {
    let node = node();
    let text = config(&node, "1s", "health: null");
    let mut balancer = with_300_files(&format!("limits: {{ connections: 1000, head_time: 1s }}\n{text}"));
    let (mut client, mut at_node) = tunnel(&balancer, &node);
    let silent: Vec<Raw> = (0..400).map(|_| balancer.client()).collect();
    let mut waiting = balancer.client();
    waiting.send(REQUEST);
    balancer.line("accept paused: file descriptor limit reached");
    // The tunnels do not notice.
    echo(&mut client, &mut at_node);
    for mut silent in silent {
        assert_eq!(silent.rest(), "");
    }
    let (mut asked, _) = asked(&node);
    asked.send(YES);
    assert!(waiting.head().starts_with("HTTP/1.1 101 "));
    echo(&mut client, &mut at_node);
}

#[test]
fn auto_stays_within_the_file_limit_so_that_it_is_never_hit() {
    let node = node();
    let mut balancer = with_300_files(&config(&node, "1s", "health: null"));
    let (mut client, mut at_node) = tunnel(&balancer, &node);
    let mut clients: Vec<Raw> = (0..400).map(|_| balancer.client()).collect();
    // (300 - 64 - 1 - 16) / 2 places, one of them the tunnel's: the last ones hear so, or see the end.
    for mut sent_away in clients.split_off(108) {
        let answer = sent_away.rest();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }
    echo(&mut client, &mut at_node);
    balancer.signal(rustix::process::Signal::TERM);
    balancer.exit_code();
    assert!(!balancer.log().contains("accept paused"), "{}", balancer.log());
}
