//! The running config and its sockets when one process takes over from another: what the old one lends and rests, and how
//! the new one opens.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Reload, Turn, warn_of_budget};
use crate::config::ListenAddress;
use crate::control::doors::Bound;
use crate::control::probe;

/// What two processes call the same listener.
pub fn handed_name(address: &ListenAddress, is_admin: bool) -> String {
    format!("{} {address}", if is_admin { "admin" } else { "clients" })
}

/// See [`Reload::still`].
pub(in crate::control) struct Still<'a> {
    _turn: tokio::sync::MutexGuard<'a, Turn>,
}

impl Reload {
    /// As [`start`](Self::start) for a process that takes over from another one, in two steps: here every node is asked
    /// once, and [`open_all`](Self::open_all) opens.
    pub(in crate::control) async fn prepare(self: &Arc<Self>) {
        warn_of_budget(&self.config());
        probe::first_round(&self.front, probe::nodes(&self.front.state.load_full())).await;
    }

    /// The second step.
    pub(in crate::control) async fn open_all(self: &Arc<Self>, bound: Bound) {
        let config = self.config();
        self.turn.lock().await.probes.follow(&self.front);
        self.open(bound, &config, &config);
    }

    /// No reload runs, and none begins while this is kept.
    pub(in crate::control) async fn still(&self) -> Still<'_> {
        Still { _turn: self.turn.lock().await }
    }

    /// The sockets, for another process, with what the config calls each. `None` where one cannot be handed over.
    pub(in crate::control) fn sockets(&self) -> Option<Vec<(String, OwnedFd)>> {
        let (config, doors) = (self.config(), self.doors.lock());
        let clients = config.listeners.iter().map(|listener| handed_name(&listener.address, false));
        let admin = config.admin.as_ref().map(|admin| handed_name(&admin.address, true));
        let sockets = doors.spares()?.into_iter().map(|spare| spare.socket().try_clone_to_owned().ok());
        clients.chain(admin).zip(sockets).map(|(name, socket)| Some((name, socket?))).collect()
    }

    /// Accepts no clients until [`accept_again`](Self::accept_again); they wait meanwhile.
    pub(in crate::control) async fn rest(&self) {
        let tasks = self.doors.lock().rest();
        for task in tasks {
            // A panic of the task has been said.
            let _ = task.await;
        }
    }

    /// Accepts clients again.
    pub(in crate::control) fn accept_again(&self) {
        self.doors.lock().accept_again(&|listener, entrance, stop| self.accept(listener, entrance, stop));
    }

    /// The process ends: the sockets close when nobody accepts on them any more.
    pub fn end_sockets(&self) {
        self.doors.lock().end();
    }

    /// Another process goes on with the sockets.
    pub(in crate::control) fn leave_sockets(&self) {
        self.doors.lock().leave();
    }

    /// Whether there is a file to read the config from.
    pub(in crate::control) fn has_file(&self) -> bool {
        self.path.is_some()
    }
}
