//! Why a command had no answer, and which errors of the server are refusals.

use redis::RedisError;
use thiserror::Error;

/// Why a command had no answer.
#[derive(Debug, Error)]
pub enum CommandError {
    /// There is no connection; the command was not sent.
    #[error("Redis is away: {0}")]
    NotConnected(String),
    /// The connection was lost, or the answer did not come in time: the command may have been carried out.
    #[error("Redis did not answer, the command may have been carried out: {0}")]
    Unknown(RedisError),
    /// Too many commands wait already; it was not sent.
    #[error("too many commands for Redis are waiting")]
    QueueFull,
    /// The server refused the command.
    #[error("Redis refused the command: {0}")]
    Refused(RedisError),
}

/// Whether the server answered, with a no.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    !error.is_io_error() && !error.is_timeout() && !error.is_connection_dropped() && error.code().is_some()
}
