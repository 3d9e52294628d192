//! Tunnels on their way to another process, and who owns them at every step.
//!
//! 1. The old process freezes a batch ([`Relay::freeze`]). Each relay thread takes its sockets out of its epoll
//!    first and then out of the tunnel: a tunnel without sockets cannot be served, whatever calls for it. It is still
//!    listed and counted; a close whose time comes waits for its return.
//! 2. The [`Frozen`] batch lends each tunnel's [`Parcel`] and its sockets to whoever sends them.
//! 3. The new process holds them ([`Held::new`]): it builds every tunnel and touches no socket.
//! 4. The old process lets go ([`Frozen::let_go`]): its copies are wiped, its descriptors closed, and there is no
//!    outcome, because nothing has ended. Or it resumes ([`Frozen::resume`]), as if nothing had happened.
//! 5. The new process goes on with them ([`Held::go`]), or discards them ([`Held::discard`]): it closes its
//!    descriptors, which for a connection that another process has open, too, changes nothing.
//!
//! Without a decision the old process keeps its tunnels and the new one discards what it holds: dropping is
//! resuming, and discarding. That no two ever send is the callers' duty between 3 and 5: let go before anyone goes.

use std::fmt;
use std::future::Future;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Sender;

use thiserror::Error;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::tunnel::ActiveTunnel;
use super::tunnel_state::{BatchCache, TunnelCounters, TunnelStateError};
use super::{CloseObserver, Relay, RelayCommand, wake};

/// A frozen tunnel, for whoever gives it away. Its bytes hold keys: they are sent, and never kept or printed.
pub struct FrozenTunnel {
    id: u64,
    /// In the slab of its thread.
    pub(super) slot: usize,
    bytes: Zeroizing<Vec<u8>>,
    /// The client's and the node's.
    pub(super) sockets: [OwnedFd; 2],
}

impl FrozenTunnel {
    pub(super) fn new(id: u64, slot: usize, bytes: Zeroizing<Vec<u8>>, sockets: [OwnedFd; 2]) -> Self {
        Self { id, slot, bytes, sockets }
    }

    /// The session's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// All that the tunnel is: see [`parcel`](super::parcel). At most [`MOST`](super::tunnel_state::MOST) bytes, and
    /// about 800 for a tunnel at rest, 500 without TLS.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The client's socket and the node's, in the order in which [`Arrival::sockets`] wants them.
    pub fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        self.sockets.each_ref().map(AsFd::as_fd)
    }
}

impl fmt::Debug for FrozenTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrozenTunnel({}, {} bytes hidden)", self.id, self.bytes.len())
    }
}

/// A tunnel that cannot be frozen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptTunnel {
    /// The session's id.
    pub id: u64,
    /// Why, for a log line.
    pub reason: &'static str,
}

/// A batch that is frozen. Dropped without a decision, it is resumed.
#[derive(Debug)]
#[must_use = "dropping it resumes it"]
pub struct FrozenBatch(Vec<ThreadBatch>);

