//! A balancer process of one test, with its log as it comes, and the raw sockets around it.
//!
//! Whether it serves, and where, is read from its log; every wait has a deadline. None outlives its test.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// What a test waits at most for anything that has to happen.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A running balancer process.
pub struct Balancer {
    child: Child,
    log: Receiver<String>,
    /// The lines so far.
    seen: Vec<String>,
    /// Where clients come in, as bound; set by [`serving`](Self::serving).
    pub address: String,
    /// Where the admin server is, as bound.
    pub admin: String,
    /// The config is in it.
    pub folder: TempDir,
}

impl Balancer {
    /// Starts with a config, and returns once it serves.
    pub fn serving(config: &str) -> Self {
        let mut balancer = Self::start(config, |_| {});
        balancer.wait_until_serving();
        balancer
    }

    /// Starts with a config; `prepare` changes the command.
    pub fn start(config: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        prepare(&mut command);
        Self::spawn(config, command)
    }

    /// Starts a command that becomes the balancer and takes its arguments.
    pub fn spawn(config: &str, mut command: Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("balancer.yaml");
        std::fs::write(&file, config).unwrap();
        command.arg("-c").arg(&file).env("NO_COLOR", "1").env("RUST_LOG", "info").stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (lines, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
        });
        Self { child, log, seen: Vec::new(), address: String::new(), admin: String::new(), folder }
    }

    pub fn wait_until_serving(&mut self) {
        self.admin = address_in(&self.line("admin listening"));
        self.address = address_in(&self.line(" listening address="));
        self.line("serving");
    }

    /// The first line of the log with `part` in it, among those that came and those to come.
    pub fn line(&mut self, part: &str) -> String {
        self.later_line(part, 0)
    }

    /// The same, with so many lines with `part` before it.
    pub fn later_line(&mut self, part: &str, mut before: usize) -> String {
        let end = Instant::now() + DEADLINE;
        let mut next = 0;
        loop {
            if let Some(line) = self.seen.get(next) {
                // "admin listening" has " listening" in it.
                if line.contains(part) && (part.contains("admin") || !line.contains("admin listening")) {
                    if before == 0 {
                        return line.clone();
                    }
                    before -= 1;
                }
                next += 1;
                continue;
            }
            match self.log.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(_) => panic!("no line with {part:?} in:\n{}", self.seen.join("\n")),
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The exit code, once the process has ended of its own accord.
    pub fn exit_code(&mut self) -> i32 {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.log.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                // Its standard error is closed, so it is gone.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it has not ended:\n{}", self.seen.join("\n")),
            }
        }
        let status = self.child.wait().unwrap();
        status.code().unwrap_or_else(|| panic!("{status}:\n{}", self.seen.join("\n")))
    }

    /// The exit code of this very process; one that has taken over from it may still write to its log.
    pub fn exit_code_or_orphan(&mut self) -> i32 {
        self.child.wait().unwrap().code().expect("it ended of its own accord")
    }

    /// What was logged so far; after [`exit_code`](Self::exit_code), all of it.
    pub fn log(&self) -> String {
        self.seen.join("\n")
    }

    /// A new connection of a client.
    pub fn client(&self) -> Raw {
        Raw::new(TcpStream::connect(&self.address).unwrap())
    }

    /// A new connection to the admin server.
    pub fn admin_client(&self) -> Raw {
        Raw::new(TcpStream::connect(&self.admin).unwrap())
    }

    /// The status line and what follows, for a GET of the admin server.
    pub fn admin(&self, path: &str) -> String {
        let mut admin = Raw::new(TcpStream::connect(&self.admin).unwrap());
        admin.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        admin.rest()
    }

    /// Returns once nobody listens for clients any more.
    pub fn refuses(&self) {
        let end = Instant::now() + DEADLINE;
        while let Ok(socket) = TcpStream::connect(&self.address) {
            assert!(Instant::now() < end, "it still accepts");
            // Taken from the backlog or not: it is closed before long, so this is no busy loop.
            let _ = Raw::new(socket).0.read(&mut [0]);
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address_in(line: &str) -> String {
    line.rsplit_once("address=").unwrap().1.trim_matches('"').to_owned()
}

/// A config with one node at `node`; `drain` is the time of the orderly end, `pool` more keys of the pool.
pub fn config(node: &TcpListener, drain: &str, pool: &str) -> String {
    format!(
        "listeners: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         access_log: {{ format: off }}\nshutdown: {{ drain: {drain} }}\n\
         pools: {{ chat: {{ nodes: [{{ id: ws1, address: \"{}\" }}], {pool} }} }}\n",
        node.local_addr().unwrap()
    )
}

/// A listener that is a node.
pub fn node() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// The node's side of the next connection, with the request head read.
pub fn asked(node: &TcpListener) -> (Raw, String) {
    let mut raw = Raw::new(node.accept().unwrap().0);
    let head = raw.head();
    (raw, head)
}

/// A socket whose reads have a deadline.
pub struct Raw(pub TcpStream);

impl Raw {
    pub fn new(socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(socket)
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    /// Breaks the connection off: the other side sees a reset, not an end.
    pub fn reset(self) {
        socket2::SockRef::from(&self.0).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Reads a head and nothing behind it.
    pub fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0
                .read_exact(&mut byte)
                .unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&head)));
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// Reads exactly `bytes`.
    pub fn expect(&mut self, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        self.0.read_exact(&mut read).unwrap();
        assert_eq!(read, bytes);
    }

    /// All until the stream ends, well or badly; that it does not end is a failure.
    pub fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        if let Err(error) = self.0.read_to_end(&mut rest) {
            assert!(
                error.kind() != ErrorKind::WouldBlock,
                "it does not end: {:?}",
                String::from_utf8_lossy(&rest)
            );
        }
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// Reads a Close frame as a client gets it, and gives its code.
pub fn close_code(client: &mut Raw) -> u16 {
    let mut frame = [0; 4];
    client.0.read_exact(&mut frame).unwrap();
    assert_eq!(frame[0], 0x88, "no Close frame");
    u16::from_be_bytes([frame[2], frame[3]])
}

/// A client and a node with an open tunnel between them.
pub fn tunnel(balancer: &Balancer, node: &TcpListener) -> (Raw, Raw) {
    let client = asking(balancer);
    answered(client, asked(node).0)
}

/// A client that has asked for a tunnel.
pub fn asking(balancer: &Balancer) -> Raw {
    let mut client = balancer.client();
    client.send(
        "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    client
}

/// The same, once the node that was asked has said yes.
pub fn answered(mut client: Raw, mut node: Raw) -> (Raw, Raw) {
    node.send(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    );
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    (client, node)
}

/// The path of a file in the folder of a test.
pub fn path_in(folder: &TempDir, name: &str) -> String {
    Path::new(folder.path()).join(name).to_str().unwrap().to_owned()
}

/// The number in the environment, for a long run; without it, the one of an everyday run.
pub fn size(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |text| text.parse().expect("a number"))
}
