//! The process: from a config to bound sockets, threads and tasks, and phase by phase to the end.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::admin::nodes::NodeAnswer;
use crate::admin::rebalance::Plan;
use crate::admin::sessions::Session;
use crate::admin::status::{Process, drain_status, status};
use crate::admin::{self, Readiness, View};
use crate::config::{Config, ListenAddress};
use crate::control::drain::Told;
use crate::control::watch::Watch;
use crate::control::{self, Bound, Reload, pages, report};
use crate::log::access::{self, AccessLog};
use crate::log::{self, Format};
use crate::metrics::{Metrics, Part};
use crate::net::files;
use crate::net::inherit::Inherited;
use crate::net::listen::Listener;
use crate::proxy::{Front, State};
use crate::relay::{Closing, Ledger, Outcome, Record, Relay, Which, Why};
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
    reload: Arc<Reload>,
    /// The watch of the files, the pages of the access log, and the reports to the service manager.
    servers: JoinSet<()>,
}

impl App {
    /// Binds, asks every node once, and serves.
    pub async fn start(config: &Config) -> io::Result<Self> {
        Self::start_on(config, None, Inherited::default()).await
    }

    /// The same with a config that was read from the file at `path`, which a reload reads again.
    pub async fn start_from(path: &Path, config: &Config) -> io::Result<Self> {
        Self::start_on(config, Some(path), Inherited::default()).await
    }

    /// The same, on those of the inherited sockets that the config names.
    pub async fn start_on(
        config: &Config,
        path: Option<&Path>,
        mut inherited: Inherited,
    ) -> io::Result<Self> {
        files::raise_limit();
        let bound = Bound::all(config, |address, is_admin| open(address, is_admin, &mut inherited))?;
        inherited.close_rest();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let metrics = Metrics::new(threads);
        let access = AccessLog::start(pages::wish(&config.access_log), metrics.access_log_dropped())?;
        let access = Arc::new(access);
        let relay = Relay::start(threads, &ledger(&access, &metrics))?;
        let seed = RandomState::new().hash_one(std::process::id());
        let front = Arc::new(Front::new(State::new(config, &metrics), relay, metrics, access, seed));
        let started_at = SystemTime::now();
        let serve_admin = move |reload: &Arc<Reload>, listener| -> admin::Later<()> {
            let view = Arc::new(view(reload, started_at));
            Box::pin(admin::serve(listener, view, reload.front().shutdown.clone()))
        };
        let reload =
            Reload::new(Arc::clone(&front), config.clone(), path.map(Path::to_owned), Box::new(serve_admin));
        let mut servers = JoinSet::new();
        servers.spawn(pages::turn_on_usr1(Arc::clone(&front))?);
        reload.start(bound).await;
        tracing::info!("serving");
        service::ready(&report::status(&front));
        servers.spawn(report::run(Arc::clone(&front)));
        servers.spawn(Arc::clone(reload.rebalances()).watch());
        Ok(Self { front, reload, servers })
    }

    /// Reloads whenever the file that the config was read from changes, or SIGHUP asks for it.
    pub fn watch(&mut self, watch: Watch) {
        self.servers.spawn(watch.run(Arc::clone(&self.reload), self.front.shutdown.clone()));
    }

    /// The running config, and the way to another one.
    pub fn reload(&self) -> &Arc<Reload> {
        &self.reload
    }

    /// Where clients come in, as bound, in the order of the config.
    pub fn listeners(&self) -> Vec<String> {
        self.reload.listeners()
    }

    /// Where metrics and health are, as bound.
    pub fn admin(&self) -> Option<String> {
        self.reload.admin()
    }

    /// Ends in order: no new connections, every tunnel closed with 1001, spread over the drain time.
    pub async fn stop(mut self) {
        let front = Arc::clone(&self.front);
        let drain = self.reload.config().shutdown.drain;
        tracing::info!(tunnels = front.relay.live(), "stopping");
        front.shutdown.begin();
        service::stopping(&report::status(&front));
        let grace = GRACE.min(drain / 2);
        let over = drain - grace - LAST_STEPS.min(drain / 10);
        let closing = Closing { code: close::GOING_AWAY, reason: "going away".into(), over, grace };
        front.relay.close(&closing);
        front.tasks.close();
        for pool in front.state.load().pools.values() {
            pool.upstreams.iter().for_each(|upstream| upstream.release());
        }
        let finishing = tokio::time::timeout(drain, front.tasks.wait());
        let relay = Arc::clone(&front);
        let joined = tokio::task::spawn_blocking(move || relay.relay.join());
        let (finished, joined) = tokio::join!(finishing, tokio::time::timeout(drain + LATE, joined));
        if finished.is_err() {
            tracing::warn!("some requests were cut at the end of the drain time");
        }
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("a relay thread did not end in time");
        }
        front.shutdown.stop();
        self.reload.closed().await;
        while self.servers.join_next().await.is_some() {}
        front.access.finish();
        tracing::info!("stopped");
    }
}

