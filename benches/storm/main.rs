//! A reconnect storm beside established tunnels: what the storm gets in, and what the tunnels notice.
//!
//! `cargo bench --bench storm`. The real binary, with `handshakes_per_second`, stands in front of the echo node of
//! `end_to_end`. Tunnels send a small message twenty times a second each and time its echo: first alone, then while as
//! many handshakes are offered as are let in, then while three times as many are, from many client addresses. Offered
//! is open loop: nobody waits for anybody. Everything goes over loopback and shares the processors; whoever makes the
//! storm does so at a low priority, so that what the tunnels notice is the balancer's and the node's work and not the
//! generator's, which would be on other machines. Read the ratios; it takes half a minute. It fails when the storm gets
//! less in than 0.9 of what the calm rate does.

#[path = "../end_to_end/node.rs"]
mod node;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use node::{NODE, Node, echo_node};

/// Handshakes that are let in per second.
const RATE: u32 = 400;
/// How many times that the storm offers.
const TIMES: u32 = 3;
const TUNNELS: usize = 100;
/// From one message of a tunnel to its next.
const PAUSE: Duration = Duration::from_millis(50);
const CALM: Duration = Duration::from_secs(6);
const STORM: Duration = Duration::from_secs(10);
/// Those who come in the first moment find a full bucket and an empty queue.
const SETTLING: Duration = Duration::from_secs(2);
/// Client addresses of the storm.
const CLIENTS: u32 = 200;
/// From one batch of handshakes to the next.
const TICK: Duration = Duration::from_millis(10);
const REQUEST: &str = "GET /ws HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn main() -> io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some(NODE) {
        return echo_node();
    }
    let node = Node::start()?;
    let folder = tempfile::tempdir()?;
    let balancer = Balancer::start(node.port, folder.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let crowd = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(step_back)
        .enable_all()
        .build()?;
    runtime.block_on(runtime.spawn(measure(balancer.address, crowd.handle().clone())))?
}

/// The calling thread gets the processor when nobody else wants it, or nearly so.
fn step_back() {
    rustix::process::setpriority_process(None, 19).expect("anybody may be modest");
}

async fn measure(address: SocketAddr, crowd: Handle) -> io::Result<()> {
    let seen: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let mut tunnels = JoinSet::new();
    for number in 0..TUNNELS {
        let tunnel = open(address, 0).await?;
        tunnels.spawn(talk(tunnel, PAUSE.mul_f64(number as f64 / TUNNELS as f64), Arc::clone(&seen)));
    }
    sleep(SETTLING).await;
    let alone = Echoes::during(sleep(CALM), &seen).await;
    let (at_rate, peak) = beside(address, RATE, CALM, &seen, &crowd).await;
    let (in_storm, storm) = beside(address, RATE * TIMES, STORM, &seen, &crowd).await;
    if tunnels.try_join_next().is_some() {
        return Err(io::Error::other("a tunnel ended"));
    }
    println!("{:<28}{:>12}{:>14}{:>16}", "", "alone", "at the rate", "3 x the rate");
    row("handshakes offered", "/s", [0.0, peak.offered, storm.offered]);
    row("handshakes let in", "/s", [0.0, peak.let_in, storm.let_in]);
    row("sent away with 503", "/s", [0.0, peak.sent_away, storm.sent_away]);
    row("neither", "/s", [0.0, peak.failed, storm.failed]);
    row("echoes", "/s", [&alone, &at_rate, &in_storm].map(|echoes| echoes.per_second));
    row("echo, median", "us", [&alone, &at_rate, &in_storm].map(|echoes| echoes.median));
    row("echo, 99th percentile", "us", [&alone, &at_rate, &in_storm].map(|echoes| echoes.high));
    storm.tell_retries();
    let goodput = storm.let_in / peak.let_in;
    println!(
        "goodput in the storm: {goodput:.2} of the peak; echoes: {:.2}",
        in_storm.per_second / alone.per_second
    );
    if goodput < 0.9 { Err(io::Error::other("the storm costs goodput")) } else { Ok(()) }
}

fn row(what: &str, unit: &str, [alone, at_rate, in_storm]: [f64; 3]) {
    println!("{:<28}{alone:>12.0}{at_rate:>14.0}{in_storm:>16.0}", format!("{what} ({unit})"));
}

/// What the tunnels noticed.
struct Echoes {
    per_second: f64,
    /// Microseconds, as the one below.
    median: f64,
    /// 99th percentile.
    high: f64,
}

impl Echoes {
    async fn during(time: impl Future<Output = ()>, seen: &Mutex<Vec<Duration>>) -> Self {
        seen.lock().clear();
        let begun = Instant::now();
        time.await;
        let mut took: Vec<f64> = seen.lock().drain(..).map(|took| took.as_secs_f64() * 1e6).collect();
        took.sort_by(f64::total_cmp);
        let at = |part: f64| took.get((took.len() as f64 * part) as usize).copied().unwrap_or(f64::NAN);
        let per_second = took.len() as f64 / begun.elapsed().as_secs_f64();
        Self { per_second, median: at(0.5), high: at(0.99) }
    }
}

/// One tunnel that sends and waits for the echo, again and again.
async fn talk(mut tunnel: TcpStream, first: Duration, seen: Arc<Mutex<Vec<Duration>>>) -> io::Result<()> {
    let message = [&[0x82, 0x80 | 32, 0, 0, 0, 0][..], &[7; 32]].concat();
    let mut echo = message.clone();
    sleep(first).await;
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let begun = Instant::now();
        tunnel.write_all(&message).await?;
        tunnel.read_exact(&mut echo).await?;
        seen.lock().push(begun.elapsed());
    }
}

