//! Why a tunnel ended.

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
    /// A peer sent bytes that are no WebSocket frame.
    Garbage,
    /// TLS 1.2 keys have sealed almost as many records as they may.
    TlsKeysUsedUp,
    /// The balancer stops.
    Shutdown,
    /// The tunnel's node, or pool, is drained.
    Drained,
    /// Its node had more than its share; the client is to come back to another one.
    Rebalanced,
    /// An operator ended this session.
    Killed,
    /// The client did not answer the balancer's Ping.
    Silent,
    /// One side had closed or ended its stream, and the other did not within `timeouts.close`.
    CloseTimeout,
    /// The balancer's work on this tunnel panicked.
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

    /// The reason with this [name](Self::as_str). One that only a later version knows is read as `Broken`.
    pub(super) fn parse(name: &str) -> Self {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name).unwrap_or(Self::Broken)
    }

    /// The name in the access log, and in a tunnel state.
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
