//! A reload: another config takes effect in the running process, or nothing changes (invariant I8).
//!
//! Its steps: read and check the file; bind the new listeners; build the next state and probe the nodes that join; then,
//! without a wait in between, swap the state and open and close listeners; at last close the tunnels whose node or route
//! was removed ([`super::removal`]). A fault before the swap ends the reload with nothing changed. A tunnel keeps the
//! settings that it was opened under: another `idle` or `max_size` holds for new tunnels.

mod takeover;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use takeover::handover_name;
pub(in crate::control) use takeover::{Predecessor, ReloadLock};

use super::listeners::{AcceptTasks, BoundListeners, ListenerSet};
use super::load::{LoadedConfig, read_config};
use super::log_rotation;
use super::probe::{self, ProbeTasks};
use super::rebalance::Rebalancer;
use super::removal::Removals;
use super::service_status;
use crate::config::{Change, Config, Fault, Faults, diff};
use crate::net::listener::Listener;
use crate::proxy::acceptor::Acceptor;
use crate::proxy::{self, ProxyContext};
use crate::service;
use crate::shutdown::Phase;

/// How long after a fault the files are read once more: a certificate and its key, or a file that is written in
/// pieces, do not change at one moment.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// A change waits so long at most until the process before this one has let go of its listeners: else one that is taken
/// out here would be open there, and one whose address comes back could not be bound.
const SETTLE_TIME: Duration = Duration::from_secs(30);

/// Serves the admin API on a listener until the process has stopped.
pub(crate) type ServeAdmin =
    Box<dyn Fn(&Arc<Reload>, Listener) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// The running config, and how another one takes effect.
pub struct Reload {
    front: Arc<ProxyContext>,
    /// The rebalances of the pools.
    rebalancer: Arc<Rebalancer>,
    /// The config file; `None` where the config did not come from one.
    path: Option<PathBuf>,
    serve_admin: ServeAdmin,
    /// The running config.
    config: ArcSwap<Config>,
    /// Held for a whole reload: one at a time.
    state: tokio::sync::Mutex<ReloadState>,
    /// The sockets. Locked only for a moment, never across a wait.
    listener_set: Mutex<ListenerSet>,
    /// Owns the admin servers, which outlive the draining.
    servers: TaskTracker,
    /// The files that the last reload read.
    files: Mutex<Vec<PathBuf>>,
    /// The process before this one.
    predecessor: Predecessor,
    /// Clients are accepted, or were.
    is_open: AtomicBool,
}

/// What a reload needs while it runs.
#[derive(Default)]
struct ReloadState {
    probes: ProbeTasks,
    removals: Removals,
    /// The digest of the files when they were read last; `None` before that.
    last_digest: Option<u64>,
}

/// Why a reload reads the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReloadTrigger {
    /// A caller waits for the outcome.
    Asked,
    /// A signal; no caller waits.
    Signal,
    /// The files may have changed.
    Watch,
}

impl Reload {
    /// For a process that serves `config`, read from `path`, and has opened nothing yet.
    pub(crate) fn new(
        front: Arc<ProxyContext>,
        config: Config,
        path: Option<PathBuf>,
        serve_admin: ServeAdmin,
    ) -> Arc<Self> {
        Arc::new(Self {
            rebalancer: Rebalancer::new(Arc::clone(&front)),
            front,
            files: Mutex::new(path.iter().cloned().collect()),
            path,
            serve_admin,
            config: ArcSwap::from_pointee(config),
            state: tokio::sync::Mutex::default(),
            listener_set: Mutex::default(),
            servers: TaskTracker::new(),
            predecessor: Predecessor::default(),
            is_open: AtomicBool::new(false),
        })
    }

    /// Opens the listeners. The admin API answers at once; clients are accepted when every node has been probed once.
    pub(crate) async fn start(self: &Arc<Self>, bound: BoundListeners) {
        let config = self.config();
        log_file_budget(&config);
        let admin = BoundListeners { clients: Vec::new(), acceptors: Vec::new(), admin: bound.admin };
        let mut state = self.state.lock().await;
        self.open(admin, &config, &config);
        let nodes = probe::all_nodes(&self.front.state.load_full());
        probe::probe_once(&self.front, nodes).await;
        state.probes.follow_state(&self.front);
        self.open(BoundListeners { admin: None, ..bound }, &config, &config);
        self.is_open.store(true, Relaxed);
    }

