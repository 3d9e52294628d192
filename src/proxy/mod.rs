//! The data plane: from an accepted connection to a tunnel in the relay, or to an ordinary answer.
//!
//! A [`ProxyState`] is one generation of what the config says, built once and never changed; what lives longer than a
//! generation (health, meters, kept connections) hangs on the [`upstream::Upstream`]s. A session takes one
//! generation at its request and keeps it to its adoption (invariant I3).

pub mod accept;
pub mod admission;
mod attempt;
mod catch_panic;
mod idle_timeout_lint;
pub mod drain;
pub mod acceptor;
mod forward;
mod passive_health;
mod polling_session;
pub mod rollout;
mod session;
mod dial_exhaustion;
mod upgrade;
mod request_body;
pub mod upstream;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use mainstay_core::open_files;

use crate::affinity::hash::mix;
use crate::affinity::{Directory as _, Source};
use crate::config::{self, Budget, Config, Supply};
use crate::log::access::AccessLog;
use crate::metrics::{Metrics, PoolMeter};
use crate::net::dial;
use crate::pool::pick::Balance;
use crate::pool::{Node, Nodes, retry};
use crate::relay::Relay;
use crate::route::Routes;
use crate::shutdown::Shutdown;

use admission::AdmissionControl;
use idle_timeout_lint::IdleTimeoutLint;
use upstream::Upstream;

/// One generation of the data plane.
pub struct ProxyState {
    /// Counts up from 1.
    pub generation: u32,
    /// Host and path to pool.
    pub routes: Routes,
    /// The pools by name.
    pub pools: HashMap<Arc<str>, Arc<UpstreamPool>>,
    /// Whose word about the client is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What a client may take.
    pub limits: config::Limits,
    /// How many client connections there may be: what `limits` says, or what the file limit allows.
    pub connections: u32,
    /// Tells who waits for it that nobody sees this generation any more.
    in_use: DropGuard,
}

/// One pool of a generation.
pub struct UpstreamPool {
    /// What the config says.
    pub config: config::Pool,
    /// The nodes as the picker sees them.
    pub nodes: Nodes,
    /// The nodes as they are dialled, with the same indices.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Its counters.
    pub meter: Arc<PoolMeter>,
    /// Which release its nodes are being replaced by.
    rollout: rollout::Watch,
    /// Compares its idle timeout with what its nodes say.
    idle_timeout_lint: IdleTimeoutLint,
    /// Sessions that were placed without a pin or a key so far.
    placements: AtomicU64,
    /// Held while real traffic judges a node; shared by the generations.
    passive_lock: Arc<Mutex<()>>,
    /// What is left for retries of handshakes; shared by the generations.
    retry_budget: Arc<Mutex<retry::Budget>>,
}

impl ProxyState {
    /// Generation 1 of a process.
    pub fn new(config: &Config, metrics: &Metrics) -> Self {
        Self::resume_from(0, config, metrics)
    }

    /// The first generation of a process that takes over from one that was at `generation`.
    pub fn resume_from(generation: u32, config: &Config, metrics: &Metrics) -> Self {
        let state = Self::of(config, generation + 1, |pool| Arc::new(UpstreamPool::new(pool, metrics)));
        state.activate(metrics, Duration::ZERO);
        state
    }

    /// The generation after this one. A pool that is the same stays as it is; of a pool that changed, the nodes that
    /// are still at their place keep what is known of them. Nothing has an effect before [`ProxyState::activate`].
    pub fn next(&self, config: &Config, metrics: &Metrics) -> Self {
        Self::of(config, self.generation + 1, |pool| match self.pools.get(&pool.name) {
            Some(known) if known.config == *pool => Arc::clone(known),
            Some(known) => Arc::new(known.next(pool, metrics)),
            None => Arc::new(UpstreamPool::new(pool, metrics)),
        })
    }

    fn of(config: &Config, generation: u32, pool: impl Fn(&config::Pool) -> Arc<UpstreamPool>) -> Self {
        Self {
            generation,
            routes: Routes::new(config.routes.clone()),
            pools: config.pools.iter().map(|config| (Arc::clone(&config.name), pool(config))).collect(),
            trusted_proxies: config.trusted_proxies.clone(),
            limits: config.limits.clone(),
            connections: budget(config).connections,
            in_use: CancellationToken::new().drop_guard(),
        }
    }

    /// New sessions see this generation from now on.
    pub fn activate(&self, metrics: &Metrics, now: Duration) {
        metrics.set_generation(self.generation.into());
        for pool in self.pools.values() {
            pool.upstreams.iter().for_each(|upstream| upstream.activate(&pool.config, now));
            pool.note_releases();
        }
    }

    /// Cancelled once the last session that sees this generation has been adopted or has ended.
    pub fn retirement(&self) -> CancellationToken {
        self.in_use.token().clone()
    }

    /// The upstream of a node that has its place here, too.
    pub fn upstream(&self, pool: &str, node: &Node) -> Option<&Arc<Upstream>> {
        self.pools.get(pool)?.upstream(node)
    }
}

impl UpstreamPool {
    fn new(config: &config::Pool, metrics: &Metrics) -> Self {
        let upstreams = config.nodes.iter().map(|node| Arc::new(Upstream::new(node, config, metrics)));
        Self::of(config, upstreams.collect(), metrics)
    }

