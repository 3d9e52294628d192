//! The process: from a config to bound sockets, threads and tasks, and phase by phase to the end.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::admin::{self, Readiness, View};
use crate::config::{Config, ListenAddress, LogFormat, LogPath};
use crate::control::{probe, report};
use crate::log::access::{self, AccessLog, To};
use crate::log::{self, Format};
use crate::metrics::Metrics;
use crate::net::inherit::Inherited;
use crate::net::listen::Listener;
use crate::proxy::{self, Front, State};
use crate::relay::{Closing, Ledger, Outcome, Record, Relay};
use crate::service;
use crate::ws::close;

/// The longest that a tunnel waits for its peers' answers to a Close at the end of the process.
const GRACE: Duration = Duration::from_secs(5);

/// The part of the drain time, at most, that is kept for what comes after the last tunnel.
const LAST_STEPS: Duration = Duration::from_millis(500);

/// How much later than that a relay thread may be, before the end goes on without it.
const LATE: Duration = Duration::from_secs(1);

/// A running balancer.
pub struct App {
    front: Arc<Front>,
    drain: Duration,
    listeners: Vec<String>,
    admin: Option<String>,
    /// Accept loops, the admin server, and the reports to the service manager.
    servers: JoinSet<()>,
}

impl App {
    /// Binds, asks every node once, and serves.
    pub async fn start(config: &Config) -> io::Result<Self> {
        Self::start_on(config, Inherited::default()).await
    }

    /// The same, on those of the inherited sockets that the config names.
    pub async fn start_on(config: &Config, mut inherited: Inherited) -> io::Result<Self> {
        let listeners: Vec<Listener> = config
            .listeners
            .iter()
            .map(|listener| open(&listener.address, &mut inherited))
            .collect::<io::Result<_>>()?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let metrics = Metrics::new(threads);
        let access = Arc::new(access_log(config, &metrics)?);
        let relay = Relay::start(threads, &ledger(&access))?;
        let seed = RandomState::new().hash_one(std::process::id());
        let front = Front::new(State::new(config, &metrics), relay, metrics, access, seed);
        let mut app = Self {
            front: Arc::new(front),
            drain: config.shutdown.drain,
            listeners: listeners.iter().map(Listener::local).collect(),
            admin: None,
            servers: JoinSet::new(),
        };
        app.serve_admin(config, &mut inherited)?;
        inherited.close_rest();
        probe::first_round(&app.front).await;
        probe::start(&app.front);
        for listener in listeners {
            tracing::info!(address = %listener.local(), "listening");
            app.servers.spawn(proxy::accept::run(Arc::clone(&app.front), listener));
        }
        tracing::info!("serving");
        service::ready(&report::status(&app.front));
        app.servers.spawn(report::run(Arc::clone(&app.front)));
        Ok(app)
    }

    fn serve_admin(&mut self, config: &Config, inherited: &mut Inherited) -> io::Result<()> {
        let Some(admin) = &config.admin else { return Ok(()) };
        let listener = open(&admin.address, inherited)?;
        let address = listener.local();
        tracing::info!(%address, "admin listening");
        self.admin = Some(address);
        let front = Arc::clone(&self.front);
        let metrics = Arc::clone(&front.metrics);
        let shutdown = front.shutdown.clone();
        let view = View { metrics, readiness: Box::new(move || readiness(&front)) };
        self.servers.spawn(async move {
            // The socket's file lives as long as the server.
            let (listener, _file) = match listener {
                Listener::Tcp(listener) => (admin::Listener::Tcp(listener), None),
                Listener::Unix(listener, file) => (admin::Listener::Unix(listener), Some(file)),
            };
            admin::serve(listener, Arc::new(view), shutdown).await;
        });
        Ok(())
    }

    /// Where clients come in, as bound.
    pub fn listeners(&self) -> &[String] {
        &self.listeners
    }

    /// Where metrics and health are, as bound.
    pub fn admin(&self) -> Option<&str> {
        self.admin.as_deref()
    }

