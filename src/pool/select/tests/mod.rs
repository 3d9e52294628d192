//! The order of the candidates under every rule.

mod balance;
mod keyed;

use proptest::prelude::*;
use smallvec::SmallVec;

use super::*;
use crate::affinity::hash::{self, RendezvousKey};
use crate::affinity::{AffinityHints, HintSource};
use crate::affinity::{AffinityRequest, AffinitySource, NodeDirectory, collect_hints};
use crate::pool::{Node, NodeSet, NodeState};

const STATES: [NodeState; 4] = [NodeState::Up, NodeState::Down, NodeState::Draining, NodeState::Removed];

/// Nodes `ws0`, `ws1`, ... with these weights, all up and empty.
struct Fleet {
    nodes: NodeSet,
    loads: Vec<NodeLoad>,
    balance: BalancePolicy,
    load_bound: f64,
    tunnel: bool,
}

impl Fleet {
    fn new(weights: &[u16]) -> Self {
        Self::limited(weights, None)
    }

    fn limited(weights: &[u16], max_connections: Option<u32>) -> Self {
        let node = |(index, weight): (usize, &u16)| Node {
            id: format!("ws{index}").parse().unwrap(),
            address: "127.0.0.1:1".parse().unwrap(),
            weight: *weight,
            max_connections,
            release: None,
        };
        let nodes = NodeSet::new("chat", weights.iter().enumerate().map(node).collect());
        let loads = vec![
            NodeLoad {
                state: NodeState::Up,
                live: 0,
                slow_start_factor: 1.0,
                is_above_share: false,
                is_last_resort: false
            };
            weights.len()
        ];
        Self { nodes, loads, balance: BalancePolicy::LeastConnections, load_bound: 1.25, tunnel: true }
    }

    fn balanced(weights: &[u16], balance: BalancePolicy) -> Self {
        Self { balance, ..Self::new(weights) }
    }

    fn ask<'a>(&self, wishes: &'a AffinityHints, random: u64) -> SelectRequest<'a> {
        let client = "192.0.2.1".parse().unwrap();
        let Self { balance, load_bound, tunnel, .. } = *self;
        SelectRequest {
            hints: wishes,
            balance,
            load_bound: Some(load_bound),
            client,
            is_tunnel: tunnel,
            opens_session: true,
            is_in_session: false,
            draining_pin: None,
            rollout: None,
            random,
            sequence: random,
        }
    }

    fn all(&self, wishes: &AffinityHints, random: u64) -> Vec<Candidate> {
        select_candidates(&self.nodes, self.ask(wishes, random), |node| self.loads[node]).collect()
    }

    fn first(&self, wishes: &AffinityHints, random: u64) -> Option<usize> {
        self.all(wishes, random).first().map(|candidate| candidate.node)
    }

    fn shortage(&self) -> Option<NoNodeReason> {
        select_candidates(&self.nodes, self.ask(&AffinityHints::default(), 0), |node| self.loads[node])
            .no_node_reason()
    }

    /// Places `count` clients in turn, each of which stays, and says what each node has then.
    fn fill(&mut self, count: u64, wishes: impl Fn(u64) -> AffinityHints) -> Vec<u32> {
        for client in 0..count {
            let node = self.first(&wishes(client), client).unwrap();
            self.loads[node].live += 1;
        }
        self.loads.iter().map(|load| load.live).collect()
    }

    /// What a request with these pins (cookies that nodes set, in order) and perhaps a user as key wishes.
    fn wish(&self, pins: &[&str], user: Option<&str>) -> AffinityHints {
        let cookies: Vec<String> = pins.iter().enumerate().map(|(at, id)| format!("c{at}={id}")).collect();
        let headers = [(http::header::COOKIE, cookies.join("; ").parse().unwrap())].into_iter().collect();
        let mut sources: Vec<AffinitySource> =
            (0..pins.len()).map(|at| AffinitySource::NodeCookie { name: format!("c{at}") }).collect();
        sources.push(AffinitySource::Query("user".into()));
        let query = user.map(|user| format!("user={user}"));
        let client = "192.0.2.1".parse().unwrap();
        let request =
            AffinityRequest { headers: &headers, query: query.as_deref(), client, now: 0, pool: "chat" };
        collect_hints(&sources, &request, &self.nodes)
    }

    /// The nodes in rendezvous order, worked out the long way.
    fn order(&self, user: &str) -> Vec<usize> {
        let key = hash::hash_key(user.as_bytes());
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        let stand = |node: usize| &self.nodes.rendezvous[node];
        order.sort_by(|a, b| {
            let [a, b] = [*a, *b].map(|node| stand(node).score(RendezvousKey::new(key).draw(stand(node))));
            if a.wins_over(b) { std::cmp::Ordering::Less } else { std::cmp::Ordering::Greater }
        });
        order
    }
}

