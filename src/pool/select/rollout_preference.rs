//! During a rollout, nodes of the new release come first for sessions that have to move.
//!
//! These are the sessions whose pin cannot be met and, while a node is drained or has been removed and still has
//! tunnels, all sessions without a pin: nobody knows which of them had to move, not even from a key, whose client may
//! have been on another node than the key hashes to now. A session that is pinned to a node that is up stays there,
//! whatever its release. The first new node among many old ones is not flooded: above [`MAX_PART`] times its part of the
//! pool's tunnels, sessions are placed as usual.

use super::load::{LOAD_BOUND_MIN_TUNNELS, NodeLoad, TotalLoad};
use crate::pool::rollout::Rollout;
use crate::pool::{NodeSet, NodeState};

/// A new node is preferred below this times its part of all tunnels, by weight of the nodes that are up. When nodes
/// are replaced one by one, each new one gets the tunnels of one old one, which is about its part; twice that leaves
/// room for nodes that were fuller than others.
const MAX_PART: f64 = 2.0;

/// Restricts a selection to nodes of the new release.
#[derive(Debug, Clone, Copy)]
pub(super) struct RolloutPreference<'a> {
    rollout: &'a Rollout,
    /// What the pool carries: nodes that are up and those that are drained, by weight of those that are up.
    total: TotalLoad,
}

impl<'a> RolloutPreference<'a> {
    /// The preference during `rollout`, from the loads of now.
    pub(super) fn new(rollout: &'a Rollout, nodes: &NodeSet, loads: impl Fn(usize) -> NodeLoad) -> Self {
        let mut total = TotalLoad::default();
        for (node, limits) in nodes.limits.iter().enumerate() {
            let load = loads(node);
            match load.state {
                NodeState::Up => total.add(load, limits.weight),
                NodeState::Draining => total.add(load, 0),
                NodeState::Down | NodeState::Removed => {}
            }
        }
        Self { rollout, total }
    }

    /// Whether a node of this weight runs the new release and is not flooded.
    pub(super) fn includes(&self, node: usize, load: NodeLoad, weight: u32) -> bool {
        let part = f64::from(weight) / f64::from(self.total.weight.max(1));
        let is_flooded = load.live >= LOAD_BOUND_MIN_TUNNELS
            && f64::from(load.live) >= MAX_PART * (self.total.live as f64 + 1.0) * part;
        self.rollout.is_newest(node) && !is_flooded
    }
}

#[cfg(test)]
mod tests {
    use super::super::candidates::select_candidates;
    use super::super::request::{BalancePolicy, SelectRequest};
    use crate::affinity::{AffinityHints, AffinityRequest, AffinitySource, collect_hints};
    use crate::pool::rollout::ReleaseHistory;
    use crate::pool::{Node, NodeSet};

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
    struct RolloutModel {
        ties: Ties,
        balance: BalancePolicy,
        load_bound: f64,
        nodes: Vec<(Node, NodeState)>,
        releases: ReleaseHistory,
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

    impl RolloutModel {
        fn new(ties: Ties, balance: BalancePolicy, nodes: &[(&str, &str)]) -> Self {
            let nodes = nodes.iter().map(|(id, release)| (node(id, release), NodeState::Up)).collect();
            let (releases, clients) = Default::default();
            let mut world = Self { ties, balance, load_bound: 1.25, nodes, releases, rollout: None, clients };
            world.look();
            world
        }

        /// What the balancer does when nodes come or go.
        fn look(&mut self) {
            let nodes: Vec<_> = self.nodes.iter().map(|(node, _)| (node, node.release.as_deref())).collect();
            self.rollout = self.releases.observe(&nodes);
        }

        fn live(&self, id: &str) -> u32 {
            self.clients.iter().filter(|(home, _)| home == id).count() as u32
        }