    /// Ends in order: no new connections, every tunnel closed with 1001, spread over the drain time.
    pub async fn stop(mut self) {
        let front = Arc::clone(&self.front);
        tracing::info!(tunnels = front.relay.live(), "stopping");
        front.shutdown.begin();
        service::stopping(&report::status(&front));
        let grace = GRACE.min(self.drain / 2);
        let over = self.drain - grace - LAST_STEPS.min(self.drain / 10);
        let closing = Closing { code: close::GOING_AWAY, reason: "going away".into(), over, grace };
        front.relay.close(&closing);
        front.tasks.close();
        for pool in front.state.load().pools.values() {
            pool.upstreams.iter().for_each(|upstream| upstream.release());
        }
        let finishing = tokio::time::timeout(self.drain, front.tasks.wait());
        let relay = Arc::clone(&front);
        let joined = tokio::task::spawn_blocking(move || relay.relay.join());
        let (finished, joined) = tokio::join!(finishing, tokio::time::timeout(self.drain + LATE, joined));
        if finished.is_err() {
            tracing::warn!("some requests were cut at the end of the drain time");
        }
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("a relay thread did not end in time");
        }
        front.shutdown.stop();
        while self.servers.join_next().await.is_some() {}
        front.access.finish();
        tracing::info!("stopped");
    }
}

/// A listener on `address`: the inherited one, or one that is bound.
fn open(address: &ListenAddress, inherited: &mut Inherited) -> io::Result<Listener> {
    let found = match address {
        ListenAddress::Tcp(address) => inherited.tcp(*address),
        ListenAddress::Unix(path) => inherited.unix(path),
    };
    if let Some(listener) = found {
        tracing::info!(%address, "took over an inherited socket");
        return Ok(listener);
    }
    let bound = match address {
        ListenAddress::Tcp(address) => Listener::bind_tcp(*address),
        ListenAddress::Unix(path) => Listener::bind_unix(path),
    };
    bound.map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

fn access_log(config: &Config, metrics: &Metrics) -> io::Result<AccessLog> {
    let format = match config.access_log.format {
        LogFormat::Json => Format::Json,
        LogFormat::Text => Format::Text,
        LogFormat::Off => return Ok(AccessLog::off()),
    };
    let to = match &config.access_log.path {
        LogPath::Stdout => To::Stdout,
        LogPath::File(path) => To::File(path.clone()),
    };
    AccessLog::start(format, &to, metrics.access_log_dropped())
}

/// Where each tunnel's one outcome is counted and written down (invariant I7).
fn ledger(access: &Arc<AccessLog>) -> Ledger {
    let access = Arc::clone(access);
    Arc::new(move |record, outcome| {
        record.seat.closed(outcome.side, outcome.code);
        access.close(close_event(record, outcome));
    })
}

fn close_event(record: &Record, outcome: &Outcome) -> access::Close {
    access::Close {
        id: record.id,
        at: SystemTime::now(),
        client: Some(record.client),
        route: Arc::clone(&record.route),
        pool: Arc::clone(&record.seat.pool),
        node: Arc::clone(&record.seat.node),
        affinity_source: record.affinity.0,
        affinity_outcome: record.affinity.1,
        side: outcome.side.as_str(),
        code: outcome.code,
        why: outcome.why.as_str(),
        duration: outcome.duration,
        bytes_in: outcome.bytes[0],
        bytes_out: outcome.bytes[1],
        messages_in: outcome.messages[0],
        messages_out: outcome.messages[1],
    }
}

fn readiness(front: &Front) -> Readiness {
    use crate::shutdown::Phase;
    if front.shutdown.phase() != Phase::Serving {
        return Readiness::NotReady("draining");
    }
    let now = front.now();
    if front.state.load().pools.values().any(|pool| pool.up(now) > 0) {
        return Readiness::Ready;
    }
    Readiness::NotReady("no node is up")
}

/// Runs a balancer until SIGTERM or SIGINT; see [`run_until`].
pub fn run(config: Config) -> io::Result<()> {
    // While there is one thread only: it takes variables out of the environment.
    let inherited = Inherited::from_env();
    run_until(async move { App::start_on(&config, inherited).await })
}

/// Runs what `start` starts until SIGTERM or SIGINT.
///
/// # Errors
///
/// What keeps it from starting; `Interrupted` when a second signal cut the orderly end short.
pub fn run_until(start: impl Future<Output = io::Result<App>>) -> io::Result<()> {
    log::init(Format::Text);
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
        }
        tokio::select! {
            () = app.stop() => Ok(()),
            _ = term.recv() => Err(cut_short()),
            _ = int.recv() => Err(cut_short()),
        }
    });
    runtime.shutdown_background();
    outcome
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "ended at once, as asked by a second signal")
}