    /// This pool with another config.
    fn next(&self, config: &config::Pool, metrics: &Metrics) -> Self {
        let same_way = self.config.tls == config.tls
            && self.config.source_addresses == config.source_addresses
            && self.config.send_proxy_protocol == config.send_proxy_protocol;
        let upstream = |node: &Node| match self.upstream(node) {
            Some(known) => Arc::new(known.with_config(node, config, same_way)),
            None => Arc::new(Upstream::joining(node, config, metrics)),
        };
        let mut next = Self::of(config, config.nodes.iter().map(upstream).collect(), metrics);
        next.rollout = self.rollout.next();
        next.placements.store(self.placements.load(Relaxed), Relaxed);
        next.passive_lock = Arc::clone(&self.passive_lock);
        next.retry_budget = Arc::clone(&self.retry_budget);
        next
    }

    fn of(config: &config::Pool, upstreams: Vec<Arc<Upstream>>, metrics: &Metrics) -> Self {
        Self {
            upstreams,
            nodes: Nodes::new(&config.name, config.nodes.clone()),
            meter: metrics.pool(&config.name),
            rollout: rollout::Watch::default(),
            idle_timeout_lint: IdleTimeoutLint::default(),
            placements: AtomicU64::new(0),
            passive_lock: Arc::default(),
            retry_budget: Arc::default(),
            config: config.clone(),
        }
    }

    /// The upstream of this node, if it has the same place here.
    fn upstream(&self, node: &Node) -> Option<&Arc<Upstream>> {
        let known = &self.upstreams[self.nodes.by_id(node.id.as_str())?];
        (known.node.address == node.address).then_some(known)
    }

    /// Closes the connections that are kept for plain HTTP.
    pub fn close_idle_connections(&self) {
        self.upstreams.iter().for_each(|upstream| upstream.close_idle_connections());
    }

    /// How many nodes take clients now.
    pub fn count_up(&self, now: Duration) -> usize {
        self.upstreams.iter().filter(|upstream| upstream.is_up(now)).count()
    }

    /// The turn of a session. Only one that the balance rule places uses its turn up: those that a pin brings back
    /// in between must not decide where the next new one goes.
    fn next_placement(&self, is_placed: bool) -> u64 {
        if is_placed { self.placements.fetch_add(1, Relaxed) } else { self.placements.load(Relaxed) }
    }

    /// The load bound for a session. Only what is opened anew is placed by it, and only where no later request of it
    /// could be placed elsewhere: a tunnel has none, and those of a polling session name their node where sids are
    /// tagged. So the bound parts no session.
    fn load_bound(&self, opens: bool, is_upgrade: bool) -> Option<f64> {
        self.config.load_bound.filter(|_| opens && (is_upgrade || self.tags_sids()))
    }

    fn balance(&self) -> Balance {
        self.config.balance
    }

    /// Socket.IO session ids carry node tags here.
    fn tags_sids(&self) -> bool {
        self.config.affinity.contains(&Source::EngineIo)
    }
}

/// What `config` amounts to on this system.
pub fn budget(config: &Config) -> Budget {
    Budget::new(config, Supply { files: open_files::limit(), ports: dial::port_range() })
}

/// What every connection of the process shares.
pub struct ProxyContext {
    /// The present generation.
    pub state: ArcSwap<ProxyState>,
    /// Where tunnels live.
    pub relay: Relay,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where sessions are written down.
    pub access_log: Arc<AccessLog>,
    /// How far the process is.
    pub shutdown: Shutdown,
    /// The zero of the clock that health is told.
    pub started: Instant,
    /// Owns the tasks of client and node connections.
    pub tasks: TaskTracker,
    /// Who is let in.
    pub(crate) admission: Arc<AdmissionControl>,
    /// Sessions so far, from a start that differs between processes.
    ids: AtomicU64,
    seed: u64,
}

impl ProxyContext {
    /// Ready to serve `state`. `seed` is random, of this process.
    pub fn new(
        state: ProxyState,
        relay: Relay,
        metrics: Arc<Metrics>,
        access_log: Arc<AccessLog>,
        seed: u64,
    ) -> Self {
        Self {
            state: ArcSwap::from_pointee(state),
            relay,
            metrics,
            access_log,
            shutdown: Shutdown::new(),
            started: Instant::now(),
            tasks: TaskTracker::new(),
            admission: AdmissionControl::new(),
            ids: AtomicU64::new(0),
            seed,
        }
    }

    /// Goes on with a clock that another process has started so long ago.
    pub fn continue_clock(&mut self, clock: Duration) {
        self.started = self.started.checked_sub(clock).unwrap_or(self.started);
    }

    /// Who is let in.
    pub fn admission(&self) -> &Arc<AdmissionControl> {
        &self.admission
    }

    /// The clock of health.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Random bytes, for names that must be unique in the world. Without a source of randomness, which aws-lc does not
    /// know on any system that this runs on, they are those of the next session ids.
    fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        if aws_lc_rs::rand::fill(&mut bytes).is_err() {
            bytes
                .chunks_mut(8)
                .for_each(|part| part.copy_from_slice(&self.next_id().to_be_bytes()[..part.len()]));
        }
        bytes
    }

    /// A session id; mixed, so that it serves as a random number too.
    fn next_id(&self) -> u64 {
        mix(self.seed.wrapping_add(self.ids.fetch_add(1, Relaxed)))
    }
}
