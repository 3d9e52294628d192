//! The drain of a node: who can order it, what it does to tunnels and polling sessions, and how it ends.
//!
//! 1. An operator orders it, with a window, a code and a reason of its own, and takes it
//!    back; an order survives a reload that keeps the node at its address. Or the node asks for it in the
//!    answer to its probe (`follow_node`), until it says otherwise; then its pool's `drain` says how. An order
//!    replaces the drain that is under way, the word of the node does not.
//! 2. New sessions go to other nodes from then on. The tunnels are closed evenly over the window, and polling sessions
//!    move one by one ([`ActiveDrain`]).
//! 3. A drained node stays out until neither an operator nor the node itself wants the drain.
//! 4. When another process takes over, the drain goes on there ([`snapshots`], [`resume`]). A reload that removes the
//!    node ends the drain, and its tunnels leave as those of a removed node do.

pub(super) mod state;

use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::upstream::Upstream;
use super::{ProxyContext, UpstreamPool};
use crate::affinity::{AffinityHint, AffinityHints, NodeDirectory as _};
use crate::config;
use crate::relay::TunnelSelector;
use crate::shutdown::Phase;

pub use state::{ActiveDrain, DrainProgress};

/// A node whose drain was ordered or taken back.
pub(crate) struct DrainChange {
    /// The node.
    pub upstream: Arc<Upstream>,
    /// What is unwise about it, or good to know.
    pub warnings: Vec<String>,
}

/// Why a drain was not begun or taken back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DrainError {
    /// No such pool.
    #[error("there is no pool `{0}`; the pools are: {1}")]
    NoPool(String, String),
    /// No such node in the pool.
    #[error("there is no node `{1}` in the pool {0}; its nodes are: {2}")]
    NoNode(String, String, String),
    /// The order is not valid.
    #[error("{0}")]
    InvalidOrder(String),
    /// The process ends, and with it every tunnel.
    #[error("the balancer is stopping; every tunnel is being closed")]
    Stopping,
    /// The process that takes over would not know of the change.
    #[error("another process is taking over from this one; ask again, and that one answers")]
    TakenOver,
    /// The node itself asks for the drain.
    #[error(
        "the node {0} asks for its drain itself, in the answer to its probe; it ends when the node says otherwise"
    )]
    AsksItself(String),
}

/// A drain as it goes over to another process: plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainSnapshot {
    /// The pool's name.
    pub pool: String,
    /// The node's name.
    pub node: String,
    /// An operator ordered it; else the node asks for it.
    pub is_ordered: bool,
    /// As it was ordered.
    pub order: config::Drain,
    /// How far it is.
    pub progress: DrainProgress,
}

/// Drains a node as an operator orders: what `overrides` does not say is as the pool's `drain` says. Returns when the
/// tunnels that are there are counted.
///
/// # Errors
///
/// See [`DrainError`].
pub(crate) async fn order_drain(
    context: &Arc<ProxyContext>,
    pool: &str,
    node: &str,
    overrides: &Value,
) -> Result<DrainChange, DrainError> {
    let (pool, upstream) = find(context, pool, node)?;
    let order = pool.config.drain.with(overrides).map_err(DrainError::InvalidOrder)?;
    if context.shutdown.phase() != Phase::Serving {
        return Err(DrainError::Stopping);
    }
    let (drain, warnings) = begin_ordered(context, &pool, &upstream, order)?;
    if let Some(drain) = drain {
        drain.counted().await;
    }
    Ok(DrainChange { upstream, warnings })
}

