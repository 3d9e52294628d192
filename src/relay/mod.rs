//! The relay: plain threads that carry tunnels once their handshake is over.
//!
//! A tunnel is handed over as two sockets, the bytes already read and a [`SessionInfo`] ([`Relay::adopt`]). From then on
//! it lives in one thread's slab until it ends, and its one [`SessionEnd`] is given to the [`CloseObserver`].
//!
//! Rules of the hot path: one read and one write per message; no allocation, no lock, no clock call, no log. The time
//! is taken once per tick of a thread's event loop; one sweep a second serves all idle deadlines. Nothing here knows
//! pools, routes or config: a tunnel carries the few values it needs ([`TunnelLimits`]).
//!
//! While tunnels run, the threads can be told to close some of them ([`Relay::close`]) and asked what they carry
//! ([`Relay::list_sessions`]). Tunnels go from one process to another as [tunnel states](tunnel_state):
//! [`Relay::freeze`].

mod close_frame;
mod close_reason;
mod close_share;
mod command;
mod endpoint;
mod event_loop;
mod keepalive;
mod migration;
mod paced_close;
pub mod pipe;
mod session;
mod session_list;
mod thread;
mod thread_waker;
mod tick;
pub mod tls;
mod tunnel;
pub mod tunnel_state;

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::sync::oneshot;

pub(crate) use close_frame::CLOSE_GRACE;
pub use close_reason::CloseReason;
pub use migration::{FrozenBatch, FrozenTunnel, ReceivedTunnel, StageError, StagedTunnels};
pub use paced_close::{CloseHandle, PacedClose, TunnelSelector};
pub use session::{CloseObserver, HashKey, SessionEnd, SessionInfo, Tunnel, TunnelLimits};
pub use session_list::{ChoiceOrder, SessionSnapshot, TunnelChoice};

use close_share::CloseShare;
use command::{FreezeRequest, RelayCommand};
use paced_close::SharedClose;
use session_list::{ListJob, ListQuery, RankedSession, merge_page};
use thread::RelayThread;

/// The relay threads.
pub struct Relay {
    threads: Vec<RelayThread>,
}

impl Relay {
    /// Starts `threads` relay threads, at least one.
    pub fn start(threads: usize, observer: &CloseObserver) -> io::Result<Self> {
        let start = |index| RelayThread::start(index, Arc::clone(observer));
        Ok(Self { threads: (0..threads.max(1)).map(start).collect::<io::Result<_>>()? })
    }

    /// Gives the tunnel to the thread with the fewest. Returns false when that thread has ended: the sockets are closed
    /// then, and the observer has been called.
    pub fn adopt(&self, tunnel: Tunnel) -> bool {
        let fewest = self.threads.iter().min_by_key(|thread| thread.tunnel_count());
        fewest.is_some_and(|thread| thread.adopt(tunnel))
    }

    /// How many tunnels there are in all threads.
    pub fn tunnel_count(&self) -> usize {
        self.threads.iter().map(RelayThread::tunnel_count).sum()
    }

    /// The `limit` sessions with the lowest ids above `after`, in their order. A page that is full may have more
    /// after it: ask again with its last id.
    pub fn list_sessions(
        &self,
        selector: TunnelSelector,
        after: Option<u64>,
        limit: usize,
    ) -> impl Future<Output = Vec<SessionSnapshot>> + Send + use<> {
        let page = self.query(ListQuery::page(selector, after, limit));
        async { page.await.into_iter().map(|ranked| ranked.snapshot).collect() }
    }

    /// The ids of the first `limit` sessions to close, in the order of the choice. Sessions that are being closed
    /// already are left out.
    pub(crate) fn choose(
        &self,
        choice: TunnelChoice,
        limit: usize,
    ) -> impl Future<Output = Vec<u64>> + Send + use<> {
        let chosen = self.query(ListQuery::choice(choice, limit));
        async { chosen.await.into_iter().map(|ranked| ranked.snapshot.id).collect() }
    }

