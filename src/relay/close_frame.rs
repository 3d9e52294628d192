//! A close that the balancer begins: its code and reason, and how long it waits for the answers.

use std::time::Duration;

use super::close_reason::CloseReason;
use super::pipe::PipeError;
use crate::ws::close;

/// How long a tunnel waits for its peers to answer a Close, and then to end their streams, unless the close says
/// otherwise.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// [`CLOSE_GRACE`] in milliseconds.
pub(super) const CLOSE_GRACE_MILLIS: u64 = CLOSE_GRACE.as_millis() as u64;

/// A close that the balancer begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct CloseFrame<'a> {
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
    /// After the idle timeout.
    pub(super) const IDLE: Self = Self::new(close::GOING_AWAY, "idle", CloseReason::Idle);
    /// After a Ping without an answer.
    pub(super) const NO_PONG: Self = Self::new(close::GOING_AWAY, "no answer to a ping", CloseReason::Silent);
    /// For TLS keys that are nearly used up.
    pub(super) const KEYS_USED_UP: Self =
        Self::new(close::GOING_AWAY, "TLS keys used up", CloseReason::TlsKeysUsedUp);

    const fn new(code: u16, reason: &'static str, cause: CloseReason) -> Self {
        Self { code, reason, cause, grace: CLOSE_GRACE_MILLIS }
    }

    /// After an error in a peer's stream.
    pub(super) fn for_error(error: PipeError) -> Self {
        match error {
            PipeError::MessageTooBig => {
                Self::new(close::TOO_BIG, "message too big", CloseReason::MessageTooBig)
            }
            PipeError::InvalidFrame => {
                Self::new(close::PROTOCOL_ERROR, "not a WebSocket frame", CloseReason::Garbage)
            }
        }
    }
}
