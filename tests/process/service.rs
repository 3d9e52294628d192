//! Under a service manager: what it is told, and the sockets that it hands over.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::balancer::{Balancer, DEADLINE, Raw, asked, close_code, config, node, path_in, tunnel};

/// The service manager's side of the notification socket.
struct Supervisor {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Supervisor {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(path_in(&folder, "notify")).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket, folder }
    }

    fn introduce(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", path_in(&self.folder, "notify"));
    }

    /// The lines of the next datagram.
    fn heard(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let len = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap().lines().map(str::to_owned).collect()
    }

    /// Reads until a datagram has this line.
    fn hears(&self, line: &str) {
        while !self.heard().contains(&line.to_owned()) {}
    }

    fn has_heard_nothing(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let none = self.socket.recv(&mut [0; 64]).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
    }
}

#[test]
fn it_is_ready_when_the_first_probes_are_answered_and_says_when_it_stops() {
    let (supervisor, node) = (Supervisor::new(), node());
    let config = config(&node, "1s", "health: { http: {}, timeout: 1h, interval: 1h }");
    let mut balancer = Balancer::start(&config, |command| supervisor.introduce(command));
    let (mut probed, _) = asked(&node);
    supervisor.has_heard_nothing();
    probed.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(supervisor.heard(), ["READY=1", "STATUS=serving, tunnels: 0, generation: 1"]);
    balancer.wait_until_serving();
    balancer.signal(Signal::TERM);
    let mut last = supervisor.heard();
    while last[0] != "STOPPING=1" {
        assert_eq!(last, ["STATUS=serving, tunnels: 0, generation: 1"]);
        last = supervisor.heard();
    }
    assert_eq!(last, ["STOPPING=1", "STATUS=draining, tunnels: 0, generation: 1"]);
    assert_eq!(balancer.exit_code(), 0);
}

#[test]
fn a_reload_is_told_with_its_time_and_its_end_whether_it_worked_or_not() {
    let (supervisor, node) = (Supervisor::new(), node());
    let text = config(&node, "1s", "health: null");
    let mut balancer = Balancer::start(&text, |command| supervisor.introduce(command));
    balancer.wait_until_serving();
    supervisor.hears("READY=1");
    let file = path_in(&balancer.folder, "balancer.yaml");
    for (text, generation) in [(text.replace("drain: 1s", "drain: 2s"), 2), ("pools: none".to_owned(), 2)] {
        std::fs::write(&file, text).unwrap();
        balancer.signal(Signal::HUP);
        let mut heard = supervisor.heard();
        while heard[0] != "RELOADING=1" {
            heard = supervisor.heard();
        }
        let since = heard[1].strip_prefix("MONOTONIC_USEC=").unwrap();
        assert!(since.parse::<u64>().unwrap() > 0);
        supervisor.hears("READY=1");
        assert!(balancer.admin("/metrics").contains(&format!("\nmainstay_config_generation {generation}\n")));
    }
    balancer.line("config refused, nothing has changed");
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());
}

#[test]
fn the_watchdog_gets_signs_of_life_to_the_very_end_and_the_status_follows() {
    let (supervisor, node) = (Supervisor::new(), node());
    let mut balancer = Balancer::start(&config(&node, "2s", "health: null"), |command| {
        supervisor.introduce(command);
        command.env("WATCHDOG_USEC", "200000");
    });
    balancer.wait_until_serving();
    for _ in 0..3 {
        supervisor.hears("WATCHDOG=1");
    }
    let (mut client, _node) = tunnel(&balancer, &node);
    supervisor.hears("STATUS=serving, tunnels: 1, generation: 1");
    balancer.signal(Signal::TERM);
    supervisor.hears("STOPPING=1");
    supervisor.hears("WATCHDOG=1");
    assert_eq!(close_code(&mut client), 1001);
    assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());
}

#[test]
fn the_watchdog_of_another_process_is_not_fed() {
    let (supervisor, node) = (Supervisor::new(), node());
    let mut balancer = Balancer::start(&config(&node, "1s", "health: null"), |command| {
        supervisor.introduce(command);
        command.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    });
    balancer.wait_until_serving();
    supervisor.hears("READY=1");
    balancer.signal(Signal::TERM);
    loop {
        let heard = supervisor.heard();
        assert!(!heard.contains(&"WATCHDOG=1".to_owned()));
        if heard.contains(&"STOPPING=1".to_owned()) {
            break;
        }
    }
    assert_eq!(balancer.exit_code(), 0);
}

