//! A node as it is dialled: its health, its meter and its idle HTTP connections.
//!
//! What the config says about it belongs to one generation. What is known of it outlives that: the upstreams of one node
//! in several generations share its `SharedNodeState`.

mod health;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, MutexGuard};
use rustls_pki_types::ServerName;
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;

use super::dial_exhaustion::DialExhaustion;
use super::drain::state::ActiveDrain;
use crate::config::{self, Probe, ProxyVersion};
use crate::http::Body;
use crate::metrics::{Metrics, NodeMeter};
use crate::net::dial::{DialError, DialTarget, Dialer};
use crate::net::proxy_protocol::{ProxyAddresses, ProxyProtocolVersion};
use crate::net::stream::Stream;
use crate::net::tls::client::TlsClient;
use crate::pool::health::{HealthThresholds, NodeHealth};
use crate::pool::select::NodeLoad;
use crate::pool::{Node, NodeAddress, NodeState};

/// How long an idle connection is kept: less than the 5 s after which Node.js closes it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// The most bytes of a response head; also what is read ahead of a client that reads its response slowly.
pub(crate) const MAX_RESPONSE_HEAD: usize = 64 << 10;
/// The most idle connections of a node.
const MAX_IDLE: usize = 256;

/// A node in one generation.
pub struct Upstream {
    /// What the config says.
    pub node: Node,
    /// Its counters.
    pub meter: Arc<NodeMeter>,
    /// How long a dial may take.
    connect: Duration,
    /// Where its connections come from, and what they begin with.
    dialer: Dialer,
    /// TLS to it, and the name that its certificate must be for.
    tls: Option<(TlsClient, Option<ServerName<'static>>)>,
    shared: Arc<SharedNodeState>,
    /// Idle connections, in the order in which they came; `None` once they were closed for good. Shared by the generations
    /// that dial in the same way.
    idle: Arc<Mutex<Option<Vec<IdleConnection>>>>,
}

struct IdleConnection {
    since: Instant,
    connection: PooledConnection,
}

/// What outlives a generation.
struct SharedNodeState {
    /// What probes and real traffic say.
    health: Mutex<NodeHealth>,
    /// Its drain, from order to cancellation. Locked before `health`.
    drain: Mutex<Option<Arc<ActiveDrain>>>,
    /// The result of its last probe; `None` before the first.
    last_probe: Mutex<Option<ProbeResult>>,
    /// The config names the node no more, or at another address. Changes once, with `health` locked.
    is_removed: AtomicBool,
    /// Probes decide whether it is up.
    is_probed: AtomicBool,
    /// When it was last probed, in milliseconds on the clock of health; 0 before the first probe.
    last_probe_sent: AtomicU64,
    /// It has answered a probe since it was last unreachable.
    answers_probes: AtomicBool,
    /// What the balancer itself runs short of when it dials the node.
    exhaustion: DialExhaustion,
    /// With so many tunnels it is crowded; `u32::MAX` unless its pool is being rebalanced.
    tunnel_limit: AtomicU32,
}

/// The result of a health probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProbeResult {
    /// When its answer came, or it failed without one.
    pub at: SystemTime,
    /// Why it failed; `None` where it did not.
    pub error: Option<String>,
    /// The load that the node reports: its connections and the most that it takes, all balancers together.
    pub load: Option<(u64, u64)>,
    /// The release that the node reports.
    pub release: Option<String>,
}

/// An HTTP connection to a node. When it is dropped it is closed, whatever is still under way on it.
pub(crate) struct PooledConnection {
    /// The sender.
    pub sender: SendRequest<Body>,
    /// It has carried a request before, so it may be stale.
    pub is_reused: bool,
    /// Reads and writes it.
    task: AbortHandle,
}

