//! What it costs to know where the frames are: nanoseconds per frame and per piece of the stream that was read.
//!
//! `cargo bench --bench tracker`. Each figure is the median of several rounds over the same bytes, fed as the relay
//! feeds them: what was held in front of what was read.

use std::hint::black_box;
use std::time::Instant;

use mainstay::ws::tracker::{MessageCounts, ScanOptions, Tracker};

/// No limit, no pings of our own.
const HEED: ScanOptions = ScanOptions { limit: u64::MAX, pings: None };
const ROUNDS: usize = 15;
/// Bytes of the stream that a round scans.
const STREAM: usize = 8 << 20;
/// Payload of each frame, and bytes of each piece.
const CASES: [(usize, usize); 4] = [(128, 136), (128, 64 << 10), (16 << 10, 64 << 10), (128, 100)];

fn main() {
    println!("{:<44} {:>10} {:>10}", "scanning", "ns/frame", "ns/piece");
    for (payload, piece) in CASES {
        let stream = frames(payload);
        let mut costs: Vec<f64> = (0..ROUNDS).map(|_| round(&stream, piece)).collect();
        costs.sort_by(f64::total_cmp);
        let nanos = costs[ROUNDS / 2];
        let frames = stream.len() / (payload + 8);
        let pieces = stream.len().div_ceil(piece);
        let what = format!("frames of {payload} B in pieces of {piece} B");
        println!("{what:<44} {:>10.1} {:>10.1}", nanos / frames as f64, nanos / pieces as f64);
    }
}

/// Masked binary messages, one frame each.
fn frames(payload: usize) -> Vec<u8> {
    let mut frame = vec![0x82, 0x80 | 126];
    frame.extend((payload as u16).to_be_bytes());
    frame.resize(8 + payload, 0x5a);
    frame.repeat(STREAM / frame.len())
}

/// Nanoseconds for the whole stream.
fn round(stream: &[u8], piece: usize) -> f64 {
    let (mut tracker, mut tally, mut passed) = (Tracker::default(), MessageCounts::default(), 0);
    let mut scratch = vec![0; 16 + piece];
    let start = Instant::now();
    for fresh in stream.chunks(piece) {
        let held = tracker.held().len();
        scratch[..held].copy_from_slice(tracker.held());
        // A piece that begins with held bytes has to be one slice; the copy of the fresh bytes is the reader's.
        let scan = if held == 0 {
            tracker.scan(black_box(fresh), HEED, false, &mut tally)
        } else {
            scratch[held..held + fresh.len()].copy_from_slice(fresh);
            tracker.scan(black_box(&scratch[..held + fresh.len()]), HEED, false, &mut tally)
        };
        passed += scan.pass;
    }
    assert_eq!(passed + tracker.held().len(), stream.len());
    start.elapsed().as_nanos() as f64
}