    fn query(&self, query: ListQuery) -> impl Future<Output = Vec<RankedSession>> + Send + use<> {
        let limit = query.limit;
        let query = Arc::new(query);
        let list =
            |_: &RelayThread, reply| RelayCommand::List(Box::new(ListJob::new(Arc::clone(&query), reply)));
        merge_page(self.ask_all(list), limit)
    }

    /// Begins to close some of the tunnels; the threads live on.
    pub fn close(&self, close: PacedClose) -> CloseHandle {
        self.begin_close(close, false)
    }

    /// Begins to close the tunnels and ends each thread after its last one. Tunnels that still arrive are closed at
    /// once; [`join`](Self::join) returns when all threads have ended.
    pub fn shut_down(&self, close: PacedClose) {
        self.begin_close(close, true);
    }

    fn begin_close(&self, close: PacedClose, is_shutdown: bool) -> CloseHandle {
        let wakers = self.threads.iter().map(|thread| thread.sender.waker().clone()).collect();
        let seed = RandomState::new().hash_one(close.window);
        let shared = Arc::new(SharedClose::new(close, seed, wakers));
        for thread in &self.threads {
            let share = CloseShare::new(Arc::clone(&shared), is_shutdown);
            thread.sender.send(RelayCommand::Close(Box::new(share)));
        }
        CloseHandle::new(&shared)
    }

    /// Freezes up to `limit` tunnels, spread over the threads as they come. Each thread freezes its own in one tick,
    /// some microseconds for each: the limit is what bounds the pause.
    pub fn freeze(&self, limit: usize) -> impl Future<Output = FrozenBatch> + Send + use<> {
        let budget = Arc::new(AtomicUsize::new(limit));
        let freeze = |thread: &RelayThread, reply| {
            RelayCommand::Freeze(FreezeRequest::new(&budget, &thread.sender, reply))
        };
        FrozenBatch::collect(self.ask_all(freeze))
    }

    /// Continues with another process's tunnels, each on the thread with the fewest; what has arrived meanwhile passes
    /// at once.
    ///
    /// Only once that process has released them, or has died: see [`StagedTunnels`].
    pub fn activate(&self, staged: StagedTunnels) {
        let mut counts: Vec<usize> = self.threads.iter().map(RelayThread::tunnel_count).collect();
        let mut shares: Vec<Vec<_>> = self.threads.iter().map(|_| Vec::new()).collect();
        for tunnel in staged.into_tunnels() {
            let fewest = (0..counts.len()).min_by_key(|&index| counts[index]).expect("there is a thread");
            counts[fewest] += 1;
            shares[fewest].push(tunnel);
        }
        for (thread, tunnels) in self.threads.iter().zip(shares) {
            thread.restore(tunnels);
        }
    }

    /// Waits until the event loop of every thread has run its commands so far. False when a thread has ended.
    pub fn wait_one_tick(&self) -> impl Future<Output = bool> + Send + use<> {
        let answers = self.ask_all(|_, reply| RelayCommand::Acknowledge(reply));
        async {
            for answer in answers {
                if answer.await.is_err() {
                    return false;
                }
            }
            true
        }
    }

    /// Sends each thread a command and returns where it answers. A thread that has ended answers with an error.
    fn ask_all<T>(
        &self,
        command: impl Fn(&RelayThread, oneshot::Sender<T>) -> RelayCommand,
    ) -> Vec<oneshot::Receiver<T>> {
        let ask = |thread: &RelayThread| {
            let (reply, answer) = oneshot::channel();
            thread.sender.send(command(thread, reply));
            answer
        };
        self.threads.iter().map(ask).collect()
    }

    /// Waits for the threads to end, which they do after [`shut_down`](Self::shut_down). Blocks.
    pub fn join(&self) {
        self.threads.iter().for_each(RelayThread::join);
    }
}

#[cfg(test)]
mod tests;
