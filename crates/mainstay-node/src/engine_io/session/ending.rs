//! How a connection ends: what its client is told, and what the layer above is told.

use crate::engine_io::session::frame::Frame;
use mainstay_core::ws::close::encode_close;
use mainstay_core::ws::frame::{encode_control, opcode};

/// How the layer above closes a connection. What was sent before is written first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseKind {
    /// The orderly end of Socket.IO's `disconnect(true)`: the packet `1` on polling, an empty Close on a WebSocket.
    Orderly,
    /// The node has all the connections it may have: Close 1008, "Server at capacity".
    AtCapacity,
    /// The node restarts: Close 1012, and the client is welcome elsewhere.
    Restart,
    /// The client may not stay: Close 1008 with these words.
    Policy(&'static str),
}

impl CloseKind {
    /// What it means for the connection.
    pub(crate) fn pending_close(self) -> PendingClose {
        match self {
            Self::Orderly => PendingClose::with_empty_close(CloseReason::ForcedClose),
            Self::AtCapacity => PendingClose::with_code(CloseReason::ForcedClose, 1008, "Server at capacity"),
            Self::Restart => PendingClose::with_code(CloseReason::ShuttingDown, 1012, "service restart"),
            Self::Policy(words) => PendingClose::with_code(CloseReason::ForcedClose, 1008, words),
        }
    }
}

/// Why a connection ended, in Node's words where it has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CloseReason {
    /// The client closed.
    TransportClose,
    /// The transport broke, or the client broke its rules.
    TransportError,
    /// The client did not answer, or was silent for too long.
    PingTimeout,
    /// A packet could not be read.
    ParseError,
    /// The layer above closed.
    ForcedClose,
    /// The server ends.
    ShuttingDown,
    /// The client read slower than it was written to.
    SlowConsumer,
}

impl CloseReason {
    /// Every reason, in the order of declaration.
    pub const ALL: [Self; 7] = [
        Self::TransportClose,
        Self::TransportError,
        Self::PingTimeout,
        Self::ParseError,
        Self::ForcedClose,
        Self::ShuttingDown,
        Self::SlowConsumer,
    ];

    /// The reason as Socket.IO's `disconnect` event names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TransportClose => "transport close",
            Self::TransportError => "transport error",
            Self::PingTimeout => "ping timeout",
            Self::ParseError => "parse error",
            Self::ForcedClose => "forced close",
            Self::ShuttingDown => "server shutting down",
            Self::SlowConsumer => "slow consumer",
        }
    }
}

/// An end that is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PendingClose {
    /// What the layer above hears.
    pub(crate) reason: CloseReason,
    /// What a WebSocket's client hears.
    final_frame: FinalFrame,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FinalFrame {
    /// Nothing: the socket is dropped, because nothing gets through.
    None,
    /// A Close without a code; the client's library calls it 1005.
    Empty,
    /// A Close with a code and words.
    Coded(u16, &'static str),
}

impl PendingClose {
    /// An end that nobody can be told of.
    pub(crate) fn without_frame(reason: CloseReason) -> Self {
        Self { reason, final_frame: FinalFrame::None }
    }

    /// An end by an empty Close.
    pub(crate) fn with_empty_close(reason: CloseReason) -> Self {
        Self { reason, final_frame: FinalFrame::Empty }
    }

    /// An end by a Close with a code.
    pub(crate) fn with_code(reason: CloseReason, code: u16, words: &'static str) -> Self {
        Self { reason, final_frame: FinalFrame::Coded(code, words) }
    }

    /// The Close frame to be written last.
    pub(crate) fn close_frame(&self) -> Option<Frame> {
        match self.final_frame {
            FinalFrame::None => None,
            FinalFrame::Empty => Some(Frame::control(encode_control(opcode::CLOSE, &[], None))),
            FinalFrame::Coded(code, words) => Some(Frame::control(encode_close(code, words, None))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_close_has_its_code_and_words() {
        let wire = |kind: CloseKind| kind.pending_close().close_frame().unwrap().wire().to_vec();
        assert_eq!(wire(CloseKind::Orderly), [0x88, 0]);
        assert_eq!(
            wire(CloseKind::AtCapacity)[2..],
            [&1008u16.to_be_bytes()[..], b"Server at capacity"].concat()
        );
        assert_eq!(wire(CloseKind::Restart)[2..4], 1012u16.to_be_bytes());
        assert_eq!(wire(CloseKind::Policy("token expired"))[4..], *b"token expired");
        assert_eq!(PendingClose::without_frame(CloseReason::SlowConsumer).close_frame(), None);
    }

    #[test]
    fn the_reasons_have_nodes_words_and_are_all_listed() {
        let words: Vec<_> = CloseReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), 7);
        assert!(CloseReason::ALL.is_sorted() && words.contains(&"server shutting down"));
    }
}
