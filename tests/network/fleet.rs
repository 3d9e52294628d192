//! What runs on the hosts: the balancer, nodes and Redis as processes, clients as sockets. Every wait is for an event
//! and has a deadline.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::{Message, WebSocket};

use super::net::Host;

/// What a test waits at most for anything that has to happen.
pub const DEADLINE: Duration = Duration::from_secs(40);
/// How long one read waits, before the client sees whether it is time.
const MOMENT: Duration = Duration::from_millis(50);

/// A process on a host, with its log as it comes. It does not outlive its test.
pub struct Process {
    child: Child,
    log: Receiver<String>,
    seen: Vec<String>,
    /// Lines that were asked for, and those before them.
    passed: usize,
}

impl Process {
    /// Starts it; returns when its log, on either stream, has a line with `ready` in it.
    pub fn start(mut command: Command, ready: &str) -> Self {
        command.env("NO_COLOR", "1").env("RUST_LOG", "info").stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (lines, log) = channel();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        for stream in [Box::new(out) as Box<dyn Read + Send>, Box::new(err)] {
            let lines = lines.clone();
            std::thread::spawn(move || {
                BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
            });
        }
        let mut process = Self { child, log, seen: Vec::new(), passed: 0 };
        process.line(&[ready]);
        process
    }

    /// Waits for a line with all these words, behind the one that was waited for last.
    pub fn line(&mut self, words: &[&str]) {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.seen.get(self.passed) {
                Some(line) => {
                    self.passed += 1;
                    if words.iter().all(|word| line.contains(word)) {
                        return;
                    }
                }
                None => match self.log.recv_timeout(end.saturating_duration_since(Instant::now())) {
                    Ok(line) => self.seen.push(line),
                    Err(_) => panic!("no line with {words:?} in:\n{}", self.seen.join("\n")),
                },
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // `ip netns exec` becomes the program, so this is its process.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A balancer on a host.
pub struct Balancer {
    pub process: Process,
    host: Host,
    _folder: TempDir,
}

/// Where its admin server is, on its own loopback.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

impl Balancer {
    /// One at port 80 of all addresses of the host, with these nodes; `pool` is more keys of the pool.
    pub fn start(host: &Host, nodes: &[(&str, Ipv4Addr)], pool: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("balancer.yaml");
        let nodes: Vec<String> = nodes
            .iter()
            .map(|(id, address)| format!("{{ id: {id}, address: \"{address}:3001\" }}"))
            .collect();
        let config = format!(
            "listeners: [{{ address: \"0.0.0.0:80\" }}]\nadmin: {{ address: \"{ADMIN}\" }}\n\
             access_log: {{ format: off }}\n\
             pools: {{ chat: {{ nodes: [{}], affinity: [{{ cookie: {{ name: io, set_by: node }} }}],\n\
             health: {{ http: {{ path: /health }}, interval: 500ms, timeout: 400ms, fall: 2, rise: 2 }},\n\
             {pool} }} }}\n",
            nodes.join(", ")
        );
        std::fs::write(&file, config).unwrap();
        let mut command = host.command(env!("CARGO_BIN_EXE_mainstay"));
        command.arg("-c").arg(&file);
        Self { process: Process::start(command, "serving"), host: host.clone(), _folder: folder }
    }

    /// The value of a metric, all series with these labels together.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = get(&self.host, ADMIN, "/metrics");
        let is_meant = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        };
        let values = text.lines().filter(is_meant).filter_map(|line| line.rsplit_once(' '));
        values.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
    }

    /// Waits for a metric; `meanwhile` is done between two looks.
    pub fn until(&self, (name, labels): (&str, &[&str]), wanted: f64, mut meanwhile: impl FnMut()) {
        let end = Instant::now() + DEADLINE;
        loop {
            let value = self.metric(name, labels);
            if value == wanted {
                return;
            }
            assert!(Instant::now() < end, "{name}{labels:?} is {value}, not {wanted}");
            meanwhile();
        }
    }

    /// What is counted of closes.
    pub fn closes(&self) -> String {
        let text = get(&self.host, ADMIN, "/metrics");
        text.lines().filter(|line| line.starts_with("mainstay_closes_total")).collect::<Vec<_>>().join("\n")
    }

    /// Invariant I7: with nobody here any more, each tunnel that was opened has had exactly one outcome.
    pub fn adds_up(&self, opened: f64) {
        self.until(("mainstay_websocket_connections", &[]), 0.0, || {});
        assert_eq!(self.metric("mainstay_handshakes_total", &["result=\"upgraded\""]), opened);
        assert_eq!(self.metric("mainstay_closes_total", &[]), opened, "{}", self.closes());
    }
}

/// A Node.js server of the `ws` library that echoes, and answers `/health`, at port 3001 of the host.
pub fn echo(host: &Host) -> Process {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/js/lib/echo-node.mjs");
    let mut command = host.command("node");
    command.arg(script);
    Process::start(command, "open")
}

/// A node of ours at port 3001 of the host.
pub fn node(host: &Host, id: &str, redis: Ipv4Addr) -> Process {
    // A program of another package: `cargo build --workspace` puts it beside the balancer's.
    let program = Path::new(env!("CARGO_BIN_EXE_mainstay")).with_file_name("mainstay-node");
    assert!(program.exists(), "build it first: cargo build -p mainstay-node");
    let mut command = host.command(program.to_str().unwrap());
    command.args(["--id", id, "--listen", "0.0.0.0:3001", "--redis", &format!("redis://{redis}:6379")]);
    Process::start(command, "node open")
}

/// A Redis server at its port of the host.
pub fn redis(host: &Host) -> Process {
    let mut command = host.command("redis-server");
    command.args(["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no"]);
    Process::start(command, "eady to accept connections")
}

/// The body of the answer to a GET.
pub fn get(host: &Host, to: SocketAddr, path: &str) -> String {
    let mut socket = host.connect(to).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

/// A WebSocket client. It answers the Pings that it meets while it listens.
pub struct Client {
    socket: WebSocket<TcpStream>,
    /// The texts so far.
    heard: Vec<String>,
}

/// How a conversation ended for the client.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// With a Close of this code.
    Close(u16),
    /// Without one.
    Broken,
}

impl Client {
    /// Connects through the balancer, pinned to a node.
    pub fn open(host: &Host, to: Ipv4Addr, node: &str, path: &str) -> Result<Self, String> {
        let socket = host.connect((to, 80).into()).map_err(|error| error.to_string())?;
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut request = format!("ws://{to}{path}").into_client_request().unwrap();
        request.headers_mut().insert("cookie", format!("io={node}").parse().unwrap());
        let opened = tokio_tungstenite::tungstenite::client(request, socket);
        let (client, _) = opened.map_err(|error| error.to_string())?;
        client.get_ref().set_read_timeout(Some(MOMENT)).unwrap();
        Ok(Self { socket: client, heard: Vec::new() })
    }