        /// Where a client goes now.
        fn place(&self, client: usize, pin: Option<&str>) -> String {
            let nodes = NodeSet::new("chat", self.nodes.iter().map(|(node, _)| node.clone()).collect());
            let hints = self.hints(client, pin, &nodes);
            let loads: Vec<NodeLoad> = self
                .nodes
                .iter()
                .map(|(node, state)| NodeLoad {
                    state: *state,
                    live: self.live(node.id.as_str()),
                    slow_start_factor: 1.0,
                    is_above_share: false,
                    is_last_resort: false,
                })
                .collect();
            let ask = SelectRequest {
                hints: &hints,
                balance: self.balance,
                load_bound: Some(self.load_bound),
                is_in_session: false,
                client: std::net::Ipv4Addr::from_bits(client as u32).into(),
                is_tunnel: true,
                opens_session: true,
                draining_pin: None,
                rollout: self.rollout.as_ref(),
                random: crate::affinity::hash::mix(client as u64),
                sequence: client as u64,
            };
            let first = select_candidates(&nodes, ask, |node| loads[node]).next().unwrap();
            self.nodes[first.node].0.id.to_string()
        }

        fn hints(&self, client: usize, pin: Option<&str>, nodes: &NodeSet) -> AffinityHints {
            let sources =
                [AffinitySource::NodeCookie { name: "io".into() }, AffinitySource::Query("user".into())];
            let pin = pin.filter(|_| self.ties == Ties::Pin).map(|id| format!("io={id}").parse().unwrap());
            let headers = pin.map(|pin| (http::header::COOKIE, pin)).into_iter().collect();
            let query = (self.ties == Ties::Key).then(|| format!("user={client}"));
            let client = "192.0.2.1".parse().unwrap();
            let request =
                AffinityRequest { headers: &headers, query: query.as_deref(), client, now: 0, pool: "chat" };
            collect_hints(&sources, &request, nodes)
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
            self.nodes[at].1 = NodeState::Draining;
            let node = self.nodes[at].0.clone();
            self.releases.record_leaving(&node.id, node.release.as_deref());
            self.look();
            self.move_off(id);
        }

        fn remove(&mut self, id: &str) {
            self.nodes.retain(|(node, _)| node.id.as_str() != id);
            self.look();
            if let Some(rollout) = &mut self.rollout {
                rollout.has_removed_nodes = true;
            }
            self.move_off(id);
            self.look();
        }

        fn join(&mut self, id: &str, release: &str) {
            self.nodes.push((node(id, release), NodeState::Up));
            self.look();
        }

        fn most_moves(&self) -> u32 {
            self.clients.iter().map(|(_, moves)| *moves).max().unwrap()
        }
    }

    const BALANCES: [BalancePolicy; 4] = [
        BalancePolicy::LeastConnections,
        BalancePolicy::RoundRobin,
        BalancePolicy::RandomTwo,
        BalancePolicy::ClientIp,
    ];
    const THREE: [(&str, &str); 3] = [("a", "v7"), ("b", "v7"), ("c", "v7")];

    fn worlds() -> impl Iterator<Item = RolloutModel> {
        let ties = [Ties::Pin, Ties::Key, Ties::None];
        ties.into_iter().flat_map(|ties| BALANCES.map(|balance| RolloutModel::new(ties, balance, &THREE)))
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
        let mut world = RolloutModel::new(Ties::Pin, BalancePolicy::LeastConnections, &THREE);
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
        let mut world = RolloutModel::new(Ties::Key, BalancePolicy::LeastConnections, &THREE);
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
        let mut world = RolloutModel::new(Ties::None, BalancePolicy::LeastConnections, &THREE);
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
        let mut world = RolloutModel::new(Ties::Pin, BalancePolicy::LeastConnections, &THREE);
        world.fill(90);
        let mut small = node("d", "v8");
        small.max_connections = Some(5);
        world.nodes.push((small, NodeState::Up));
        world.look();
        world.drain("a");
        assert_eq!((world.live("d"), world.live("a")), (5, 0));
        world.nodes.last_mut().unwrap().1 = NodeState::Down;
        assert_ne!(world.place(0, Some("a")), "d");
    }
}
