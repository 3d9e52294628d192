//! The running config and its sockets while one process takes over from another: what the old one hands over and pauses,
//! and how the new one opens.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use super::{Reload, ReloadState, log_file_budget};
use crate::config::{Faults, ListenAddress};
use crate::control::listeners::{AcceptTasks, BoundListeners};
use crate::control::probe;
use crate::control::removal::{RemovalSnapshot, is_in_config};

/// The name of a listener between two processes.
pub(crate) fn handover_name(address: &ListenAddress, is_admin: bool) -> String {
    format!("{} {address}", if is_admin { "admin" } else { "clients" })
}

/// How far the process before this one is, if there was one.
#[derive(Debug, Default)]
pub(in crate::control) struct Predecessor(OnceLock<PredecessorProgress>);

#[derive(Debug, Clone)]
struct PredecessorProgress {
    settled: CancellationToken,
    ended: CancellationToken,
}

impl Predecessor {
    /// A predecessor exists. Cancel the first when it holds no listener any more and its tunnels have come, except those whose
    /// handshakes it has begun; the second when nothing comes from it any more.
    pub(crate) fn start(&self) -> (CancellationToken, CancellationToken) {
        let begin =
            || PredecessorProgress { settled: CancellationToken::new(), ended: CancellationToken::new() };
        let progress = self.0.get_or_init(begin).clone();
        (progress.settled, progress.ended)
    }

    /// Waits until it holds no listener, and would never serve again.
    pub(crate) async fn wait_until_settled(&self) {
        if let Some(progress) = self.0.get() {
            progress.settled.cancelled().await;
        }
    }

    /// Nothing comes from it any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.get().is_none_or(|progress| progress.ended.is_cancelled())
    }
}

/// See [`Reload::lock`].
pub(in crate::control) struct ReloadLock<'a> {
    state: tokio::sync::MutexGuard<'a, ReloadState>,
}

impl ReloadLock<'_> {
    /// The removals that are under way.
    pub(crate) fn removals(&self) -> Vec<RemovalSnapshot> {
        self.state.removals.snapshots()
    }
}

impl Reload {
    /// As [`start`](Self::start) for a process that takes over from another one, in two steps: here every node is probed
    /// once, and [`open_all`](Self::open_all) opens.
    pub(in crate::control) async fn prepare(self: &Arc<Self>) {
        log_file_budget(&self.config());
        probe::probe_once(&self.front, probe::all_nodes(&self.front.state.load_full())).await;
    }

    /// The second step.
    pub(in crate::control) async fn open_all(self: &Arc<Self>, bound: BoundListeners) {
        let config = self.config();
        let mut state = self.state.lock().await;
        state.probes.follow_state(&self.front);
        self.open(bound, &config, &config);
        self.is_open.store(true, Relaxed);
    }

    /// While this is held, no reload runs.
    pub(in crate::control) async fn lock(&self) -> ReloadLock<'_> {
        ReloadLock { state: self.state.lock().await }
    }

    /// The process before this one.
    pub(in crate::control) fn predecessor(&self) -> &Predecessor {
        &self.predecessor
    }

    /// Goes on with removals that another process had under way or would have to begin, also for the tunnels that arrive
    /// until `arrived` is cancelled.
    pub(in crate::control) async fn resume_removals(
        &self,
        snapshots: &[RemovalSnapshot],
        arrived: &CancellationToken,
    ) {
        let mut state = self.state.lock().await;
        let config = self.config();
        for snapshot in snapshots {
            state.removals.resume(&self.front, &config, snapshot, arrived);
        }
    }

    /// Drops the metrics of nodes that are gone from the config.
    pub(in crate::control) fn retain_known_metrics(&self) {
        let config = self.config();
        self.front.metrics.retain(&|pool, node| is_in_config(&config, pool, node));
    }

    /// Fails when another process owns the running config.
    pub(super) fn ensure_owner(&self) -> Result<(), Faults> {
        if self.front.shutdown.is_superseded() {
            return Err(self.fault("another process has taken over; ask again, and that one answers"));
        }
        Ok(())
    }

    /// The sockets for another process, with their names. `None` where one cannot be handed over.
    pub(in crate::control) fn sockets_to_hand_over(&self) -> Option<Vec<(String, OwnedFd)>> {
        let (config, doors) = (self.config(), self.listener_set.lock());
        let clients = config.listeners.iter().map(|listener| handover_name(&listener.address, false));
        let admin = config.admin.as_ref().map(|admin| handover_name(&admin.address, true));
        let sockets = doors.spares()?.into_iter().map(|spare| spare.socket().try_clone_to_owned().ok());
        clients.chain(admin).zip(sockets).map(|(name, socket)| Some((name, socket?))).collect()
    }

    /// Stops accepting until [`resume_accepting`](Self::resume_accepting); clients wait in the kernel's queue.
    pub(in crate::control) async fn pause_accepting(&self) {
        let tasks = self.listener_set.lock().pause();
        for task in tasks {
            // A panic of the task has been logged.
            let _ = task.await;
        }
    }

    /// Accepts again.
    pub(in crate::control) fn resume_accepting(self: &Arc<Self>) {
        let clients = |listener, acceptor, stop| self.serve_clients_on(listener, acceptor, stop);
        let admin = |listener, stop| self.serve_admin_on(listener, stop);
        self.listener_set.lock().resume(&AcceptTasks { clients: &clients, admin: &admin });
    }

    /// The process ends: each socket closes with the task that accepts on it.
    pub(crate) fn drop_spare_sockets(&self) {
        self.listener_set.lock().drop_spares();
    }

    /// Another process has the sockets now; they are closed here. Only while accepting is paused.
    pub(in crate::control) fn release_sockets(&self) {
        self.listener_set.lock().release();
    }

    /// Whether there is a file to read the config from.
    pub(in crate::control) fn has_file(&self) -> bool {
        self.path.is_some()
    }
}
