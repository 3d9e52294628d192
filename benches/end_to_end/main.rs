//! The whole balancer beside nginx and HAProxy, as their users run them: CPU time per WebSocket handshake and per
//! echoed message, and private memory per idle tunnel, plain and over TLS.
//!
//! `cargo bench --bench end_to_end`. Each of those that is installed stands in front of the same echo node with two
//! workers or threads; what is not installed is left out. The CPU time is that of all threads of all processes of the
//! balancer (`schedstat`), in rounds that alternate between the balancers; each figure is the median of the rounds,
//! and the ratio is to Mainstay in the same run. An echo is two messages: one each way. Everything goes over loopback.

mod balancer;
mod node;
mod secure;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use balancer::{Balancer, Kind};
use node::{NODE, Node, echo_node};

const ROUNDS: usize = 7;
const CONNECTIONS: usize = 16;
/// Handshakes in a round.
const HANDSHAKES: usize = 400;
/// Payload and echoes of each connection in a round.
const SIZES: [(usize, usize); 2] = [(128, 600), (16 * 1024, 200)];
/// Idle tunnels between which the slope of the memory is taken.
const IDLE: [usize; 2] = [500, 3_500];
const REQUEST: &str = "GET /ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn main() -> io::Result<()> {
    raise_descriptors()?;
    if std::env::args().nth(1).as_deref() == Some(NODE) {
        return echo_node();
    }
    let node = Node::start()?;
    let folder = tempfile::tempdir()?;
    let clients = secure::issue(folder.path())?;
    let balancers = start_all(node.port, folder.path())?;
    memory(&balancers)?;
    handshakes(&balancers)?;
    SIZES.iter().try_for_each(|(payload, echoes)| messages(&balancers, *payload, *echoes))?;
    drop(balancers);
    // Anew, or memory that plain tunnels have left would hide what TLS takes.
    clients.measure(&start_all(node.port, folder.path())?)
}

fn start_all(node: u16, folder: &Path) -> io::Result<Vec<Balancer>> {
    let mut balancers = Vec::new();
    for kind in [Kind::Mainstay, Kind::Nginx, Kind::HaProxy] {
        match Balancer::start(kind, node, folder) {
            Ok(balancer) => balancers.push(balancer),
            Err(error) if error.kind() == io::ErrorKind::NotFound => println!("{kind:?} is not installed"),
            Err(error) => return Err(error),
        }
    }
    Ok(balancers)
}

fn raise_descriptors() -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

fn memory(balancers: &[Balancer]) -> io::Result<()> {
    let mut slopes = Vec::new();
    for balancer in balancers {
        let (mut bytes, mut open) = ([0.0; 2], Vec::new());
        for (count, bytes) in IDLE.into_iter().zip(&mut bytes) {
            while open.len() < count {
                open.push(connect(balancer.port)?);
            }
            // An echo through the last one says that all have been adopted.
            echo(open.last_mut().expect("some are open"))?;
            *bytes = balancer.private_bytes()?;
        }
        slopes.push((bytes[1] - bytes[0]) / (IDLE[1] - IDLE[0]) as f64);
    }
    print("private memory per idle tunnel", "B", balancers, &slopes);
    Ok(())
}

fn handshakes(balancers: &[Balancer]) -> io::Result<()> {
    let costs = rounds(balancers, |balancer| {
        let open: Vec<TcpStream> =
            (0..HANDSHAKES).map(|_| connect(balancer.port)).collect::<io::Result<_>>()?;
        Ok(open.len())
    })?;
    print("CPU per handshake and its end", "us", balancers, &costs);
    Ok(())
}

