//! The drain of a node: who can want one, and what they are told.
//!
//! An operator orders it, with a window, a code and a reason of its own, and takes it back; an order survives a reload
//! that still names the node at its place. Or the node asks for it in the answer to its probe, until it says otherwise;
//! then it is as the pool's `drain` says. An order replaces what is under way, a node's own word does not. A drained
//! node stays out until nobody wants its drain any more. What a drain does to tunnels and clients is
//! [`crate::proxy::drain`]'s; a node that a reload takes out is `leave`'s.

use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::affinity::Directory as _;
use crate::config;
use crate::proxy::drain::{Drain, SoFar};
use crate::proxy::upstream::Upstream;
use crate::proxy::{ProxyContext, UpstreamPool};
use crate::shutdown::Phase;

/// A node that was told to be drained, or no longer.
pub struct Told {
    /// The node.
    pub upstream: Arc<Upstream>,
    /// What is unwise about it, or to be known.
    pub warnings: Vec<String>,
}

/// Why a drain was not begun or taken back.
#[derive(Debug, thiserror::Error)]
pub enum DrainFault {
    /// No such pool.
    #[error("there is no pool `{0}`; the pools are: {1}")]
    NoPool(String, String),
    /// No such node in the pool.
    #[error("there is no node `{1}` in the pool {0}; its nodes are: {2}")]
    NoNode(String, String, String),
    /// The wish is none.
    #[error("{0}")]
    Wish(String),
    /// The process ends, and with it every tunnel.
    #[error("the balancer is stopping; every tunnel is being closed")]
    Stopping,
    /// What is changed here now, the process that takes over does not hear of.
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
pub struct Snapshot {
    /// The pool's name.
    pub pool: String,
    /// The node's name.
    pub node: String,
    /// An operator ordered it; else the node asks for it.
    pub is_ordered: bool,
    /// As it was wanted.
    pub order: config::Drain,
    /// How far it is.
    pub so_far: SoFar,
}

/// Drains a node as an operator wishes: what the `wish` does not say is as the pool's `drain` says. Returns when the
/// tunnels that are there are counted.
///
/// # Errors
///
/// See [`DrainFault`].
pub async fn order(
    front: &Arc<ProxyContext>,
    pool: &str,
    node: &str,
    wish: &Value,
) -> Result<Told, DrainFault> {
    let (pool, upstream) = find(front, pool, node)?;
    let order = pool.config.drain.with(wish).map_err(DrainFault::Wish)?;
    if front.shutdown.phase() != Phase::Serving {
        return Err(DrainFault::Stopping);
    }
    let (drain, warnings) = begin_ordered(front, (&pool, &upstream), order)?;
    if let Some(drain) = drain {
        drain.counted().await;
    }
    Ok(Told { upstream, warnings })
}

/// At one moment, before or behind the one at which another process hears what is drained.
fn begin_ordered(
    front: &Arc<ProxyContext>,
    (pool, upstream): (&UpstreamPool, &Arc<Upstream>),
    order: config::Drain,
) -> Result<(Option<Arc<Drain>>, Vec<String>), DrainFault> {
    let _governing = front.shutdown.govern().ok_or(DrainFault::TakenOver)?;
    let now = front.now();
    let was_up = upstream.is_up(now);
    upstream.update_health(now, &"an operator ordered it", |health| health.order_drain(true, now));
    let mut warnings = Vec::new();
    if was_up && pool.count_up(now) == 0 {
        let (node, pool) = (&upstream.node.id, &pool.config.name);
        warnings.push(format!(
            "{node} was the last node of {pool} that took clients: until another does, they are answered with 503"
        ));
        tracing::warn!(%pool, %node, "the last node that is up is drained");
    }
    Ok((begin(front, (pool, upstream), order, SoFar::default(), None), warnings))
}

/// Takes an operator's order back: who has not been told to leave stays, and the node takes clients again.
///
/// # Errors
///
/// See [`DrainFault`].
pub fn withdraw(front: &ProxyContext, pool: &str, node: &str) -> Result<Told, DrainFault> {
    let (_, upstream) = find(front, pool, node)?;
    let _governing = front.shutdown.govern().ok_or(DrainFault::TakenOver)?;
    let (now, health) = (front.now(), upstream.health());
    if health.asks_to_drain() && !health.is_ordered_to_drain() {
        return Err(DrainFault::AsksItself(node.to_owned()));
    }
    upstream.update_health(now, &"an operator took the drain back", |health| health.order_drain(false, now));
    upstream.end_drain();
    let still = upstream.health().is_draining();
    let warnings = still.then(|| "the node itself asks to be drained, so its drain goes on".to_owned());
    Ok(Told { upstream, warnings: warnings.into_iter().collect() })
}

/// Follows what the node said last: begins a drain as the pool says when it asks for one and none is under way, and
/// ends it when nobody wants it any more.
pub(super) fn heed(front: &Arc<ProxyContext>, pool: &UpstreamPool, upstream: &Arc<Upstream>) {
    if !upstream.health().is_draining() {
        upstream.end_drain();
    } else if upstream.drain().is_none() {
        begin(front, (pool, upstream), pool.config.drain.clone(), SoFar::default(), None);
    }
}

/// The drains that are under way, or have left nobody and are not taken back.
pub fn snapshots(front: &ProxyContext) -> Vec<Snapshot> {
    let state = front.state.load();
    let upstreams = state.pools.values().flat_map(|pool| &pool.upstreams);
    let snapshot = |upstream: &Arc<Upstream>| {
        let drain = upstream.drain()?;
        Some(Snapshot {
            pool: upstream.meter.pool.to_string(),
            node: upstream.node.id.to_string(),
            is_ordered: upstream.health().is_ordered_to_drain(),
            order: drain.order.clone(),
            so_far: drain.so_far(),
        })
    };
    upstreams.filter_map(snapshot).collect()
}

/// Goes on with a drain of another process, over what is left of its window; its tunnels have all come when `arrived` is
/// cancelled. `None` when the config does not name the node, or it is gone.
pub fn resume(
    front: &Arc<ProxyContext>,
    snapshot: &Snapshot,
    arrived: CancellationToken,
) -> Option<Arc<Drain>> {
    let (pool, upstream) = find(front, &snapshot.pool, &snapshot.node).ok()?;
    let now = front.now();
    upstream.update_health(now, &"the process before was draining it", |health| match snapshot.is_ordered {
        true => health.order_drain(true, now),
        false => health.set_draining(true, now),
    });
    begin(front, (&pool, &upstream), snapshot.order.clone(), snapshot.so_far, Some(arrived))
}

fn begin(
    front: &Arc<ProxyContext>,
    (pool, upstream): (&UpstreamPool, &Arc<Upstream>),
    order: config::Drain,
    so_far: SoFar,
    arrived: Option<CancellationToken>,
) -> Option<Arc<Drain>> {
    // Before anybody is told to leave, so that who comes back finds the new nodes first.
    pool.note_drained(upstream);
    let drain = upstream.begin_drain(&front.relay, order, so_far)?;
    let (pool, node, over) = (&*upstream.meter.pool, &*upstream.meter.node, drain.order.over);
    tracing::info!(pool, node, tunnels = upstream.meter.live(), ?over, "draining node");
    front.tasks.spawn(see_through(Arc::clone(front), Arc::clone(upstream), Arc::clone(&drain), arrived));
    Some(drain)
}

/// Says when the drain has left nobody, and ends it when all tunnels are being closed anyway.
async fn see_through(
    front: Arc<ProxyContext>,
    upstream: Arc<Upstream>,
    drain: Arc<Drain>,
    arrived: Option<CancellationToken>,
) {
    let finished = async {
        if let Some(arrived) = arrived {
            arrived.cancelled().await;
        }
        drain.finished().await;
        let (pool, node) = (&*upstream.meter.pool, &*upstream.meter.node);
        tracing::info!(pool, node, closed = drain.closed(), left = upstream.meter.live(), "node drained");
        std::future::pending().await
    };
    tokio::select! {
        biased;
        () = drain.ended() => {}
        () = finished => {}
        () = front.shutdown.reached(Phase::Draining) => drain.end(),
        // Another process goes on with it.
        () = front.shutdown.relieved() => {}
    }
}

fn find(
    front: &ProxyContext,
    pool: &str,
    node: &str,
) -> Result<(Arc<UpstreamPool>, Arc<Upstream>), DrainFault> {
    let state = front.state.load();
    let Some(found) = state.pools.get(pool) else {
        let mut known: Vec<&str> = state.pools.keys().map(|name| &**name).collect();
        known.sort_unstable();
        return Err(DrainFault::NoPool(pool.to_owned(), known.join(", ")));
    };
    let Some(at) = found.nodes.by_id(node) else {
        let known: Vec<&str> = found.config.nodes.iter().map(|node| node.id.as_str()).collect();
        return Err(DrainFault::NoNode(pool.to_owned(), node.to_owned(), known.join(", ")));
    };
    Ok((Arc::clone(found), Arc::clone(&found.upstreams[at])))
}
