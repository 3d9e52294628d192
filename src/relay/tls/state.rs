//! The states of a TLS connection: the role of the balancer, and how far each direction is open.

use super::alert::RecordError;

/// The role of the balancer on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsRole {
    /// The peer is a client.
    Server,
    /// The peer is a node.
    Client,
}

/// How far the receiving direction is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveState {
    /// The peer may send more.
    Open,
    /// The peer has sent close_notify. What it sends after that is ignored.
    CloseNotify,
    /// The stream has ended without a close_notify: how much is missing is not known.
    Truncated,
    /// The peer has broken the protocol.
    Failed(RecordError),
}

/// How far the sending direction is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SendState {
    /// Records may be sealed.
    Open,
    /// A close_notify or a fatal alert has been sealed, or nothing more is to be sent.
    Closed,
}