#[test]
fn a_service_manager_that_is_gone_stops_nothing() {
    let node = node();
    let mut balancer = Balancer::start(&config(&node, "1s", "health: null"), |command| {
        command.env("NOTIFY_SOCKET", "/nowhere/notify").env("WATCHDOG_USEC", "1000");
    });
    balancer.wait_until_serving();
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());
}

/// The balancer with sockets as descriptors 3 and 4, as systemd would start it.
fn activated(config: &str, sockets: [OwnedFd; 2], variables: &str) -> Balancer {
    let [third, fourth] = sockets;
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec 3<&0 4<&1 </dev/null >/dev/null; {variables} exec \"$0\" \"$@\""));
    shell.arg(env!("CARGO_BIN_EXE_mainstay")).stdin(Stdio::from(third)).stdout(Stdio::from(fourth));
    Balancer::spawn(config, shell)
}

const FOR_IT: &str = "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=a:b";

fn answers(balancer: &Balancer, node: &TcpListener, mut client: Raw) {
    client.send("GET /file HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
    let mut answering = node.accept().map(|(socket, _)| Raw::new(socket)).unwrap();
    answering.head();
    answering.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
    assert!(client.rest().starts_with("HTTP/1.1 204 "), "{}", balancer.log());
}

#[test]
fn inherited_sockets_are_listened_on_instead_of_bound() {
    let (node, folder) = (node(), tempfile::tempdir().unwrap());
    let (four, path) = (TcpListener::bind("127.0.0.1:0").unwrap(), path_in(&folder, "admin.sock"));
    let unix = UnixListener::bind(&path).unwrap();
    let address = four.local_addr().unwrap();
    // It is in the backlog before the process is there.
    let early = Raw::new(TcpStream::connect(address).unwrap());
    let text = config(&node, "1s", "health: null").replacen("127.0.0.1:0", &address.to_string(), 1).replacen(
        "127.0.0.1:0",
        &format!("unix:{path}"),
        1,
    );
    let mut balancer = activated(&text, [four.into(), unix.into()], FOR_IT);
    balancer.wait_until_serving();
    assert_eq!(
        (balancer.address.clone(), balancer.admin.clone()),
        (address.to_string(), format!("unix:{path}"))
    );
    answers(&balancer, &node, early);
    answers(&balancer, &node, balancer.client());
    drop(UnixStream::connect(&path).unwrap());
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.exit_code(), 0);
    assert!(!balancer.log().contains("WARN"), "{}", balancer.log());
    assert!(TcpStream::connect(address).is_err(), "the inherited socket is closed with the listener");
    assert!(std::path::Path::new(&path).exists(), "the file is the service manager's");
}

#[test]
fn an_inherited_ipv6_socket_is_listened_on_and_one_that_nothing_asks_for_is_warned_about() {
    let node = node();
    let (six, stray) = (TcpListener::bind("[::1]:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (address, unasked) = (six.local_addr().unwrap(), stray.local_addr().unwrap());
    let text = config(&node, "1s", "health: null").replacen("127.0.0.1:0", &address.to_string(), 1);
    let mut balancer = activated(&text, [six.into(), stray.into()], FOR_IT);
    let warning = balancer.line("an inherited socket matches no listener of the config");
    assert!(warning.contains("WARN") && warning.contains(&unasked.to_string()), "{warning}");
    balancer.wait_until_serving();
    assert!(TcpStream::connect(unasked).is_err());
    answers(&balancer, &node, balancer.client());
}

#[test]
fn what_is_no_stream_socket_or_meant_for_another_process_is_left_alone() {
    let node = node();
    let file = std::fs::File::open("/dev/null").unwrap();
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let text = config(&node, "1s", "health: null");
    let mut balancer = activated(&text, [file.into(), datagrams.into()], FOR_IT);
    for descriptor in [3, 4] {
        let said =
            format!("an inherited descriptor is no stream socket that listens descriptor={descriptor}");
        balancer.line(&said);
    }
    balancer.wait_until_serving();

    for variables in ["LISTEN_PID=1 LISTEN_FDS=1", "LISTEN_PID=$$ LISTEN_FDS=4000000000", "LISTEN_FDS=many"] {
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().into());
        let mut balancer = activated(&text, sockets, variables);
        balancer.wait_until_serving();
        assert!(!balancer.log().contains("inherited"), "{}", balancer.log());
    }
}
