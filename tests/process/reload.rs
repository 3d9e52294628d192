//! Reloads of the real binary: however its files change, each change is picked up once; and a long run of them
//! under live tunnels.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use rustix::process::Signal;

use crate::balancer::{Balancer, DEADLINE, Raw, asked, close_code, config, node, size};

/// Counts up what the file says, so that each content is another.
fn text(node: &TcpListener, idle: u32) -> String {
    config(node, "1s", &format!("health: null, timeouts: {{ idle: {idle}s }}"))
}

fn metric(balancer: &Balancer, series: &str) -> u64 {
    let metrics = balancer.admin("/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().unwrap()
}

/// As an editor writes: a new file that takes the place of the old one.
fn rename(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn each_change_of_the_file_is_picked_up_once_however_it_is_made() {
    let node = node();
    let mut balancer = Balancer::serving(&text(&node, 1001));
    let folder = balancer.folder.path().to_owned();
    let path = folder.join("balancer.yaml");

    fs::write(&path, text(&node, 1002)).unwrap();
    balancer.line("timeouts.idle is 1002s now");
    rename(&path, &text(&node, 1003));
    balancer.line("timeouts.idle is 1003s now");
    rename(&path, &text(&node, 1004));
    balancer.line("timeouts.idle is 1004s now");
    fs::remove_file(&path).unwrap();
    fs::write(&path, text(&node, 1005)).unwrap();
    balancer.line("timeouts.idle is 1005s now");

    // As Kubernetes mounts a ConfigMap and swaps it: only links change, never the file.
    let version = |name: &str, idle| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("balancer.yaml"), text(&node, idle)).unwrap();
    };
    version("..1", 1006);
    symlink("..1", folder.join("..data")).unwrap();
    symlink("..data/balancer.yaml", folder.join("link")).unwrap();
    fs::rename(folder.join("link"), &path).unwrap();
    balancer.line("timeouts.idle is 1006s now");
    for (name, before, idle) in [("..2", "..1", 1007), ("..3", "..2", 1008)] {
        version(name, idle);
        symlink(name, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        fs::remove_dir_all(folder.join(before)).unwrap();
        balancer.line(&format!("timeouts.idle is {idle}s now"));
    }

    balancer.signal(Signal::HUP);
    balancer.line("config reloaded generation=8 changes=0");
    assert_eq!(metric(&balancer, "mainstay_config_generation"), 8);
    assert_eq!(
        metric(&balancer, "mainstay_config_reloads_total{result=\"applied\"}"),
        8,
        "{}",
        balancer.log()
    );
    assert_eq!(
        metric(&balancer, "mainstay_config_reloads_total{result=\"rejected\"}"),
        0,
        "{}",
        balancer.log()
    );
}

#[test]
fn a_bad_file_is_refused_with_its_places_until_it_is_good_again() {
    let node = node();
    let mut balancer = Balancer::serving(&text(&node, 1001));
    let path = balancer.folder.path().join("balancer.yaml");
    rename(&path, "listeners: 7\npools: {}\n");
    let first = balancer.line("config refused, nothing has changed");
    assert!(first.contains("balancer.yaml:1:12: "), "{first}");
    balancer.line("balancer.yaml:2:8: ");
    assert_eq!(metric(&balancer, "mainstay_config_last_reload_success"), 0);
    assert_eq!(metric(&balancer, "mainstay_config_generation"), 1);
    // The same as is running, so that nothing but the good end is left to say.
    rename(&path, &text(&node, 1001));
    balancer.line("config reloaded generation=1 changes=0");
    assert_eq!(metric(&balancer, "mainstay_config_last_reload_success"), 1);
    assert_eq!(
        metric(&balancer, "mainstay_config_reloads_total{result=\"rejected\"}"),
        1,
        "{}",
        balancer.log()
    );
}

/// The fleet of the long run: nodes that stay, and one that comes and goes.
struct Fleet {
    stay: Vec<TcpListener>,
    guest: TcpListener,
}

impl Fleet {
    /// The config of a round: with the guest or without, and with something of everything else.
    fn text(&self, round: usize, has_guest: bool) -> String {
        let address = |node: &TcpListener| node.local_addr().unwrap();
        let node = |(index, node)| {
            let weight = 1 + (round + index) % 3;
            format!("{{ id: n{index}, address: \"{}\", weight: {weight} }}", address(node))
        };
        let mut nodes: Vec<String> = self.stay.iter().enumerate().map(node).collect();
        if has_guest {
            nodes.insert(round % 3, format!("{{ id: guest, address: \"{}\" }}", address(&self.guest)));
        }
        let extra = if round.is_multiple_of(2) { "{ path: /extra, pool: chat }, " } else { "" };
        format!(
            "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
             access_log: {{ format: off }}\nshutdown: {{ drain: 2s }}\n\
             limits: {{ head_time: {}s }}\ntrusted_proxies: [10.{}.{}.0/24]\n\
             routes: [{extra}{{ path: /, pool: chat }}]\n\
             pools: {{ chat: {{ nodes: [{}], affinity: [cookie: {{ name: io, set_by: node }}], health: null, \
             drain: {{ over: 0s }}, timeouts: {{ idle: {}m }} }} }}\n",
            5 + round % 7,
            round / 256,
            round % 256,
            nodes.join(", "),
            60 + round
        )
    }
}

fn tunnel(balancer: &Balancer, id: &str, listener: &TcpListener) -> (Raw, Raw) {
    let mut client = balancer.client();
    client.send(format!(
        "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nCookie: io={id}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ));
    let (mut node, _) = asked(listener);
    node.send(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    );
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    (client, node)
}

const MESSAGE: [u8; 8] = [0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];

fn says_something((client, node): &mut (Raw, Raw)) {
    client.send(MESSAGE);
    node.expect(&MESSAGE);
}

fn reload(balancer: &Balancer) -> String {
    let mut admin = Raw::new(std::net::TcpStream::connect(&balancer.admin).unwrap());
    admin.send(
        "POST /api/reload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    admin.rest()
}

/// Memory that this process has written, in KiB. Clean pages are the program's text: the system takes them when it likes.
fn private_memory(balancer: &Balancer) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", balancer.pid())).unwrap();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    of("Private_Dirty:") + of("Swap:")
}

#[test]
fn i9_tunnels_live_through_a_long_run_of_reloads() {
    let (count, rounds) = (size("MAINSTAY_TUNNELS", 300), size("MAINSTAY_RELOADS", 200));
    let fleet = Fleet { stay: (0..4).map(|_| node()).collect(), guest: node() };
    let mut balancer = Balancer::serving(&fleet.text(0, false));
    let path = balancer.folder.path().join("balancer.yaml");
    let mut tunnels: Vec<_> = (0..count)
        .map(|index| tunnel(&balancer, &format!("n{}", index % 4), &fleet.stay[index % 4]))
        .collect();
    let (mut said, mut guests, mut refused, mut settled) = (0, 0, 0, 0);
    for round in 1..=rounds {
        if round % 10 == 5 {
            rename(&path, "pools: { chat: { nodes: [] } }\n");
            assert!(reload(&balancer).starts_with("HTTP/1.1 422 "));
            refused += 1;
        }
        let has_guest = round % 2 == 1;
        rename(&path, &fleet.text(round, has_guest));
        let answer = reload(&balancer);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        if has_guest {
            assert!(answer.contains("pool chat: node guest added"), "{answer}");
            // The tunnel that the next reload asks to close.
            let (mut client, mut at_node) = tunnel(&balancer, "guest", &fleet.guest);
            rename(&path, &fleet.text(round, false));
            assert!(reload(&balancer).contains("pool chat: node guest removed"));
            assert_eq!(close_code(&mut client), 1012);
            client.send([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf4]);
            at_node.send([0x88, 0x02, 0x03, 0xf4]);
            client.rest();
            guests += 1;
        }
        says_something(&mut tunnels[round % count]);
        said += 1;
        if round == rounds / 4 {
            settled = private_memory(&balancer);
        }
    }
    tunnels.iter_mut().for_each(says_something);
    said += count as u64;
    let at_the_end = private_memory(&balancer);
    assert!(at_the_end < settled + settled / 4 + 1024, "{settled} KiB, then {at_the_end} KiB");

    // What the clients said, and the Close of each guest (8 bytes, as a message has).
    let of_pool =
        |name: &str, labels: &str| metric(&balancer, &format!("mainstay_{name}{{pool=\"chat\"{labels}}}"));
    // The last message reaches its node a moment before it is counted.
    let end = Instant::now() + DEADLINE;
    while of_pool("messages_total", ",direction=\"in\",kind=\"text\"") < said && Instant::now() < end {}
    assert_eq!(of_pool("messages_total", ",direction=\"in\",kind=\"text\""), said);
    assert_eq!(of_pool("messages_total", ",direction=\"in\",kind=\"close\""), guests);
    assert_eq!(of_pool("bytes_total", ",direction=\"in\""), 8 * (said + guests));
    assert_eq!(of_pool("handshakes_total", ",result=\"upgraded\""), count as u64 + guests);
    let live =
        (0..4).map(|index| of_pool("websocket_connections", &format!(",node=\"n{index}\""))).sum::<u64>();
    assert_eq!(live, count as u64);
    let metrics = balancer.admin("/metrics");
    assert!(!metrics.contains("mainstay_closes_total{"), "a close that nobody asked for: {metrics}");
    assert!(!metrics.contains("node=\"guest\""), "{metrics}");
    let reloads =
        |result: &str| metric(&balancer, &format!("mainstay_config_reloads_total{{result=\"{result}\"}}"));
    assert_eq!(reloads("rejected"), refused);
    assert_eq!(reloads("applied"), (rounds as u64) + guests);
    drop(tunnels);
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.exit_code(), 0);
}

/// A certificate for `localhost` with its key, in one file, so that both are replaced at once.
fn issue(path: &Path) {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    rename(path, &(issued.cert.pem() + &issued.signing_key.serialize_pem()));
}

#[test]
fn i9_tunnels_live_through_50_new_certificates() {
    const ROUNDS: usize = 50;
    let papers = tempfile::tempdir().unwrap();
    let both = papers.path().join("both.pem");
    issue(&both);
    let fleet = Fleet { stay: (0..4).map(|_| node()).collect(), guest: node() };
    let file = both.display();
    let secure = format!(
        ", {{ address: \"[::1]:0\", tls: {{ certificates: [{{ cert: {file}, key: {file} }}] }} }}]\nadmin:"
    );
    let text = fleet.text(0, false).replacen("]\nadmin:", &secure, 1);
    let mut balancer = Balancer::serving(&text);
    let index = |at: usize| at % 4;
    let mut tunnels: Vec<_> =
        (0..20).map(|at| tunnel(&balancer, &format!("n{}", index(at)), &fleet.stay[index(at)])).collect();
    for round in 1..=ROUNDS {
        issue(&both);
        let answer = reload(&balancer);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        // Whether this reload or the watch of the files was the first to see it.
        assert_eq!(metric(&balancer, "mainstay_config_generation"), 1 + round as u64, "{answer}");
        says_something(&mut tunnels[round % 20]);
    }
    tunnels.iter_mut().for_each(says_something);
    let metrics = balancer.admin("/metrics");
    assert!(!metrics.contains("mainstay_closes_total{"), "a close that nobody asked for: {metrics}");
    assert_eq!(metric(&balancer, "mainstay_config_reloads_total{result=\"rejected\"}"), 0);
    drop(tunnels);
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.exit_code(), 0);
}
