//! What ends or runs out in the middle of an upgrade: the old process, or the new one's files.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use mainstay::control::upgrade::protocol::{HandedState, Hello, VERSION, kind};
use mainstay::net::handover_socket::encode_frame;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use super::stage::{Stage, upgrade};
use super::traffic::{Traffic, masked, plain};
use super::tunnels;
use crate::balancer::{Balancer, answered, asked, asking, config, node, tunnel};

/// How many descriptors a process has.
fn files(process: i32) -> u64 {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count() as u64
}

#[test]
fn a_new_process_without_a_file_left_keeps_what_it_has_and_the_old_one_keeps_the_rest() {
    let mut stage = Stage::quiet();
    let first = tunnel(&stage.balancer, &stage.node);
    let begun: Vec<_> = (0..40).map(|_| (asking(&stage.balancer), asked(&stage.node).0)).collect();
    let (done, told) = stage.upgrade();
    assert!(done && told.contains("tunnels that went over: 1,"), "{told}");
    let new = stage.serving();
    let limit = getrlimit(Resource::Nofile);
    let scarce = Rlimit { current: Some(files(new)), ..limit };
    prlimit(Pid::from_raw(new), Resource::Nofile, scarce).unwrap();
    let mut tunnels: Vec<_> = begun.into_iter().map(|(client, node)| answered(client, node)).collect();
    let line = stage.balancer.line("the tunnels that are left stay here");
    assert!(line.contains("no file descriptor is left"), "{line}");
    tunnels.push(first);
    for (client, node) in &mut tunnels {
        node.send(plain(1));
        client.expect(&plain(1));
        client.send(masked(2));
        node.expect(&masked(2));
    }
    prlimit(Pid::from_raw(new), Resource::Nofile, limit).unwrap();
    assert_eq!(stage.serving(), new);
}

/// The next frame of the new process, which has no descriptors.
fn hears(socket: &mut UnixStream) -> u8 {
    let mut header = [0; 7];
    socket.read_exact(&mut header).unwrap();
    let length = u32::from_be_bytes([header[3], header[4], header[5], header[6]]);
    socket.read_exact(&mut vec![0; length as usize]).unwrap();
    header[0]
}

/// The new process of an old one that is this test: says everything up to the first batch, and gives the socket.
fn succeeds(node: &TcpListener) -> (Balancer, UnixStream) {
    let (mut socket, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.env("MAINSTAY_HANDOVER", "1").stdin(Stdio::from(OwnedFd::from(theirs)));
    let balancer = Balancer::spawn(&config(node, "1s", "health: null"), command);
    let hello = Hello { version: VERSION, ..Hello::default() };
    socket.write_all(&encode_frame(kind::HELLO, &serde_json::to_string(&hello).unwrap())).unwrap();
    assert_eq!(hears(&mut socket), kind::READY);
    let take = serde_json::to_string(&HandedState::default()).unwrap();
    socket.write_all(&encode_frame(kind::STATE, &take)).unwrap();
    (balancer, socket)
}

#[test]
fn an_old_process_that_dies_in_the_middle_of_a_word_leaves_a_new_one_that_serves() {
    let node = node();
    let (mut balancer, mut socket) = succeeds(&node);
    let piece = encode_frame(kind::PIECE, "half of this comes");
    socket.write_all(&piece[..piece.len() / 2]).unwrap();
    drop(socket);
    balancer.wait_until_serving();
    tunnel(&balancer, &node);
}

#[test]
fn an_old_process_that_dies_before_it_says_go_leaves_a_new_one_that_serves() {
    let node = node();
    let (mut balancer, mut socket) = succeeds(&node);
    socket.write_all(&encode_frame(kind::WHOLE, "")).unwrap();
    assert_eq!(hears(&mut socket), kind::HELD);
    drop(socket);
    balancer.wait_until_serving();
    tunnel(&balancer, &node);
}

#[test]
fn an_old_process_that_is_killed_once_it_has_said_go_takes_its_requests_along_and_no_tunnel() {
    let (mut stage, count) = (Stage::quiet(), 60);
    let before = stage.serving();
    let traffic = Traffic::over(tunnels(&stage, count));
    traffic.flows();
    let mut slow = stage.balancer.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    let _held = asked(&stage.node);
    let admin = stage.balancer.admin.clone();
    let upgrading = std::thread::spawn(move || upgrade(&admin));
    stage.balancer.line("another process has taken over");
    kill_process(Pid::from_raw(before).unwrap(), Signal::KILL).unwrap();
    // Whoever asked may have heard that it is done before the end, or not.
    upgrading.join().unwrap();
    assert_eq!(slow.rest(), "");
    stage.balancer.line("the process before this one has ended");
    assert_ne!(stage.serving(), before);
    traffic.flows();
    stage.shows("mainstay_websocket_connections{pool=\"chat\",node=\"ws1\"}", count as u64);
    tunnel(&stage.balancer, &stage.node);
    assert!(traffic.end().contains("rounds"));
}
