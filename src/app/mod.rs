//! The process: binds, starts threads and tasks, serves, and shuts down phase by phase.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::admin::{self, AdminContext};
use crate::config::{Config, Fault, Faults, ListenAddress};
use crate::control::upgrade::{Program, Takeover, UpgradeChannel, Upgrader};
use crate::control::watch::ConfigWatcher;
use crate::control::{self, BoundListeners, ListenSpec, Reload, ServeAdmin, log_rotation, service_status};
use crate::log::access::AccessLog;
use crate::log::{self, Format, SessionClosed};
use crate::metrics::{Metrics, PanicLocation};
use crate::net::inherited_sockets::InheritedSockets;
use crate::net::listener::Listener;
use crate::proxy::{ProxyContext, ProxyState};
use crate::relay::{
    CLOSE_GRACE, CloseObserver, CloseReason, PacedClose, Relay, SessionEnd, SessionInfo, TunnelSelector,
};
use crate::service;
use crate::ws::close;
use mainstay_core::open_files;

/// The most of the drain time that is reserved for what comes after the last tunnel.
const FINISH_RESERVE: Duration = Duration::from_millis(500);

/// How long after the drain time a relay thread is waited for.
const JOIN_MARGIN: Duration = Duration::from_secs(1);

/// A running balancer.
pub struct App {
    front: Arc<ProxyContext>,
    reload: Arc<Reload>,
    /// Replaces the binary.
    upgrader: Upgrader,
    /// The tasks that watch the files, rotate the access log, run upgrades and report to the service manager.
    servers: JoinSet<()>,
}

impl App {
    /// Binds, probes every node once, and serves.
    pub async fn start(config: &Config) -> io::Result<Self> {
        Self::start_on(config, None, InheritedSockets::default()).await
    }

    /// The same with a config that was read from the file at `path`, which a reload reads again.
    pub async fn start_from(path: &Path, config: &Config) -> io::Result<Self> {
        Self::start_on(config, Some(path), InheritedSockets::default()).await
    }

    /// The same, on those of the inherited sockets that the config names.
    pub async fn start_on(
        config: &Config,
        path: Option<&Path>,
        inherited: InheritedSockets,
    ) -> io::Result<Self> {
        let (app, bound) = Self::prepare(config, path, inherited, None)?;
        app.reload.start(bound).await;
        tracing::info!("serving");
        service::notify_ready(&service_status::status_line(&app.front));
        Ok(app.spawn_reports())
    }

    /// Takes over from another process, which goes on if this fails.
    pub(crate) async fn take_over(config: &Config, path: &Path, mut takeover: Takeover) -> io::Result<Self> {
        let inherited = takeover.inherited();
        let (mut app, bound) = match Self::prepare(config, Some(path), inherited, Some(&takeover)) {
            Ok(ready) => ready,
            Err(error) => {
                takeover.refuse(&error.to_string()).await;
                return Err(error);
            }
        };
        let coming = takeover.take_over(&app.reload, bound).await.map_err(io::Error::other)?;
        app.servers.spawn(coming);
        tracing::info!("serving, another process has handed over");
        Ok(app.spawn_reports())
    }

    /// Everything up to the opening of the listeners.
    fn prepare(
        config: &Config,
        path: Option<&Path>,
        mut inherited: InheritedSockets,
        takeover: Option<&Takeover>,
    ) -> io::Result<(Self, BoundListeners)> {
        open_files::raise_limit();
        let bound = BoundListeners::all(config, |spec| open_listener(spec, &mut inherited));
        let bound = bound.map_err(|faults| start_error(path, faults))?;
        inherited.close_unused();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let metrics = Metrics::new(threads);
        let access =
            AccessLog::start(log_rotation::log_config(&config.access_log), metrics.access_log_dropped());
        let access = access.map_err(|error| {
            start_error(
                path,
                vec![Fault::of_file(log_rotation::explain_open_error(&config.access_log, &error))],
            )
        })?;
        let access = Arc::new(access);
        let relay = Relay::start(threads, &close_observer(&access, &metrics))?;
        let seed = RandomState::new().hash_one(std::process::id());
        let state = ProxyState::resume_from(takeover.map_or(0, Takeover::generation), config, &metrics);
        let mut front = ProxyContext::new(state, relay, metrics, access, seed);
        front.continue_clock(takeover.map_or(Duration::ZERO, Takeover::clock));
        let front = Arc::new(front);
        let started_at = SystemTime::now();
        let (upgrader, upgrades) = Upgrader::new(Program::own()?)?;
        let for_admin = upgrader.clone();
        let serve_admin: ServeAdmin = Box::new(move |reload, listener| {
            let (reload, upgrader) = (Arc::clone(reload), for_admin.clone());
            let shutdown = reload.front().shutdown.clone();
            let context = Arc::new(AdminContext { reload, upgrader, started_at });
            Box::pin(admin::serve(listener, context, shutdown))
        });
        let reload = Reload::new(Arc::clone(&front), config.clone(), path.map(Path::to_owned), serve_admin);
        let mut servers = JoinSet::new();
        servers.spawn(log_rotation::reopen_on_sigusr1(Arc::clone(&front))?);
        servers.spawn(upgrades.run(Arc::clone(&reload)));
        Ok((Self { front, reload, upgrader, servers }, bound))
    }

