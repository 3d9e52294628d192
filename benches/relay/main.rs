//! What the relay costs: CPU time per message against a bare epoll relay, and memory per idle tunnel.
//!
//! `cargo bench --bench relay`. The CPU time is that of the relay's own thread (`schedstat`), in rounds that
//! alternate between the relay and the floor: a thread that reads 64 KiB and writes it, and nothing else. Both have
//! the same driver and 16 closed-loop connections over loopback. A message is one frame in one direction. The
//! memory is the slope of the private memory (`smaps_rollup`) between two counts of idle tunnels, whose peers are
//! held by a child process. Both are taken once more with TLS 1.3 (AES-128-GCM) towards the client.

mod driver;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use mainstay::metrics::{Metrics, NodeMeter};
use mainstay::relay::tls::{TlsConnection, TlsRole};
use mainstay::relay::{
    CloseObserver, CloseReason, PacedClose, Relay, SessionInfo, Tunnel, TunnelLimits, TunnelSelector,
};

use driver::{Driver, accept, departed, frame};

const CONNECTIONS: usize = 16;
const ROUNDS: usize = 11;
/// Payload, round trips of each connection in a round, and the target for the ratio.
const SIZES: [(usize, u32, f64); 2] = [(128, 1500, 1.15), (16 * 1024, 700, 1.10)];
/// Idle tunnels between which the slope is taken.
const IDLE: [usize; 2] = [2_000, 9_000];
/// Bytes for an idle tunnel, without TLS and with it.
const TARGET_BYTES: [usize; 2] = [512, 1024];
/// The same for TLS, where the ratio is to the relay without it.
const TLS_SIZES: [(usize, u32, f64); 2] = [(1024, 1500, 1.25), (16 * 1024, 700, 1.5)];
/// No send of a round fills it, so that no write is partial.
const SEND_BUFFER: usize = 1 << 20;
const FLOOR: &str = "floor-0";
/// The argument that makes this program the holder of the peers' sockets.
const PEERS: &str = "hold-peers";

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    raise_descriptors()?;
    if let [mode, port] = arguments.as_slice()
        && mode == PEERS
    {
        return hold_peers(port.parse().expect("a port"));
    }
    // Memory first, while the heap is fresh.
    memory(false)?;
    memory(true)?;
    cpu()?;
    cpu_of_tls()
}

fn raise_descriptors() -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

fn cpu() -> io::Result<()> {
    let relay = start_relay()?;
    let mut relayed = Driver::relayed(&relay, false)?;
    let mut floor = None;
    let mut floored = Driver::new(false, |pairs| {
        floor = Some(start_floor(pairs)?);
        Ok(())
    })?;
    for (payload, trips, target) in SIZES {
        relayed.run(payload, trips)?;
        floored.run(payload, trips)?;
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(cost(&mut relayed, "relay-0", payload, trips)?);
            bare.push(cost(&mut floored, FLOOR, payload, trips)?);
        }
        let (ours, bare) = (median(ours), median(bare));
        println!(
            "cpu, {payload:>5} B payload: relay {ours:>7.0} ns, floor {bare:>7.0} ns per message, \
             ratio {:.3} (target {target:.2})",
            ours / bare
        );
    }
    drop((relayed, floored));
    floor.expect("started").join().expect("the floor does not panic")?;
    stop(&relay);
    Ok(())
}

fn cpu_of_tls() -> io::Result<()> {
    let relay = start_relay()?;
    let (mut sealed, mut open) = (Driver::relayed(&relay, true)?, Driver::relayed(&relay, false)?);
    for (payload, trips, target) in TLS_SIZES {
        sealed.run(payload, trips)?;
        open.run(payload, trips)?;
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(cost(&mut sealed, "relay-0", payload, trips)?);
            bare.push(cost(&mut open, "relay-0", payload, trips)?);
        }
        let (ours, bare) = (median(ours), median(bare));
        println!(
            "cpu, {payload:>5} B payload: TLS {ours:>9.0} ns, plain {bare:>7.0} ns per message, \
             ratio {:.3} (target {target:.2})",
            ours / bare
        );
    }
    drop((sealed, open));
    stop(&relay);
    Ok(())
}

/// CPU nanoseconds of the thread for each message of a round.
fn cost(driver: &mut Driver, thread: &str, payload: usize, trips: u32) -> io::Result<f64> {
    let before = thread_nanos(thread)?;
    driver.run(payload, trips)?;
    let nanos = thread_nanos(thread)? - before;
    Ok(nanos as f64 / (2.0 * f64::from(trips) * CONNECTIONS as f64))
}

fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

/// CPU time so far of this process's thread of that name.
fn thread_nanos(name: &str) -> io::Result<u64> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim_end() == name {
            let stat = fs::read_to_string(task.join("schedstat"))?;
            let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse().ok());
            return nanos.ok_or_else(|| io::Error::other("schedstat without a number"));
        }
    }
    Err(io::Error::other(format!("no thread {name}")))
}