    /// Whether the listeners have been opened. Before that the process is not ready, whatever its nodes are.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Relaxed)
    }

    /// The running config.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// What every connection shares.
    pub fn front(&self) -> &Arc<ProxyContext> {
        &self.front
    }

    /// The rebalances of the pools.
    pub fn rebalancer(&self) -> &Arc<Rebalancer> {
        &self.rebalancer
    }

    /// The config file and all that it names, as they were read last.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.files.lock().clone()
    }

    /// The addresses for clients, as bound.
    pub(crate) fn listeners(&self) -> Vec<String> {
        self.listener_set.lock().clients()
    }

    /// The address of the admin API, as bound.
    pub(crate) fn admin(&self) -> Option<String> {
        self.listener_set.lock().admin()
    }

    /// Waits for the admin servers, which end when the process has stopped.
    pub(crate) async fn closed(&self) {
        self.servers.close();
        self.servers.wait().await;
    }

    /// Reads the config file and all that it names again, and puts it into effect. Reloads run one after the other;
    /// one that has begun goes on when its caller stops waiting.
    ///
    /// # Errors
    ///
    /// Everything that is wrong; nothing has changed then.
    pub async fn reload_from_file(self: &Arc<Self>) -> Result<Vec<Change>, Faults> {
        self.run(ReloadTrigger::Asked).await.unwrap_or_else(|| Ok(Vec::new()))
    }

    /// The same for a signal: what is wrong is looked at twice, because files may be in the middle of a change, and
    /// then logged.
    pub(super) async fn reload_on_signal(self: &Arc<Self>) {
        self.run(ReloadTrigger::Signal).await;
    }

    /// The same when the files may have changed; nothing happens when they have not.
    pub(super) async fn reload_if_changed(self: &Arc<Self>) {
        self.run(ReloadTrigger::Watch).await;
    }

    /// Applies `config`, whatever the file says.
    ///
    /// # Errors
    ///
    /// What keeps it from taking effect; nothing has changed then.
    pub async fn apply(self: &Arc<Self>, config: Config) -> Result<Vec<Change>, Faults> {
        let this = Arc::clone(self);
        let task = self.front.tasks.spawn(async move {
            let mut state = this.lock_state().await;
            this.ensure_owner()?;
            service::notify_reloading();
            let outcome = this.put_into_effect(&mut state, config).await;
            this.report_outcome(&outcome);
            outcome
        });
        task.await.unwrap_or_else(|_| Err(self.fault("the reload broke off; this is a bug")))
    }

    /// In a task of its own, so that it is done whole; `None` when the files are as they were.
    async fn run(self: &Arc<Self>, cause: ReloadTrigger) -> Option<Result<Vec<Change>, Faults>> {
        let Some(path) = self.path.clone() else {
            return Some(Err(self.fault("this balancer was not started from a file")));
        };
        let this = Arc::clone(self);
        let task = self.front.tasks.spawn(async move {
            // A caller is answered at once; otherwise a fault of a moment is not worth a log line.
            if cause != ReloadTrigger::Asked && read_in_background(&path).await.config.is_err() {
                tokio::time::sleep(RETRY_DELAY).await;
            }
            let mut state = this.lock_state().await;
            if let Err(faults) = this.ensure_owner() {
                return Some(Err(faults));
            }
            let outcome = this.reload(&mut state, cause, read_in_background(&path).await).await?;
            this.report_outcome(&outcome);
            Some(outcome)
        });
        task.await.unwrap_or_else(|_| Some(Err(self.fault("the reload broke off; this is a bug"))))
    }

    /// Waits until no other change runs.
    async fn lock_state(&self) -> tokio::sync::MutexGuard<'_, ReloadState> {
        // After that time the predecessor hangs, and a change must not.
        let _ = tokio::time::timeout(SETTLE_TIME, self.predecessor.wait_until_settled()).await;
        self.state.lock().await
    }

    async fn reload(
        self: &Arc<Self>,
        state: &mut ReloadState,
        cause: ReloadTrigger,
        reading: LoadedConfig,
    ) -> Option<Result<Vec<Change>, Faults>> {
        let seen = state.last_digest.replace(reading.digest);
        *self.files.lock() = reading.files;
        if cause == ReloadTrigger::Watch && seen == Some(reading.digest) {
            return None;
        }
        let is_same = |config: &Config| diff(&self.config(), config).is_empty();
        if cause == ReloadTrigger::Watch && seen.is_none() && reading.config.as_ref().is_ok_and(is_same) {
            // Between the start of the process and the first look nothing has changed.
            return None;
        }
        // Also when it is refused: a service manager that asked for it waits for this word, and for the one of `tell`.
        service::notify_reloading();
        match reading.config {
            Ok(config) => Some(self.put_into_effect(state, config).await),
            Err(faults) => Some(Err(faults)),
        }
    }

    /// All steps after the reading.
    async fn put_into_effect(
        self: &Arc<Self>,
        state: &mut ReloadState,
        new: Config,
    ) -> Result<Vec<Change>, Faults> {
        let front = &self.front;
        let old = self.config();
        let changes = diff(&old, &new);
        if changes.is_empty() {
            // Only comments or the layout of the file differ.
            self.config.store(Arc::new(new));
            return Ok(changes);
        }
        let bound =
            self.listener_set.lock().bind(&old, &new).map_err(|faults| Faults::new(&self.file(), faults))?;
        let before = front.state.load_full();
        let next = Arc::new(before.next(&new, &front.metrics));
        let mut joining = probe::all_nodes(&next);
        joining.retain(|(pool, node)| before.upstream(&pool.config.name, &node.node).is_none());
        probe::probe_once(front, joining).await;
        if front.shutdown.phase() != Phase::Serving {
            return Err(self.fault("the balancer is stopping"));
        }
        let permitted = self.listener_set.lock().apply_permissions(&old, &new);
        let logged = permitted.map_err(|faults| Faults::new(&self.file(), faults)).and_then(|()| {
            let logged = front.access_log.reconfigure(log_rotation::log_config(&new.access_log));
            logged.map_err(|error| self.fault(log_rotation::explain_open_error(&new.access_log, &error)))
        });
        if logged.is_err() {
            self.listener_set.lock().restore_permissions(&old, &new);
        }
        logged?;
        let new = Arc::new(new);
        self.config.store(Arc::clone(&new));
        // No wait from here until the listeners are open: a change is never seen in part.
        state.removals.swap(front, (&old, &new), &before, next);
        drop(before);
        state.probes.follow_state(front);
        let closing = self.open(bound, &old, &new);
        closing.wait().await;
        Ok(changes)
    }

    fn open(
        self: &Arc<Self>,
        bound: BoundListeners,
        old: &Config,
        new: &Config,
    ) -> super::listeners::ClosingListeners {
        let clients = |listener: Listener, acceptor: Arc<Acceptor>, stop: CancellationToken| {
            self.serve_clients_on(listener, acceptor, stop)
        };
        let admin = |listener: Listener, stop: CancellationToken| self.serve_admin_on(listener, stop);
        self.listener_set.lock().open(bound, old, new, &AcceptTasks { clients: &clients, admin: &admin })
    }

    fn serve_admin_on(self: &Arc<Self>, listener: Listener, stop: CancellationToken) -> JoinHandle<()> {
        tracing::info!(address = %listener.local_address(), "admin listening");
        let serving = (self.serve_admin)(self, listener);
        self.servers.spawn(async move {
            tokio::select! {
                () = serving => {}
                () = stop.cancelled() => {}
            }
        })
    }

    fn serve_clients_on(
        &self,
        listener: Listener,
        acceptor: Arc<Acceptor>,
        stop: CancellationToken,
    ) -> JoinHandle<()> {
        tracing::info!(address = %listener.local_address(), "listening");
        let front = Arc::clone(&self.front);
        self.front.tasks.spawn(async move {
            tokio::select! {
                () = proxy::connection::serve_listener(front, listener, acceptor) => {}
                () = stop.cancelled() => {}
            }
        })
    }

    fn report_outcome(&self, outcome: &Result<Vec<Change>, Faults>) {
        self.front.metrics.record_reload(outcome.is_ok());
        // Also after a refused reload: the service goes on.
        service::notify_ready(&service_status::status_line(&self.front));
        match outcome {
            Ok(changes) => {
                for change in changes {
                    tracing::info!(%change, "config change");
                }
                let generation = self.front.state.load().generation;
                tracing::info!(generation, changes = changes.len(), "config reloaded");
                log_warnings(&self.config(), &self.file());
                log_file_budget(&self.config());
            }
            Err(faults) => {
                for fault in faults.lines() {
                    tracing::error!(%fault, "config refused, nothing has changed");
                }
            }
        }
    }

    fn file(&self) -> String {
        self.path.as_ref().map_or_else(|| "config".into(), |path| path.display().to_string())
    }

    fn fault(&self, what: impl ToString) -> Faults {
        Faults::new(&self.file(), vec![Fault::of_file(what.to_string())])
    }
}

/// Logs what of a config exceeds the file limit into the file limit.
fn log_file_budget(config: &Config) {
    for warning in proxy::budget(config).warnings {
        tracing::warn!(%warning, "config exceeds the file limit");
    }
}

/// Logs the warnings of a config.
fn log_warnings(config: &Config, file: &str) {
    for warning in &config.warnings {
        tracing::warn!(warning = %warning.line(file, ""), "config warning");
    }
}

/// Reads on a blocking thread.
async fn read_in_background(path: &Path) -> LoadedConfig {
    let owned = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || read_config(&owned)).await;
    reading.unwrap_or_else(|_| LoadedConfig::aborted(path))
}
