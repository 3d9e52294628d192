//! The process: from a config to bound sockets, threads and tasks, and phase by phase to the end.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::admin::sessions::Session;
use crate::admin::status::{Process, status};
use crate::admin::{self, Readiness, View};
use crate::config::{Config, ListenAddress, LogFormat, LogPath};
use crate::control::probe;
use crate::log::access::{self, AccessLog, To};
use crate::log::{self, Format};
use crate::metrics::Metrics;
use crate::net::listen::Listener;
use crate::proxy::{self, Front, State};
use crate::relay::{Closing, Ledger, Outcome, Record, Relay, Which};
use crate::ws::close;

/// The longest that a tunnel waits for its peers' answers to a Close at the end of the process.
const GRACE: Duration = Duration::from_secs(5);

/// A running balancer.
pub struct App {
    front: Arc<Front>,
    drain: Duration,
    listeners: Vec<String>,
    admin: Option<String>,
    /// Accept loops and the admin server.
    servers: JoinSet<()>,
}

impl App {
    /// Binds, asks every node once, and serves.
    pub async fn start(config: &Config) -> io::Result<Self> {
        let listeners: Vec<Listener> =
            config.listeners.iter().map(|listener| bind(&listener.address)).collect::<io::Result<_>>()?;
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
        app.serve_admin(config)?;
        probe::first_round(&app.front).await;
        probe::start(&app.front);
        for listener in listeners {
            tracing::info!(address = %listener.local(), "listening");
            app.servers.spawn(proxy::accept::run(Arc::clone(&app.front), listener));
        }
        tracing::info!("serving");
        Ok(app)
    }

    fn serve_admin(&mut self, config: &Config) -> io::Result<()> {
        let Some(admin) = &config.admin else { return Ok(()) };
        let listener = bind_admin(&admin.address)?;
        let address = listener.local();
        tracing::info!(%address, "admin listening");
        self.admin = Some(address);
        let process = Process { started_at: SystemTime::now(), listeners: self.listeners.clone() };
        let view = view(&self.front, Arc::new(config.clone()), process);
        self.servers.spawn(admin::serve(listener, Arc::new(view), self.front.shutdown.clone()));
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
        let grace = GRACE.min(self.drain / 2);
        let closing =
            Closing { code: close::GOING_AWAY, reason: "going away".into(), over: self.drain - grace, grace };
        front.relay.close(&closing);
        front.tasks.close();
        for pool in front.state.load().pools.values() {
            pool.upstreams.iter().for_each(|upstream| upstream.release());
        }
        let finishing = tokio::time::timeout(self.drain, front.tasks.wait());
        let relay = Arc::clone(&front);
        let joined = tokio::task::spawn_blocking(move || relay.relay.join());
        let (finished, joined) = tokio::join!(finishing, joined);
        if finished.is_err() || joined.is_err() {
            tracing::warn!("some requests were cut at the end of the drain time");
        }
        front.shutdown.stop();
        while self.servers.join_next().await.is_some() {}
        front.access.finish();
        tracing::info!("stopped");
    }
}

/// What the admin server shows and can bring about.
fn view(front: &Arc<Front>, config: Arc<Config>, process: Process) -> View {
    let [ready, shown, listed, closed] = [(); 4].map(|()| Arc::clone(front));
    View {
        metrics: Arc::clone(&front.metrics),
        readiness: Box::new(move || readiness(&ready)),
        config: Box::new(move || Arc::clone(&config)),
        status: Box::new(move || status(&shown, &process)),
        sessions: Box::new(move |wanted| {
            let page = listed.relay.sessions(&wanted.filter(), wanted.after, wanted.limit + 1);
            Box::pin(async { page.await.into_iter().map(Session::from).collect() })
        }),
        close: Box::new(move |id| {
            let departures = closed.relay.close_some(Which::Session(id), &killing());
            Box::pin(async move { departures.counted().await > 0 })
        }),
        reload: Box::new(|| Box::pin(async { Ok(Vec::new()) })),
    }
}

/// How an operator ends a session. The client may come back, so not 1000.
fn killing() -> Closing {
    Closing {
        code: close::SERVICE_RESTART,
        reason: "closed by an operator".into(),
        over: Duration::ZERO,
        grace: GRACE,
    }
}

/// The file of a Unix socket is its owner's alone: who can connect to it needs no token.
fn bind_admin(address: &ListenAddress) -> io::Result<Listener> {
    match address {
        ListenAddress::Tcp(_) => bind(address),
        ListenAddress::Unix(path) => said(address, Listener::bind_private_unix(path)),
    }
}

fn bind(address: &ListenAddress) -> io::Result<Listener> {
    let bound = match address {
        ListenAddress::Tcp(address) => Listener::bind_tcp(*address),
        ListenAddress::Unix(path) => Listener::bind_unix(path),
    };
    said(address, bound)
}

fn said(address: &ListenAddress, bound: io::Result<Listener>) -> io::Result<Listener> {
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

/// Runs a balancer until SIGTERM or SIGINT.
pub fn run(config: Config) -> io::Result<()> {
    run_until(async move { App::start(&config).await })
}

/// Runs what `start` starts until SIGTERM or SIGINT; a second one ends at once.
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
            () = app.stop() => {}
            _ = term.recv() => tracing::warn!("ended at once, as asked a second time"),
            _ = int.recv() => tracing::warn!("ended at once, as asked a second time"),
        }
        Ok(())
    });
    runtime.shutdown_background();
    outcome
}
