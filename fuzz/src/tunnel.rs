//! Tunnel states, and the words of a handover: what another process wrote is never trusted, and what was read
//! is written again the same.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mainstay::control::upgrade::{decode_piece, protocol};
use mainstay::metrics::Metrics;
use mainstay::net::connection_limit::ConnectionLimiter;
use mainstay::net::handover_socket::{HandoverFrame, HandoverSocket};
use mainstay::relay::tunnel_state::TunnelCounters;
use mainstay::relay::{ReceivedTunnel, StagedTunnels};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::input::{Input, Pieces};

/// The nodes that one set of counters may come to know, before a new one is taken.
const MOST_RUNS: usize = 512;

struct Counters {
    metrics: Arc<Metrics>,
    places: Arc<ConnectionLimiter>,
    runs: usize,
}

thread_local! {
    static COUNTERS: RefCell<Counters> = RefCell::new(Counters::new());
    static NULL: OwnedFd = File::open("/dev/null").expect("there is one").into();
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be had");
}

impl Counters {
    fn new() -> Self {
        Self { metrics: Metrics::new(1), places: Arc::default(), runs: 0 }
    }
}

fn sockets() -> [OwnedFd; 2] {
    let copy = || NULL.with(|null| null.try_clone().expect("a descriptor is left"));
    [copy(), copy()]
}

/// One input: a tunnel state.
pub fn run(data: &[u8]) {
    let Some(once) = packed(data) else { return };
    let twice = packed(&once).expect("what was written is read");
    assert_eq!(once, twice, "what was read is written the same");
}

/// A tunnel state decoded and encoded again; `None` when it is none.
fn packed(bytes: &[u8]) -> Option<Vec<u8>> {
    COUNTERS.with_borrow_mut(|counters| {
        counters.runs += 1;
        if counters.runs > MOST_RUNS {
            *counters = Counters::new();
        }
        let arrival = ReceivedTunnel { state: bytes.to_vec().into(), sockets: sockets() };
        let counts = TunnelCounters { metrics: &counters.metrics, limiter: &counters.places };
        let staged = StagedTunnels::new(vec![arrival], counts).ok()?;
        assert_eq!(staged.len(), 1);
        let written = staged.encode_all().into_iter().next().map(|state| state.to_vec());
        staged.discard();
        written
    })
}

/// One input: which kind of words, then their bytes.
pub fn handover(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let bytes = input.rest();
    match kind % 5 {
        0 => spoken::<protocol::Hello>(bytes),
        1 => spoken::<protocol::HandedState>(bytes),
        2 => spoken::<protocol::FinalReport>(bytes),
        3 => piece(kind, bytes),
        _ => frames(kind, bytes),
    }
}

fn spoken<T: serde::Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) {
    let Ok(words) = serde_json::from_slice::<T>(bytes) else { return };
    let once = serde_json::to_vec(&words).expect("words are written");
    let again: T = serde_json::from_slice(&once).expect("what was written is read");
    assert_eq!(serde_json::to_vec(&again).expect("words are written"), once);
}

/// A piece of a batch, with that many sockets.
fn piece(kind: u8, bytes: &[u8]) {
    let count = usize::from(kind / 5) % 5;
    let descriptors: Vec<OwnedFd> = sockets().into_iter().chain(sockets()).take(count).collect();
    let frame = HandoverFrame { kind: protocol::kind::PIECE, body: bytes.to_vec().into(), descriptors };
    if let Ok(arrivals) = decode_piece(frame) {
        assert_eq!(2 * arrivals.len(), count, "each tunnel has its two sockets");
        let whole: usize = arrivals.iter().map(|arrival| 4 + arrival.state.len()).sum();
        assert_eq!(whole, bytes.len());
    }
}

/// Frames on a socket, in pieces: what is read is what a plain reader of the same bytes finds.
fn frames(seed: u8, bytes: &[u8]) {
    let (mut expected, mut rest) = (Vec::new(), bytes);
    while let Some((&[kind, high, low, a, b, c, d], behind)) = rest.split_first_chunk::<7>() {
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let Some((body, behind)) = behind.split_at_checked(length) else { break };
        if (high, low) != (0, 0) {
            break;
        }
        expected.push((kind, body.to_vec()));
        rest = behind;
    }
    let heard = RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (mut theirs, ours) = UnixStream::pair().expect("a pair can be had");
            let ours: std::os::unix::net::UnixStream = ours.into_std().expect("it is a socket");
            let mut link = HandoverSocket::from_fd(ours.into()).expect("it can be polled");
            for piece in Pieces::new(seed, bytes.len().min(4096)) {
                theirs.write_all(&bytes[piece]).await.expect("it is small");
            }
            drop(theirs);
            let mut heard = Vec::new();
            while let Ok(Some(frame)) = link.receive().await {
                assert!(frame.descriptors.is_empty());
                heard.push((frame.kind, frame.body.to_vec()));
            }
            heard
        })
    });
    if bytes.len() <= 4096 {
        assert_eq!(heard, expected);
    }
}