/// All in one step: a process that takes over learns of it whole or not at all.
fn begin_ordered(
    context: &Arc<ProxyContext>,
    pool: &UpstreamPool,
    upstream: &Arc<Upstream>,
    order: config::Drain,
) -> Result<(Option<Arc<ActiveDrain>>, Vec<String>), DrainError> {
    let _governing = context.shutdown.govern().ok_or(DrainError::TakenOver)?;
    let now = context.now();
    let was_up = upstream.is_up(now);
    upstream.update_health(now, &"an operator ordered it", |health| health.set_drain_ordered(true, now));
    let mut warnings = Vec::new();
    if was_up && pool.count_up(now) == 0 {
        let (node, pool) = (&upstream.node.id, &pool.config.name);
        warnings.push(format!(
            "{node} was the last node of {pool} that took clients: until another does, they are answered with 503"
        ));
        tracing::warn!(%pool, %node, "last available node of the pool is drained, new sessions get 503");
    }
    Ok((begin_drain(context, (pool, upstream), order, DrainProgress::default(), None), warnings))
}

/// Takes an operator's order back: tunnels that have not been sent a Close stay, and the node takes clients again.
///
/// # Errors
///
/// See [`DrainError`].
pub(crate) fn cancel_drain(
    context: &ProxyContext,
    pool: &str,
    node: &str,
) -> Result<DrainChange, DrainError> {
    let (_, upstream) = find(context, pool, node)?;
    let _governing = context.shutdown.govern().ok_or(DrainError::TakenOver)?;
    let (now, health) = (context.now(), upstream.health());
    if health.is_drain_requested() && !health.is_drain_ordered() {
        return Err(DrainError::AsksItself(node.to_owned()));
    }
    upstream.update_health(now, &"an operator took the drain back", |health| {
        health.set_drain_ordered(false, now)
    });
    end_unwanted(&upstream);
    let still = upstream.health().is_draining();
    let warnings = still.then(|| "the node itself asks to be drained, so its drain goes on".to_owned());
    Ok(DrainChange { upstream, warnings: warnings.into_iter().collect() })
}

/// Follows what the node said last: begins a drain as its pool says when it asks for one and none is under way, and
/// ends the drain when nobody wants it any more.
pub(crate) fn follow_node(context: &Arc<ProxyContext>, pool: &UpstreamPool, upstream: &Arc<Upstream>) {
    if !upstream.health().is_draining() {
        end_unwanted(upstream);
    } else if upstream.drain().is_none() {
        begin_drain(context, (pool, upstream), pool.config.drain.clone(), DrainProgress::default(), None);
    }
}

/// The drains that are under way, or have closed every tunnel and are not taken back.
pub fn snapshots(context: &ProxyContext) -> Vec<DrainSnapshot> {
    let state = context.state.load();
    let upstreams = state.pools.values().flat_map(|pool| &pool.upstreams);
    let snapshot = |upstream: &Arc<Upstream>| {
        let drain = upstream.drain()?;
        Some(DrainSnapshot {
            pool: upstream.meter.pool.to_string(),
            node: upstream.node.id.to_string(),
            is_ordered: upstream.health().is_drain_ordered(),
            order: drain.order.clone(),
            progress: drain.progress(),
        })
    };
    upstreams.filter_map(snapshot).collect()
}

/// Goes on with a drain of another process, over what is left of its window; its tunnels have all come when `arrived` is
/// cancelled. `None` when the config does not name the node, or it is gone.
pub fn resume(
    context: &Arc<ProxyContext>,
    snapshot: &DrainSnapshot,
    arrived: CancellationToken,
) -> Option<Arc<ActiveDrain>> {
    let (pool, upstream) = find(context, &snapshot.pool, &snapshot.node).ok()?;
    let now = context.now();
    upstream.update_health(now, &"the process before was draining it", |health| match snapshot.is_ordered {
        true => health.set_drain_ordered(true, now),
        false => health.set_drain_requested(true, now),
    });
    begin_drain(context, (&pool, &upstream), snapshot.order.clone(), snapshot.progress, Some(arrived))
}

