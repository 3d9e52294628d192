//! A frozen tunnel: its state as bytes, and its two sockets.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use zeroize::Zeroizing;

/// A frozen tunnel, to be sent to another process. Its bytes hold keys: they are sent, and never kept or printed.
pub struct FrozenTunnel {
    id: u64,
    /// In the slab of its thread.
    pub(in crate::relay) slot: usize,
    state: Zeroizing<Vec<u8>>,
    /// The client's and the node's.
    pub(in crate::relay) sockets: [OwnedFd; 2],
}

impl FrozenTunnel {
    /// The tunnel of session `id`.
    pub(in crate::relay) fn new(
        id: u64,
        slot: usize,
        state: Zeroizing<Vec<u8>>,
        sockets: [OwnedFd; 2],
    ) -> Self {
        Self { id, slot, state, sockets }
    }

    /// The session's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The whole [state](crate::relay::tunnel_state) of the tunnel. At most 4 MiB, and about 800 for a tunnel at rest, 500 without TLS.
    pub fn state(&self) -> &[u8] {
        &self.state
    }

    /// The client's socket and the node's, in the order of [`ReceivedTunnel`](super::ReceivedTunnel).
    pub fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        self.sockets.each_ref().map(AsFd::as_fd)
    }
}

impl fmt::Debug for FrozenTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrozenTunnel({}, {} bytes hidden)", self.id, self.state.len())
    }
}
