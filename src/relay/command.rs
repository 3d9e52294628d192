//! Commands to a relay thread, and the way to send them.
//!
//! What gets lost with a command is accounted for: a tunnel that does not reach its thread has its end
//! ([`PendingAdoption`]), and frozen tunnels that nobody takes are resumed ([`ThreadBatch`]).

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Sender;

use tokio::sync::oneshot;

use super::close_reason::CloseReason;
use super::close_share::CloseShare;
use super::migration::frozen::FrozenTunnel;
use super::migration::staged::RestoredTunnels;
use super::session::{CloseObserver, SessionEnd, Tunnel};
use super::session_list::ListJob;
use super::thread_waker::ThreadWaker;
use crate::ws::close;

/// A command to a relay thread.
pub(super) enum RelayCommand {
    /// Answer within a tick.
    Acknowledge(oneshot::Sender<()>),
    /// Carry a new tunnel.
    Adopt(Box<PendingAdoption>),
    /// Take part in a paced close.
    Close(Box<CloseShare>),
    /// List sessions.
    List(Box<ListJob>),
    /// Freeze tunnels for another process.
    Freeze(FreezeRequest),
    /// Continue with tunnels that were frozen.
    Resume(Vec<FrozenTunnel>),
    /// Drop the frozen tunnels of these slots: they are another process's.
    Release(Vec<usize>),
    /// Carry tunnels that another process has released.
    Restore(RestoredTunnels),
}

/// Sends commands to one relay thread.
#[derive(Clone)]
pub(super) struct CommandSender {
    commands: Sender<RelayCommand>,
    waker: ThreadWaker,
}

impl CommandSender {
    /// A sender into the channel of the thread that `waker` wakes.
    pub(super) fn new(commands: Sender<RelayCommand>, waker: ThreadWaker) -> Self {
        Self { commands, waker }
    }

    /// Sends a command and wakes the thread. Returns false when the thread has ended.
    pub(super) fn send(&self, command: RelayCommand) -> bool {
        let is_sent = self.commands.send(command).is_ok();
        self.waker.wake();
        is_sent
    }

    /// The waker of the thread.
    pub(super) fn waker(&self) -> &ThreadWaker {
        &self.waker
    }
}

impl fmt::Debug for CommandSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CommandSender")
    }
}

/// A tunnel on its way to its thread. If it does not get there, because the thread has ended, it has its end here: the
/// session is open, and every open session has one (invariant I7).
pub(super) struct PendingAdoption {
    /// `None` once it has arrived.
    tunnel: Option<Tunnel>,
    observer: CloseObserver,
}

impl PendingAdoption {
    /// A tunnel whose end `observer` is told.
    pub(super) fn new(tunnel: Tunnel, observer: CloseObserver) -> Self {
        Self { tunnel: Some(tunnel), observer }
    }

    /// The tunnel, which has arrived.
    pub(super) fn take(&mut self) -> Option<Tunnel> {
        self.tunnel.take()
    }
}

impl Drop for PendingAdoption {
    fn drop(&mut self) {
        if let Some(Tunnel { info, .. }) = &self.tunnel {
            (self.observer)(info, &SessionEnd::without_traffic(close::GOING_AWAY, CloseReason::Shutdown));
        }
    }
}

/// A thread's part in a freeze.
pub(super) struct FreezeRequest {
    /// How many tunnels all threads together may still freeze.
    budget: Arc<AtomicUsize>,
    owner: CommandSender,
    reply: oneshot::Sender<ThreadBatch>,
}

impl FreezeRequest {
    /// A request to the thread of `owner`, which answers with its batch.
    pub(super) fn new(
        budget: &Arc<AtomicUsize>,
        owner: &CommandSender,
        reply: oneshot::Sender<ThreadBatch>,
    ) -> Self {
        Self { budget: Arc::clone(budget), owner: owner.clone(), reply }
    }

    /// Reserves the freeze of one more tunnel, if the budget allows it.
    pub(super) fn try_reserve(&self) -> bool {
        self.budget.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// An empty batch.
    pub(super) fn empty_batch(&self) -> ThreadBatch {
        ThreadBatch { owner: self.owner.clone(), tunnels: Vec::new() }
    }

    /// Answers with the batch. If nobody waits for it any more, it is dropped, which resumes it.
    pub(super) fn reply(self, batch: ThreadBatch) {
        drop(self.reply.send(batch));
    }
}

/// The frozen tunnels of one thread. Dropped with tunnels in it, it resumes them.
#[derive(Debug)]
pub(super) struct ThreadBatch {
    owner: CommandSender,
    /// The frozen tunnels.
    pub tunnels: Vec<FrozenTunnel>,
}

impl ThreadBatch {
    /// Tells the thread that the tunnels are another process's now.
    pub(super) fn release(&mut self) {
        let slots = mem::take(&mut self.tunnels).into_iter().map(|tunnel| tunnel.slot).collect();
        self.owner.send(RelayCommand::Release(slots));
    }
}

impl Drop for ThreadBatch {
    fn drop(&mut self) {
        if !self.tunnels.is_empty() {
            // A thread that has ended has no tunnels: these sockets are closed, as all of its own were.
            self.owner.send(RelayCommand::Resume(mem::take(&mut self.tunnels)));
        }
    }
}