/// Without its orderly end it takes nobody new, and what it serves ends when it can.
impl Drop for App {
    fn drop(&mut self) {
        self.front.shutdown.stop();
    }
}

/// What the admin server shows and can bring about.
fn view(reload: &Arc<Reload>, started_at: SystemTime) -> View {
    let front = reload.front();
    let [ready, shown, listed, closed, drained, undrained] = [(); 6].map(|()| Arc::clone(front));
    let (config, listening, asked) = (Arc::clone(reload), Arc::clone(reload), Arc::clone(reload));
    let rebalances = Arc::clone(reload.rebalances());
    View {
        metrics: Arc::clone(&front.metrics),
        readiness: Box::new(move || readiness(&ready)),
        config: Box::new(move || config.config()),
        status: Box::new(move || {
            let (listeners, rebalances) = (listening.listeners(), Arc::clone(listening.rebalances()));
            status(&shown, &Process { started_at, listeners, rebalances })
        }),
        sessions: Box::new(move |wanted| {
            let page = listed.relay.sessions(&wanted.filter(), wanted.after, wanted.limit + 1);
            Box::pin(async { page.await.into_iter().map(Session::from).collect() })
        }),
        close: Box::new(move |id| {
            let departures = closed.relay.close_some(Which::Session(id), &killing());
            Box::pin(async move { departures.counted().await > 0 })
        }),
        rebalance: Box::new(move |pool, wish| {
            let (rule, outlook) = rebalances.order(&pool, &wish)?;
            Ok(Plan::new(&pool, &rule, &outlook))
        }),
        drain: Box::new(move |pool, node, wish| {
            let front = Arc::clone(&drained);
            Box::pin(async move {
                let told = control::drain::order(&front, &pool, &node, &wish).await?;
                Ok(node_answer(&front, told))
            })
        }),
        undrain: Box::new(move |pool, node| {
            Ok(node_answer(&undrained, control::drain::withdraw(&undrained, &pool, &node)?))
        }),
        reload: Box::new(move || {
            let reload = Arc::clone(&asked);
            Box::pin(async move {
                let changes = reload.from_file().await?;
                Ok(changes.iter().map(ToString::to_string).collect())
            })
        }),
    }
}

/// What is said of a node that was told to be drained, or no longer.
fn node_answer(front: &Front, told: Told) -> NodeAnswer {
    let Told { upstream, warnings } = told;
    NodeAnswer {
        pool: upstream.meter.pool.to_string(),
        node: upstream.node.id.to_string(),
        state: upstream.load(front.now()).state.as_str(),
        drain: drain_status(&upstream),
        warnings,
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

/// A listener on `address`: the inherited one, or one that is bound.
fn open(address: &ListenAddress, is_admin: bool, inherited: &mut Inherited) -> io::Result<Listener> {
    let found = match address {
        ListenAddress::Tcp(address) => inherited.tcp(*address),
        ListenAddress::Unix(path) => inherited.unix(path),
    };
    if let Some(listener) = found {
        tracing::info!(%address, "took over an inherited socket");
        return Ok(listener);
    }
    if is_admin { control::bind_admin(address) } else { control::bind(address) }
}

/// Where each tunnel's one outcome is counted and written down (invariant I7).
fn ledger(access: &Arc<AccessLog>, metrics: &Arc<Metrics>) -> Ledger {
    let (access, metrics) = (Arc::clone(access), Arc::clone(metrics));
    Arc::new(move |record, outcome| {
        if outcome.why == Why::Panicked {
            metrics.panicked(Part::Relay);
        }
        record.seat.closed(outcome.side, outcome.code);
        access.close(close_event(record, outcome));
    })
}

fn close_event(record: &Record, outcome: &Outcome) -> access::Close {
    access::Close {
        at: SystemTime::now(),
        session: record.session(),
        side: outcome.side.as_str(),
        code: outcome.code,
        why: outcome.why.as_str(),
        duration: outcome.duration,
        bytes: outcome.bytes,
        messages: outcome.messages,
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

/// Runs a balancer with the config that was read from the file at `path` until SIGTERM or SIGINT; see [`run_until`].
pub fn run(path: &Path, config: &Config) -> io::Result<()> {
    // While there is one thread only: it takes variables out of the environment.
    let inherited = Inherited::from_env();
    run_until(async move {
        // Before anything takes time: SIGHUP would end the process.
        let watch = Watch::new()?;
        let mut app = App::start_on(config, Some(path), inherited).await?;
        app.watch(watch);
        Ok(app)
    })
}

/// Runs what `start` starts until SIGTERM or SIGINT.
///
/// # Errors
///
/// What keeps it from starting; `Interrupted` when a second signal cut the orderly end short.
pub fn run_until(start: impl Future<Output = io::Result<App>>) -> io::Result<()> {
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
