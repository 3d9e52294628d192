//! Upgrades behind upgrades, and what a process that was replaced still has to do.

use std::fs;

use super::stage::{Stage, order};
use super::traffic::{masked, plain};
use crate::balancer::{Raw, answered, asked, asking};

/// One message each way.
fn talk(client: &mut Raw, node: &mut Raw, number: u32) {
    node.send(plain(number));
    client.expect(&plain(number));
    client.send(masked(number));
    node.expect(&masked(number));
}

#[test]
fn a_handshake_that_began_two_processes_ago_becomes_a_tunnel_of_the_newest_and_is_counted_there() {
    let stage = Stage::patient();
    let client = asking(&stage.balancer);
    let (node, _) = asked(&stage.node);
    let mut processes = vec![stage.serving()];
    for _ in 0..2 {
        let (done, told) = stage.upgrade();
        assert!(done, "{told}");
        processes.push(stage.serving());
        processes.dedup();
    }
    assert_eq!(processes.len(), 3);
    let (mut client, mut node) = answered(client, node);
    talk(&mut client, &mut node, 1);
    stage.alone(processes[2]);
    talk(&mut client, &mut node, 2);
    stage.shows("mainstay_websocket_connections{pool=\"chat\",node=\"ws1\"}", 1);
    stage.shows("mainstay_handshakes_total{pool=\"chat\",result=\"upgraded\"}", 1);
    stage.shows("mainstay_upgrades_total{result=\"done\"}", 2);
}

#[test]
fn a_kept_alive_connection_has_its_next_request_answered_behind_an_upgrade_and_then_ends() {
    let stage = Stage::quiet();
    let mut client = stage.balancer.client();
    let asks = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let answers = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell";
    client.send(asks);
    let (mut first, _) = asked(&stage.node);
    first.send(answers);
    assert!(client.head().starts_with("HTTP/1.1 200 OK"));
    client.expect(b"well");
    let before = stage.serving();
    let (done, told) = stage.upgrade();
    assert!(done, "{told}");
    assert_ne!(stage.serving(), before);
    client.send(asks);
    let node = stage.node.try_clone().unwrap();
    std::thread::spawn(move || asked(&node).0.send(answers));
    let answer = client.rest();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("well"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    stage.alone(stage.serving());
}

#[test]
fn whoever_asks_the_old_process_for_a_change_is_told_that_another_has_taken_over() {
    let stage = Stage::patient();
    let mut slow = stage.balancer.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    let (mut held, _) = asked(&stage.node);
    // The heads come before the upgrade, the bodies behind it: each is a question to the old process.
    let begin = |path: &str| {
        let mut order = stage.balancer.admin_client();
        order.send(format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        ));
        // It is being served.
        assert!(order.head().contains("100 Continue"));
        order
    };
    let paths = ["reload", "upgrade", "pools/chat/rebalance", "pools/chat/nodes/ws1/drain"];
    let orders = paths.map(|path| begin(&format!("/api/{path}")));
    let (done, told) = stage.upgrade();
    assert!(done, "{told}");
    for (path, mut order) in paths.into_iter().zip(orders) {
        order.send("{}");
        let answer = order.rest();
        assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
        assert!(answer.contains("another process") && answer.contains("ask again"), "{path}: {answer}");
    }
    held.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell");
    assert!(slow.rest().ends_with("well"));
    stage.alone(stage.serving());
    let answer = order(&stage.balancer.admin, "/api/reload", "{}");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn reloads_are_answered_while_a_new_process_hangs_at_its_start_and_the_next_one_knows_them() {
    let mut stage = Stage::quiet();
    let (before, go) = (stage.serving(), stage.folder.path().join("go"));
    // It begins when it is told to.
    let real = stage.folder.path().join("real");
    super::copy(env!("CARGO_BIN_EXE_mainstay").as_ref(), &real);
    let waits = format!("until [ -e {} ]; do :; done", go.display());
    stage.install(format!("#!/bin/sh\n{waits}\nexec {} \"$@\"\n", real.display()).as_bytes());
    let _real = super::stage::Runs(real);
    let admin = stage.balancer.admin.clone();
    let upgrading = std::thread::spawn(move || super::stage::upgrade(&admin));
    stage.balancer.line("upgrade begins");
    let path = stage.balancer.folder.path().join("balancer.yaml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("health: null", "health: null, drain: { over: 77s }")).unwrap();
    // The watcher of the file may have been faster; the answer then lists no change.
    let answer = order(&stage.balancer.admin, "/api/reload", "{}");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(stage.serving(), before);
    fs::write(&go, "").unwrap();
    let (done, told) = upgrading.join().unwrap();
    assert!(done, "{told}");
    assert_ne!(stage.serving(), before);
    assert!(stage.balancer.admin("/api/config").contains("77s"));
    // The one before it counts as a generation.
    assert!(stage.balancer.admin("/api/status").contains("\"generation\":3"));
}
