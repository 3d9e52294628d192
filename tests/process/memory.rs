//! What a client costs that has not asked anything yet, as the kernel counts the memory of a real process.

use std::net::TcpListener;
use std::time::Instant;

use crate::balancer::{Balancer, DEADLINE, Raw, config, node};

const CLIENTS: u32 = 3_000;
/// Bytes for a client that has sent nothing, and for one whose head is half here. What was measured, and room for
/// what an allocator does.
const SILENT: u64 = 3_000;
const HALF_A_HEAD: u64 = 7_000;

/// The anonymous memory of a process, in bytes.
fn resident(balancer: &Balancer) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", balancer.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Returns once so many sockets are in the process's hands.
fn until_open(balancer: &Balancer, sockets: u32) {
    let end = Instant::now() + DEADLINE;
    let open = || std::fs::read_dir(format!("/proc/{}/fd", balancer.pid())).unwrap().count();
    while open() < sockets as usize {
        assert!(Instant::now() < end, "{} of {sockets} are open", open());
        std::thread::yield_now();
    }
}

/// Returns once a request behind all others has been answered: what came before it has been read.
fn until_read(balancer: &Balancer) {
    for _ in 0..20 {
        let mut late = balancer.client();
        late.send("GET /elsewhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(late.rest().starts_with("HTTP/1.1 404 "));
    }
}

/// What a client costs that has sent `bytes` and waits, without and with them.
fn costs(listener: &str, bytes: &[u8]) -> (u64, u64) {
    let node: TcpListener = node();
    let text =
        config(&node, "1s", "health: null").replace("listeners: [{ ", &format!("listeners: [{{ {listener}"));
    let balancer = Balancer::serving(&format!(
        "limits: {{ head_time: 1h, connections: 10000 }}\ntrusted_proxies: [127.0.0.1]\nroutes: [{{ path: /chat, pool: chat }}]\n{text}"
    ));
    if listener.is_empty() {
        until_read(&balancer);
    }
    let before = resident(&balancer);
    let mut clients: Vec<Raw> = (0..CLIENTS).map(|_| balancer.client()).collect();
    until_open(&balancer, CLIENTS);
    let silent = (resident(&balancer).saturating_sub(before)) / u64::from(CLIENTS);
    clients.iter_mut().for_each(|client| client.send(bytes));
    if listener.is_empty() {
        until_read(&balancer);
    }
    let begun = (resident(&balancer).saturating_sub(before)) / u64::from(CLIENTS);
    println!("{listener:?}: {silent} bytes silent, {begun} with {} bytes", bytes.len());
    (silent, begun)
}

#[test]
fn a_client_costs_little_until_it_asks() {
    let (silent, half) = costs("", b"GET /chat HTTP/1.1\r\nHost: a.example\r\nX-Half: a");
    assert!(silent <= SILENT, "{silent} bytes for a silent client");
    assert!(half <= HALF_A_HEAD, "{half} bytes for half a head");
}

#[test]
fn a_client_that_has_yet_to_be_announced_costs_no_more() {
    let (silent, _) = costs("proxy_protocol: true, ", b"");
    assert!(silent <= SILENT, "{silent} bytes for a silent client");
}

#[test]
fn a_client_that_has_yet_to_begin_tls_costs_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, issued.cert.pem()).unwrap();
    std::fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
    let tls = format!("{{ certificates: [{{ cert: \"{}\", key: \"{}\" }}] }}", cert.display(), key.display());
    let (silent, _) = costs(&format!("tls: {tls}, "), b"");
    assert!(silent <= SILENT, "{silent} bytes for a silent client");
}
