//! Who has to leave after a reload: the tunnels of nodes that are gone, and those of routes that are gone.
//!
//! They are closed as their pool's `drain` says; where a drain of the node was under way, as that was wanted, over what
//! is left of its window. A session that was on its way under an older generation is waited
//! for and leaves with the others. What is named again before its tunnels have left keeps those that are still
//! there: a node that was taken out by mistake can be put back.
//!
//! A node that has another address counts as gone from its old one: its name there stands for another process now,
//! and whoever comes new under the same key is at the new place.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::config::{Config, Drain, is_still_there};
use crate::metrics::{DrainGauge, Meter};
use crate::pool::{Address, Node, NodeId};
use crate::proxy::drain::GRACE;
use crate::proxy::{Front, State};
use crate::relay::{Closing, Departures, Which};
use crate::route::Route;
use crate::shutdown::Phase;

/// How long the closing waits for sessions that are on their way, so that it need not be planned twice.
const SOON: Duration = Duration::from_millis(100);

/// How long after the last tunnel its clients may still come back: the longest pauses of clients that come back by
/// themselves are half of that (SignalR's last one).
const COMING_BACK: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub(super) struct Leaving {
    /// Departures that are under way.
    departures: Vec<Departure>,
    /// Since which generation a node has been at its place; those of the start are not listed.
    since: HashMap<(Arc<str>, NodeId), u32>,
    /// Each is cancelled when nobody sees that generation any more.
    generations: Vec<CancellationToken>,
}

/// Something that is gone, while its tunnels leave.
struct Departure {
    what: Gone,
    /// The first generation whose tunnels are meant.
    since: u32,
    /// Keeps those that are still there; cancelled when none is left, too.
    stop: CancellationToken,
}

/// What is gone.
#[derive(Debug, Clone, PartialEq)]
enum Gone {
    /// A node from its place.
    Node { pool: Arc<str>, node: NodeId, address: Address },
    /// A route; the pool that it led to is there.
    Route(Route),
}

impl Leaving {
    /// Swaps the next generation in, and sees off those whose node or route is only in the old config.
    pub fn swap(
        &mut self,
        front: &Arc<Front>,
        (old, new): (&Config, &Config),
        before: &Arc<State>,
        next: Arc<State>,
    ) {
        let generation = next.generation;
        self.departures.retain(|departure| !departure.stop.is_cancelled());
        self.generations.retain(|generation| !generation.is_cancelled());
        self.generations.push(before.out_of_use());
        let nodes = gone_nodes(old, new).into_iter();
        let nodes: Vec<_> =
            nodes.map(|(pool, node, drain)| (self.since(pool, node), pool, node, drain)).collect();
        self.welcome(old, new, generation);
        front.state.store(Arc::clone(&next));
        // One whose drain was under way goes on as that was wanted.
        let nodes: Vec<_> = nodes
            .into_iter()
            .map(|(since, pool, node, drain)| {
                let upstream = before.upstream(pool, node);
                let under_way = upstream.and_then(|upstream| upstream.remove());
                let drain = under_way.map_or_else(|| drain.clone(), |drain| drain.rest());
                // Under a name that the config still has, the numbers are those of the other place.
                let meter = upstream.filter(|_| !knows(new, pool, Some(node.id.as_str())));
                (since, pool, node, drain, meter.map(|upstream| Arc::clone(&upstream.meter)))
            })
            .collect();
        next.take_effect(&front.metrics, front.now());
        front.metrics.retain(&|pool, node| knows(new, pool, node));
        for (since, pool, node, drain, meter) in nodes {
            let what =
                Gone::Node { pool: Arc::clone(pool), node: node.id.clone(), address: node.address.clone() };
            self.see_off(front, what, (since, generation), (&drain, meter));
        }
        for (route, drain) in gone_routes(old, new) {
            self.see_off(front, Gone::Route(route.clone()), (0, generation), (drain, None));
        }
    }

    /// The first generation whose tunnels on this node are at its present place.
    fn since(&self, pool: &Arc<str>, node: &Node) -> u32 {
        self.since.get(&(Arc::clone(pool), node.id.clone())).copied().unwrap_or(0)
    }

    /// Notes who is at a new place, and stops the departures of what is named again.
    fn welcome(&mut self, old: &Config, new: &Config, generation: u32) {
        self.since.retain(|(pool, node), _| knows(new, pool, Some(node.as_str())));
        // What is in `old` and not in `new` is gone; the other way round it is new.
        for (pool, node, _) in gone_nodes(new, old) {
            let (node, address) = (node.id.clone(), node.address.clone());
            let what = Gone::Node { pool: Arc::clone(pool), node: node.clone(), address };
            let back = self.departures.iter().filter(|departure| departure.what == what);
            let since = back.inspect(|departure| departure.stop.cancel()).map(|departure| departure.since);
            let since = since.min().unwrap_or(generation);
            self.since.insert((Arc::clone(pool), node), since);
        }
        for departure in &self.departures {
            if matches!(&departure.what, Gone::Route(route) if is_still_there(route, &new.routes)) {
                departure.stop.cancel();
            }
        }
    }

    fn see_off(
        &mut self,
        front: &Arc<Front>,
        what: Gone,
        (since, before): (u32, u32),
        (drain, meter): (&Drain, Option<Arc<Meter>>),
    ) {
        let stop = CancellationToken::new();
        let errand = Errand {
            front: Arc::clone(front),
            which: Which::Opened { of: Box::new(what.which()), since, before },
            closing: Closing {
                code: drain.code,
                reason: drain.reason.as_str().into(),
                over: drain.over,
                grace: GRACE,
            },
            generations: self.generations.clone(),
            meter,
            departing: matches!(what, Gone::Node { .. }).then(|| Departing::begin(front, what.pool())),
        };
        front.tasks.spawn(errand.run(stop.clone()));
        self.departures.push(Departure { what, since, stop });
    }
}

