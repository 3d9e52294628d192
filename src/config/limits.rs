//! What clients may take: the section `limits`.
//!
//! Every value is the same for all listeners. What is counted against it lives elsewhere and outlives a reload.

use std::ops::RangeInclusive;
use std::time::Duration;

use mainstay_core::units::SOME_TIME;

use super::entry::section;
use super::forms::{duration, number, size};

section! {
    /// What a client may take.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Limits {
        /// Client connections at a time, tunnels among them; auto is what the file limit allows.
        connections: Option<u32> = number(1..=MOST).or_word("auto", expected()).or("auto");
        /// The same for one client (IPv4 address, IPv6 /64); 0 is no limit.
        connections_per_client: u32 = number(0..=1_000_000).or(0);
        /// Upgrade requests that are begun in a second; a short queue, then 503 with Retry-After. 0 is no limit.
        handshakes_per_second: u32 = number(0..=1_000_000).or(0);
        /// The request line and all headers; more is refused.
        request_head: usize = size(HEADS).or("16KiB");
        /// A whole request head, or a whole TLS hello, must be here by then, however slowly its bytes come.
        head_time: Duration = duration(SOME_TIME).or("10s");
        /// A kept-alive client connection may be silent for so long.
        keep_alive: Duration = duration(SOME_TIME).or("60s");
    }
}

/// More connections than this no machine has file descriptors for.
pub(super) const MOST: u32 = 10_000_000;
/// A buffer below 8 KiB is refused by the HTTP library; 1 MiB is far over any browser's cookies.
const HEADS: RangeInclusive<u64> = 8 << 10..=1 << 20;

fn expected() -> String {
    format!("`auto` or a number from 1 to {MOST}")
}
