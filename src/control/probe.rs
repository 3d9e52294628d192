//! Probing: one task per node checks its health, from before it takes clients until it leaves the config, the balancer
//! drains, or another process has taken over.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::health_check::{HealthCheckError, HealthReport, asked, check_health};
use crate::affinity::hash::mix;
use crate::config::Probe;
use crate::proxy::drain;
use crate::proxy::upstream::{ProbeResult, Upstream};
use crate::proxy::{ProxyContext, ProxyState, UpstreamPool};
use crate::rate_limit::jitter;
use crate::shutdown::Phase;

/// Intervals vary by this part, so that several balancers do not probe at the same moment.
const JITTER: f64 = 0.2;

/// Probes each of these once; returns when each has answered or failed.
pub(crate) async fn probe_once(front: &Arc<ProxyContext>, nodes: Vec<(Arc<UpstreamPool>, Arc<Upstream>)>) {
    let mut round = JoinSet::new();
    for (pool, node) in nodes.into_iter().filter(|(pool, _)| pool.config.health.probe != Probe::Off) {
        let front = Arc::clone(front);
        round.spawn(async move { probe_node(&front, &pool, &node).await });
    }
    while round.join_next().await.is_some() {}
}

/// Every node of a generation, with its pool.
pub(crate) fn all_nodes(state: &ProxyState) -> Vec<(Arc<UpstreamPool>, Arc<Upstream>)> {
    let of = |pool: &Arc<UpstreamPool>| {
        let pool = Arc::clone(pool);
        let upstreams = pool.upstreams.clone();
        upstreams.into_iter().map(move |node| (Arc::clone(&pool), node))
    };
    state.pools.values().flat_map(of).collect()
}

/// The tasks that probe the nodes of the present state. They end when draining begins, too.
#[derive(Default)]
pub(crate) struct ProbeTasks {
    /// One for each probed node.
    tasks: Vec<ProbeTask>,
}

struct ProbeTask {
    node: Arc<Upstream>,
    stop: CancellationToken,
}

impl ProbeTasks {
    /// Probes the nodes of the present state from now on, and no others. A task whose node stays goes on.
    pub(crate) fn follow_state(&mut self, front: &Arc<ProxyContext>) {
        let mut before = mem::take(&mut self.tasks);
        for (pool, node) in all_nodes(&front.state.load()) {
            if pool.config.health.probe == Probe::Off {
                continue;
            }
            if let Some(at) = before.iter().position(|task| Arc::ptr_eq(&task.node, &node)) {
                self.tasks.push(before.swap_remove(at));
                continue;
            }
            let stop = CancellationToken::new();
            front.tasks.spawn(probe_until_stopped(Arc::clone(front), pool, Arc::clone(&node), stop.clone()));
            self.tasks.push(ProbeTask { node, stop });
        }
        before.iter().for_each(|task| task.stop.cancel());
    }
}

async fn probe_until_stopped(
    front: Arc<ProxyContext>,
    pool: Arc<UpstreamPool>,
    node: Arc<Upstream>,
    stop: CancellationToken,
) {
    let mut draw = front.now().as_nanos() as u64 ^ Arc::as_ptr(&node) as u64;
    loop {
        draw = mix(draw.wrapping_add(1));
        let pause = jitter(pool.config.health.interval, JITTER, draw);
        // A reload may have begun this task between two probes: the interval continues.
        let since = node.last_probe_sent().map_or(Duration::ZERO, |asked| front.now().saturating_sub(asked));
        if is_stopped_within(&front, &stop, pause.saturating_sub(since)).await {
            return;
        }
        probe_node(&front, &pool, &node).await;
    }
}

/// Waits; true when the node is not to be probed any more.
async fn is_stopped_within(front: &ProxyContext, stop: &CancellationToken, pause: Duration) -> bool {
    tokio::select! {
        () = tokio::time::sleep(pause) => false,
        () = stop.cancelled() => true,
        () = front.shutdown.wait_for(Phase::Draining) => true,
        () = front.shutdown.wait_until_superseded() => true,
    }
}