/// What a storm came to, per second.
struct Storm {
    offered: f64,
    let_in: f64,
    sent_away: f64,
    failed: f64,
    /// How many were told to come back after so many seconds.
    retries: BTreeMap<u64, usize>,
}

/// How one handshake ended.
enum End {
    LetIn,
    SentAway(u64),
    Failed,
}

/// The tunnels beside so many handshakes a second.
async fn beside(
    address: SocketAddr,
    rate: u32,
    time: Duration,
    seen: &Mutex<Vec<Duration>>,
    crowd: &Handle,
) -> (Echoes, Storm) {
    let storm = Arc::new(Mutex::new(Vec::new()));
    let offering = crowd.spawn(offer(address, rate, time, Arc::clone(&storm)));
    let mut offered = 0;
    let offering = async { offered = offering.await.expect("it offers to the end") };
    let echoes = Echoes::during(offering, seen).await;
    let ends = std::mem::take(&mut *storm.lock());
    let seconds = (time - SETTLING).as_secs_f64();
    let count = |is: fn(&End) -> bool| ends.iter().filter(|end| is(end)).count() as f64 / seconds;
    let mut retries = BTreeMap::new();
    for end in &ends {
        if let End::SentAway(after) = end {
            *retries.entry(*after).or_insert(0) += 1;
        }
    }
    let storm = Storm {
        offered: f64::from(offered) / time.as_secs_f64(),
        let_in: count(|end| matches!(end, End::LetIn)),
        sent_away: count(|end| matches!(end, End::SentAway(_))),
        failed: count(|end| matches!(end, End::Failed)),
        retries,
    };
    (echoes, storm)
}

/// Offers them evenly, and gives how many; ends are those behind the settling.
async fn offer(address: SocketAddr, rate: u32, time: Duration, ends: Arc<Mutex<Vec<End>>>) -> u32 {
    let mut offered = 0;
    let begun = Instant::now();
    let mut ticks = interval(TICK);
    let mut attempts = JoinSet::new();
    while begun.elapsed() < time {
        ticks.tick().await;
        let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as u32;
        for number in offered..due {
            let ends = Arc::clone(&ends);
            attempts.spawn(async move {
                let end = attempt(address, 1 + number % CLIENTS).await.unwrap_or(End::Failed);
                let now = begun.elapsed();
                if now >= SETTLING && now < time {
                    ends.lock().push(end);
                }
            });
        }
        offered = due.max(offered);
        while attempts.try_join_next().is_some() {}
    }
    offered
}

async fn attempt(address: SocketAddr, client: u32) -> io::Result<End> {
    match timeout(Duration::from_secs(5), hear(address, client)).await? {
        Ok((_, head)) if head.starts_with("HTTP/1.1 101 ") => Ok(End::LetIn),
        Ok((_, head)) if head.starts_with("HTTP/1.1 503 ") => {
            let after = head.split_once("retry-after: ").and_then(|(_, rest)| rest.split("\r\n").next());
            Ok(after.and_then(|after| after.parse().ok()).map_or(End::Failed, End::SentAway))
        }
        Ok(_) => Ok(End::Failed),
        Err(error) => Err(error),
    }
}

async fn open(address: SocketAddr, client: u32) -> io::Result<TcpStream> {
    let (stream, head) = hear(address, client).await?;
    if head.starts_with("HTTP/1.1 101 ") { Ok(stream) } else { Err(io::Error::other("no 101")) }
}

/// A handshake from an address of its own, and the head of the answer.
async fn hear(address: SocketAddr, client: u32) -> io::Result<(TcpStream, String)> {
    let socket = TcpSocket::new_v4()?;
    // Of the thousand behind 127.1.0.0; all of 127/8 is this machine.
    socket.bind(SocketAddr::from((Ipv4Addr::from(0x7f01_0001 + client), 0)))?;
    let mut stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(REQUEST.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok((stream, String::from_utf8_lossy(&head).into_owned()))
}

impl Storm {
    /// That those who are sent away do not come back together.
    fn tell_retries(&self) {
        let Some((least, most)) = self.retries.keys().next().zip(self.retries.keys().next_back()) else {
            return;
        };
        let (total, fullest) = (self.retries.values().sum::<usize>(), self.retries.values().max());
        let part = *fullest.unwrap_or(&0) as f64 / total as f64 * 100.0;
        println!("Retry-After: {least} to {most} s, at most {part:.0} % of them in one second");
    }
}

/// The binary, as a child process.
struct Balancer {
    child: Child,
    address: SocketAddr,
}

impl Balancer {
    fn start(node: u16, folder: &Path) -> io::Result<Self> {
        // A port that was free a moment ago; only a benchmark may take that risk.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let file = folder.join("balancer.yaml");
        std::fs::write(
            &file,
            format!(
                "listeners: [{{ address: \"{address}\" }}]\nadmin: null\naccess_log: {{ format: off }}\n\
                 limits: {{ handshakes_per_second: {RATE} }}\n\
                 pools: {{ bench: {{ nodes: [{{ id: ws1, address: \"127.0.0.1:{node}\" }}], health: null }} }}\n"
            ),
        )?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        let child = command.arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let balancer = Self { child, address };
        for _ in 0..500 {
            if std::net::TcpStream::connect(address).is_ok() {
                return Ok(balancer);
            }
            let _ = rustix::thread::nanosleep(&rustix::thread::Timespec { tv_sec: 0, tv_nsec: 20_000_000 });
        }
        Err(io::Error::other("the balancer does not serve"))
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