fn nodes_of(candidates: &[Candidate]) -> Vec<usize> {
    candidates.iter().map(|candidate| candidate.node).collect()
}

fn labels(candidates: &[Candidate]) -> Vec<(usize, &'static str, &'static str)> {
    let labels =
        |candidate: &Candidate| (candidate.node, candidate.source_label(), candidate.outcome.as_str());
    candidates.iter().map(labels).collect()
}

#[test]
fn an_ejected_node_is_better_than_none_and_comes_last() {
    let mut fleet = Fleet::new(&[1; 3]);
    for node in [0, 1] {
        fleet.loads[node] = NodeLoad { state: NodeState::Down, is_last_resort: true, ..fleet.loads[node] };
    }
    let all = nodes_of(&fleet.all(&AffinityHints::default(), 7));
    assert_eq!((all[0], all.len()), (2, 3), "{all:?}");
    let user = fleet.wish(&[], Some("alice"));
    assert_eq!(nodes_of(&fleet.all(&user, 0))[0], 2);
    fleet.loads[2].state = NodeState::Down;
    let order: Vec<usize> = fleet.order("alice").into_iter().filter(|node| *node != 2).collect();
    assert_eq!(nodes_of(&fleet.all(&user, 0)), order, "without any that is up, the reserve in its order");
    fleet.loads.iter_mut().for_each(|load| load.is_last_resort = false);
    assert!(fleet.all(&user, 0).is_empty());
}

#[test]
fn a_session_that_lives_on_an_ejected_node_stays_there_and_one_that_opens_does_not() {
    let mut fleet = Fleet::new(&[1; 3]);
    fleet.loads[1] = NodeLoad { state: NodeState::Down, is_last_resort: true, ..fleet.loads[1] };
    let wishes = fleet.wish(&["ws1"], None);
    assert_ne!(fleet.first(&wishes, 0), Some(1));
    let ask = SelectRequest { is_in_session: true, opens_session: false, ..fleet.ask(&wishes, 0) };
    let mut all = select_candidates(&fleet.nodes, ask, |node| fleet.loads[node]);
    assert_eq!(all.next().map(|first| (first.node, first.outcome)), Some((1, SelectOutcome::Kept)));
}

#[test]
fn a_pin_comes_first_and_is_kept() {
    let fleet = Fleet::new(&[1; 4]);
    let wishes = fleet.wish(&["ws2"], None);
    for random in 0..50 {
        let all = fleet.all(&wishes, random);
        assert_eq!(labels(&all)[0], (2, "node_cookie", "kept"));
        assert!(
            labels(&all)[1..]
                .iter()
                .all(|(_, source, outcome)| (*source, *outcome) == ("node_cookie", "moved"))
        );
        let mut nodes = nodes_of(&all);
        nodes.sort_unstable();
        assert_eq!(nodes, [0, 1, 2, 3], "each node once");
    }
}

#[test]
fn a_pin_to_a_draining_down_or_removed_node_moves() {
    for state in [NodeState::Down, NodeState::Draining, NodeState::Removed] {
        let mut fleet = Fleet::new(&[1; 4]);
        fleet.loads[2].state = state;
        let moved = fleet.all(&fleet.wish(&["ws2"], Some("ann")), 0);
        let expected: Vec<usize> = fleet.order("ann").into_iter().filter(|node| *node != 2).collect();
        assert_eq!(nodes_of(&moved), expected);
        assert!(
            labels(&moved).iter().all(|(_, source, outcome)| (*source, *outcome) == ("node_cookie", "moved"))
        );
        assert_eq!(labels(&fleet.all(&fleet.wish(&["ws2"], None), 0))[0].2, "moved");
    }
}

