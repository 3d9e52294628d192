//! The running binary is replaced, by real processes: no tunnel is closed, and no byte is lost, doubled or moved.
//!
//! The nodes and the clients are of this process. Each tunnel carries numbered messages in both directions, which are
//! checked one by one; a copy of the binary stands in the test's folder, so that another program can take its place.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::balancer::{Balancer, DEADLINE, Raw, close_code, config, node, tunnel};

/// A balancer whose binary can be replaced.
struct Stage {
    balancer: Balancer,
    node: TcpListener,
    folder: TempDir,
    binary: PathBuf,
}

impl Stage {
    fn set(pool: &str) -> Self {
        let (folder, node) = (tempfile::tempdir().unwrap(), node());
        let binary = folder.path().join("mainstay");
        fs::copy(env!("CARGO_BIN_EXE_mainstay"), &binary).unwrap();
        let mut balancer = Balancer::spawn(&config(&node, "5s", pool), Command::new(&binary));
        balancer.wait_until_serving();
        Self { balancer, node, folder, binary }
    }

    fn quiet() -> Self {
        Self::set("health: null")
    }

    /// Puts another program in the place of the binary, as an installer does.
    fn install(&self, program: &[u8]) {
        let new = self.folder.path().join("new");
        fs::write(&new, program).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &self.binary).unwrap();
    }

    /// `mainstay upgrade`, with what it prints, and whether it says that it worked.
    fn upgrade(&self) -> (bool, String) {
        upgrade(&self.balancer.admin)
    }

    /// The process that serves now.
    fn serving(&self) -> i32 {
        let metrics = self.balancer.admin("/api/status");
        let told = metrics.split_once("\"pid\":").map(|(_, rest)| rest.split([',', '}']).next());
        told.flatten().unwrap_or_else(|| panic!("no pid in {metrics}")).trim().parse().unwrap()
    }

    /// Returns once no process but `but` runs the binary: those that were replaced have ended.
    fn alone(&self, but: i32) {
        let end = Instant::now() + DEADLINE;
        while running(&self.binary).iter().any(|process| *process != but) {
            assert!(Instant::now() < end, "the old process does not end:\n{}", self.balancer.log());
            std::thread::yield_now();
        }
    }

    fn metric(&self, series: &str) -> u64 {
        let metrics = self.balancer.admin("/metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().unwrap()
    }
}

fn upgrade(admin: &str) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    let output = command.args(["upgrade", "--admin", admin]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

impl Drop for Stage {
    fn drop(&mut self) {
        for process in running(&self.binary) {
            let _ = kill_process(Pid::from_raw(process).unwrap(), Signal::KILL);
        }
    }
}

/// The processes that run this file, or did before it was replaced. Only this test's copy has that path.
fn running(binary: &Path) -> Vec<i32> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let runs = |process: &i32| {
        let program = fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default();
        program.to_string_lossy().trim_end_matches(" (deleted)") == binary.to_string_lossy()
    };
    processes.filter(runs).collect()
}