    /// The port on the client's side.
    pub fn port(&self) -> u16 {
        self.socket.get_ref().local_addr().unwrap().port()
    }

    pub fn say(&mut self, text: &str) {
        self.socket
            .send(Message::text(text))
            .unwrap_or_else(|error| panic!("{text} cannot be said: {error}"));
    }

    /// The next message with `part` in it. The pings of Engine.IO are answered.
    pub fn hear(&mut self, part: &str) -> String {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            match self.socket.read() {
                Ok(Message::Text(text)) if text.as_str() == "2" => self.say("3"),
                Ok(Message::Text(text)) => {
                    self.heard.push(text.as_str().to_owned());
                    if text.contains(part) {
                        return text.as_str().to_owned();
                    }
                }
                Ok(Message::Close(frame)) => panic!("{frame:?} instead of {part:?}"),
                Ok(_) => {}
                Err(error) => assert!(is_quiet(&error), "{error} instead of {part:?}"),
            }
        }
        panic!("{part:?} is not heard");
    }

    /// How many texts with `part` in them it has heard.
    pub fn count(&self, part: &str) -> usize {
        self.heard.iter().filter(|text| text.contains(part)).count()
    }

    /// What is said comes back.
    pub fn echoes(&mut self, text: &str) {
        self.say(text);
        assert_eq!(self.hear(""), text);
    }

    /// How it ends.
    pub fn end(&mut self) -> End {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            match self.socket.read() {
                Ok(Message::Close(frame)) => {
                    return End::Close(frame.map_or(1005, |frame| frame.code.into()));
                }
                Ok(_) => {}
                Err(error) if is_quiet(&error) => {}
                Err(_) => return End::Broken,
            }
        }
        panic!("it does not end");
    }

    /// Says goodbye, and waits for the answer.
    pub fn leave(mut self) {
        self.socket.close(None).unwrap();
        self.end();
    }
}

fn is_quiet(error: &Error) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error, Error::Io(error) if matches!(error.kind(), TimedOut | WouldBlock))
}
