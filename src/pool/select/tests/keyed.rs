//! Selection by key: rendezvous order and the load bound.

use super::super::load::LOAD_BOUND_MIN_TUNNELS;
use super::*;

#[test]
fn without_a_load_bound_a_key_finds_its_node_however_full_it_is() {
    let mut fleet = Fleet::new(&[1; 3]);
    let user = fleet.wish(&[], Some("alice"));
    let home = fleet.first(&user, 0).unwrap();
    fleet.loads[home].live = 100_000;
    assert_ne!(fleet.first(&user, 0), Some(home));
    let ask = SelectRequest { load_bound: None, ..fleet.ask(&user, 0) };
    let first = select_candidates(&fleet.nodes, ask, |node| fleet.loads[node]).next();
    assert_eq!(first.map(|first| first.node), Some(home));
}

#[test]
fn a_pin_is_not_held_to_the_load_bound() {
    let mut fleet = Fleet::new(&[1; 4]);
    fleet.loads[2].live = 1_000_000;
    assert_eq!(fleet.first(&fleet.wish(&["ws2"], Some("ann")), 0), Some(2));
}

#[test]
fn a_key_gives_rendezvous_order() {
    for weights in [vec![1; 9], vec![5, 1, 1, 9, 2], vec![1; 200]] {
        let fleet = Fleet { load_bound: f64::INFINITY, ..Fleet::new(&weights) };
        for user in ["ann", "bob", "eve", "x", ""] {
            let wishes = fleet.wish(&[], Some(user).filter(|user| !user.is_empty()));
            let all = fleet.all(&wishes, 7);
            if user.is_empty() {
                assert!(all.iter().all(|candidate| candidate.source.is_none()));
            } else {
                assert_eq!(nodes_of(&all), fleet.order(user));
                assert_eq!(labels(&all)[0], (fleet.order(user)[0], "query", "hashed"));
                assert_eq!(labels(&all)[1].2, "moved", "the first failed");
            }
        }
    }
}

#[test]
fn a_key_passes_over_a_node_above_the_load_bound_and_comes_back_to_it_last() {
    for weights in [[1; 4], [1, 2, 3, 2]] {
        let mut fleet = Fleet::new(&weights);
        let order = fleet.order("ann");
        for load in &mut fleet.loads {
            load.live = 100;
        }
        fleet.loads[order[0]].live = 1000;
        let wishes = fleet.wish(&[], Some("ann"));
        let all = fleet.all(&wishes, 0);
        assert_ne!(all[0].node, order[0]);
        assert_eq!((all[0].outcome, all[3].node), (SelectOutcome::Hashed, order[0]));
    }
}

#[test]
fn a_node_with_few_tunnels_is_not_held_to_the_load_bound() {
    let mut fleet = Fleet::new(&[1; 4]);
    let home = fleet.order("ann")[0];
    let wishes = fleet.wish(&[], Some("ann"));
    fleet.loads[home].live = LOAD_BOUND_MIN_TUNNELS - 1;
    assert_eq!(fleet.first(&wishes, 0), Some(home));
    fleet.loads[home].live = LOAD_BOUND_MIN_TUNNELS;
    assert_ne!(fleet.first(&wishes, 0), Some(home));
}

#[test]
fn the_load_bound_is_a_ceiling_over_the_part_of_the_node() {
    // One of four nodes, 1.25 times (39 + 1) / 4 is 12.5, rounded up 13.
    let mut fleet = Fleet::new(&[1; 4]);
    let first = fleet.order("ann")[0];
    let wishes = fleet.wish(&[], Some("ann"));
    let mut with = |live: u32| {
        let others = [(39 - live) / 3, (39 - live) / 3, 39 - live - (39 - live) / 3 * 2];
        let rest = (0..4).filter(|node| *node != first).zip(others).collect::<Vec<_>>();
        for (node, live) in rest {
            fleet.loads[node].live = live;
        }
        fleet.loads[first].live = live;
        fleet.first(&wishes, 0)
    };
    assert_eq!(with(12), Some(first));
    assert_ne!(with(13), Some(first));
}

#[test]
fn with_every_node_above_the_bound_or_full_the_order_is_the_bare_one() {
    let mut fleet = Fleet::limited(&[1; 3], Some(10));
    let order = fleet.order("ann");
    fleet.loads[order[0]].live = 9;
    fleet.loads[order[1]].live = 10;
    fleet.loads[order[2]].live = 10;
    let wishes = fleet.wish(&[], Some("ann"));
    assert_eq!(nodes_of(&fleet.all(&wishes, 0)), [order[0]]);
    fleet.load_bound = 0.01;
    assert_eq!(nodes_of(&fleet.all(&wishes, 0)), [order[0]]);
}

#[test]
fn hashed_clients_never_load_a_node_above_the_bound() {
    for weights in [vec![1; 8], vec![1, 2, 3, 4]] {
        let mut fleet = Fleet::new(&weights);
        let pin = Fleet::new(&weights);
        let counts = fleet.fill(2_000, |client| pin.wish(&[], Some(&format!("user-{client}"))));
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        for (count, weight) in counts.iter().zip(&weights) {
            assert!(f64::from(*count) <= (1.25 * 2_000.0 * f64::from(*weight) / total).ceil(), "{counts:?}");
        }
    }
}

#[test]
fn a_returned_node_gets_its_hashed_clients_back_at_once() {
    let mut fleet = Fleet::new(&[1; 4]);
    let wishes = fleet.wish(&[], Some("ann"));
    let home = fleet.order("ann")[0];
    fleet.loads[home].state = NodeState::Down;
    assert_eq!(fleet.first(&wishes, 0), Some(fleet.order("ann")[1]));
    fleet.loads[home].state = NodeState::Up;
    fleet.loads[home].slow_start_factor = 0.1;
    fleet.loads[home].live = 0;
    assert_eq!(fleet.first(&wishes, 0), Some(home));
}

#[test]
fn a_key_finds_its_node_though_it_is_crowded_unless_a_pin_was_turned_away_there() {
    let mut fleet = Fleet::new(&[1; 3]);
    let home = fleet.order("ann")[0];
    fleet.loads[home].is_above_share = true;
    let first = fleet.all(&fleet.wish(&[], Some("ann")), 0)[0];
    assert_eq!((first.node, first.outcome), (home, SelectOutcome::Hashed));
    let first = fleet.all(&fleet.wish(&[&format!("ws{home}")], Some("ann")), 0)[0];
    assert_eq!((first.node, first.outcome), (fleet.order("ann")[1], SelectOutcome::Moved));
}