/// Tunnels that carry numbered messages both ways until they are stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    passed: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// One thread for some tunnels: each round sends one message each way on each, and checks what comes.
    fn over(tunnels: Vec<(Raw, Raw)>) -> Self {
        let (stop, passed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        let mut rest = tunnels;
        while !rest.is_empty() {
            let mut some: Vec<_> = rest.drain(..rest.len().min(25)).collect();
            let (stop, passed) = (Arc::clone(&stop), Arc::clone(&passed));
            threads.push(std::thread::spawn(move || {
                let mut number = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    for (client, node) in &mut some {
                        client.0.write_all(&masked(number)).unwrap();
                        node.0.write_all(&plain(number)).unwrap();
                    }
                    for (client, node) in &mut some {
                        client.expect(&plain(number));
                        node.expect(&masked(number));
                    }
                    number += 1;
                    passed.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        Self { stop, passed, threads }
    }

    /// Returns once every thread has passed some more rounds.
    fn flows(&self) {
        let (before, end) = (self.passed.load(Ordering::Relaxed), Instant::now() + DEADLINE);
        while self.passed.load(Ordering::Relaxed) < before + 20 * self.threads.len() as u64 {
            assert!(Instant::now() < end, "the traffic stands still");
            std::thread::yield_now();
        }
    }

    /// Ends it; a message that was lost, doubled or moved has ended its thread with a panic.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .for_each(|thread| thread.join().expect("every message came once and in order"));
        self.passed.load(Ordering::Relaxed)
    }
}

/// A message of the node's: its number, and bytes that follow from it.
fn plain(number: u32) -> Vec<u8> {
    [&[0x82, 36][..], &body(number)].concat()
}

/// The same from a client, masked with zeros.
fn masked(number: u32) -> Vec<u8> {
    [&[0x82, 0x80 | 36, 0, 0, 0, 0][..], &body(number)].concat()
}

fn body(number: u32) -> [u8; 36] {
    let mut body = [0; 36];
    body[..4].copy_from_slice(&number.to_be_bytes());
    let mut word = u64::from(number) | 1 << 40;
    for byte in &mut body[4..] {
        word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (word >> 29);
        *byte = word as u8;
    }
    body
}

fn tunnels(stage: &Stage, count: usize) -> Vec<(Raw, Raw)> {
    (0..count).map(|_| tunnel(&stage.balancer, &stage.node)).collect()
}

#[test]
fn tunnels_under_traffic_live_through_five_upgrades_and_a_new_client_is_served() {
    let stage = Stage::quiet();
    let traffic = Traffic::over(tunnels(&stage, 300));
    for round in 1..=5 {
        traffic.flows();
        let (done, told) = stage.upgrade();
        assert!(done, "{told}\n{}", stage.balancer.log());
        assert!(told.contains("tunnels that went over: 300"), "{told}");
        let process = stage.serving();
        stage.alone(process);
        assert_eq!(stage.metric("mainstay_websocket_connections{pool=\"chat\",node=\"ws1\"}"), 300);
        assert_eq!(stage.metric("mainstay_upgrades_total{result=\"done\"}"), round);
        assert_eq!(
            stage.metric("mainstay_handshakes_total{pool=\"chat\",result=\"upgraded\"}"),
            299 + round,
            "every process counts on"
        );
        drop(tunnel(&stage.balancer, &stage.node));
    }
    traffic.flows();
    assert!(traffic.end() > 0);
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
    assert_eq!(stage.metric("mainstay_upgrades_total{result=\"failed\"}"), 3);
    drop(tunnel(&stage.balancer, &stage.node));
    let (done, told) = stage.upgrade();
    assert!(done, "{told}");
    assert_ne!(stage.serving(), before);
    traffic.flows();
    traffic.end();
}

#[test]
fn a_new_process_that_is_killed_before_it_took_over_costs_nothing() {
    // The probe of a node that never answers holds the new process up between its start and its readiness.
    let stage = Stage::set("health: { http: {}, timeout: 20s, interval: 20s }, passive: { failures: 0 }");
    let before = stage.serving();
    let admin = stage.balancer.admin.clone();
    let upgrading = std::thread::spawn(move || upgrade(&admin));
    let end = Instant::now() + DEADLINE;
    let new = loop {
        match running(&stage.binary).into_iter().find(|process| *process != before) {
            Some(new) => break new,
            None => assert!(Instant::now() < end, "no new process"),
        }
    };
    kill_process(Pid::from_raw(new).unwrap(), Signal::KILL).unwrap();
    let (done, told) = upgrading.join().unwrap();
    assert!(!done && told.contains("signal: 9"), "{told}");
    assert_eq!(stage.serving(), before);
    stage.alone(before);
}

#[test]
fn a_request_in_flight_is_answered_by_the_old_process_and_a_handshake_becomes_a_tunnel_of_the_new_one() {
    let stage = Stage::quiet();
    let mut plain = stage.balancer.client();
    plain.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    let (mut slow, _) = crate::balancer::asked(&stage.node);
    let mut client = stage.balancer.client();
    client.send(
        "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    let (mut node, _) = crate::balancer::asked(&stage.node);
    let (done, told) = stage.upgrade();
    assert!(done, "{told}");
    slow.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell");
    let answer = plain.rest();
    assert!(
        answer.contains("200 OK") && answer.contains("connection: close") && answer.ends_with("well"),
        "{answer}"
    );
    node.send(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    );
    assert!(client.head().starts_with("HTTP/1.1 101 "));
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
    stage.balancer.line("everything has gone over, this process ends");
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
    fs::copy(env!("CARGO_BIN_EXE_mainstay"), &binary).unwrap();
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
    balancer.line("everything has gone over, this process ends");
    assert_eq!(balancer.exit_code_or_orphan(), 0);
    for _ in 0..3 {
        hears("WATCHDOG=1");
    }
    kill_process(Pid::from_raw(process).unwrap(), Signal::TERM).unwrap();
    hears("STOPPING=1");
}
