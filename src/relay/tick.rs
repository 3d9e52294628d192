//! A tunnel's turn in its relay thread: what it is lent, and what the turn came to.

/// What a thread's clock shows when the thread begins, in milliseconds: some 34 years, so that a tunnel that is older
/// than its thread has its times on that clock, too.
pub const CLOCK_ORIGIN: u64 = 1 << 40;

/// What a relay thread lends to the tunnel whose turn it is.
pub struct TickContext<'a> {
    /// Room for a read, with [`HEADROOM`](super::pipe::HEADROOM) in front.
    pub scratch: &'a mut [u8],
    /// Number of the thread, for its shard of the counters.
    pub thread: usize,
    /// The thread's clock, in milliseconds from [`BEGINNING`] on.
    pub now: u64,
    /// A masking key for frames to nodes.
    pub mask: [u8; 4],
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelProgress {
    /// All that could be moved was moved.
    Idle,
    /// The quantum is spent; there may be more.
    Yielded,
    /// Over.
    Ended,
}
