//! Tunnels that come from another process: staged, and on their way to their threads.

use std::fmt;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use thiserror::Error;
use zeroize::Zeroizing;

use crate::relay::session::CloseObserver;
use crate::relay::tick::CLOCK_ORIGIN;
use crate::relay::tunnel::ActiveTunnel;
use crate::relay::tunnel_state::{BatchCache, TunnelCounters, TunnelStateError};

/// A tunnel as it comes from another process. Its state holds keys, as that of a
/// [`FrozenTunnel`](super::FrozenTunnel) does.
pub struct ReceivedTunnel {
    /// [`FrozenTunnel::state`](super::FrozenTunnel::state).
    pub state: Zeroizing<Vec<u8>>,
    /// The client's socket and the node's.
    pub sockets: [OwnedFd; 2],
}

impl fmt::Debug for ReceivedTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReceivedTunnel({} bytes hidden)", self.state.len())
    }
}

/// Why a batch cannot be staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("tunnel {index} of the batch cannot be staged: {error}")]
pub struct StageError {
    /// The index of the tunnel in the batch.
    pub index: usize,
    /// What is wrong with it.
    #[source]
    pub error: TunnelStateError,
}

/// A batch of another process's tunnels, none of which has been touched. Dropped without a decision, it is discarded.
#[must_use = "dropping it discards it"]
pub struct StagedTunnels(Vec<ActiveTunnel>);

impl StagedTunnels {
    /// Builds the tunnels of a batch and touches none of their sockets. After an error nothing is staged: all
    /// descriptors of the batch are closed.
    pub fn new(received: Vec<ReceivedTunnel>, counters: TunnelCounters<'_>) -> Result<Self, StageError> {
        let (states, sockets): (Vec<_>, Vec<_>) =
            received.into_iter().map(|tunnel| (tunnel.state, tunnel.sockets)).unzip();
        let mut cache = BatchCache::new(counters);
        let mut tunnels = Vec::with_capacity(states.len());
        for (index, (state, sockets)) in states.iter().zip(sockets).enumerate() {
            let tunnel = ActiveTunnel::decode(state, sockets, &mut cache);
            tunnels.push(tunnel.map_err(|error| StageError { index, error })?);
        }
        Ok(Self(tunnels))
    }

    /// How many tunnels are in it.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Pool, node and route of each.
    pub fn labels(&self) -> impl Iterator<Item = [Arc<str>; 3]> {
        let labels = |tunnel: &ActiveTunnel| {
            let info = &tunnel.info;
            [&info.node_connection.pool, &info.node_connection.node, &info.route].map(Arc::clone)
        };
        self.0.iter().map(labels)
    }

    /// The tunnels, to be given to threads.
    pub(in crate::relay) fn into_tunnels(self) -> Vec<ActiveTunnel> {
        self.0
    }

    /// The states of the tunnels, written again, for the fuzz targets.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn encode_all(&self) -> Vec<Zeroizing<Vec<u8>>> {
        self.0.iter().map(|tunnel| tunnel.encode(CLOCK_ORIGIN)).collect()
    }

    /// Closes the descriptors here and sends nothing to anyone: the process that they came from still has them.
    pub fn discard(self) {
        drop(self);
    }
}

impl fmt::Debug for StagedTunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StagedTunnels({} tunnels)", self.0.len())
    }
}

/// Tunnels on their way to their thread. Those that do not get there, because it has ended, have their end (invariant
/// I7): they belong to nobody else.
pub(crate) struct RestoredTunnels {
    tunnels: Vec<ActiveTunnel>,
    observer: CloseObserver,
}

impl RestoredTunnels {
    /// Tunnels whose end `observer` is told.
    pub(crate) fn new(tunnels: Vec<ActiveTunnel>, observer: CloseObserver) -> Self {
        Self { tunnels, observer }
    }

    /// The tunnels, which have arrived.
    pub(crate) fn take(&mut self) -> Vec<ActiveTunnel> {
        mem::take(&mut self.tunnels)
    }
}

impl Drop for RestoredTunnels {
    fn drop(&mut self) {
        for tunnel in &self.tunnels {
            (self.observer)(&tunnel.info, &tunnel.session_end(CLOCK_ORIGIN));
        }
    }
}
