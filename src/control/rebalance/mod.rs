//! Rebalancing: the surplus of crowded nodes, and no more, moves to those that joined or came back.
//!
//! A node that comes up in a pool that wants it begins one as soon as its slow start is over; an operator begins one at
//! once. One at a time in a pool: another order takes the place of what is under way, a node that comes up meanwhile
//! waits for its end and is looked at then.
//!
//! Who is moved: first everybody who comes anyway. While a node is crowded, a session that opens goes elsewhere whatever
//! its pin says ([`crate::pool::select`]), so that nobody who was closed comes back to it, no state is kept of anybody, and
//! each reconnect that would have happened anyway spares another client a close. What is left of the surplus is closed
//! by `course`, slice by slice.

mod course;
mod outlook;
mod unfinished;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Rebalance;
use crate::pool::NodeAddress;
use crate::proxy::{ProxyContext, UpstreamPool};
use crate::shutdown::Phase;

pub use course::{Course, Progress};
pub use outlook::{Outlook, Stand};
pub use unfinished::Unfinished;

/// How often it is looked at whether a node has come up.
const LOOK: Duration = Duration::from_secs(1);

/// Why a rebalance was not begun.
#[derive(Debug, thiserror::Error)]
pub enum RebalanceFault {
    /// No such pool.
    #[error("there is no pool `{0}`; the pools are: {1}")]
    NoPool(String, String),
    /// The wish is none.
    #[error("{0}")]
    Wish(String),
    /// The process ends, and with it every tunnel.
    #[error("the balancer is stopping; every tunnel is being closed")]
    Stopping,
    /// What is begun here now, the process that takes over does not hear of.
    #[error("another process is taking over from this one; ask again, and that one answers")]
    TakenOver,
}

/// The rebalances of the process.
pub struct Rebalances {
    front: Arc<ProxyContext>,
    /// The last of each pool, until nobody needs to be kept from a crowded node any more.
    courses: Mutex<HashMap<Arc<str>, Arc<Course>>>,
}

impl Rebalances {
    /// None is under way.
    pub fn new(front: Arc<ProxyContext>) -> Arc<Self> {
        Arc::new(Self { front, courses: Mutex::default() })
    }

    /// Begins one in a pool at once, as an operator wishes: what the `wish` does not say is as the pool's `rebalance`
    /// says. What there is to move is nothing where no node is above the tolerance.
    ///
    /// # Errors
    ///
    /// See [`RebalanceFault`].
    pub fn order(self: &Arc<Self>, pool: &str, wish: &Value) -> Result<(Rebalance, Outlook), RebalanceFault> {
        let state = self.front.state.load_full();
        let Some(pool) = state.pools.get(pool) else {
            let mut known: Vec<&str> = state.pools.keys().map(|name| &**name).collect();
            known.sort_unstable();
            return Err(RebalanceFault::NoPool(pool.to_owned(), known.join(", ")));
        };
        let usual = pool.config.rebalance.unwrap_or_default();
        let rule = usual.with(wish).map_err(RebalanceFault::Wish)?;
        if self.front.shutdown.phase() != Phase::Serving {
            return Err(RebalanceFault::Stopping);
        }
        let _governing = self.front.shutdown.govern().ok_or(RebalanceFault::TakenOver)?;
        let outlook = Outlook::of(pool, rule.tolerance, self.front.now());
        if outlook.moves() > 0 {
            self.begin(pool, rule, &outlook, (true, SystemTime::now()));
        }
        Ok((rule, outlook))
    }

    /// How far the one of this pool is; `None` when none is under way.
    pub fn progress(&self, pool: &str) -> Option<Progress> {
        self.courses.lock().get(pool).filter(|course| !course.is_over()).map(|course| course.progress())
    }

    /// Leaves those off that are under way, and gives what they had still to do, for whoever goes on with it: another
    /// process, which begins only what is new meanwhile, or this one, when the other fails. None begins here before
    /// nobody takes over any more ([`Shutdown::hand_over`](crate::shutdown::Shutdown::hand_over)).
    pub async fn leave_off(&self) -> Vec<Unfinished> {
        let courses: Vec<Arc<Course>> = self.courses.lock().values().cloned().collect();
        let under_way = courses.iter().filter(|course| !course.is_over());
        let unfinished = under_way.map(|course| course.unfinished()).collect();
        for course in courses {
            course.stop().await;
        }
        unfinished
    }

    /// Goes on with one that was left off, once the tunnels are here; not where another is under way since, which was
    /// wanted later, nor in a pool that the config does not have any more.
    pub fn resume(self: &Arc<Self>, unfinished: &Unfinished) {
        let state = self.front.state.load_full();
        let Some(pool) = state.pools.get(&*unfinished.pool) else { return };
        if self.progress(&pool.config.name).is_some() {
            return;
        }
        let rule = unfinished.rule();
        let mut outlook = Outlook::of(pool, rule.tolerance, self.front.now());
        unfinished.limit(&mut outlook);
        if outlook.moves() > 0 {
            self.begin(pool, rule, &outlook, (unfinished.is_ordered, unfinished.begun()));
        }
    }

