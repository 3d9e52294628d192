//! The cost of migrating a tunnel from one relay to another: microseconds and bytes for each step.
//!
//! `cargo bench --bench migration`. Both relays are in this process and have one thread each, so that the figures are
//! those of one core; the descriptors are duplicated where SCM_RIGHTS would do it. The tunnels are idle, as most are.
//! Each figure is the CPU time of all threads (`schedstat`), which work one after the other: what a move takes on a
//! machine that has nothing else to do. It is the median of several moves of all tunnels, there and back.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use mainstay::metrics::Metrics;
use mainstay::net::connection_limit::ConnectionLimiter;
use mainstay::net::tls::extracted::{CipherSuite, ExtractedTls, TlsProtocolVersion, TrafficKeys};
use mainstay::relay::tunnel_state::TunnelCounters;
use mainstay::relay::{
    CloseObserver, CloseReason, PacedClose, ReceivedTunnel, Relay, SessionInfo, StagedTunnels, Tunnel,
    TunnelLimits, TunnelSelector,
};

const TUNNELS: u64 = 2_500;
const MIGRATIONS: usize = 10;
/// How long a migration may pause a tunnel.
const PAUSE: Duration = Duration::from_millis(50);

fn main() {
    println!(
        "{:<10} {:>10} {:>10} {:>10} {:>10}   (µs for each tunnel)",
        "", "freeze", "stage", "activate", "all"
    );
    for (what, has_tls) in [("plain", false), ("TLS 1.3", true)] {
        measure(what, has_tls);
    }
}

struct Process {
    relay: Relay,
    metrics: Arc<Metrics>,
    places: Arc<ConnectionLimiter>,
}

impl Process {
    fn start() -> Self {
        let observer: CloseObserver = Arc::new(|_: &SessionInfo, _: &_| {});
        let relay = Relay::start(1, &observer).expect("a relay thread starts");
        Self { relay, metrics: Metrics::new(1), places: Arc::default() }
    }

    /// An idle tunnel; gives the peers.
    fn tunnel(&self, listener: &TcpListener, id: u64, has_tls: bool) -> [TcpStream; 2] {
        let pair = || {
            let theirs = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
            let (ours, _) = listener.accept().expect("a connection came");
            ours.set_nonblocking(true).expect("a socket can be");
            (OwnedFd::from(ours), theirs)
        };
        let ((client, client_peer), (node, node_peer)) = (pair(), pair());
        let info = SessionInfo {
            id,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            node_connection: self.metrics.node("chat", "ws1").acquire_permit(),
            route: Arc::from("chat.example.com/socket.io/"),
            generation: 1,
            opened_at: SystemTime::now(),
            affinity: ("cookie", "kept"),
            key: None,
            trace: [1; 16],
            permit: self.places.acquire(u32::MAX),
        };
        let tunnel = Tunnel {
            client,
            node,
            client_tls: has_tls.then(departed),
            node_tls: None,
            from_client: Bytes::new(),
            from_node: Bytes::new(),
            limits: TunnelLimits {
                idle_timeout: Duration::from_secs(3600),
                max_message_size: u64::MAX,
                ping_interval: None,
                close_timeout: Duration::from_secs(10),
            },
            info,
        };
        assert!(self.relay.adopt(tunnel), "the thread takes it");
        [client_peer, node_peer]
    }
}

fn departed() -> ExtractedTls {
    let keys = || Box::new(TrafficKeys { secret: [7; 48], key: [7; 32], iv: [7; 12], seq: 0 });
    let (undecrypted, unsent, plain) = Default::default();
    let (version, suite) = (TlsProtocolVersion::Tls13, CipherSuite::Aes128Gcm);
    ExtractedTls {
        version,
        suite,
        tx: keys(),
        rx: keys(),
        undecrypted,
        unsent,
        decrypted: plain,
        has_close_notify: false,
    }
}

fn measure(what: &str, has_tls: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
    let (mut here, mut there) = (Process::start(), Process::start());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let peers: Vec<_> = (0..TUNNELS).map(|id| here.tunnel(&listener, id, has_tls)).collect();
    runtime.block_on(here.relay.wait_one_tick());
    let (mut steps, mut bytes) = (Vec::new(), 0);
    for _ in 0..MIGRATIONS {
        let (step, size) = runtime.block_on(migrate_all(&here, &there));
        steps.push(step);
        bytes = size;
        std::mem::swap(&mut here, &mut there);
    }
    let [freeze, stage, activate] = [0, 1, 2].map(|at| median(steps.iter().map(|step| step[at]).collect()));
    let all = freeze + stage + activate;
    println!("{what:<10} {freeze:>10.2} {stage:>10.2} {activate:>10.2} {all:>10.2}");
    let batch = PAUSE.as_secs_f64() * 1e6 / all;
    println!("{:<10} {bytes} bytes each; {batch:.0} of them pause for {} ms", "", PAUSE.as_millis());
    drop(peers);
    for process in [here, there] {
        let close = PacedClose::new(TunnelSelector::all(), CloseReason::Shutdown, 1001, "");
        process.relay.shut_down(close.with_grace(Duration::ZERO));
        process.relay.join();
    }
}

/// Microseconds for each tunnel: freeze, stage, release and activate; and bytes for each.
async fn migrate_all(from: &Process, to: &Process) -> ([f64; 3], u64) {
    let each = |since: f64| (cpu_micros() - since) / TUNNELS as f64;
    let begun = cpu_micros();
    let frozen = from.relay.freeze(usize::MAX).await;
    let freeze = each(begun);
    assert_eq!(frozen.len() as u64, TUNNELS, "all are frozen");
    let received: Vec<ReceivedTunnel> = frozen
        .tunnels()
        .map(|tunnel| ReceivedTunnel {
            state: tunnel.state().to_vec().into(),
            sockets: tunnel
                .sockets()
                .map(|socket| socket.try_clone_to_owned().expect("a descriptor is free")),
        })
        .collect();
    let bytes: usize = received.iter().map(|tunnel| tunnel.state.len()).sum();
    let begun = cpu_micros();
    let counts = TunnelCounters { metrics: &to.metrics, limiter: &to.places };
    let staged = StagedTunnels::new(received, counts).expect("these are tunnel states");
    let stage = each(begun);
    let begun = cpu_micros();
    frozen.release();
    to.relay.activate(staged);
    to.relay.wait_one_tick().await;
    from.relay.wait_one_tick().await;
    let activate = each(begun);
    ([freeze, stage, activate], bytes as u64 / TUNNELS)
}

/// CPU time of the process's threads so far.
fn cpu_micros() -> f64 {
    let of = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("schedstat")).expect("a thread's own file");
        let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok());
        nanos.expect("it begins with the time on a processor") / 1e3
    };
    let tasks = fs::read_dir("/proc/self/task").expect("Linux");
    tasks.map(|task| of(task.expect("a thread that lives"))).sum()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
