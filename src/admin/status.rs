//! `/api/status`: the process, its pools and its nodes at this moment.
//!
//! A node's `connections` are this balancer's live tunnels; `load` is what the node says of itself, all balancers
//! together. Times are RFC 3339 in UTC.

use std::time::SystemTime;

use serde::Serialize;

use super::context::AdminContext;
use super::rebalance::RebalanceStatus;
use crate::log;
use crate::pool::NodeState;
use crate::proxy::upstream::{ProbeResult, Upstream};
use crate::proxy::{ProxyContext, UpstreamPool};
use crate::shutdown::Phase;

/// The status of the process.
#[derive(Debug, Serialize)]
pub(super) struct StatusResponse {
    version: &'static str,
    pid: u32,
    started_at: String,
    generation: u32,
    /// `serving`, `draining` or `stopped`.
    phase: &'static str,
    listeners: Vec<String>,
    /// Tunnels in the relay.
    tunnels: usize,
    pools: Vec<PoolStatus>,
    totals: StatusTotals,
}

#[derive(Debug, Serialize)]
struct PoolStatus {
    name: String,
    nodes: Vec<NodeStatus>,
    /// `None` when none is under way.
    rebalance: Option<RebalanceStatus>,
}

#[derive(Debug, Serialize)]
struct NodeStatus {
    id: String,
    address: String,
    /// `up`, `down`, `draining` or `removed`.
    state: &'static str,
    weight: u16,
    /// Live tunnels of this balancer.
    connections: u32,
    /// `None` is no limit.
    max_connections: Option<u32>,
    /// As the metric `node_utilization`; `None` where the capacity of the node is not known.
    utilization: Option<f64>,
    health: HealthStatus,
    load: Option<LoadStatus>,
    /// What the node says, or else the config.
    release: Option<String>,
    /// `None` when it is not drained.
    drain: Option<DrainStatus>,
}

/// How far the drain of a node is.
#[derive(Debug, Serialize)]
pub(super) struct DrainStatus {
    /// Tunnels that are still there, or on their way.
    pub left: u32,
    /// Tunnels that have ended since it began.
    pub closed: usize,
    /// When the last has ended at the latest; the node stays out behind that.
    pub deadline: String,
}

#[derive(Debug, Serialize)]
struct HealthStatus {
    /// `None` before the first probe and where there are none.
    last_probe: Option<ProbeStatus>,
    /// How much of its weight counts: below 1 while it starts slowly.
    share: f32,
    /// `None` while real traffic has nothing against it.
    ejected: Option<EjectionStatus>,
}

/// Why a node is left out though its probes may be good.
#[derive(Debug, Serialize)]
struct EjectionStatus {
    /// When it ends at the latest.
    until: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct ProbeStatus {
    at: String,
    ok: bool,
    /// Why it failed.
    fault: Option<String>,
}

#[derive(Debug, Serialize)]
struct LoadStatus {
    connections: u64,
    max_connections: u64,
}

#[derive(Debug, Serialize)]
struct StatusTotals {
    pools: usize,
    nodes: usize,
    /// Nodes that take clients.
    up: usize,
    /// Live tunnels on the nodes above.
    connections: u64,
}

/// The status of now.
pub(super) fn status(context: &AdminContext) -> StatusResponse {
    let front = context.proxy();
    let state = front.state.load();
    let mut pools: Vec<PoolStatus> = state.pools.values().map(|pool| pool_status(context, pool)).collect();
    pools.sort_by(|one, other| one.name.cmp(&other.name));
    StatusResponse {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        started_at: log::format_time(context.started_at),
        generation: state.generation,
        phase: match front.shutdown.phase() {
            Phase::Serving => "serving",
            Phase::Draining => "draining",
            Phase::Stopped => "stopped",
        },
        listeners: context.reload.listeners(),
        tunnels: front.relay.tunnel_count(),
        totals: totals(&pools),
        pools,
    }
}

fn pool_status(context: &AdminContext, pool: &UpstreamPool) -> PoolStatus {
    let nodes = pool.upstreams.iter().map(|upstream| node_status(context.proxy(), upstream));
    let name = pool.config.name.to_string();
    let rebalance = context.reload.rebalancer().progress(&name).map(RebalanceStatus::from);
    PoolStatus { name, nodes: nodes.collect(), rebalance }
}

fn node_status(front: &ProxyContext, upstream: &Upstream) -> NodeStatus {
    let (node, load, probed) = (&upstream.node, upstream.load(front.now()), upstream.last_probe());
    let (said_load, said_release) = probed.as_ref().map(|p| (p.load, p.release.clone())).unwrap_or_default();
    NodeStatus {
        id: node.id.to_string(),
        address: node.address.to_string(),
        state: load.state.as_str(),
        weight: node.weight,
        connections: load.live,
        max_connections: node.max_connections,
        utilization: upstream.meter.utilization(),
        health: HealthStatus {
            last_probe: probed.map(probe_status),
            share: load.slow_start_factor,
            ejected: ejection_status(front, upstream),
        },
        load: said_load.map(|(connections, max_connections)| LoadStatus { connections, max_connections }),
        release: said_release.or_else(|| node.release.clone()),
        drain: drain_status(upstream),
    }
}

/// How far the drain of this node is.
pub(super) fn drain_status(upstream: &Upstream) -> Option<DrainStatus> {
    let drain = upstream.drain()?;
    let (left, closed) = (upstream.meter.live(), drain.closed());
    Some(DrainStatus { left, closed, deadline: log::format_time(drain.deadline) })
}

fn ejection_status(front: &ProxyContext, upstream: &Upstream) -> Option<EjectionStatus> {
    let (now, health) = (front.now(), upstream.health());
    let (until, reason) = health.ejection(now)?;
    let until = SystemTime::now() + until.saturating_sub(now);
    Some(EjectionStatus { until: log::format_time(until), reason: reason.to_owned() })
}

fn probe_status(probed: ProbeResult) -> ProbeStatus {
    ProbeStatus { at: log::format_time(probed.at), ok: probed.error.is_none(), fault: probed.error }
}

fn totals(pools: &[PoolStatus]) -> StatusTotals {
    let nodes = || pools.iter().flat_map(|pool| &pool.nodes);
    StatusTotals {
        pools: pools.len(),
        nodes: nodes().count(),
        up: nodes().filter(|node| node.state == NodeState::Up.as_str()).count(),
        connections: nodes().map(|node| u64::from(node.connections)).sum(),
    }
}
