//! A network of one test: namespaces of the kernel as hosts, veth pairs as cables between them, and nftables for what
//! goes wrong. Needs root; names are of this process, and everything goes with the test.
//!
//! A host's addresses and ports are its own, so nothing here can meet what else runs on the machine.

use std::cell::Cell;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What all namespaces of these tests begin with; the process id comes next.
const PREFIX: &str = "mst";

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// A network. Dropping it takes its namespaces away, and with them what runs in their kernel.
pub struct Net {
    /// Tells it from the networks of other tests of this process.
    number: u32,
    hosts: Cell<Vec<String>>,
    cables: Cell<u8>,
}

/// A host of a network.
#[derive(Clone, PartialEq)]
pub struct Host {
    name: String,
    /// Its namespace.
    space: String,
}

impl Net {
    /// An empty one; `None`, with a word about why, where there can be none.
    pub fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: network namespaces need root");
            return None;
        }
        sweep();
        let net = Self { number, hosts: Cell::default(), cables: Cell::new(0) };
        let space = net.space("try");
        if let Err(why) = ip(&["netns", "add", &space]) {
            eprintln!("skipped: no network namespace can be made here: {why}");
            return None;
        }
        let mut hosts = net.hosts.take();
        hosts.push(space.clone());
        net.hosts.set(hosts);
        let rules =
            run(Command::new("ip").args(["netns", "exec", &space, "nft", "add", "table", "inet", "try"]));
        if let Err(why) = rules {
            eprintln!("skipped: nftables cannot be used here (the package is `nftables`): {why}");
            return None;
        }
        Some(net)
    }

    fn space(&self, host: &str) -> String {
        format!("{PREFIX}-{}-{}-{host}", std::process::id(), self.number)
    }

    /// A host with nothing but its loopback.
    pub fn host(&self, name: &str) -> Host {
        let host = Host { name: name.to_owned(), space: self.space(name) };
        must(ip(&["netns", "add", &host.space]));
        let mut hosts = self.hosts.take();
        hosts.push(host.space.clone());
        self.hosts.set(hosts);
        must(ip(&["-n", &host.space, "link", "set", "lo", "up"]));
        host
    }

    /// A cable between two hosts; gives their addresses on it. The interface of each has the other's name.
    pub fn cable(&self, one: &Host, other: &Host) -> [Ipv4Addr; 2] {
        let number = self.cables.get() + 1;
        self.cables.set(number);
        let pair = ["name", &one.name, "netns", &other.space];
        let words = ["-n", &one.space, "link", "add", &other.name, "type", "veth", "peer"];
        must(ip(&[&words[..], &pair[..]].concat()));
        let ends = [Ipv4Addr::new(10, 77, number, 1), Ipv4Addr::new(10, 77, number, 2)];
        for ((host, peer), end) in [(one, other), (other, one)].into_iter().zip(ends) {
            must(ip(&["-n", &host.space, "address", "add", &format!("{end}/24"), "dev", &peer.name]));
            must(ip(&["-n", &host.space, "link", "set", &peer.name, "up"]));
        }
        ends
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for space in self.hosts.take() {
            let _ = ip(&["netns", "delete", &space]);
        }
    }
}

/// Takes away what tests have left that were killed.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let mut words = name.split('-');
        let (prefix, process) = (words.next(), words.next());
        let is_dead = |process: &str| !Path::new("/proc").join(process).exists();
        if prefix == Some(PREFIX) && process.is_some_and(is_dead) {
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

impl Host {
    /// A command that runs on this host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space]).arg(program);
        command
    }

    /// Whether the kernel does `tc` with these words on the way to `peer`.
    pub fn shapes(&self, peer: &Host, words: &[&str]) -> bool {
        let front = ["-n", &self.space, "qdisc", "add", "dev", &peer.name, "root"];
        run(Command::new("tc").args(front).args(words)).is_ok()
    }

    /// Gives packets that leave for or come from `peer` a rule: `what` they are, and what becomes of them. It holds
    /// until [`heal`](Self::heal).
    pub fn fault(&self, peer: &Host, what: &str) {
        let peer = &peer.name;
        let rules = format!(
            "table inet fault {{ \
               chain in {{ type filter hook input priority 0; iifname \"{peer}\" {what}; }}; \
               chain out {{ type filter hook output priority 0; oifname \"{peer}\" {what}; }}; \
             }}"
        );
        must(run(self.command("nft").arg(rules)));
    }

    /// Nothing is wrong any more.
    pub fn heal(&self) {
        must(run(self.command("nft").args(["delete", "table", "inet", "fault"])));
    }

    /// Does something on a thread that is on this host; a socket that is opened there stays there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(Path::new("/run/netns").join(&self.space)).unwrap();
        std::thread::scope(|scope| {
            let on_host = || {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            };
            scope.spawn(on_host).join().unwrap()
        })
    }

    /// A connection from this host.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.within(|| TcpStream::connect_timeout(&to, CONNECT))
    }
}

fn ip(words: &[&str]) -> Result<(), String> {
    run(Command::new("ip").args(words))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", said.trim()))
}

fn must(done: Result<(), String>) {
    done.unwrap_or_else(|why| panic!("{why}"));
}
