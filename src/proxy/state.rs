//! One generation of the data plane: its routes, its limits and its pools with the nodes as they are dialled.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ipnet::IpNet;
use mainstay_core::open_files;
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::idle_timeout_lint::IdleTimeoutLint;
use super::rollout::PoolRollout;
use super::upstream::Upstream;
use crate::affinity::{AffinitySource, NodeDirectory as _};
use crate::config::{self, Budget, Config, Supply};
use crate::metrics::{Metrics, PoolMeter};
use crate::net::dial;
use crate::pool::{Node, NodeSet, retry};
use crate::route::Routes;

/// One generation of the data plane.
pub struct ProxyState {
    /// Counts up from 1.
    pub generation: u32,
    /// Host and path to pool.
    pub(crate) routes: Routes,
    /// The pools by name.
    pub pools: HashMap<Arc<str>, Arc<UpstreamPool>>,
    /// The proxies whose forwarding fields and PROXY headers are believed.
    pub(crate) trusted_proxies: Vec<IpNet>,
    /// What clients may use.
    pub(crate) limits: config::Limits,
    /// How many client connections there may be: what `limits` says, or what the file limit allows.
    pub(crate) connections: u32,
    /// Cancels [`ProxyState::retirement`] when the last session lets go of this generation.
    in_use: DropGuard,
}

/// One pool of a generation.
pub struct UpstreamPool {
    /// What the config says.
    pub(crate) config: config::Pool,
    /// The nodes as selection sees them.
    pub(crate) nodes: NodeSet,
    /// The nodes as they are dialled, with the same indices.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Its counters.
    pub(crate) meter: Arc<PoolMeter>,
    /// Which release its nodes are being replaced by.
    pub(crate) rollout: PoolRollout,
    /// Compares its idle timeout with what its nodes say.
    pub(super) idle_timeout_lint: IdleTimeoutLint,
    /// Sessions that the balance rule has placed so far.
    placements: AtomicU64,
    /// Held while real traffic updates the health of a node; shared by the generations.
    pub(super) passive_lock: Arc<Mutex<()>>,
    /// What is left for retries of handshakes; shared by the generations.
    pub(super) retry_budget: Arc<Mutex<retry::RetryBudget>>,
}

impl ProxyState {
    /// Generation 1 of a process.
    pub fn new(config: &Config, metrics: &Metrics) -> Self {
        Self::resume_from(0, config, metrics)
    }

    /// The first generation of a process that takes over from one that was at `generation`.
    pub(crate) fn resume_from(generation: u32, config: &Config, metrics: &Metrics) -> Self {
        let state = Self::build(config, generation + 1, |pool| Arc::new(UpstreamPool::new(pool, metrics)));
        state.activate(metrics, Duration::ZERO);
        state
    }

    /// The generation after this one. A pool that is the same stays as it is; of a pool that changed, the nodes that
    /// are still at their address keep what is known of them. Nothing has an effect before [`ProxyState::activate`].
    pub(crate) fn next(&self, config: &Config, metrics: &Metrics) -> Self {
        Self::build(config, self.generation + 1, |pool| match self.pools.get(&pool.name) {
            Some(known) if known.config == *pool => Arc::clone(known),
            Some(known) => Arc::new(known.next(pool, metrics)),
            None => Arc::new(UpstreamPool::new(pool, metrics)),
        })
    }

    fn build(config: &Config, generation: u32, pool: impl Fn(&config::Pool) -> Arc<UpstreamPool>) -> Self {
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
    pub(crate) fn activate(&self, metrics: &Metrics, now: Duration) {
        metrics.set_generation(self.generation.into());
        for pool in self.pools.values() {
            pool.upstreams.iter().for_each(|upstream| upstream.activate(&pool.config, now));
            pool.update_rollout();
        }
    }

    /// Cancelled once the last session that sees this generation has been adopted or has ended.
    pub(crate) fn retirement(&self) -> CancellationToken {
        self.in_use.token().clone()
    }

    /// Whether the word of this peer about its clients is believed.
    pub(super) fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|net| net.contains(&peer))
    }

    /// The upstream of a node that has the same address here.
    pub(crate) fn upstream(&self, pool: &str, node: &Node) -> Option<&Arc<Upstream>> {
        self.pools.get(pool)?.upstream(node)
    }
}