#[test]
fn a_session_that_stays_on_a_draining_node_follows_its_pin_there_and_nothing_else_leads_there() {
    let mut fleet = Fleet::new(&[1; 4]);
    fleet.loads[2].state = NodeState::Draining;
    let asked = |wishes: &AffinityHints, fleet: &Fleet| {
        let ask = SelectRequest { draining_pin: Some(2), ..fleet.ask(wishes, 0) };
        labels(&select_candidates(&fleet.nodes, ask, |node| fleet.loads[node]).collect::<Vec<_>>())
    };
    assert_eq!(asked(&fleet.wish(&["ws2"], None), &fleet)[0], (2, "node_cookie", "kept"));
    for wishes in [fleet.wish(&["ws1"], None), fleet.wish(&[], Some("ann")), fleet.wish(&[], None)] {
        assert!(asked(&wishes, &fleet).iter().all(|(node, ..)| *node != 2));
    }
    fleet.loads[2].state = NodeState::Down;
    assert!(asked(&fleet.wish(&["ws2"], None), &fleet).iter().all(|(node, ..)| *node != 2));
}

#[test]
fn a_pin_to_a_node_that_is_no_longer_in_the_pool_moves() {
    let fleet = Fleet::new(&[1; 3]);
    let all = fleet.all(&fleet.wish(&["gone"], Some("ann")), 0);
    assert_eq!(labels(&all)[0], (fleet.order("ann")[0], "node_cookie", "moved"));
}

#[test]
fn pins_are_tried_in_the_order_of_the_wishes_each_once() {
    let mut fleet = Fleet::new(&[1; 4]);
    let wishes = fleet.wish(&["ws3", "ws1", "ws3"], Some("ann"));
    assert_eq!(nodes_of(&fleet.all(&wishes, 0))[..2], [3, 1]);
    assert_eq!(fleet.all(&wishes, 0).len(), 4);
    fleet.loads[3].state = NodeState::Down;
    assert_eq!(labels(&fleet.all(&wishes, 0))[0], (1, "node_cookie", "kept"));
    assert_eq!(labels(&fleet.all(&wishes, 0))[1].2, "moved");
}

#[test]
fn a_full_node_is_passed_over_but_a_plain_request_follows_its_pin() {
    let mut fleet = Fleet::limited(&[1; 3], Some(10));
    fleet.loads[1].live = 10;
    let wishes = fleet.wish(&["ws1"], None);
    assert_eq!(labels(&fleet.all(&wishes, 0))[0].2, "moved");
    assert!(!nodes_of(&fleet.all(&wishes, 0)).contains(&1));
    fleet.tunnel = false;
    assert_eq!(labels(&fleet.all(&wishes, 0))[0], (1, "node_cookie", "kept"));
    assert!(!nodes_of(&fleet.all(&fleet.wish(&[], None), 0)).contains(&1));
    fleet.loads[1].state = NodeState::Draining;
    assert!(!nodes_of(&fleet.all(&wishes, 0)).contains(&1));
}

#[test]
fn balancing_by_client_address_hashes_it() {
    let fleet = Fleet { load_bound: f64::INFINITY, ..Fleet::balanced(&[1; 5], BalancePolicy::ClientIp) };
    let all = fleet.all(&AffinityHints::default(), 0);
    assert_eq!(all, fleet.all(&AffinityHints::default(), 99));
    assert_eq!(labels(&all)[0].1, "none");
    assert_eq!((all[0].outcome, all[1].outcome), (SelectOutcome::Placed, SelectOutcome::Moved));
}

#[test]
fn a_session_that_opens_passes_over_a_crowded_node_whatever_its_pin_says() {
    let mut fleet = Fleet::new(&[1; 3]);
    fleet.loads[0].is_above_share = true;
    for balance in [BalancePolicy::LeastConnections, BalancePolicy::RoundRobin, BalancePolicy::RandomTwo] {
        fleet.balance = balance;
        for random in 0..50 {
            let all = fleet.all(&fleet.wish(&["ws0"], None), random);
            assert_eq!((all[0].outcome, all[0].source), (SelectOutcome::Moved, Some(HintSource::NodeCookie)));
            assert!(all[0].node != 0 && all[2].node == 0, "the crowded one is the last resort");
            assert_ne!(fleet.first(&AffinityHints::default(), random), Some(0));
        }
    }
    assert_eq!(fleet.first(&fleet.wish(&["ws1"], None), 0), Some(1));
    fleet.loads.iter_mut().for_each(|load| load.is_above_share = true);
    assert_eq!(fleet.all(&fleet.wish(&["ws0"], None), 0).len(), 3);
}

#[test]
fn what_belongs_to_a_session_follows_its_pin_to_a_crowded_node() {
    let mut fleet = Fleet::new(&[1; 3]);
    fleet.loads[0].is_above_share = true;
    let wishes = fleet.wish(&["ws0"], None);
    let ask = SelectRequest { opens_session: false, ..fleet.ask(&wishes, 0) };
    let first = select_candidates(&fleet.nodes, ask, |node| fleet.loads[node]).next().unwrap();
    assert_eq!((first.node, first.outcome), (0, SelectOutcome::Kept));
}