/// The least a relay can do.
fn start_floor(pairs: Vec<[OwnedFd; 2]>) -> io::Result<JoinHandle<io::Result<()>>> {
    let sockets: Vec<OwnedFd> = pairs.into_iter().flatten().collect();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (at, socket) in sockets.iter().enumerate() {
        epoll::add(&epoll, socket, EventData::new_u64(at as u64), EventFlags::IN | EventFlags::ET)?;
    }
    std::thread::Builder::new().name(FLOOR.into()).spawn(move || {
        let mut scratch = vec![0; 64 * 1024];
        let mut events = Vec::with_capacity(1024);
        loop {
            events.clear();
            epoll::wait(&epoll, spare_capacity(&mut events), None)?;
            for event in &events {
                let at = event.data.u64() as usize;
                let read = rustix::io::read(&sockets[at], &mut scratch[..])?;
                if read == 0 {
                    return Ok(());
                }
                let written = rustix::io::write(&sockets[at ^ 1], &scratch[..read])?;
                assert_eq!(written, read, "the send buffer is large enough");
            }
        }
    })
}

fn start_relay() -> io::Result<Relay> {
    let observer: CloseObserver = Arc::new(|_, _| ());
    Relay::start(1, &observer)
}

fn stop(relay: &Relay) {
    let close = PacedClose::new(TunnelSelector::all(), CloseReason::Shutdown, 1001, "");
    relay.shut_down(close.with_grace(Duration::ZERO));
    relay.join();
}

fn meter() -> Arc<NodeMeter> {
    Metrics::new(1).node("chat", "ws1")
}

fn tunnel(id: u64, [client, node]: [OwnedFd; 2], tls: bool, meter: &Arc<NodeMeter>) -> Tunnel {
    let record = SessionInfo {
        id,
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        node_connection: meter.acquire_permit(),
        route: Arc::from("/"),
        generation: 1,
        opened_at: SystemTime::now(),
        affinity: ("none", "none"),
        key: None,
        trace: [0; 16],
        permit: None,
    };
    let rules = TunnelLimits {
        idle_timeout: Duration::from_secs(3600),
        max_message_size: 1 << 20,
        ping_interval: Some(Duration::from_secs(3600)),
        close_timeout: Duration::from_secs(10),
    };
    Tunnel {
        client,
        node,
        client_tls: tls.then(|| departed(2, 1)),
        node_tls: None,
        from_client: Bytes::new(),
        from_node: Bytes::new(),
        limits: rules,
        info: record,
    }
}

fn memory(tls: bool) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut peers = Peers::start(listener.local_addr()?.port())?;
    let relay = start_relay()?;
    let meter = meter();
    let mut bytes = [0; 2];
    let mut open = 0;
    for (count, bytes) in IDLE.into_iter().zip(&mut bytes) {
        while open < count {
            peers.ask(b'c')?;
            let ends = [accept(&listener, false)?, accept(&listener, false)?];
            assert!(relay.adopt(tunnel(open as u64, ends, tls, &meter)), "the relay runs");
            open += 1;
        }
        // The relay adopts in order: what the last tunnel carries says that all are there.
        peers.ask(if tls { b's' } else { b'p' })?;
        peers.answers.read_exact(&mut [0])?;
        assert_eq!(relay.tunnel_count(), count);
        *bytes = private_bytes()?;
    }
    let slope = (bytes[1] as f64 - bytes[0] as f64) / (IDLE[1] - IDLE[0]) as f64;
    let (with, target) = if tls { (" with TLS", TARGET_BYTES[1]) } else { ("", TARGET_BYTES[0]) };
    println!("memory: {slope:.0} B private per idle tunnel{with} (target {target})");
    stop(&relay);
    peers.stop()
}

/// The private memory of this process.
fn private_bytes() -> io::Result<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
    let private = |line: &&str| line.starts_with("Private_Dirty:") || line.starts_with("Private_Clean:");
    let kib = |line: &str| line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    Ok(rollup.lines().filter(private).filter_map(kib).sum::<u64>() * 1024)
}

/// The child process with the peers' ends of the tunnels.
struct Peers {
    child: Child,
    orders: ChildStdin,
    answers: ChildStdout,
}

impl Peers {
    fn start(port: u16) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([PEERS, &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let orders = child.stdin.take().expect("piped");
        let answers = child.stdout.take().expect("piped");
        Ok(Self { child, orders, answers })
    }

    fn ask(&mut self, order: u8) -> io::Result<()> {
        self.orders.write_all(&[order])
    }

    fn stop(self) -> io::Result<()> {
        let Self { mut child, orders, answers } = self;
        drop((orders, answers));
        child.wait().map(drop)
    }
}

/// The child: `c` connects a client and a node, `p` sends a message through the last of them, `s` over TLS; the end
/// of the orders ends it.
fn hold_peers(port: u16) -> io::Result<()> {
    let mut held: Vec<[TcpStream; 2]> = Vec::new();
    let mut orders = io::stdin().lock();
    let mut order = [0];
    while orders.read(&mut order)? > 0 {
        if order == *b"c" {
            let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, port));
            held.push([connect()?, connect()?]);
        } else if let Some([client, node]) = held.last_mut() {
            let mut message = frame(1, true);
            if order == *b"s" {
                let plain = std::mem::take(&mut message);
                TlsConnection::new(departed(1, 2), TlsRole::Client).0.seal(&plain, &mut message);
            }
            client.write_all(&message)?;
            node.read_exact(&mut frame(1, true))?;
            let mut answers = io::stdout();
            answers.write_all(b"p")?;
            answers.flush()?;
        }
    }
    Ok(())
}
