//! Who has to leave after a reload: the tunnels of nodes that are gone, and those of routes that are gone.
//!
//! They are closed as their pool's `drain` says; where a drain of the node was under way, as that was wanted, over what
//! is left of its window. A session that was on its way under an older generation is waited
//! for and leaves with the others. What is named again before its tunnels have left keeps those that are still
//! there: a node that was taken out by mistake can be put back.
//!
//! What is under way when another process takes over goes on there ([`Left`]), over what is left of its window.
//!
//! A node that has another address counts as gone from its old one: its name there stands for another process now,
//! and whoever comes new under the same key is at the new place.

mod errand;
mod left;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::config::{Config, Drain, is_still_there};
use crate::metrics::Meter;
use crate::pool::{Address, Node, NodeId, State as NodeState};
use crate::proxy::{ProxyContext, ProxyState};
use crate::relay::Which;
use crate::route::Route;
use errand::{Errand, OnTheWay, Progress};
pub(super) use left::Left;

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
    /// The first generation whose tunnels are meant, and the first behind them.
    generations: (u32, u32),
    /// How its tunnels leave, and since when.
    order: (Drain, Instant),
    progress: Arc<Progress>,
    /// Keeps those that are still there; cancelled when none is left, too.
    stop: CancellationToken,
}

/// What is gone.
#[derive(Debug, Clone, PartialEq)]
enum Gone {
    /// A node from its place.
    Node { pool: Arc<str>, node: NodeId, address: Address },
    /// A route; the pool that it led to is there.
    Route {
        pool: Arc<str>,
        name: Arc<str>,
        /// `None` where another process has taken it out.
        route: Option<Route>,
    },
}

impl Leaving {
    /// Swaps the next generation in, and sees off those whose node or route is only in the old config.
    pub fn swap(
        &mut self,
        front: &Arc<ProxyContext>,
        (old, new): (&Config, &Config),
        before: &Arc<ProxyState>,
        next: Arc<ProxyState>,
    ) {
        let generation = next.generation;
        self.departures.retain(|departure| !departure.stop.is_cancelled());
        self.generations.retain(|generation| !generation.is_cancelled());
        self.generations.push(before.retirement());
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
                let under_way = upstream.and_then(|upstream| upstream.mark_removed());
                let drain = under_way.map_or_else(|| drain.clone(), |drain| drain.rest());
                // Under a name that the config still has, the numbers are those of the other place.
                let meter = upstream.filter(|_| !knows(new, pool, Some(node.id.as_str())));
                (since, pool, node, drain, meter.map(|upstream| Arc::clone(&upstream.meter)))
            })
            .collect();
        next.activate(&front.metrics, front.now());
        front.metrics.retain(&|pool, node| knows(new, pool, node));
        for (since, pool, node, drain, meter) in nodes {
            let what =
                Gone::Node { pool: Arc::clone(pool), node: node.id.clone(), address: node.address.clone() };
            let coming = OnTheWay::Generations(self.generations.clone());
            self.see_off(front, (what, (since, generation)), (&drain, meter, 0), coming);
        }
        for (route, drain) in gone_routes(old, new) {
            let (pool, name, route) = (Arc::clone(&route.pool), route.name().into(), Some(route.clone()));
            let coming = OnTheWay::Generations(self.generations.clone());
            let what = (Gone::Route { pool, name, route }, (0, generation));
            self.see_off(front, what, (drain, None, 0), coming);
        }
    }

    /// Goes on with what another process had under way, whose tunnels have all come when `arrived` is cancelled. What
    /// the config names (again) stays.
    pub fn go_on(
        &mut self,
        front: &Arc<ProxyContext>,
        config: &Config,
        left: &Left,
        arrived: &CancellationToken,
    ) {
        let Some(what) = left.what().filter(|what| !what.is_in(config)) else { return };
        let meter = match &what {
            Gone::Node { pool, node, .. } if !left.is_known && !knows(config, pool, Some(node.as_str())) => {
                let meter = front.metrics.node(pool, node.as_str());
                meter.state(NodeState::Removed.as_str());
                Some(meter)
            }
            _ => None,
        };
        let coming = OnTheWay::Arrivals(arrived.clone());
        self.see_off(front, (what, (left.since, left.before)), (&left.order(), meter, left.closed), coming);
    }

    /// What is under way, for another process to go on with.
    pub fn left(&self) -> Vec<Left> {
        let under_way = self.departures.iter().filter(|departure| !departure.stop.is_cancelled());
        under_way.map(Left::of).collect()
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
            let since = back.inspect(|departure| departure.stop.cancel());
            let since = since.map(|departure| departure.generations.0);
            let since = since.min().unwrap_or(generation);
            self.since.insert((Arc::clone(pool), node), since);
        }
        for departure in &self.departures {
            if matches!(&departure.what, Gone::Route { .. }) && departure.what.is_in(new) {
                departure.stop.cancel();
            }
        }
    }

    /// Begins to see off the tunnels of some generations of what is gone. `closed` of them have left already.
    fn see_off(
        &mut self,
        front: &Arc<ProxyContext>,
        (what, (since, before)): (Gone, (u32, u32)),
        (drain, meter, closed): (&Drain, Option<Arc<Meter>>, usize),
        coming: OnTheWay,
    ) {
        let (stop, progress) = (CancellationToken::new(), Arc::new(Progress::after(closed)));
        let departing = matches!(what, Gone::Node { .. }).then(|| what.pool());
        let which = Which::Opened { of: Box::new(what.which()), since, before };
        let errand = Errand::new(front, which, (drain, departing), (coming, meter), &progress);
        front.tasks.spawn(errand.run(stop.clone()));
        let order = (drain.clone(), Instant::now());
        self.departures.push(Departure { what, generations: (since, before), order, progress, stop });
    }
}

impl Gone {
    fn pool(&self) -> &Arc<str> {
        match self {
            Self::Node { pool, .. } | Self::Route { pool, .. } => pool,
        }
    }

    /// Whether a config has it.
    fn is_in(&self, config: &Config) -> bool {
        match self {
            Self::Node { pool, node, address } => {
                let known = config.pools.iter().find(|known| known.name == *pool);
                let same = |known: &Node| known.id == *node && known.address == *address;
                known.is_some_and(|known| known.nodes.iter().any(same))
            }
            Self::Route { route: Some(route), .. } => is_still_there(route, &config.routes),
            Self::Route { pool, name, route: None } => {
                config.routes.iter().any(|known| known.name() == **name && known.pool == *pool)
            }
        }
    }

    fn which(&self) -> Which {
        match self {
            Self::Node { pool, node, .. } => {
                Which::Node { pool: Arc::clone(pool), node: node.as_str().into() }
            }
            Self::Route { pool, name, .. } => {
                Which::Route { pool: Arc::clone(pool), route: Arc::clone(name) }
            }
        }
    }
}

/// Whether a config has this pool, or this node of it.
pub(super) fn knows(config: &Config, pool: &str, node: Option<&str>) -> bool {
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
