//! Nodes of the new release come first for who has to move while a pool is rolled out.
//!
//! That is whoever carried a pin that cannot be met; and, while a node is drained or was taken out and is being left,
//! whoever carries no pin: of those nobody knows who was moved, not even by a key, whose client may have been elsewhere
//! than where the key falls now. Whoever is pinned to a node that is up stays with it, old or new. A first new node
//! among many old ones is not flooded: it takes up to [`MOST`] times its part of the pool's tunnels, and the others are
//! placed as usual.

use super::{Candidates, FEW, Load, Total};
use crate::pool::State;
use crate::pool::rollout::Rollout;

/// A new node is preferred below this times its part of all tunnels, by weight of the nodes that are up. When nodes
/// are replaced one by one, each new one gets the tunnels of one old one, which is about its part; twice that leaves
/// room for nodes that were fuller than others.
const MOST: f64 = 2.0;

/// While only nodes of the new release are looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Preference<'a> {
    rollout: &'a Rollout,
    /// What the pool carries: nodes that are up and those that are drained, by weight of those that are up.
    total: Total,
}

impl<'a, L: Fn(usize) -> Load> Candidates<'a, L> {
    /// The preference that this session has now.
    pub(super) fn preference(&self) -> Option<Preference<'a>> {
        let rollout = self.ask.rollout?;
        if !self.has_to_move(rollout) {
            return None;
        }
        let mut total = Total::default();
        for (node, limits) in self.nodes.limits.iter().enumerate() {
            let load = (self.loads)(node);
            match load.state {
                State::Up => total.add(load, limits.weight),
                State::Draining => total.add(load, 0),
                State::Down | State::Removed => {}
            }
        }
        Some(Preference { rollout, total })
    }

    fn has_to_move(&self, rollout: &Rollout) -> bool {
        if self.missed.is_some() {
            return true;
        }
        let is_drained = |node| (self.loads)(node).state == State::Draining;
        rollout.is_departing || (0..self.nodes.len()).any(is_drained)
    }

    /// Whether a node is one of those that are preferred now.
    pub(super) fn is_preferred(&self, node: usize, load: Load) -> bool {
        let Some(Preference { rollout, total }) = self.preferred else { return true };
        let part = f64::from(self.nodes.limits[node].weight) / f64::from(total.weight.max(1));
        let is_flooded = load.live >= FEW && f64::from(load.live) >= MOST * (total.live as f64 + 1.0) * part;
        rollout.is_newest(node) && !is_flooded
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Ask, Balance, candidates};
    use crate::affinity::{Request, Source, Wishes, wishes};
    use crate::pool::rollout::Releases;
    use crate::pool::{Node, Nodes};

    use super::*;

    /// How clients are kept on their nodes.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Ties {
        /// By a cookie that names the node.
        Pin,
        /// By their name.
        Key,
        /// By nothing.
        None,
    }

    /// A pool that is rolled out, and its clients, who come back when they are closed.
    struct World {
        ties: Ties,
        balance: Balance,
        load_bound: f64,
        nodes: Vec<(Node, State)>,
        releases: Releases,
        rollout: Option<Rollout>,
        /// For each client: its node, and how often it was moved.
        clients: Vec<(String, u32)>,
    }

    fn node(id: &str, release: &str) -> Node {
        Node {
            id: id.parse().unwrap(),
            address: "127.0.0.1:1".parse().unwrap(),
            weight: 1,
            max_connections: None,
            release: Some(release.into()),
        }
    }

    impl World {
        fn new(ties: Ties, balance: Balance, nodes: &[(&str, &str)]) -> Self {
            let nodes = nodes.iter().map(|(id, release)| (node(id, release), State::Up)).collect();
            let (releases, clients) = Default::default();
            let mut world = Self { ties, balance, load_bound: 1.25, nodes, releases, rollout: None, clients };
            world.look();
            world
        }

        /// What the balancer does when nodes come or go.
        fn look(&mut self) {
            let nodes: Vec<_> = self.nodes.iter().map(|(node, _)| (node, node.release.as_deref())).collect();
            self.rollout = self.releases.note(&nodes);
        }

        fn live(&self, id: &str) -> u32 {
            self.clients.iter().filter(|(home, _)| home == id).count() as u32
        }

        /// Where a client goes now.
        fn place(&self, client: usize, pin: Option<&str>) -> String {
            let nodes = Nodes::new("chat", self.nodes.iter().map(|(node, _)| node.clone()).collect());
            let wishes = self.wishes(client, pin, &nodes);
            let loads: Vec<Load> = self
                .nodes
                .iter()
                .map(|(node, state)| Load {
                    state: *state,
                    live: self.live(node.id.as_str()),
                    share: 1.0,
                    is_crowded: false,
                    is_reserve: false,
                })
                .collect();
            let ask = Ask {
                wishes: &wishes,
                balance: self.balance,
                load_bound: Some(self.load_bound),
                in_session: false,
                client: std::net::Ipv4Addr::from_bits(client as u32).into(),
                tunnel: true,
                opens: true,
                stays: None,
                rollout: self.rollout.as_ref(),
                draw: crate::affinity::hash::mix(client as u64),
                turn: client as u64,
            };
            let first = candidates(&nodes, ask, |node| loads[node]).next().unwrap();
            self.nodes[first.node].0.id.to_string()
        }

        fn wishes(&self, client: usize, pin: Option<&str>, nodes: &Nodes) -> Wishes {
            let sources = [Source::NodeCookie { name: "io".into() }, Source::Query("user".into())];
            let pin = pin.filter(|_| self.ties == Ties::Pin).map(|id| format!("io={id}").parse().unwrap());
            let headers = pin.map(|pin| (http::header::COOKIE, pin)).into_iter().collect();
            let query = (self.ties == Ties::Key).then(|| format!("user={client}"));
            let client = "192.0.2.1".parse().unwrap();
            let request =
                Request { headers: &headers, query: query.as_deref(), client, now: 0, pool: "chat" };
            wishes(&sources, &request, nodes)
        }

        fn fill(&mut self, count: usize) {
            for client in 0..count {
                let home = self.place(client, None);
                self.clients.push((home, 0));
            }
        }

        /// Every client of this node is closed in turn and comes back at once.
        fn move_off(&mut self, id: &str) {
            for client in 0..self.clients.len() {
                if self.clients[client].0 == id {
                    let home = self.place(client, Some(id));
                    let (before, moves) = &mut self.clients[client];
                    (*before, *moves) = (home, *moves + 1);
                }
            }
        }

        fn drain(&mut self, id: &str) {
            let at = self.nodes.iter().position(|(node, _)| node.id.as_str() == id).unwrap();
            self.nodes[at].1 = State::Draining;
            let node = self.nodes[at].0.clone();
            self.releases.leaves(&node.id, node.release.as_deref());
            self.look();
            self.move_off(id);
        }

        fn remove(&mut self, id: &str) {
            self.nodes.retain(|(node, _)| node.id.as_str() != id);
            self.look();
            if let Some(rollout) = &mut self.rollout {
                rollout.is_departing = true;
            }
            self.move_off(id);
            self.look();
        }

        fn join(&mut self, id: &str, release: &str) {
            self.nodes.push((node(id, release), State::Up));
            self.look();
        }

        fn most_moves(&self) -> u32 {
            self.clients.iter().map(|(_, moves)| *moves).max().unwrap()
        }
    }

    const BALANCES: [Balance; 4] =
        [Balance::LeastConnections, Balance::RoundRobin, Balance::RandomTwo, Balance::ClientIp];
    const THREE: [(&str, &str); 3] = [("a", "v7"), ("b", "v7"), ("c", "v7")];

    fn worlds() -> impl Iterator<Item = World> {
        let ties = [Ties::Pin, Ties::Key, Ties::None];
        ties.into_iter().flat_map(|ties| BALANCES.map(|balance| World::new(ties, balance, &THREE)))
    }

    #[test]
    fn a_client_moves_at_most_once_while_three_nodes_are_replaced_one_after_another() {
        for drains_first in [true, false] {
            for mut world in worlds() {
                world.fill(300);
                for (old, new) in [("a", "d"), ("b", "e"), ("c", "f")] {
                    world.join(new, "v8");
                    if drains_first {
                        world.drain(old);
                    }
                    world.remove(old);
                }
                let what = format!("{:?} {:?} {drains_first}", world.ties, world.balance);
                assert_eq!(world.most_moves(), 1, "{what}");
                let spread = ["d", "e", "f"].map(|id| world.live(id));
                assert!(spread.iter().all(|live| (40..=180).contains(live)), "{what}: {spread:?}");
                assert_eq!(world.rollout, None, "it is over");
            }
        }
    }

    #[test]
    fn who_is_pinned_to_a_node_that_is_up_stays_with_it_old_or_new() {
        let mut world = World::new(Ties::Pin, Balance::LeastConnections, &THREE);
        world.fill(90);
        world.join("d", "v8");
        world.drain("a");
        for (client, (home, _)) in world.clients.iter().enumerate() {
            assert_eq!(world.place(client, Some(home)), *home);
        }
        assert_eq!(world.live("d"), 30);
    }

    #[test]
    fn a_key_falls_where_it_falls_once_nobody_is_moved() {
        let mut world = World::new(Ties::Key, Balance::LeastConnections, &THREE);
        world.load_bound = f64::INFINITY;
        world.fill(90);
        let homes = world.clients.clone();
        world.join("d", "v8");
        for (client, (home, _)) in homes.iter().enumerate() {
            let again = world.place(client, None);
            assert!(again == *home || again == "d", "{home} to {again}");
        }
        world.drain("a");
        assert!(
            (0..90).all(|client| world.place(client, None) == "d"),
            "who comes back is moved once, and early"
        );
    }

    #[test]
    fn who_carries_nothing_goes_where_there_is_room_once_nobody_is_moved() {
        let mut world = World::new(Ties::None, Balance::LeastConnections, &THREE);
        world.fill(90);
        world.join("d", "v8");
        world.clients.resize(130, ("d".into(), 0));
        assert_ne!(
            world.place(500, None),
            "d",
            "a release that is tried out on one node does not draw everybody"
        );
        world.drain("a");
        assert_eq!(world.place(500, None), "d");
    }

    #[test]
    fn the_first_new_node_is_not_flooded_when_many_old_ones_are_drained_at_once() {
        for mut world in worlds() {
            for id in ["g", "h", "i", "j", "k"] {
                world.join(id, "v7");
            }
            world.fill(400);
            world.join("n", "v8");
            ["a", "b", "c"].into_iter().for_each(|id| world.drain(id));
            // Of six nodes that are up a part is 67; twice that is the most.
            let live = world.live("n");
            assert!((100..=135).contains(&live), "{:?} {:?}: {live}", world.ties, world.balance);
        }
    }

    #[test]
    fn a_new_node_that_is_full_or_gone_leaves_it_at_the_usual_order() {
        let mut world = World::new(Ties::Pin, Balance::LeastConnections, &THREE);
        world.fill(90);
        let mut small = node("d", "v8");
        small.max_connections = Some(5);
        world.nodes.push((small, State::Up));
        world.look();
        world.drain("a");
        assert_eq!((world.live("d"), world.live("a")), (5, 0));
        world.nodes.last_mut().unwrap().1 = State::Down;
        assert_ne!(world.place(0, Some("a")), "d");
    }
}