    fn spawn_reports(mut self) -> Self {
        self.servers.spawn(service_status::run(Arc::clone(&self.front)));
        self.servers.spawn(Arc::clone(self.reload.rebalancer()).watch_nodes());
        self
    }

    /// Waits until another process has taken over everything; then [`finish_replaced`](Self::finish_replaced).
    pub(crate) async fn wait_until_replaced(&self) {
        self.upgrader.done().await;
    }

    /// Ends a process that another one has replaced.
    pub(crate) async fn finish_replaced(mut self) {
        let front = Arc::clone(&self.front);
        front.relay.shut_down(close_all(close::SERVICE_RESTART, "restart"));
        let relay = Arc::clone(&front);
        let joined = tokio::task::spawn_blocking(move || relay.relay.join());
        if !matches!(tokio::time::timeout(CLOSE_GRACE + JOIN_MARGIN, joined).await, Ok(Ok(()))) {
            tracing::error!("relay thread did not stop in time");
        }
        front.shutdown.stop();
        self.reload.closed().await;
        while self.servers.join_next().await.is_some() {}
        front.access_log.finish();
        tracing::info!("all tunnels handed over, process exits");
    }

    /// Reloads whenever the file that the config was read from changes, or SIGHUP asks for it.
    pub(crate) fn watch(&mut self, watch: ConfigWatcher) {
        self.servers.spawn(watch.run(Arc::clone(&self.reload), self.front.shutdown.clone()));
    }

    /// The running config, and how another one takes effect.
    pub fn reload(&self) -> &Arc<Reload> {
        &self.reload
    }

    /// The addresses for clients, as bound, in the order of the config.
    pub fn listeners(&self) -> Vec<String> {
        self.reload.listeners()
    }

    /// The address of the admin API, as bound.
    pub fn admin(&self) -> Option<String> {
        self.reload.admin()
    }

    /// Ends in order: no new connections, every tunnel closed with 1001, spread over the drain time.
    pub async fn stop(mut self) {
        let front = Arc::clone(&self.front);
        let drain = self.reload.config().shutdown.drain;
        tracing::info!(tunnels = front.relay.tunnel_count(), "stopping");
        front.shutdown.begin();
        self.reload.drop_spare_sockets();
        service::notify_stopping(&service_status::status_line(&front));
        let grace = CLOSE_GRACE.min(drain / 2);
        let over = drain - grace - FINISH_RESERVE.min(drain / 10);
        front.relay.shut_down(close_all(close::GOING_AWAY, "going away").over(over).with_grace(grace));
        front.tasks.close();
        for pool in front.state.load().pools.values() {
            pool.upstreams.iter().for_each(|upstream| upstream.close_idle_connections());
        }
        let finishing = tokio::time::timeout(drain, front.tasks.wait());
        let relay = Arc::clone(&front);
        let joined = tokio::task::spawn_blocking(move || relay.relay.join());
        let (finished, joined) = tokio::join!(finishing, tokio::time::timeout(drain + JOIN_MARGIN, joined));
        if finished.is_err() {
            tracing::warn!("requests aborted at the end of the drain time");
        }
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("relay thread did not stop in time");
        }
        front.shutdown.stop();
        self.reload.closed().await;
        while self.servers.join_next().await.is_some() {}
        front.access_log.finish();
        tracing::info!("stopped");
    }
}