impl UpstreamPool {
    fn new(config: &config::Pool, metrics: &Metrics) -> Self {
        let upstreams = config.nodes.iter().map(|node| Arc::new(Upstream::new(node, config, metrics)));
        Self::build(config, upstreams.collect(), metrics)
    }

    /// This pool with another config.
    fn next(&self, config: &config::Pool, metrics: &Metrics) -> Self {
        let is_dialled_alike = self.config.tls == config.tls
            && self.config.source_addresses == config.source_addresses
            && self.config.send_proxy_protocol == config.send_proxy_protocol;
        let upstream = |node: &Node| match self.upstream(node) {
            Some(known) => Arc::new(known.with_config(node, config, is_dialled_alike)),
            None => Arc::new(Upstream::joining(node, config, metrics)),
        };
        let mut next = Self::build(config, config.nodes.iter().map(upstream).collect(), metrics);
        next.rollout = self.rollout.next();
        next.placements.store(self.placements.load(Relaxed), Relaxed);
        next.passive_lock = Arc::clone(&self.passive_lock);
        next.retry_budget = Arc::clone(&self.retry_budget);
        next
    }

    fn build(config: &config::Pool, upstreams: Vec<Arc<Upstream>>, metrics: &Metrics) -> Self {
        Self {
            upstreams,
            nodes: NodeSet::new(&config.name, config.nodes.clone()),
            meter: metrics.pool(&config.name),
            rollout: PoolRollout::default(),
            idle_timeout_lint: IdleTimeoutLint::default(),
            placements: AtomicU64::new(0),
            passive_lock: Arc::default(),
            retry_budget: Arc::default(),
            config: config.clone(),
        }
    }

    /// The upstream of this node, if it has the same address here.
    fn upstream(&self, node: &Node) -> Option<&Arc<Upstream>> {
        let known = &self.upstreams[self.nodes.find_by_id(node.id.as_str())?];
        (known.node.address == node.address).then_some(known)
    }

    /// Determines anew which release its nodes are being replaced by.
    pub(crate) fn update_rollout(&self) {
        self.rollout.update(&self.config.name, &self.upstreams);
    }

    /// Closes the idle connections for plain HTTP.
    pub(crate) fn close_idle_connections(&self) {
        self.upstreams.iter().for_each(|upstream| upstream.close_idle_connections());
    }

    /// How many nodes take clients now.
    pub(crate) fn count_up(&self, now: Duration) -> usize {
        self.upstreams.iter().filter(|upstream| upstream.is_up(now)).count()
    }

    /// The number of a session for round robin. Only a session that the balance rule places counts: one that a pin
    /// brings back must not decide where the next new one goes.
    pub(super) fn next_placement(&self, is_placed: bool) -> u64 {
        if is_placed { self.placements.fetch_add(1, Relaxed) } else { self.placements.load(Relaxed) }
    }

    /// The load bound for a session. It applies to new sessions only, and only where no later request could be placed
    /// elsewhere: a tunnel has no later request, and those of a polling session name their node where sids are tagged.
    /// So the bound never splits a session.
    pub(super) fn load_bound(&self, opens: bool, is_upgrade: bool) -> Option<f64> {
        self.config.load_bound.filter(|_| opens && (is_upgrade || self.tags_sids()))
    }

    /// Socket.IO session ids carry node tags here.
    pub(super) fn tags_sids(&self) -> bool {
        self.config.affinity.contains(&AffinitySource::EngineIo)
    }
}

/// The connections that `config` allows on this system.
pub(crate) fn budget(config: &Config) -> Budget {
    Budget::new(config, Supply { files: open_files::limit(), ports: dial::port_range() })
}