impl FrozenBatch {
    /// How many tunnels are in it.
    pub fn len(&self) -> usize {
        self.0.iter().map(|batch| batch.tunnels.len()).sum()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tunnels.
    pub fn tunnels(&self) -> impl Iterator<Item = &FrozenTunnel> {
        self.0.iter().flat_map(|batch| &batch.tunnels)
    }

    /// Tunnels that were met and could not be frozen. They run on; they are asked for again by the next freeze.
    pub fn kept(&self) -> impl Iterator<Item = KeptTunnel> {
        self.0.iter().flat_map(|batch| batch.kept.iter().copied())
    }

    /// Gives every tunnel back to its thread, which picks up what has arrived meanwhile.
    ///
    /// Only while no other process can have been told to go on with them: see the module.
    pub fn resume(self) {
        drop(self);
    }

    /// They are another process's: closes the descriptors here, and wipes what is left of the tunnels. They do not
    /// count here any more once the threads have [turned](Relay::turned); nothing can be sent from here from the
    /// moment of the freeze.
    pub fn release(mut self) {
        for batch in &mut self.0 {
            let slots = mem::take(&mut batch.tunnels).into_iter().map(|tunnel| tunnel.slot).collect();
            batch.owner.send(RelayCommand::Release(slots));
        }
    }
}

/// The frozen tunnels of one thread.
#[derive(Debug)]
pub(super) struct ThreadBatch {
    owner: OwnerThread,
    pub tunnels: Vec<FrozenTunnel>,
    pub kept: Vec<KeptTunnel>,
}

impl Drop for ThreadBatch {
    fn drop(&mut self) {
        if !self.tunnels.is_empty() {
            self.owner.send(RelayCommand::Resume(mem::take(&mut self.tunnels)));
        }
    }
}

/// The thread that the tunnels are of.
#[derive(Clone)]
struct OwnerThread {
    commands: Sender<RelayCommand>,
    wake: Arc<OwnedFd>,
}

impl OwnerThread {
    fn send(&self, command: RelayCommand) {
        // A thread that has ended has no tunnels: the sockets are closed, as all of its own were.
        let _ = self.commands.send(command);
        wake(&self.wake);
    }
}

impl fmt::Debug for OwnerThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnerThread")
    }
}

/// A thread's part in a freeze.
pub(super) struct FreezeRequest {
    /// Tunnels that all threads together may still take.
    budget: Arc<AtomicUsize>,
    home: OwnerThread,
    reply: oneshot::Sender<ThreadBatch>,
}

impl FreezeRequest {
    /// A thread is asked, by its `commands` and `wake`; and what it answers.
    pub fn new(
        budget: &Arc<AtomicUsize>,
        commands: &Sender<RelayCommand>,
        wake: &Arc<OwnedFd>,
    ) -> (Self, oneshot::Receiver<ThreadBatch>) {
        let (reply, answer) = oneshot::channel();
        let home = OwnerThread { commands: commands.clone(), wake: Arc::clone(wake) };
        (Self { budget: Arc::clone(budget), home, reply }, answer)
    }

    /// One tunnel more may be frozen.
    pub fn try_reserve(&self) -> bool {
        self.budget.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// An empty batch.
    pub fn empty_batch(&self) -> ThreadBatch {
        ThreadBatch { owner: self.home.clone(), tunnels: Vec::new(), kept: Vec::new() }
    }

    /// Gives the batch to whoever asked. Who has gone meanwhile drops it, and that resumes it.
    pub fn reply(self, batch: ThreadBatch) {
        drop(self.reply.send(batch));
    }
}

/// A tunnel as it comes from another process. Its bytes hold keys, as a [`Parcel`]'s do.
pub struct ReceivedTunnel {
    /// What [`Parcel::bytes`] gave.
    pub bytes: Zeroizing<Vec<u8>>,
    /// The client's socket and the node's.
    pub sockets: [OwnedFd; 2],
}

impl fmt::Debug for ReceivedTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReceivedTunnel({} bytes hidden)", self.bytes.len())
    }
}

/// Why a batch cannot be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("tunnel {index} of the batch cannot be staged: {error}")]
pub struct StageError {
    /// Its place in the batch, from 0.
    pub index: usize,
    /// What is wrong with it.
    #[source]
    pub error: TunnelStateError,
}

/// A batch of another process's tunnels, none of which has been touched. Dropped without a decision, it is discarded.
#[must_use = "dropping it discards it"]
pub struct StagedTunnels(Vec<ActiveTunnel>);

