//! Why a tunnel ended, in a word.

/// Why a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// A peer sent a Close frame.
    Closed,
    /// A peer ended its stream without a Close frame.
    Ended,
    /// A peer's connection broke (reset, dead, unreachable).
    Broken,
    /// No byte in either direction for the idle time.
    Idle,
    /// A message over the limit.
    MessageTooBig,
    /// The framing was lost.
    Garbage,
    /// TLS 1.2 keys have sealed almost as many records as they may.
    TlsKeysUsedUp,
    /// The balancer stops.
    Shutdown,
    /// The tunnel's node, or pool, is drained.
    Drained,
    /// Its node had more than its share; it is to come back to another one.
    Rebalanced,
    /// An operator ended this session.
    Killed,
    /// The client did not answer the balancer's Ping.
    Silent,
    /// One side had closed or ended its stream, and the other did not within `timeouts.close`.
    CloseTimeout,
    /// The balancer's own fault: its work on this tunnel broke off in a panic.
    Panicked,
}

impl CloseReason {
    /// All of them.
    pub(super) const ALL: [Self; 14] = [
        Self::Closed,
        Self::Ended,
        Self::Broken,
        Self::Idle,
        Self::MessageTooBig,
        Self::Garbage,
        Self::TlsKeysUsedUp,
        Self::Shutdown,
        Self::Drained,
        Self::Rebalanced,
        Self::Killed,
        Self::Silent,
        Self::CloseTimeout,
        Self::Panicked,
    ];

    /// The one with this [word](Self::as_str); what a later version may have words for is only known to be an end.
    pub(super) fn parse(word: &str) -> Self {
        Self::ALL.into_iter().find(|why| why.as_str() == word).unwrap_or(Self::Broken)
    }

    /// The word in the access log, and in a parcel.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Ended => "ended",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::MessageTooBig => "message_too_big",
            Self::Garbage => "garbage",
            Self::TlsKeysUsedUp => "tls_keys_used_up",
            Self::Shutdown => "shutdown",
            Self::Drained => "drained",
            Self::Rebalanced => "rebalanced",
            Self::Killed => "killed",
            Self::Silent => "silent",
            Self::CloseTimeout => "close_timeout",
            Self::Panicked => "panicked",
        }
    }
}