impl PooledConnection {
    /// It is open, and the last request and its response are complete. Never waits.
    fn is_free(&self) -> bool {
        self.sender.is_ready() && !self.sender.is_closed()
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    /// A node of a new pool, not dialled yet.
    pub(crate) fn new(node: &Node, pool: &config::Pool, metrics: &Metrics) -> Self {
        Self::build(NodeHealth::new, node, pool, metrics)
    }

    /// A node that joins a running pool, not dialled yet.
    pub(crate) fn joining(node: &Node, pool: &config::Pool, metrics: &Metrics) -> Self {
        Self::build(NodeHealth::new_joining, node, pool, metrics)
    }

    fn build(
        health: fn(HealthThresholds) -> NodeHealth,
        node: &Node,
        pool: &config::Pool,
        metrics: &Metrics,
    ) -> Self {
        let is_probed = pool.health.probe != Probe::Off;
        let health =
            if is_probed { health(pool.thresholds()) } else { NodeHealth::new_unprobed(pool.thresholds()) };
        let shared = SharedNodeState {
            health: Mutex::new(health),
            drain: Mutex::default(),
            last_probe: Mutex::default(),
            is_removed: AtomicBool::new(false),
            is_probed: AtomicBool::new(is_probed),
            last_probe_sent: AtomicU64::new(0),
            answers_probes: AtomicBool::new(false),
            exhaustion: DialExhaustion::default(),
            tunnel_limit: AtomicU32::new(u32::MAX),
        };
        let meter = metrics.node(&pool.name, node.id.as_str());
        Self::assemble(node, pool, meter, Arc::new(shared))
    }

    /// The same node at the same address in another generation. It keeps the idle connections when nodes are dialled
    /// alike there.
    pub(crate) fn with_config(&self, node: &Node, pool: &config::Pool, is_dialled_alike: bool) -> Self {
        let (meter, shared) = (Arc::clone(&self.meter), Arc::clone(&self.shared));
        let renewed = Self::assemble(node, pool, meter, shared);
        if is_dialled_alike { Self { idle: Arc::clone(&self.idle), ..renewed } } else { renewed }
    }

    fn assemble(
        node: &Node,
        pool: &config::Pool,
        meter: Arc<NodeMeter>,
        shared: Arc<SharedNodeState>,
    ) -> Self {
        let dialer = Dialer::new(pool.source_addresses.clone(), pool.send_proxy_protocol.map(header_version));
        let connect = pool.timeouts.connect;
        let idle = Arc::new(Mutex::new(Some(Vec::new())));
        Self { node: node.clone(), meter, connect, dialer, tls: tls(node, pool), shared, idle }
    }

    /// The config of its pool takes effect; what is known of the node stays.
    pub(crate) fn activate(&self, pool: &config::Pool, now: Duration) {
        let mut drain = self.shared.drain.lock();
        let mut health = self.shared.health.lock();
        health.set_thresholds(pool.thresholds());
        let is_probed = pool.health.probe != Probe::Off;
        if self.shared.is_probed.swap(is_probed, Relaxed) && !is_probed {
            health.stop_probing(pool.thresholds());
        }
        self.meter.set_capacity(self.node.max_connections);
        self.meter.set_state(health.node_state(now).as_str());
        if let Some(unwanted) = drain.take_if(|_| !health.is_draining()) {
            unwanted.end();
        }
        self.meter.set_drain(drain.as_ref().map(ActiveDrain::gauge));
    }

    /// The config names it no more: no session of any generation is placed on it from now on. Gives the drain that ends
    /// with this.
    pub(crate) fn mark_removed(&self) -> Option<Arc<ActiveDrain>> {
        let mut drain = self.shared.drain.lock();
        let _health = self.shared.health.lock();
        self.shared.is_removed.store(true, Relaxed);
        self.meter.set_state(NodeState::Removed.as_str());
        self.close_idle_connections();
        drain.take().inspect(|drain| drain.end())
    }

    /// The drain that is under way, or that has closed every tunnel and is not taken back.
    pub(crate) fn drain(&self) -> Option<Arc<ActiveDrain>> {
        self.drain_slot().clone()
    }

    /// Where the drain of the node is kept. To be locked before the node's health is.
    pub(super) fn drain_slot(&self) -> MutexGuard<'_, Option<Arc<ActiveDrain>>> {
        self.shared.drain.lock()
    }

    /// Whether the config does not name it any more.
    pub(super) fn is_removed(&self) -> bool {
        self.shared.is_removed.load(Relaxed)
    }

    /// What is known of its health.
    pub(crate) fn health(&self) -> NodeHealth {
        self.shared.health.lock().clone()
    }

    /// What selection needs to know.
    pub(crate) fn load(&self, now: Duration) -> NodeLoad {
        let health = self.shared.health.lock();
        let live = self.meter.live();
        let is_above_share = live >= self.shared.tunnel_limit.load(Relaxed);
        let state = self.state(&health, now);
        let is_last_resort = state == NodeState::Down && health.is_last_resort(now);
        NodeLoad {
            state,
            live,
            slow_start_factor: health.slow_start_factor(now),
            is_above_share,
            is_last_resort,
        }
    }

    /// With so many tunnels, new sessions go to other nodes, whatever their pins say; `None` ends the limit.
    pub(crate) fn set_tunnel_limit(&self, tunnels: Option<u32>) {
        self.shared.tunnel_limit.store(tunnels.unwrap_or(u32::MAX), Relaxed);
    }

    /// It takes clients now.
    pub(crate) fn is_up(&self, now: Duration) -> bool {
        self.load(now).state == NodeState::Up
    }

    fn state(&self, health: &NodeHealth, now: Duration) -> NodeState {
        if self.is_removed() { NodeState::Removed } else { health.node_state(now) }
    }

    /// When it was last probed, on the clock of health.
    pub(crate) fn last_probe_sent(&self) -> Option<Duration> {
        Some(self.shared.last_probe_sent.load(Relaxed)).filter(|at| *at > 0).map(Duration::from_millis)
    }

    /// A probe is being sent now.
    pub(crate) fn record_probe_sent(&self, now: Duration) {
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.shared.last_probe_sent.store(millis.max(1), Relaxed);
    }

    /// A probe has this result.
    pub(crate) fn record_probe(&self, result: ProbeResult) {
        *self.shared.last_probe.lock() = Some(result);
    }