impl StagedTunnels {
    /// Builds the tunnels of a batch and touches none of their sockets. After a fault nothing is held: all
    /// descriptors of the batch are closed.
    pub fn new(received: Vec<ReceivedTunnel>, counters: TunnelCounters<'_>) -> Result<Self, StageError> {
        let (states, sockets): (Vec<_>, Vec<_>) = received
            .into_iter()
            .map(|received_tunnel| (received_tunnel.bytes, received_tunnel.sockets))
            .unzip();
        let mut cache = BatchCache::new(counters);
        let mut tunnels = Vec::with_capacity(states.len());
        for (at, (bytes, sockets)) in states.iter().zip(sockets).enumerate() {
            let tunnel = ActiveTunnel::decode(bytes, sockets, &mut cache)
                .map_err(|error| StageError { index: at, error })?;
            tunnels.push(tunnel);
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

    /// The highest of their session ids: new sessions must get higher ones.
    pub fn highest_id(&self) -> Option<u64> {
        self.0.iter().map(|tunnel| tunnel.info.id).max()
    }

    /// Pool, node and route of each.
    pub fn labels(&self) -> impl Iterator<Item = [Arc<str>; 3]> {
        let slot = |tunnel: &ActiveTunnel| {
            let info = &tunnel.info;
            [&info.node_connection.pool, &info.node_connection.node, &info.route].map(Arc::clone)
        };
        self.0.iter().map(slot)
    }

    /// Goes on with all of them, each on the thread with the fewest; what has arrived meanwhile passes at once.
    ///
    /// Only once the process that they came from has let go, or has died: see the module.
    pub fn activate(self, relay: &Relay) {
        let threads = &relay.threads;
        let mut counts: Vec<usize> = threads.iter().map(|thread| thread.tunnels.load(Relaxed)).collect();
        let mut shares: Vec<Vec<ActiveTunnel>> = threads.iter().map(|_| Vec::new()).collect();
        for tunnel in self.0 {
            let fewest = (0..counts.len()).min_by_key(|&index| counts[index]).expect("there is a thread");
            counts[fewest] += 1;
            shares[fewest].push(tunnel);
        }
        for (thread, tunnels) in threads.iter().zip(shares) {
            let count = tunnels.len();
            thread.tunnels.fetch_add(count, Relaxed);
            let restored = RestoredTunnels { tunnels, observer: Arc::clone(&thread.observer) };
            if !thread.send(RelayCommand::Restore(restored)) {
                thread.tunnels.fetch_sub(count, Relaxed);
            }
        }
    }

    /// The tunnels written down again, for the fuzz targets.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn encode_all(&self) -> Vec<Zeroizing<Vec<u8>>> {
        self.0.iter().map(|tunnel| tunnel.encode(super::tick::CLOCK_ORIGIN)).collect()
    }

    /// Closes the descriptors here and says nothing to anyone: the process that they came from has them still.
    pub fn discard(self) {
        drop(self);
    }
}

impl fmt::Debug for StagedTunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StagedTunnels({} tunnels)", self.0.len())
    }
}

/// Tunnels on their way to their thread. Those that do not get there, because it has ended, have their outcome
/// (invariant I7): they are nobody else's.
pub(super) struct RestoredTunnels {
    pub tunnels: Vec<ActiveTunnel>,
    observer: CloseObserver,
}

impl Drop for RestoredTunnels {
    fn drop(&mut self) {
        for tunnel in &self.tunnels {
            (self.observer)(&tunnel.info, &tunnel.session_end(super::tick::CLOCK_ORIGIN));
        }
    }
}

impl Relay {
    /// Freezes up to `limit` tunnels, spread over the threads as they come. Each thread freezes its own in one turn,
    /// some microseconds for each: the limit is what bounds the pause.
    pub fn freeze(&self, limit: usize) -> impl Future<Output = FrozenBatch> + Send + use<> {
        let budget = Arc::new(AtomicUsize::new(limit));
        let ask = |thread: &super::RelayThread| {
            let (request, answer) = FreezeRequest::new(&budget, &thread.commands, &thread.wake);
            thread.send(RelayCommand::Freeze(request));
            answer
        };
        let answers: Vec<_> = self.threads.iter().map(ask).collect();
        async move {
            let mut batches = Vec::new();
            for answer in answers {
                // A thread that has ended has no tunnels.
                batches.extend(answer.await);
            }
            FrozenBatch(batches)
        }
    }
}

#[cfg(test)]
mod tests;
