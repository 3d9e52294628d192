//! Real Redis servers, each in a folder of its own, ended by their own process id.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::{Client, Connection};
use tempfile::TempDir;

/// One `redis-server` without persistence.
pub struct Server {
    folder: TempDir,
    /// The server's own words on its command line, beside those of the harness.
    words: Vec<String>,
    /// Its TCP port; 0 when it only has its socket.
    pub port: u16,
    child: Child,
}

impl Server {
    /// One on a Unix socket.
    pub fn start() -> Server {
        Server::with(0, &[])
    }

    /// One with more words on its command line, and a port if it is not 0.
    pub fn with(port: u16, words: &[&str]) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let child = spawn(&folder, port, &words);
        Server { folder, words, port, child }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// A file in its folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.file("redis.sock")
    }

    /// A plain connection to it, to see what a node does.
    pub fn connect(&self) -> Connection {
        Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// SIGSTOP: it is there and says nothing.
    pub fn freeze(&self) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::CONT).unwrap();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A new one in the place of one that was killed, with nothing in it.
    pub fn restart(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        self.child = spawn(&self.folder, self.port, &self.words);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &TempDir, port: u16, words: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    // A configuration file of its own, which a sentinel writes to.
    let file = folder.path().join("redis.conf");
    if !file.exists() {
        std::fs::write(&file, "").unwrap();
    }
    command.arg(&file).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    command.args(["--unixsocket", "redis.sock", "--dir"]).arg(folder.path());
    command.args(["--save", "", "--appendonly", "no"]).args(words);
    command.current_dir(folder.path());
    ready(command)
}

/// Starts a server and returns when it says that it is ready.
fn ready(mut command: Command) -> Child {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-server is installed (tests/setup.sh)");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.find(|line| {
        let line = line.as_ref().unwrap();
        line.contains("eady to accept connections")
            || line.contains("+monitor")
            || line.contains("Sentinel ID")
    });
    assert!(ready.is_some(), "redis-server ended before it was ready");
    // Read on, so that it never waits for the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

/// One sentinel that watches over a master and its replica.
pub struct Sentinel {
    _folder: TempDir,
    /// Its port.
    pub port: u16,
    child: Child,
}

impl Sentinel {
    /// Starts it, and returns when it knows the replica, so that it can take the master's place.
    pub fn start(port: u16, master: u16) -> Sentinel {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sentinel.conf");
        let words = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 3000\n"
        );
        std::fs::write(&file, words).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&file).arg("--sentinel").current_dir(folder.path());
        let sentinel = Sentinel { child: ready(command), _folder: folder, port };
        let mut connection =
            Client::open(format!("redis://127.0.0.1:{port}")).unwrap().get_connection().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        loop {
            let replicas: redis::Value =
                redis::cmd("SENTINEL").arg("REPLICAS").arg("mymaster").query(&mut connection).unwrap();
            if format!("{replicas:?}").contains("\"ok\"") {
                return sentinel;
            }
            assert!(std::time::Instant::now() < deadline, "{replicas:?}");
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports that are free now. Redis has to be told its port; all are taken at once, so that they differ.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// A Redis Cluster of three masters on loopback.
pub struct Cluster {
    /// Each with a third of the slots.
    pub masters: Vec<Server>,
}

impl Cluster {
    /// Starts it and returns when every master says that the cluster is whole.
    pub fn start() -> Cluster {
        let ports = free_ports::<6>();
        let master = |place: usize| {
            let bus = ports[place + 3].to_string();
            let words =
                ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"];
            Server::with(ports[place], &words)
        };
        let cluster = Cluster { masters: (0..3).map(master).collect() };
        for (place, server) in cluster.masters.iter().enumerate() {
            let (first, last) = (place * 16_384 / 3, (place + 1) * 16_384 / 3 - 1);
            let mut connection = server.connect();
            redis::cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(first).arg(last).exec(&mut connection).unwrap();
            redis::cmd("CLUSTER")
                .arg("MEET")
                .arg("127.0.0.1")
                .arg(ports[0])
                .arg(ports[3])
                .exec(&mut connection)
                .unwrap();
        }
        cluster.wait_until_whole();
        cluster
    }

    /// Returns when every master says that the cluster is whole.
    pub fn wait_until_whole(&self) {
        self.masters.iter().for_each(|master| wait_until_whole(master, self.masters.len()));
    }

    /// A replica of one master, in step with it.
    pub fn replica_of(&self, place: usize) -> Server {
        let [port, bus] = free_ports::<2>();
        let bus = bus.to_string();
        let words = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"];
        let (replica, master) = (Server::with(port, &words), &self.masters[place]);
        let ask =
            |words: &[&str]| redis::cmd("CLUSTER").arg(words).query::<redis::Value>(&mut replica.connect());
        let port = master.port.to_string();
        ask(&["MEET", "127.0.0.1", &port, &self.bus_port(place)]).unwrap();
        wait_until_whole(&replica, self.masters.len() + 1);
        self.masters.iter().for_each(|master| wait_until_whole(master, self.masters.len() + 1));
        let id: String = redis::cmd("CLUSTER").arg("MYID").query(&mut master.connect()).unwrap();
        ask(&["REPLICATE", &id]).unwrap();
        until("the replica is in step", || {
            let info: String = redis::cmd("INFO").arg("replication").query(&mut replica.connect()).unwrap();
            info.contains("master_link_status:up")
        });
        replica
    }

    fn bus_port(&self, place: usize) -> String {
        let words = &self.masters[place].words;
        let at = words.iter().position(|word| word == "--cluster-port").unwrap();
        words[at + 1].clone()
    }

    /// Its nodes as `--redis` takes them.
    pub fn urls(&self) -> String {
        let urls: Vec<String> =
            self.masters.iter().map(|master| format!("redis://127.0.0.1:{}", master.port)).collect();
        urls.join(",")
    }
}

fn wait_until_whole(server: &Server, nodes: usize) {
    let known = format!("cluster_known_nodes:{nodes}\r");
    until("the cluster is whole", || {
        let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut server.connect()).unwrap();
        info.contains("cluster_state:ok") && info.contains(&known)
    });
}

/// Returns when it is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