    /// Whether an operator wants it, and when it began.
    fn begin(
        self: &Arc<Self>,
        pool: &UpstreamPool,
        rule: Rebalance,
        outlook: &Outlook,
        (is_ordered, begun): (bool, SystemTime),
    ) {
        let name = Arc::clone(&pool.config.name);
        let course = Course::new(Arc::clone(&name), rule, outlook, (is_ordered, begun));
        let before = self.courses.lock().insert(Arc::clone(&name), Arc::clone(&course));
        tracing::info!(pool = %name, moves = outlook.moves(), over = ?rule.over, "rebalancing");
        let this = Arc::clone(self);
        self.front.tasks.spawn(async move {
            if let Some(before) = before {
                before.stop().await;
            }
            course.run(&this.front).await;
            let mut courses = this.courses.lock();
            if courses.get(&name).is_some_and(|last| Arc::ptr_eq(last, &course)) {
                courses.remove(&name);
            }
        });
    }

    /// Looks out for nodes that come up, until draining begins.
    pub async fn watch(self: Arc<Self>) {
        let mut lookout = Lookout::default();
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.look(&mut lookout),
                () = self.front.shutdown.wait_for(Phase::Draining) => return,
                () = self.front.shutdown.wait_until_superseded() => return,
            }
        }
    }

    fn look(self: &Arc<Self>, lookout: &mut Lookout) {
        let Some(_governing) = self.front.shutdown.govern() else { return };
        let (state, now) = (self.front.state.load_full(), self.front.now());
        lookout.note(state.pools.values().map(|pool| &**pool), now);
        for (name, pool) in &state.pools {
            let Some(rule) = pool.config.rebalance else { continue };
            let is_due = lookout.due.get(name).is_some_and(|due| *due <= now);
            if !is_due || self.progress(name).is_some() {
                continue;
            }
            lookout.due.remove(name);
            let outlook = Outlook::of(pool, rule.tolerance, now);
            if outlook.moves() > 0 {
                self.begin(pool, rule, &outlook, (false, SystemTime::now()));
            }
        }
    }
}

/// Which nodes were up at the last look, and which pools are to be looked at.
#[derive(Default)]
struct Lookout {
    /// By pool; a node at another place is another node.
    up: HashMap<Arc<str>, Vec<NodeAddress>>,
    /// When the slow start of the first node that came up is over, on the clock of health.
    due: HashMap<Arc<str>, Duration>,
}

impl Lookout {
    /// Compares with the last look. Of a pool that is seen for the first time, and of one that had no node up, none
    /// has come up: there is nobody to move.
    fn note<'a>(&mut self, pools: impl Iterator<Item = &'a UpstreamPool>, now: Duration) {
        let mut seen = HashMap::new();
        for pool in pools {
            let name = &pool.config.name;
            let up = pool.upstreams.iter().filter(|upstream| upstream.is_up(now));
            let up: Vec<NodeAddress> = up.map(|upstream| upstream.node.address.clone()).collect();
            let before = self.up.get(name).filter(|before| !before.is_empty());
            let has_new = before.is_some_and(|before| up.iter().any(|address| !before.contains(address)));
            if has_new && pool.config.rebalance.is_some() {
                // One that flaps does not put it off for ever.
                self.due.entry(Arc::clone(name)).or_insert(now + pool.config.rule.slow_start);
            }
            seen.insert(Arc::clone(name), up);
        }
        self.due.retain(|name, _| seen.contains_key(name));
        self.up = seen;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::metrics::Metrics;
    use crate::pool::health::{FailureEvidence, NodeFailure};
    use crate::proxy::ProxyState;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn state(pool: &str) -> ProxyState {
        let text = format!(
            "pools: {{ chat: {{ nodes: [{{ id: a, address: \"a:1\" }}, {{ id: b, address: \"b:1\" }}], health: null, \
             passive: {{ failures: 1, eject: 10s }}, slow_start: 5s, {pool} }} }}"
        );
        let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        let config = config::resolve("test", text.as_bytes(), &|_| None, &no_file).unwrap();
        ProxyState::new(&config, &Metrics::new(1))
    }

    /// Real traffic ejects the first node.
    fn fail(pool: &UpstreamPool, now: Duration) {
        let failure = NodeFailure { evidence: FailureEvidence::Dial, description: "connection refused" };
        pool.upstreams[0].update_health(now, &"", |health| health.record_failure(&failure, now, true));
    }

    #[test]
    fn a_pool_is_looked_at_when_the_slow_start_of_a_node_that_came_back_is_over() {
        for (pool, due) in [("rebalance: {}", Some(s(17))), ("rebalance: null", None)] {
            let state = state(pool);
            let pool = &state.pools["chat"];
            let mut lookout = Lookout::default();
            let mut note = |now| {
                lookout.note([&**pool].into_iter(), now);
                lookout.due.get("chat").copied()
            };
            assert_eq!(note(s(0)), None, "whoever is up at the first look has not come up");
            fail(pool, s(1));
            assert_eq!(note(s(2)), None);
            assert_eq!(note(s(12)), due);
            // It flaps, and that puts nothing off.
            fail(pool, s(13));
            assert_eq!((note(s(14)), note(s(24))), (due, due));
        }
    }
}
