//! Tunnels that carry numbered messages both ways, each of which is checked.

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
        let mut rest = tunnels;
        while !rest.is_empty() {
            let mut some: Vec<_> = rest.drain(..rest.len().min(share)).collect();
            let (stop, passed) = (Arc::clone(&stop), Arc::clone(&passed));
            threads.push(std::thread::spawn(move || {
                let (mut number, mut times) = (0_u32, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    for (client, node) in &mut some {
                        client.write_all(&masked(number)).unwrap();
                        node.0.write_all(&plain(number)).unwrap();
                    }
                    for (client, node) in &mut some {
                        let mut read = [0; 38];
                        client.read_exact(&mut read).unwrap();
                        assert_eq!(read[..], plain(number));
                        node.expect(&masked(number));
                    }
                    times.push(begun.elapsed());
                    number += 1;
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

/// A message of the node's: its number, and bytes that follow from it.
pub fn plain(number: u32) -> Vec<u8> {
    [&[0x82, 36][..], &body(number)].concat()
}

/// The same from a client, masked with zeros.
pub fn masked(number: u32) -> Vec<u8> {
    [&[0x82, 0x80 | 36, 0, 0, 0, 0][..], &body(number)].concat()
}

pub fn body(number: u32) -> [u8; 36] {
    let mut body = [0; 36];
    body[..4].copy_from_slice(&number.to_be_bytes());
    let mut word = u64::from(number) | 1 << 40;
    for byte in &mut body[4..] {
        word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (word >> 29);
        *byte = word as u8;
    }
    body
}
