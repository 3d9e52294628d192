//! Probing: one task per node asks it how it is, from before service starts until the balancer drains.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::ask::{AskFault, ask};
use crate::affinity::hash::mix;
use crate::config::Probe;
use crate::pace::jitter;
use crate::proxy::upstream::Upstream;
use crate::proxy::{Front, Pool};
use crate::shutdown::Phase;

/// Probes are spread by this part of their interval, so that balancers do not ask in step.
const SPREAD: f64 = 0.2;

/// Asks every node once; returns when each has answered or failed to.
pub async fn first_round(front: &Arc<Front>) {
    let mut round = JoinSet::new();
    for (pool, node) in nodes(front) {
        let front = Arc::clone(front);
        round.spawn(async move { probe(&front, &pool, &node).await });
    }
    while round.join_next().await.is_some() {}
}

/// Goes on asking until draining begins.
pub fn start(front: &Arc<Front>) {
    for (pool, node) in nodes(front) {
        let task = watch(Arc::clone(front), pool, node);
        front.tasks.spawn(task);
    }
}

fn nodes(front: &Front) -> Vec<(Arc<Pool>, Arc<Upstream>)> {
    let state = front.state.load();
    let of = |pool: &Arc<Pool>| {
        let pool = Arc::clone(pool);
        let upstreams = pool.upstreams.clone();
        upstreams.into_iter().map(move |node| (Arc::clone(&pool), node))
    };
    state.pools.values().filter(|pool| pool.config.health.probe != Probe::Off).flat_map(of).collect()
}

async fn watch(front: Arc<Front>, pool: Arc<Pool>, node: Arc<Upstream>) {
    let mut draw = front.now().as_nanos() as u64 ^ Arc::as_ptr(&node) as u64;
    loop {
        draw = mix(draw.wrapping_add(1));
        let pause = jitter(pool.config.health.interval, SPREAD, draw);
        if wait(&front, pause).await {
            return;
        }
        probe(&front, &pool, &node).await;
    }
}

/// True when draining has begun.
async fn wait(front: &Front, pause: Duration) -> bool {
    tokio::select! {
        () = tokio::time::sleep(pause) => false,
        () = front.shutdown.reached(Phase::Draining) => true,
    }
}

async fn probe(front: &Front, pool: &Pool, node: &Upstream) {
    let health = &pool.config.health;
    let answer = ask(&node.node.address, &health.probe, health.timeout).await;
    node.meter.probe(answer.is_ok());
    let draining = match &answer {
        Ok(answer) => answer.draining,
        Err(fault @ AskFault::Request(_)) => {
            tracing::warn!(pool = %pool.config.name, node = %node.node.id, %fault, "probe not sent");
            false
        }
        Err(fault) => {
            tracing::debug!(pool = %pool.config.name, node = %node.node.id, %fault, "probe failed");
            false
        }
    };
    let now = front.now();
    node.judge(now, |health| health.on_probe(answer.is_ok(), now));
    match answer {
        Ok(answer) => {
            node.meter.reported(answer.load);
            node.judge(now, |health| health.set_draining(draining, now));
        }
        // One failed probe may be the network's; what a node that is down had said is of no use to anybody.
        Err(_) if !node.is_up(now) => node.meter.reported(None),
        Err(_) => {}
    }
}