/// Without an orderly end it accepts no more, and what it serves ends by itself.
impl Drop for App {
    fn drop(&mut self) {
        self.front.shutdown.stop();
        self.reload.drop_spare_sockets();
    }
}

/// The close of every tunnel at the end of the process.
fn close_all(code: u16, reason: &str) -> PacedClose {
    PacedClose::new(TunnelSelector::all(), CloseReason::Shutdown, code, reason)
}

/// The faults with the config file's name; without a file, their messages.
fn start_error(path: Option<&Path>, faults: Vec<Fault>) -> io::Error {
    match path {
        Some(path) => io::Error::other(Faults::new(&path.display().to_string(), faults)),
        None => {
            let sentences: Vec<String> = faults.into_iter().map(|fault| fault.message).collect();
            io::Error::other(sentences.join("; "))
        }
    }
}

/// A listener: the inherited one, or one that is bound.
fn open_listener(spec: ListenSpec, inherited: &mut InheritedSockets) -> io::Result<Listener> {
    let address = spec.address;
    let name = control::handover_name(address, spec.is_admin);
    let found = match address {
        ListenAddress::Tcp(_) => inherited.take_named(&name, None),
        ListenAddress::Unix(path) => inherited.take_named(&name, Some(path)),
    };
    if let Some(listener) = found {
        spec.apply_permissions(&listener)?;
        return Ok(listener);
    }
    let found = match address {
        ListenAddress::Tcp(address) => inherited.take_tcp(*address),
        ListenAddress::Unix(path) => inherited.take_unix(path),
    };
    if let Some(listener) = found {
        tracing::info!(%address, "took over an inherited socket");
        return Ok(listener);
    }
    spec.bind()
}

/// Counts and logs the one end of each session (invariant I7).
fn close_observer(access: &Arc<AccessLog>, metrics: &Arc<Metrics>) -> CloseObserver {
    let (access, metrics) = (Arc::clone(access), Arc::clone(metrics));
    Arc::new(move |record, outcome| {
        if outcome.reason == CloseReason::Panicked {
            metrics.record_panic(PanicLocation::Relay);
        }
        record.node_connection.record_close(outcome.side, outcome.code);
        access.log_closed(close_event(record, outcome));
    })
}

fn close_event(record: &SessionInfo, outcome: &SessionEnd) -> SessionClosed {
    SessionClosed {
        at: SystemTime::now(),
        session: record.to_log_session(),
        side: outcome.side.as_str(),
        code: outcome.code,
        why: outcome.reason.as_str(),
        duration: outcome.duration,
        bytes: outcome.bytes,
        messages: outcome.messages,
    }
}

/// Runs a balancer with the config that was read from the file at `path` until SIGTERM or SIGINT; see `run_until`.
///
/// With a `channel` it takes over from another process.
pub fn run(path: &Path, config: &Config, channel: Option<UpgradeChannel>) -> io::Result<()> {
    // While there is one thread only: it takes variables out of the environment.
    let inherited = InheritedSockets::from_env();
    run_until(async move {
        // Before anything takes time: SIGHUP would end the process.
        let watch = ConfigWatcher::new()?;
        let mut app = match channel {
            None => App::start_on(config, Some(path), inherited).await?,
            Some(channel) => {
                let takeover = channel.greet().await.map_err(io::Error::other)?;
                App::take_over(config, path, takeover).await?
            }
        };
        app.watch(watch);
        Ok(app)
    })
}

/// Runs what `start` starts until SIGTERM or SIGINT.
///
/// # Errors
///
/// What keeps it from starting; `Interrupted` when a second signal cut the orderly end short.
pub(crate) fn run_until(start: impl Future<Output = io::Result<App>>) -> io::Result<()> {
    log::init(Format::Text);
    log::panics();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let app = tokio::select! {
            app = start => app?,
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            () = app.wait_until_replaced() => {
                app.finish_replaced().await;
                return Ok(());
            }
        }
        tokio::select! {
            () = app.stop() => Ok(()),
            _ = term.recv() => Err(second_signal_error()),
            _ = int.recv() => Err(second_signal_error()),
        }
    });
    runtime.shutdown_background();
    outcome
}

fn second_signal_error() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "ended at once, as asked by a second signal")
}
