//! A close that the balancer begins by itself: with which code and words, and how long it waits for the answers.

use super::Why;
use super::pipe::Fault;
use crate::ws::close;

/// How long both peers have, after both have sent a Close, to end their streams. In milliseconds.
pub const SETTLE: u64 = 5_000;

/// A close that the balancer begins.
#[derive(Debug, Clone, Copy)]
pub struct Farewell<'a> {
    /// The close code.
    pub code: u16,
    /// The reason in the Close frames.
    pub reason: &'a str,
    /// Why, for the outcome.
    pub why: Why,
    /// How long the peers have to answer. In milliseconds.
    pub grace: u64,
}

impl Farewell<'static> {
    /// No byte for the idle time.
    pub const IDLE: Self = Self { code: close::GOING_AWAY, reason: "idle", why: Why::Idle, grace: SETTLE };
    /// No answer to a Ping.
    pub const SILENT: Self =
        Self { code: close::GOING_AWAY, reason: "no answer to a ping", why: Why::Silent, grace: SETTLE };
    /// TLS keys that are used up.
    pub const WORN: Self =
        Self { code: close::GOING_AWAY, reason: "TLS keys used up", why: Why::Worn, grace: SETTLE };

    /// After lost framing, or a message over the limit.
    pub fn of(fault: Fault) -> Self {
        match fault {
            Fault::TooBig => {
                Self { code: close::TOO_BIG, reason: "message too big", why: Why::TooBig, grace: SETTLE }
            }
            Fault::Garbage => {
                let reason = "not a WebSocket frame";
                Self { code: close::PROTOCOL_ERROR, reason, why: Why::Garbage, grace: SETTLE }
            }
        }
    }
}