    /// The release that it runs: the one that it reports, or else that of the config.
    pub(crate) fn running_release(&self) -> Option<String> {
        let reported = self.shared.last_probe.lock().as_ref().and_then(|probe| probe.release.clone());
        reported.or_else(|| self.node.release.clone())
    }

    /// The result of the last probe.
    pub(crate) fn last_probe(&self) -> Option<ProbeResult> {
        self.shared.last_probe.lock().clone()
    }

    /// A new connection for the client whose `ends` these are.
    pub(crate) async fn dial(&self, ends: ProxyAddresses) -> Result<Stream, DialError> {
        self.dial_within(Some(ends), self.connect).await
    }

    /// A new connection of the balancer's own, within this time.
    pub(crate) async fn dial_probe(&self, within: Duration) -> Result<Stream, DialError> {
        self.dial_within(None, within).await
    }

    /// A new connection, with its TLS handshake.
    async fn dial_within(&self, ends: Option<ProxyAddresses>, within: Duration) -> Result<Stream, DialError> {
        let target = match &self.node.address {
            NodeAddress::Tcp { host, port } => DialTarget::Tcp { host, port: *port },
            NodeAddress::Unix(path) => DialTarget::Unix(path),
        };
        let begun = Instant::now();
        let dialled = self.dialer.dial(target, ends, within).await;
        self.shared.exhaustion.record_dial(
            &self.meter,
            &self.node.address,
            &self.dialer,
            dialled.as_ref().err(),
        );
        let stream = dialled?;
        let Some((client, name)) = &self.tls else { return Ok(stream) };
        let name = name.clone().ok_or(DialError::NoName)?;
        let left = within.saturating_sub(begun.elapsed());
        // In a box: a plain dial does not carry the room for a TLS handshake.
        let secured = tokio::time::timeout(left, Box::pin(client.connect(name, stream))).await;
        secured.map_err(|_| DialError::Timeout(within))?.map_err(DialError::Tls)
    }

    /// A connection for a plain request: an idle one, or a new one when `fresh` or none is idle. One that began with a
    /// PROXY header belongs to one client, so it is never reused.
    pub(crate) async fn acquire_connection(
        &self,
        ends: ProxyAddresses,
        fresh: bool,
        tasks: &TaskTracker,
    ) -> Result<PooledConnection, DialError> {
        let fresh = fresh || self.dialer.is_per_client();
        if !fresh && let Some(connection) = self.take_idle() {
            return Ok(connection);
        }
        let stream = self.dial(ends).await?;
        let mut http = http1::Builder::new();
        http.max_buf_size(MAX_RESPONSE_HEAD);
        let handshake = http.handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            handshake.map_err(|error| DialError::Other(std::io::Error::other(error)))?;
        let task = tasks.spawn(async move {
            // Whoever waits for the response sees its errors.
            let _ = connection.await;
        });
        Ok(PooledConnection { sender, is_reused: false, task: task.abort_handle() })
    }

    /// The free connection that was used last. One that is not free, because its task has not run yet or its node has
    /// not read the last request, stays until it is, or expires.
    fn take_idle(&self) -> Option<PooledConnection> {
        let mut idle = self.idle.lock();
        let idle = idle.as_mut()?;
        drop_expired(idle);
        let free = idle.iter().rposition(|idle| idle.connection.is_free())?;
        let mut connection = idle.remove(free).connection;
        connection.is_reused = true;
        Some(connection)
    }

    /// Keeps a connection whose request was sent and whose response was read, both to the end.
    pub(crate) fn release_connection(&self, connection: PooledConnection) {
        let mut idle = self.idle.lock();
        let Some(idle) = idle.as_mut().filter(|_| !self.dialer.is_per_client()) else { return };
        drop_expired(idle);
        if idle.len() >= MAX_IDLE {
            idle.retain(|idle| !idle.connection.sender.is_closed());
        }
        if !connection.sender.is_closed() && idle.len() < MAX_IDLE {
            idle.push(IdleConnection { since: Instant::now(), connection });
        }
    }

    /// Closes every idle connection, and from now on each whose response is complete: one that is kept would delay the
    /// end of the process until its node closes it.
    pub(crate) fn close_idle_connections(&self) {
        *self.idle.lock() = None;
    }
}

fn drop_expired(idle: &mut Vec<IdleConnection>) {
    let now = Instant::now();
    let first = idle.partition_point(|idle| now.duration_since(idle.since) >= IDLE_TIMEOUT);
    idle.drain(..first);
}

fn header_version(version: ProxyVersion) -> ProxyProtocolVersion {
    match version {
        ProxyVersion::V1 => ProxyProtocolVersion::V1,
        ProxyVersion::V2 => ProxyProtocolVersion::V2,
    }
}

fn tls(node: &Node, pool: &config::Pool) -> Option<(TlsClient, Option<ServerName<'static>>)> {
    let tls = pool.tls.as_ref()?;
    let identity = tls.identity.as_ref().map(|identity| Arc::clone(&identity.certified));
    Some((TlsClient::new(Arc::clone(&tls.ca.roots), identity), config::node_name(tls, &node.address)))
}
