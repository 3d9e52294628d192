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

use super::parcel::{Counts, Fault, Shared};
use super::tunnel::Live;
use super::{Command, Ledger, Relay, wake};

/// A frozen tunnel, for whoever gives it away. Its bytes hold keys: they are sent, and never kept or printed.
pub struct Parcel {
    id: u64,
    /// In the slab of its thread.
    pub(super) place: usize,
    bytes: Zeroizing<Vec<u8>>,
    /// The client's and the node's.
    pub(super) sockets: [OwnedFd; 2],
}

impl Parcel {
    pub(super) fn new(id: u64, place: usize, bytes: Zeroizing<Vec<u8>>, sockets: [OwnedFd; 2]) -> Self {
        Self { id, place, bytes, sockets }
    }

    /// The session's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// All that the tunnel is: see [`parcel`](super::parcel). At most [`MOST`](super::parcel::MOST) bytes, and
    /// about 800 for a tunnel at rest, 500 without TLS.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The client's socket and the node's, in the order in which [`Arrival::sockets`] wants them.
    pub fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        self.sockets.each_ref().map(AsFd::as_fd)
    }
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parcel({}, {} bytes hidden)", self.id, self.bytes.len())
    }
}

/// A tunnel that cannot be frozen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stays {
    /// The session's id.
    pub id: u64,
    /// Why, for a log line.
    pub why: &'static str,
}

/// A batch that is frozen. Dropped without a decision, it is resumed.
#[derive(Debug)]
#[must_use = "dropping it resumes it"]
pub struct Frozen(Vec<Batch>);

impl Frozen {
    /// How many tunnels are in it.
    pub fn len(&self) -> usize {
        self.0.iter().map(|batch| batch.parcels.len()).sum()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tunnels.
    pub fn parcels(&self) -> impl Iterator<Item = &Parcel> {
        self.0.iter().flat_map(|batch| &batch.parcels)
    }

    /// Tunnels that were met and could not be frozen. They run on; they are asked for again by the next freeze.
    pub fn stays(&self) -> impl Iterator<Item = Stays> {
        self.0.iter().flat_map(|batch| batch.stays.iter().copied())
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
    pub fn let_go(mut self) {
        for batch in &mut self.0 {
            let places = mem::take(&mut batch.parcels).into_iter().map(|parcel| parcel.place).collect();
            batch.home.tell(Command::LetGo(places));
        }
    }
}

/// The frozen tunnels of one thread.
#[derive(Debug)]
pub(super) struct Batch {
    home: Home,
    pub parcels: Vec<Parcel>,
    pub stays: Vec<Stays>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        if !self.parcels.is_empty() {
            self.home.tell(Command::Resume(mem::take(&mut self.parcels)));
        }
    }
}

/// The thread that the tunnels are of.
#[derive(Clone)]
struct Home {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl Home {
    fn tell(&self, command: Command) {
        // A thread that has ended has no tunnels: the sockets are closed, as all of its own were.
        let _ = self.commands.send(command);
        wake(&self.wake);
    }
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Home")
    }
}

/// A thread's part in a freeze.
pub(super) struct Freezing {
    /// Tunnels that all threads together may still take.
    budget: Arc<AtomicUsize>,
    home: Home,
    reply: oneshot::Sender<Batch>,
}

impl Freezing {
    /// A thread is asked, by its `commands` and `wake`; and what it answers.
    pub fn asked(
        budget: &Arc<AtomicUsize>,
        commands: &Sender<Command>,
        wake: &Arc<OwnedFd>,
    ) -> (Self, oneshot::Receiver<Batch>) {
        let (reply, answer) = oneshot::channel();
        let home = Home { commands: commands.clone(), wake: Arc::clone(wake) };
        (Self { budget: Arc::clone(budget), home, reply }, answer)
    }

    /// One tunnel more may be frozen.
    pub fn takes_one(&self) -> bool {
        self.budget.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        Batch { home: self.home.clone(), parcels: Vec::new(), stays: Vec::new() }
    }

    /// Gives the batch to whoever asked. Who has gone meanwhile drops it, and that resumes it.
    pub fn finish(self, batch: Batch) {
        drop(self.reply.send(batch));
    }
}

/// A tunnel as it comes from another process. Its bytes hold keys, as a [`Parcel`]'s do.
pub struct Arrival {
    /// What [`Parcel::bytes`] gave.
    pub bytes: Zeroizing<Vec<u8>>,
    /// The client's socket and the node's.
    pub sockets: [OwnedFd; 2],
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arrival({} bytes hidden)", self.bytes.len())
    }
}