#[test]
fn a_shortage_says_whether_no_node_is_up_or_all_are_full() {
    let mut fleet = Fleet::limited(&[1; 3], Some(5));
    assert_eq!(fleet.shortage(), None);
    for load in &mut fleet.loads {
        load.live = 5;
    }
    assert_eq!(
        (fleet.shortage(), fleet.first(&AffinityHints::default(), 0)),
        (Some(NoNodeReason::AllFull), None)
    );
    fleet.loads[0].state = NodeState::Down;
    fleet.loads[1].state = NodeState::Draining;
    assert_eq!(fleet.shortage(), Some(NoNodeReason::AllFull));
    fleet.loads[2].state = NodeState::Removed;
    assert_eq!(
        (fleet.shortage(), fleet.first(&AffinityHints::default(), 0)),
        (Some(NoNodeReason::NoneUp), None)
    );
    assert_eq!(Fleet::new(&[]).shortage(), Some(NoNodeReason::NoneUp));
    for balance in [
        BalancePolicy::LeastConnections,
        BalancePolicy::RoundRobin,
        BalancePolicy::RandomTwo,
        BalancePolicy::ClientIp,
    ] {
        assert_eq!(Fleet::balanced(&[], balance).all(&AffinityHints::default(), 0), []);
    }
}

#[test]
fn a_node_that_goes_down_between_two_questions_is_not_given() {
    let fleet = Fleet::new(&[1; 3]);
    let is_down = std::cell::Cell::new(None);
    let loads = |node| NodeLoad {
        state: if is_down.get() == Some(node) { NodeState::Down } else { NodeState::Up },
        ..fleet.loads[node]
    };
    let wishes = fleet.wish(&[], Some("ann"));
    let order = fleet.order("ann");
    let mut candidates = select_candidates(&fleet.nodes, fleet.ask(&wishes, 0), loads);
    assert_eq!(candidates.next().map(|candidate| candidate.node), Some(order[0]));
    is_down.set(Some(order[1]));
    assert_eq!(candidates.next().map(|candidate| candidate.node), Some(order[2]));
    assert_eq!(candidates.next(), None);
}

#[test]
fn a_cookie_survives_the_removal_of_another_node() {
    let (before, after) = (Fleet::new(&[1; 4]), Fleet::new(&[1; 3]));
    for id in ["ws0", "ws1", "ws2"] {
        let kept = |fleet: &Fleet| fleet.all(&fleet.wish(&[id], None), 0)[0];
        assert_eq!(kept(&before), kept(&after));
        assert_eq!(before.nodes.find_by_id(id), after.nodes.find_by_id(id));
    }
}

proptest! {
    #[test]
    fn whatever_the_loads_each_open_node_is_given_once(
        nodes in proptest::collection::vec((0_u8..4, 0_u32..12, 0_f32..1.1, 1_u16..1001), 0..150),
        user in proptest::option::of("[a-z]{1,5}"),
        pins in proptest::collection::vec(0_usize..160, 0..3),
        rule in 0_usize..4,
        bound in 0.5_f64..3.0,
        random in any::<u64>(),
    ) {
        let weights: Vec<u16> = nodes.iter().map(|node| node.3).collect();
        let mut fleet = Fleet::limited(&weights, Some(10));
        fleet.load_bound = bound;
        fleet.balance =
            [BalancePolicy::LeastConnections, BalancePolicy::RoundRobin, BalancePolicy::RandomTwo, BalancePolicy::ClientIp][rule];
        for (load, (state, live, share, _)) in fleet.loads.iter_mut().zip(&nodes) {
            *load = NodeLoad { state: STATES[usize::from(*state)], live: *live, slow_start_factor: *share, is_above_share: live % 3 == 0, is_last_resort: false };
        }
        let pins: SmallVec<[String; 3]> = pins.iter().map(|pin| format!("ws{pin}")).collect();
        let pins: Vec<&str> = pins.iter().map(|pin| &**pin).collect();
        let mut given = nodes_of(&fleet.all(&fleet.wish(&pins, user.as_deref()), random));
        given.sort_unstable();
        let is_open = |node: &usize| fleet.loads[*node].state == NodeState::Up && fleet.loads[*node].live < 10;
        let open: Vec<usize> = (0..nodes.len()).filter(is_open).collect();
        prop_assert_eq!(fleet.shortage().is_none(), !open.is_empty());
        prop_assert_eq!(given, open);
    }
}
