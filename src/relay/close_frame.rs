//! A close that the balancer begins: its code and reason, and how long it waits for the answers.

use super::close_reason::CloseReason;
use super::pipe::PipeError;
use crate::ws::close;

/// How long both peers have, after both have sent a Close, to end their streams. In milliseconds.
pub const DEFAULT_GRACE: u64 = 5_000;

/// A close that the balancer begins.
#[derive(Debug, Clone, Copy)]
pub struct CloseFrame<'a> {
    /// The close code.
    pub code: u16,
    /// The reason in the Close frames.
    pub reason: &'a str,
    /// Why, for the session's end.
    pub cause: CloseReason,
    /// How long the peers have to answer. In milliseconds.
    pub grace: u64,
}

impl CloseFrame<'static> {
    /// No byte for the idle time.
    pub const IDLE: Self =
        Self { code: close::GOING_AWAY, reason: "idle", cause: CloseReason::Idle, grace: DEFAULT_GRACE };
    /// No answer to a Ping.
    pub const NO_PONG: Self = Self {
        code: close::GOING_AWAY,
        reason: "no answer to a ping",
        cause: CloseReason::Silent,
        grace: DEFAULT_GRACE,
    };
    /// TLS keys that are used up.
    pub const KEYS_USED_UP: Self = Self {
        code: close::GOING_AWAY,
        reason: "TLS keys used up",
        cause: CloseReason::TlsKeysUsedUp,
        grace: DEFAULT_GRACE,
    };

    /// After lost framing, or a message over the limit.
    pub fn for_error(fault: PipeError) -> Self {
        match fault {
            PipeError::MessageTooBig => Self {
                code: close::TOO_BIG,
                reason: "message too big",
                cause: CloseReason::MessageTooBig,
                grace: DEFAULT_GRACE,
            },
            PipeError::InvalidFrame => {
                let reason = "not a WebSocket frame";
                Self {
                    code: close::PROTOCOL_ERROR,
                    reason,
                    cause: CloseReason::Garbage,
                    grace: DEFAULT_GRACE,
                }
            }
        }
    }
}