impl Gone {
    fn pool(&self) -> &Arc<str> {
        match self {
            Self::Node { pool, .. } => pool,
            Self::Route(route) => &route.pool,
        }
    }

    fn which(&self) -> Which {
        match self {
            Self::Node { pool, node, .. } => {
                Which::Node { pool: Arc::clone(pool), node: node.as_str().into() }
            }
            Self::Route(route) => Which::Route { pool: Arc::clone(&route.pool), route: route.name().into() },
        }
    }
}

/// Seeing off those that are meant, and with them those that are on their way.
struct Errand {
    front: Arc<Front>,
    which: Which,
    closing: Closing,
    /// The generations that they may be on their way under.
    generations: Vec<CancellationToken>,
    /// Where the progress is counted; `None` for what has no numbers of its own.
    meter: Option<Arc<Meter>>,
    /// Kept until those who were seen off have come back elsewhere.
    departing: Option<Departing>,
}

impl Errand {
    /// Returns when none is left, when they may stay, or when all tunnels are being closed anyway. `stop` is
    /// cancelled at the end.
    async fn run(self, stop: CancellationToken) {
        {
            let _ended = stop.clone().drop_guard();
            tokio::select! {
                () = self.see_off() => {}
                () = stop.cancelled() => return,
                () = self.front.shutdown.reached(Phase::Draining) => return,
            }
        }
        // Its numbers end with its last tunnel.
        drop(self.meter);
        if self.departing.is_some() {
            tokio::select! {
                () = tokio::time::sleep(COMING_BACK) => {}
                () = self.front.shutdown.reached(Phase::Draining) => {}
            }
        }
    }

    async fn see_off(&self) {
        let begun = Instant::now();
        let mut arrived = pin!(async {
            for generation in &self.generations {
                generation.cancelled().await;
            }
        });
        let mut before = 0;
        if tokio::time::timeout(SOON, &mut arrived).await.is_err() {
            // A node takes its time to answer a handshake: the others do not wait for that one.
            let first = self.close(self.closing.over, 0);
            arrived.await;
            before = first.0.closed();
        }
        let over = self.closing.over.saturating_sub(begun.elapsed());
        self.close(over, before).0.finished().await;
    }

    /// Begins to close those that are there.
    fn close(&self, over: Duration, before: usize) -> Stopped {
        let closing = Closing { over, ..self.closing.clone() };
        let departures = self.front.relay.close_some(self.which.clone(), &closing);
        if let Some(meter) = &self.meter {
            let deadline = SystemTime::now().checked_add(over + GRACE).unwrap_or(SystemTime::UNIX_EPOCH);
            let deadline = deadline.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let counted = departures.clone();
            let closed = Box::new(move || before + counted.closed());
            meter.drain(Some(DrainGauge { closed, deadline }));
        }
        Stopped(departures)
    }
}

/// A node that was taken out of a pool and is being left: until this is dropped, its pool knows.
struct Departing {
    front: Arc<Front>,
    pool: Arc<str>,
}

impl Departing {
    fn begin(front: &Arc<Front>, pool: &Arc<str>) -> Self {
        let departing = Self { front: Arc::clone(front), pool: Arc::clone(pool) };
        departing.note(true);
        departing
    }

    fn note(&self, is_departing: bool) {
        if let Some(pool) = self.front.state.load().pools.get(&self.pool) {
            pool.note_departing(is_departing);
        }
    }
}

impl Drop for Departing {
    fn drop(&mut self) {
        self.note(false);
    }
}

/// Departures that end with this: whoever has not been told to leave stays.
struct Stopped(Departures);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Whether a config has this pool, or this node of it.
fn knows(config: &Config, pool: &str, node: Option<&str>) -> bool {
    let known = config.pools.iter().find(|known| *known.name == *pool);
    known.is_some_and(|pool| node.is_none_or(|node| pool.nodes.iter().any(|known| known.id.as_str() == node)))
}

/// The nodes that are at a place of `old` and not of `new`, with how their pool drains: as it says now, or said last.
fn gone_nodes<'a>(old: &'a Config, new: &'a Config) -> Vec<(&'a Arc<str>, &'a Node, &'a Drain)> {
    let mut gone = Vec::new();
    for pool in &old.pools {
        let now = new.pools.iter().find(|other| other.name == pool.name);
        let is_there = |node: &&Node| {
            let same = |other: &Node| other.id == node.id && other.address == node.address;
            now.is_some_and(|pool| pool.nodes.iter().any(same))
        };
        let nodes = pool.nodes.iter().filter(|node| !is_there(node));
        gone.extend(nodes.map(|node| (&pool.name, node, &now.unwrap_or(pool).drain)));
    }
    gone
}

/// The routes of `old` whose tunnels have no place in `new`, as long as their pool is there: else its nodes are gone.
fn gone_routes<'a>(old: &'a Config, new: &'a Config) -> Vec<(&'a Route, &'a Drain)> {
    let gone = old.routes.iter().filter(|route| !is_still_there(route, &new.routes));
    let drain = |route: &Route| Some(&new.pools.iter().find(|pool| pool.name == route.pool)?.drain);
    gone.filter_map(|route| Some((route, drain(route)?))).collect()
}