/// Why a batch cannot be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("tunnel {at} of the batch cannot be taken: {fault}")]
pub struct ParcelFault {
    /// Its place in the batch, from 0.
    pub at: usize,
    /// What is wrong with it.
    #[source]
    pub fault: Fault,
}

/// A batch of another process's tunnels, none of which has been touched. Dropped without a decision, it is discarded.
#[must_use = "dropping it discards it"]
pub struct Held(Vec<Live>);

impl Held {
    /// Builds the tunnels of a batch and touches none of their sockets. After a fault nothing is held: all
    /// descriptors of the batch are closed.
    pub fn new(arrivals: Vec<Arrival>, counts: Counts<'_>) -> Result<Self, ParcelFault> {
        let (parcels, sockets): (Vec<_>, Vec<_>) =
            arrivals.into_iter().map(|arrival| (arrival.bytes, arrival.sockets)).unzip();
        let mut shared = Shared::new(counts);
        let mut lives = Vec::with_capacity(parcels.len());
        for (at, (bytes, sockets)) in parcels.iter().zip(sockets).enumerate() {
            let live =
                Live::unpack(bytes, sockets, &mut shared).map_err(|fault| ParcelFault { at, fault })?;
            lives.push(live);
        }
        Ok(Self(lives))
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
        self.0.iter().map(|live| live.record.id).max()
    }

    /// Pool, node and route of each.
    pub fn places(&self) -> impl Iterator<Item = [Arc<str>; 3]> {
        let place = |live: &Live| {
            let record = &live.record;
            [&record.seat.pool, &record.seat.node, &record.route].map(Arc::clone)
        };
        self.0.iter().map(place)
    }

    /// Goes on with all of them, each on the thread with the fewest; what has arrived meanwhile passes at once.
    ///
    /// Only once the process that they came from has let go, or has died: see the module.
    pub fn go(self, relay: &Relay) {
        let threads = &relay.threads;
        let mut counts: Vec<usize> = threads.iter().map(|thread| thread.tunnels.load(Relaxed)).collect();
        let mut shares: Vec<Vec<Live>> = threads.iter().map(|_| Vec::new()).collect();
        for live in self.0 {
            let fewest = (0..counts.len()).min_by_key(|&index| counts[index]).expect("there is a thread");
            counts[fewest] += 1;
            shares[fewest].push(live);
        }
        for (thread, lives) in threads.iter().zip(shares) {
            let count = lives.len();
            thread.tunnels.fetch_add(count, Relaxed);
            let landing = Landing { lives, ledger: Arc::clone(&thread.ledger) };
            if !thread.tell(Command::Land(landing)) {
                thread.tunnels.fetch_sub(count, Relaxed);
            }
        }
    }

    /// The tunnels written down again, for the fuzz targets.
    #[cfg(debug_assertions)]
    #[doc(hidden)]
    pub fn parcels(&self) -> Vec<Zeroizing<Vec<u8>>> {
        self.0.iter().map(|live| live.pack(super::turn::BEGINNING)).collect()
    }

    /// Closes the descriptors here and says nothing to anyone: the process that they came from has them still.
    pub fn discard(self) {
        drop(self);
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({} tunnels)", self.0.len())
    }
}

/// Tunnels on their way to their thread. Those that do not get there, because it has ended, have their outcome
/// (invariant I7): they are nobody else's.
pub(super) struct Landing {
    pub lives: Vec<Live>,
    ledger: Ledger,
}

impl Drop for Landing {
    fn drop(&mut self) {
        for live in &self.lives {
            (self.ledger)(&live.record, &live.outcome(super::turn::BEGINNING));
        }
    }
}

impl Relay {
    /// Freezes up to `limit` tunnels, spread over the threads as they come. Each thread freezes its own in one turn,
    /// some microseconds for each: the limit is what bounds the pause.
    pub fn freeze(&self, limit: usize) -> impl Future<Output = Frozen> + Send + use<> {
        let budget = Arc::new(AtomicUsize::new(limit));
        let ask = |thread: &super::Thread| {
            let (freezing, answer) = Freezing::asked(&budget, &thread.commands, &thread.wake);
            thread.tell(Command::Freeze(freezing));
            answer
        };
        let answers: Vec<_> = self.threads.iter().map(ask).collect();
        async move {
            let mut batches = Vec::new();
            for answer in answers {
                // A thread that has ended has no tunnels.
                batches.extend(answer.await);
            }
            Frozen(batches)
        }
    }
}

#[cfg(test)]
mod tests;