fn messages(balancers: &[Balancer], payload: usize, echoes: usize) -> io::Result<()> {
    let mut drivers: Vec<Driver> =
        balancers.iter().map(|balancer| Driver::new(balancer.port)).collect::<io::Result<_>>()?;
    drivers.iter_mut().try_for_each(|driver| driver.run(payload, echoes / 4))?;
    let mut turn = 0;
    let costs = rounds(balancers, |_| {
        let driver = turn % drivers.len();
        turn += 1;
        drivers[driver].run(payload, echoes)?;
        Ok(echoes * CONNECTIONS)
    })?;
    print(&format!("CPU per echo of {payload} B"), "us", balancers, &costs);
    Ok(())
}

/// The median CPU microseconds per piece of work of each balancer, in rounds that alternate.
fn rounds(
    balancers: &[Balancer],
    mut work: impl FnMut(&Balancer) -> io::Result<usize>,
) -> io::Result<Vec<f64>> {
    let mut costs = vec![Vec::new(); balancers.len()];
    for _ in 0..ROUNDS {
        for (balancer, costs) in balancers.iter().zip(&mut costs) {
            let before = balancer.cpu_nanos()?;
            let pieces = work(balancer)?;
            costs.push((balancer.cpu_nanos()? - before) / 1000.0 / pieces as f64);
        }
    }
    Ok(costs.into_iter().map(median).collect())
}

fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

fn print(what: &str, unit: &str, balancers: &[Balancer], figures: &[f64]) {
    print!("{what:<32}");
    for (balancer, figure) in balancers.iter().zip(figures) {
        let ratio = figure / figures[0];
        print!("  {:?} {figure:>8.1} {unit} ({ratio:.2})", balancer.kind);
    }
    println!();
}

/// A WebSocket through the balancer, after its handshake.
fn connect(port: u16) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    stream.set_nodelay(true)?;
    stream.write_all(REQUEST.as_bytes())?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    if head.starts_with(b"HTTP/1.1 101 ") { Ok(stream) } else { Err(io::Error::other("no 101")) }
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&frame(8))?;
    stream.read_exact(&mut frame(8))
}

/// A masked binary message. The node sends it back as it is: what a balancer does not look at costs it nothing.
fn frame(payload: usize) -> Vec<u8> {
    let mut frame = vec![0x82];
    if payload < 126 {
        frame.push(0x80 | payload as u8);
    } else {
        frame.push(0x80 | 126);
        frame.extend((payload as u16).to_be_bytes());
    }
    frame.extend([0x37, 0xfa, 0x21, 0x3d]);
    frame.extend((0..payload).map(|at| at as u8));
    frame
}

/// The clients of one balancer.
struct Driver {
    epoll: OwnedFd,
    clients: Vec<TcpStream>,
    scratch: Vec<u8>,
}

impl Driver {
    fn new(port: u16) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let clients: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(port)).collect::<io::Result<_>>()?;
        for (at, client) in clients.iter().enumerate() {
            epoll::add(&epoll, client, EventData::new_u64(at as u64), EventFlags::IN)?;
        }
        Ok(Self { epoll, clients, scratch: vec![0; 64 * 1024] })
    }

    /// Each client sends a message and waits for its echo, so many times.
    fn run(&mut self, payload: usize, echoes: usize) -> io::Result<()> {
        let message = frame(payload);
        let (mut got, mut left) = ([0; CONNECTIONS], [echoes; CONNECTIONS]);
        self.clients.iter_mut().try_for_each(|client| client.write_all(&message))?;
        let mut running = CONNECTIONS;
        let mut events = Vec::with_capacity(CONNECTIONS);
        while running > 0 {
            events.clear();
            epoll::wait(&self.epoll, spare_capacity(&mut events), None)?;
            for event in &events {
                let at = event.data.u64() as usize;
                let read = self.clients[at].read(&mut self.scratch)?;
                assert!(read > 0, "a connection ended");
                got[at] += read;
                if got[at] < message.len() {
                    continue;
                }
                got[at] = 0;
                left[at] -= 1;
                if left[at] == 0 {
                    running -= 1;
                } else {
                    self.clients[at].write_all(&message)?;
                }
            }
        }
        Ok(())
    }
}
