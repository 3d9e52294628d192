//! What the admin server shows and can bring about, from the parts of the running process.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crate::admin::nodes::NodeAnswer;
use crate::admin::rebalance::Plan;
use crate::admin::sessions::Session;
use crate::admin::status::{Process, drain_status, status};
use crate::admin::{self, Readiness, View};
use crate::control::Reload;
use crate::control::upgrade::Upgrader;
use crate::proxy::ProxyContext;
use crate::proxy::drain::{DrainChange, cancel_drain, order_drain};
use crate::relay::{CloseReason, PacedClose, TunnelSelector};
use crate::ws::close;

/// What the admin server shows and can bring about.
pub(super) fn view(reload: &Arc<Reload>, started_at: SystemTime, upgrades: &Arc<OnceLock<Upgrader>>) -> View {
    let front = reload.front();
    let [shown, listed, closed, drained, undrained] = [(); 5].map(|()| Arc::clone(front));
    let [ready, config, listening, asked] = [(); 4].map(|()| Arc::clone(reload));
    let upgrades = Arc::clone(upgrades);
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
            let page = listed.relay.list_sessions(wanted.selector(), wanted.after, wanted.limit + 1);
            Box::pin(async { page.await.into_iter().map(Session::from).collect() })
        }),
        close: Box::new(move |id| {
            let handle = closed.relay.close(kill(id));
            Box::pin(async move { handle.counted().await > 0 })
        }),
        rebalance: Box::new(move |pool, wish| {
            let (rule, outlook) = rebalances.order(&pool, &wish)?;
            Ok(Plan::new(&pool, &rule, &outlook))
        }),
        drain: Box::new(move |pool, node, wish| {
            let front = Arc::clone(&drained);
            Box::pin(async move {
                let change = order_drain(&front, &pool, &node, &wish).await?;
                Ok(node_answer(&front, change))
            })
        }),
        undrain: Box::new(move |pool, node| {
            Ok(node_answer(&undrained, cancel_drain(&undrained, &pool, &node)?))
        }),
        reload: Box::new(move || {
            let reload = Arc::clone(&asked);
            Box::pin(async move {
                let changes = reload.from_file().await?;
                Ok(changes.iter().map(ToString::to_string).collect())
            })
        }),
        upgrade: Box::new(move || {
            let upgrader = upgrades.get().cloned();
            Box::pin(async move {
                let Some(upgrader) = upgrader else { return Err("the balancer is starting".into()) };
                let replaced = upgrader.upgrade().await.map_err(|fault| fault.to_string())?;
                Ok(admin::Replaced {
                    process: replaced.process,
                    tunnels: replaced.tunnels,
                    pause: replaced.pause,
                })
            })
        }),
    }
}

/// What is said of a node that was told to be drained, or no longer.
fn node_answer(front: &ProxyContext, change: DrainChange) -> NodeAnswer {
    let DrainChange { upstream, warnings } = change;
    NodeAnswer {
        pool: upstream.meter.pool.to_string(),
        node: upstream.node.id.to_string(),
        state: upstream.load(front.now()).state.as_str(),
        drain: drain_status(&upstream),
        warnings,
    }
}

/// How an operator ends a session. The client may come back, so not 1000.
fn kill(id: u64) -> PacedClose {
    let session = TunnelSelector::sessions([id].into());
    PacedClose::new(session, CloseReason::Killed, close::SERVICE_RESTART, "closed by an operator")
}

fn readiness(reload: &Reload) -> Readiness {
    use crate::shutdown::Phase;
    let front = reload.front();
    if front.shutdown.phase() != Phase::Serving {
        return Readiness::NotReady("draining");
    }
    if !reload.is_open() {
        return Readiness::NotReady("starting");
    }
    let now = front.now();
    if front.state.load().pools.values().any(|pool| pool.count_up(now) > 0) {
        return Readiness::Ready;
    }
    Readiness::NotReady("no node is up")
}
