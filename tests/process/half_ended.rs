//! A real node that is stopped: what its clients had is free again once they have left.

use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::balancer::{Balancer, DEADLINE, Raw};

/// A node process; it ends with its test, stopped or not.
struct Node {
    child: Child,
    address: String,
}

impl Node {
    fn start() -> Self {
        // A program of another package: `cargo build --workspace` puts it beside the balancer's.
        let program = Path::new(env!("CARGO_BIN_EXE_mainstay")).with_file_name("mainstay-node");
        assert!(program.exists(), "build it first: cargo build -p mainstay-node");
        let mut command = Command::new(program);
        command.args(["--id", "ws1", "--listen", "127.0.0.1:0"]).env("NO_COLOR", "1").stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let open = lines.find(|line| line.contains("node open")).expect("it says where it is");
        let address = open.split_once("address=").unwrap().1;
        let address = address.split([' ', ',']).next().unwrap().trim_matches('"').to_owned();
        // Nobody reads the rest, and it must not block the node.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may be stopped, and SIGKILL does not mind.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn asking(balancer: &Balancer) -> Raw {
    let mut client = balancer.client();
    client.send(
        "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    client
}

fn tunnel(balancer: &Balancer) -> Raw {
    let mut client = asking(balancer);
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client
}

fn live(balancer: &Balancer) -> String {
    let metrics = balancer.admin("/metrics");
    let series = "mainstay_websocket_connections{pool=\"chat\",node=\"ws1\"} ";
    let value = metrics.lines().find_map(|line| line.strip_prefix(series));
    value.unwrap_or_else(|| panic!("{metrics}")).to_owned()
}

#[test]
fn a_stopped_node_gives_back_the_places_of_clients_that_have_left() {
    let node = Node::start();
    let balancer = Balancer::serving(&format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         access_log: {{ format: off }}\nshutdown: {{ drain: 1s }}\n\
         pools:\n  chat:\n    nodes: [{{ id: ws1, address: \"{}\", max_connections: 20 }}]\n    \
         health: null\n    timeouts: {{ close: 1s }}\n",
        node.address
    ));
    let clients: Vec<Raw> = (0..20).map(|_| tunnel(&balancer)).collect();
    assert!(asking(&balancer).head().starts_with("HTTP/1.1 503 "));
    node.signal(Signal::STOP);
    // An orderly end: a client that leaves something unread would be reset, and that ends the tunnel at once.
    clients.iter().for_each(|client| client.0.shutdown(Shutdown::Write).unwrap());
    let end = Instant::now() + DEADLINE;
    while live(&balancer) != "0" {
        assert!(Instant::now() < end, "{} are left:\n{}", live(&balancer), balancer.log());
        std::thread::yield_now();
    }
    node.signal(Signal::CONT);
    let _served: Vec<Raw> = (0..20).map(|_| tunnel(&balancer)).collect();
}
