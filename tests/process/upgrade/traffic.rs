//! Tunnels that carry numbered messages both ways, each of which is checked.
//!
//! What stands in a message follows from its number and from a hash over all that went before it on its tunnel in its
//! direction, so that a message of another tunnel, of the other direction or of another moment is none of its own.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::balancer::{DEADLINE, Raw, size};

/// A client's connection, with TLS or without.
pub trait Wire: Read + Write + Send {}

impl<T: Read + Write + Send> Wire for T {}

/// Tunnels that carry numbered messages both ways until they are stopped: as fast as they can, or a round each
/// `MAINSTAY_ROUND_MS` milliseconds.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    passed: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<Duration>>>,
}

impl Traffic {
    /// One thread for some tunnels: each round sends one message each way on each, and checks what comes.
    pub fn over(tunnels: Vec<(Box<dyn Wire>, Raw)>) -> Self {
        let (stop, passed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let share = tunnels.len().div_ceil(12);
        let mut threads = Vec::new();
        let pace = Duration::from_millis(size("MAINSTAY_ROUND_MS", 0) as u64);
        let numbered = (0..).zip(tunnels);
        let mut rest: Vec<_> = numbered.map(|(number, ends)| Tunnel::new(number, ends)).collect();
        while !rest.is_empty() {
            let mut some: Vec<_> = rest.drain(..rest.len().min(share)).collect();
            let (stop, passed) = (Arc::clone(&stop), Arc::clone(&passed));
            threads.push(std::thread::spawn(move || {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    some.iter_mut().for_each(Tunnel::send);
                    some.iter_mut().for_each(Tunnel::check);
                    times.push(begun.elapsed());
                    passed.fetch_add(1, Ordering::Relaxed);
                    // Nobody wakes it: a round may as well begin early.
                    std::thread::park_timeout(pace.saturating_sub(begun.elapsed()));
                }
                times
            }));
        }
        Self { stop, passed, threads }
    }

    /// Returns once the threads have passed some more rounds.
    pub fn flows(&self) {
        let (before, end) = (self.passed.load(Ordering::Relaxed), Instant::now() + DEADLINE);
        while self.passed.load(Ordering::Relaxed) < before + 4 * self.threads.len() as u64 {
            assert!(Instant::now() < end, "the traffic stands still");
            std::thread::yield_now();
        }
    }

    /// Ends it; a message that was lost, doubled or moved has ended its thread with a panic. Says how long rounds took:
    /// a round that met an upgrade has its pause in it.
    pub fn end(self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(|thread| thread.join());
        let mut times: Vec<_> =
            ended.flat_map(|times| times.expect("every message came once, in order")).collect();
        times.sort_unstable();
        assert!(!times.is_empty());
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        format!("{} rounds: p50 {:?}, p99.9 {:?}, worst {:?}", times.len(), at(0.5), at(0.999), at(1.0))
    }
}

/// A tunnel's two ends, and where each of them is in what it sends and in what it has got.
struct Tunnel {
    client: Box<dyn Wire>,
    node: Raw,
    client_sends: Course,
    node_gets: Course,
    node_sends: Course,
    client_gets: Course,
}

impl Tunnel {
    fn new(number: u64, (client, node): (Box<dyn Wire>, Raw)) -> Self {
        let [inward, outward] = [2 * number, 2 * number + 1].map(|hash| Course { number: 0, hash });
        Self {
            client,
            node,
            client_sends: inward.clone(),
            node_gets: inward,
            node_sends: outward.clone(),
            client_gets: outward,
        }
    }

    fn send(&mut self) {
        self.client.write_all(&from_client(self.client_sends.next())).unwrap();
        self.node.send(from_node(self.node_sends.next()));
    }

    fn check(&mut self) {
        let mut read = [0; 38];
        self.client.read_exact(&mut read).unwrap();
        assert_eq!(read[..], from_node(self.client_gets.next()));
        self.node.expect(&from_client(self.node_gets.next()));
    }
}

/// One direction of a tunnel, as one of its ends knows it.
#[derive(Clone)]
struct Course {
    /// Of the next message.
    number: u32,
    /// Over the messages so far; it begins with what only this direction of this tunnel begins with.
    hash: u64,
}

impl Course {
    fn next(&mut self) -> [u8; 36] {
        let body = body(self.number, self.hash);
        self.hash = body.iter().fold(self.hash, |hash, byte| spread(hash ^ u64::from(*byte)));
        self.number += 1;
        body
    }
}

/// A message of the node's that is the only one with its number, for a tunnel that is watched by hand.
pub fn plain(number: u32) -> Vec<u8> {
    from_node(body(number, 0))
}

/// The same from a client.
pub fn masked(number: u32) -> Vec<u8> {
    from_client(body(number, 0))
}

fn from_node(body: [u8; 36]) -> Vec<u8> {
    [&[0x82, 36][..], &body].concat()
}

/// Masked with zeros.
fn from_client(body: [u8; 36]) -> Vec<u8> {
    [&[0x82, 0x80 | 36, 0, 0, 0, 0][..], &body].concat()
}

/// A number, and bytes that follow from it and from the hash.
fn body(number: u32, hash: u64) -> [u8; 36] {
    let mut body = [0; 36];
    body[..4].copy_from_slice(&number.to_be_bytes());
    let mut word = hash ^ u64::from(number) ^ 1 << 40;
    for byte in &mut body[4..] {
        word = spread(word);
        *byte = word as u8;
    }
    body
}

/// Each bit of a word, wherever it stands, in all of the next ones.
fn spread(word: u64) -> u64 {
    let word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word ^ (word >> 29)
}