async fn probe_node(front: &Arc<ProxyContext>, pool: &UpstreamPool, node: &Arc<Upstream>) {
    let health = &pool.config.health;
    node.record_probe_sent(front.now());
    let answer =
        check_health(node.dial_probe(health.timeout), &node.node.address, &health.probe, health.timeout)
            .await;
    let answer = judge_auto(&health.probe, node.answers_probes(), answer);
    node.meter.record_probe(answer.is_ok());
    if let Err(fault) = &answer {
        log_error(pool, node, fault);
    }
    let before = node.running_release();
    node.record_probe(ProbeResult {
        at: SystemTime::now(),
        error: answer.as_ref().err().map(ToString::to_string),
        load: answer.as_ref().ok().and_then(|answer| answer.load),
        release: answer.as_ref().ok().and_then(|answer| answer.release.clone()),
    });
    if node.running_release() != before {
        pool.update_rollout();
    }
    let now = front.now();
    let found = ProbeReason { probe: &health.probe, answer: &answer };
    node.update_health(now, &found, |health| health.record_probe(answer.is_ok(), now));
    match &answer {
        Ok(said) => {
            node.meter.set_reported_load(said.load);
            let reason =
                if said.draining { "the node asks for it" } else { "the node no longer asks for it" };
            node.update_health(now, &reason, |health| health.set_drain_requested(said.draining, now));
            drain::follow_node(front, pool, node);
        }
        // One failed probe may be the network's fault; the report of a node that is down is out of date.
        Err(_) if !node.is_up(now) => node.meter.set_reported_load(None),
        Err(_) => {}
    }
}

fn log_error(pool: &UpstreamPool, node: &Upstream, fault: &HealthCheckError) {
    let (pool, node) = (&pool.config.name, &node.node.id);
    match fault {
        HealthCheckError::Request(_) => tracing::warn!(%pool, %node, %fault, "probe not sent"),
        fault => tracing::debug!(%pool, %node, %fault, "probe failed"),
    }
}

/// The result of [`Probe::Auto`]. Some servers answer no plain request at all, such as a Socket.IO server with nothing
/// beside it. So a node that was reached and has not answered is healthy, until it has answered once: then no answer is a
/// failure, as of a process that hangs.
fn judge_auto(
    probe: &Probe,
    answers: &AtomicBool,
    answer: Result<HealthReport, HealthCheckError>,
) -> Result<HealthReport, HealthCheckError> {
    if *probe != Probe::Auto {
        return answer;
    }
    match &answer {
        Err(HealthCheckError::Http(_) | HealthCheckError::Timeout(_)) if !answers.load(Relaxed) => {
            return Ok(HealthReport::default());
        }
        Err(HealthCheckError::Dial(_)) => answers.store(false, Relaxed),
        Ok(_) | Err(HealthCheckError::Status { .. }) => answers.store(true, Relaxed),
        Err(_) => {}
    }
    answer
}

/// The result of a probe, in words.
struct ProbeReason<'a> {
    probe: &'a Probe,
    answer: &'a Result<HealthReport, HealthCheckError>,
}

impl fmt::Display for ProbeReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.answer {
            Ok(HealthReport { status: Some(status), .. }) => {
                write!(f, "{} answered {status}", asked(self.probe))
            }
            Ok(_) => f.write_str("connected"),
            Err(fault) => fault.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::dial::DialError;

    #[test]
    fn a_server_that_answers_no_plain_request_is_well_and_one_that_has_stopped_to_is_not() {
        let answers = AtomicBool::new(false);
        let forgive = |probe, answer| judge_auto(probe, &answers, answer).is_ok();
        let silent = || Err(HealthCheckError::Timeout(Duration::from_secs(1)));
        assert_eq!([silent(), silent()].map(|answer| forgive(&Probe::Auto, answer)), [true; 2]);
        assert!(forgive(&Probe::Auto, Ok(HealthReport::default())));
        assert_eq!([silent(), silent()].map(|answer| forgive(&Probe::Auto, answer)), [false; 2]);
        assert!(!forgive(&Probe::Auto, Err(HealthCheckError::Dial(DialError::Refused))));
        assert!(forgive(&Probe::Auto, silent()), "another process may be there by now");
        assert!(!forgive(&Probe::Tcp, silent()), "who names a probe is taken at his word");
    }
}