/// Begins a drain in place of the one that is under way; `None` where nobody wants one, or the node was removed.
fn begin_drain(
    context: &Arc<ProxyContext>,
    (pool, upstream): (&UpstreamPool, &Arc<Upstream>),
    order: config::Drain,
    before: DrainProgress,
    arrived: Option<CancellationToken>,
) -> Option<Arc<ActiveDrain>> {
    // Before any tunnel is closed, so that clients that reconnect are sent to nodes of the new release first.
    pool.rollout.record_drain(upstream);
    pool.update_rollout();
    let mut slot = upstream.drain_slot();
    if !upstream.health().is_draining() || upstream.is_removed() {
        return None;
    }
    let meter = &upstream.meter;
    let tunnels = tunnels_of(Arc::clone(&meter.pool), Arc::clone(&meter.node));
    let drain = Arc::new(ActiveDrain::begin(&context.relay, tunnels, order, before));
    meter.set_drain(Some(drain.gauge()));
    if let Some(replaced) = slot.replace(Arc::clone(&drain)) {
        replaced.end();
    }
    drop(slot);
    let (pool, node, over) = (&*meter.pool, &*meter.node, drain.order.over);
    tracing::info!(pool, node, tunnels = meter.live(), ?over, "node drain started");
    context.tasks.spawn(watch_drain(Arc::clone(context), Arc::clone(upstream), Arc::clone(&drain), arrived));
    Some(drain)
}

/// Ends the drain of a node, unless somebody still wants it.
fn end_unwanted(upstream: &Upstream) {
    let mut slot = upstream.drain_slot();
    let is_wanted = upstream.health().is_draining();
    if let Some(unwanted) = slot.take_if(|_| !is_wanted) {
        unwanted.end();
        upstream.meter.set_drain(None);
    }
}

/// Logs when the drain has closed every tunnel, and ends it when all tunnels are being closed anyway.
async fn watch_drain(
    context: Arc<ProxyContext>,
    upstream: Arc<Upstream>,
    drain: Arc<ActiveDrain>,
    arrived: Option<CancellationToken>,
) {
    let finished = async {
        if let Some(arrived) = arrived {
            arrived.cancelled().await;
        }
        drain.finished().await;
        let (pool, node) = (&*upstream.meter.pool, &*upstream.meter.node);
        tracing::info!(
            pool,
            node,
            closed = drain.closed(),
            left = upstream.meter.live(),
            "node drain finished"
        );
        std::future::pending().await
    };
    tokio::select! {
        biased;
        () = drain.ended() => {}
        () = finished => {}
        () = context.shutdown.wait_for(Phase::Draining) => drain.end(),
        // Another process goes on with it.
        () = context.shutdown.wait_until_superseded() => {}
    }
}

/// Selects the tunnels of a node.
fn tunnels_of(pool: Arc<str>, node: Arc<str>) -> TunnelSelector {
    TunnelSelector::new(move |session| {
        session.node_connection.node == node && session.node_connection.pool == pool
    })
}

impl UpstreamPool {
    /// The draining node that a polling session stays on for now: the one that it is pinned to, until its time in the
    /// window has come.
    pub(super) fn draining_pin(&self, wishes: &AffinityHints, sid: Option<u64>) -> Option<usize> {
        let sid = sid?;
        let Some(AffinityHint::Pin { node, .. }) = wishes.as_slice().first() else { return None };
        let drain = self.upstreams.get(*node)?.drain()?;
        drain.keeps_session(sid).then_some(*node)
    }
}

fn find(
    context: &ProxyContext,
    pool: &str,
    node: &str,
) -> Result<(Arc<UpstreamPool>, Arc<Upstream>), DrainError> {
    let state = context.state.load();
    let Some(found) = state.pools.get(pool) else {
        let mut known: Vec<&str> = state.pools.keys().map(|name| &**name).collect();
        known.sort_unstable();
        return Err(DrainError::NoPool(pool.to_owned(), known.join(", ")));
    };
    let Some(at) = found.nodes.find_by_id(node) else {
        let known: Vec<&str> = found.config.nodes.iter().map(|node| node.id.as_str()).collect();
        return Err(DrainError::NoNode(pool.to_owned(), node.to_owned(), known.join(", ")));
    };
    Ok((Arc::clone(found), Arc::clone(&found.upstreams[at])))
}
