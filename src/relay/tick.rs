//! A tick of a relay thread's event loop: its clock, what it lends to a tunnel, and how far the tunnel has come in it.

use std::time::Duration;

/// What a thread's clock shows when the thread begins, in milliseconds: some 34 years, so that a tunnel that is older
/// than its thread has its times on that clock, too.
pub(super) const CLOCK_ORIGIN: u64 = 1 << 40;

/// Slots of a slab that a thread scans in one tick: some tens of microseconds.
pub(super) const SLAB_CHUNK: usize = 512;

/// A duration on the threads' clocks; one that is too long to be told is the longest.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What a relay thread lends to the tunnel that it serves.
pub(super) struct TickContext<'a> {
    /// Room for a read, after [`HEADROOM`](super::pipe::HEADROOM) bytes.
    pub scratch: &'a mut [u8],
    /// The thread's index, for its shard of the counters.
    pub thread: usize,
    /// The thread's clock, in milliseconds from [`CLOCK_ORIGIN`] on.
    pub now: u64,
    /// A masking key for frames to nodes.
    pub mask: [u8; 4],
}

/// How far a tunnel has come in a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TunnelProgress {
    /// Everything that could be moved was moved.
    Idle,
    /// The quantum is used up; there may be more.
    Yielded,
    /// The tunnel has ended.
    Ended,
}
