//! Who has the listeners: the old process while it may have to serve again, and the new one alone from then on.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use super::stage::{Stage, child, order, upgrade};
use super::traffic::{Traffic, plain};
use super::tunnels;
use crate::balancer::{Balancer, Raw, asked, tunnel};

/// A program that says these words to the old process, each in its time, and reads what it is told without a look at it.
fn played(words: &str) -> String {
    format!(
        "#!/bin/sh\nsay() {{ printf \"\\\\$1\\000\\000\\000\\000\\000\\000\" >&0; }}\n\
         ready() {{ printf '\\002\\000\\000\\000\\000\\000\\020{{\"settles\":true}}' >&0; }}\n\
         {words}\n"
    )
}

/// Has read all, and stays until it is killed.
const READS: &str = "exec cat >/dev/null <&0";

#[test]
fn a_new_process_that_dies_between_two_batches_takes_its_own_along_and_the_old_one_serves_again() {
    let mut stage = Stage::quiet();
    let old = stage.serving();
    let mut tunnels: Vec<(Raw, Raw)> = (0..1_060).map(|_| tunnel(&stage.balancer, &stage.node)).collect();
    // Ready, there, has the first batch, is there again; never has the second one.
    let program = played(&format!("ready; say 013; say 007; say 013\n{READS}"));
    stage.install(program.as_bytes());
    let admin = stage.balancer.admin.clone();
    let upgrading = std::thread::spawn(move || upgrade(&admin));
    stage.balancer.line("another process has taken over");
    stage.balancer.line("the new process is late, the batch is taken back");
    // While the new one lives, carries others and does nothing: nobody waits for it. Those that it has, it has dropped.
    let carried = |(client, node): &mut (Raw, Raw)| {
        let _ = std::io::Write::write_all(&mut node.0, &plain(1));
        let mut read = [0; 38];
        let got = std::io::Read::read_exact(&mut client.0, &mut read);
        got.is_ok_and(|()| read[..] == plain(1))
    };
    tunnels.retain_mut(carried);
    assert_eq!(tunnels.len(), 60);
    kill_process(child(old).unwrap(), Signal::KILL).unwrap();
    let (done, told) = upgrading.join().unwrap();
    assert!(!done && told.contains("signal: 9"), "{told}");
    assert_eq!(stage.serving(), old);
    tunnels.push(tunnel(&stage.balancer, &stage.node));
    stage.shows("mainstay_websocket_connections{pool=\"chat\",node=\"ws1\"}", 61);
    for (client, node) in &mut tunnels {
        node.send(plain(2));
        client.expect(&plain(2));
    }
    stage.install(&fs::read(env!("CARGO_BIN_EXE_mainstay")).unwrap());
    let (done, told) = stage.upgrade();
    assert!(done && told.contains("tunnels that went over: 61"), "{told}");
    for (client, node) in &mut tunnels {
        node.send(plain(3));
        client.expect(&plain(3));
    }
}

#[test]
fn a_new_process_that_is_stopped_when_the_first_batch_comes_costs_nothing() {
    let stage = Stage::quiet();
    let old = stage.serving();
    let traffic = Traffic::over(tunnels(&stage, 30));
    traffic.flows();
    let program = played("ready; say 013; kill -STOP $$");
    stage.install(program.as_bytes());
    let (done, told) = stage.upgrade();
    assert!(!done && told.contains("has not answered within 900ms"), "{told}");
    assert_eq!(stage.serving(), old);
    traffic.flows();
    tunnel(&stage.balancer, &stage.node);
    println!("{}", traffic.end());
}

#[test]
fn behind_an_upgrade_the_old_process_has_no_listener_so_that_a_fresh_start_finds_the_addresses_free() {
    let stage = Stage::patient();
    let mut slow = stage.balancer.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    let (mut held, _) = asked(&stage.node);
    let (done, told) = stage.upgrade();
    assert!(done, "{told}");
    let new = stage.serving();
    kill_process(Pid::from_raw(new).unwrap(), Signal::KILL).unwrap();
    stage.balancer.refuses();
    assert!(TcpStream::connect(&stage.balancer.admin).is_err());
    let text = fs::read_to_string(stage.balancer.folder.path().join("balancer.yaml")).unwrap();
    let text = text.replacen("127.0.0.1:0", &stage.balancer.address, 1);
    let text = text.replacen("127.0.0.1:0", &stage.balancer.admin, 1);
    let mut fresh = Balancer::spawn(&text, Command::new(env!("CARGO_BIN_EXE_mainstay")));
    fresh.wait_until_serving();
    tunnel(&fresh, &stage.node);
    held.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell");
    assert!(slow.rest().ends_with("well"), "the old process has answered");
}

#[test]
fn a_listener_that_a_reload_of_the_new_process_removes_takes_nobody_whatever_the_old_one_waits_for() {
    let two = |text: String| text.replacen("0\" }]", "0\" }, { address: \"127.0.0.1:0\" }]", 1);
    let mut stage = Stage::with("health: null", |text| two(text.replace("drain: 5s", "drain: 25s")));
    let line = stage.balancer.later_line(" listening address=", 1);
    let second = line.rsplit_once("address=").unwrap().1.to_owned();
    let mut slow = stage.balancer.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    let (mut held, _) = asked(&stage.node);
    let (done, told) = stage.upgrade();
    assert!(done, "{told}");
    TcpStream::connect(&second).unwrap();
    let path = stage.balancer.folder.path().join("balancer.yaml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(", { address: \"127.0.0.1:0\" }]", "]")).unwrap();
    // The watcher of the file may have been faster; the answer then lists no change.
    let told = order(&stage.balancer.admin, "/api/reload", "{}");
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    assert!(TcpStream::connect(&second).is_err(), "somebody listens there");
    tunnel(&stage.balancer, &stage.node);
    held.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell");
    assert!(slow.rest().ends_with("well"));
    stage.alone(stage.serving());
}
