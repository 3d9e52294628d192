//! The balance policies: where sessions go that nothing pins and no key places.

use super::*;

#[test]
fn least_connections_fills_by_weight() {
    let counts = Fleet::new(&[1, 2, 3]).fill(600, |_| AffinityHints::default());
    assert_eq!(counts, [100, 200, 300]);
    let placed = Fleet::new(&[1]).all(&AffinityHints::default(), 0);
    assert_eq!(labels(&placed), [(0, "none", "placed")]);
}

#[test]
fn ties_of_least_connections_fall_evenly() {
    let mut fleet = Fleet::new(&[1; 4]);
    fleet.loads[1].live = 1;
    let mut counts = [0_u32; 4];
    for random in 0..3_000 {
        counts[fleet.first(&AffinityHints::default(), random).unwrap()] += 1;
    }
    assert_eq!(counts[1], 0);
    assert!([0, 2, 3].iter().all(|node| (850..1_150).contains(&counts[*node])), "{counts:?}");
}

#[test]
fn a_node_in_slow_start_gets_its_share_and_is_not_flooded() {
    for balance in [BalancePolicy::LeastConnections, BalancePolicy::RandomTwo] {
        let mut fleet = Fleet::balanced(&[1; 3], balance);
        fleet.loads[0].slow_start_factor = 0.1;
        let counts = fleet.fill(2_100, |_| AffinityHints::default());
        assert!(counts[0] <= 110, "{balance:?}: {counts:?}");
        assert!(counts[0] > 0);
    }
    let mut fleet = Fleet::new(&[1; 2]);
    for odd in [0.0, -1.0, f32::NAN] {
        fleet.loads[0].slow_start_factor = odd;
        assert_eq!(fleet.all(&AffinityHints::default(), 3).len(), 2, "a share of {odd} is the smallest");
    }
}

#[test]
fn round_robin_takes_each_node_in_turn() {
    let mut fleet = Fleet::balanced(&[7; 3], BalancePolicy::RoundRobin);
    let turns = |fleet: &Fleet, count: u64| {
        (0..count).map(|turn| fleet.first(&AffinityHints::default(), turn).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(turns(&fleet, 6), [0, 1, 2, 0, 1, 2]);
    fleet.loads[1].state = NodeState::Down;
    assert_eq!(turns(&fleet, 4), [0, 2, 0, 2]);
    assert_eq!(fleet.first(&AffinityHints::default(), u64::MAX), Some(2));
}

#[test]
fn round_robin_gives_each_node_its_weight_smoothly() {
    let fleet = Fleet::balanced(&[5, 1, 2, 4], BalancePolicy::RoundRobin);
    let turns: Vec<usize> =
        (0..24).map(|turn| fleet.first(&AffinityHints::default(), turn).unwrap()).collect();
    assert_eq!(turns[..12], turns[12..]);
    let count = |node: usize| turns[..12].iter().filter(|at| **at == node).count();
    assert_eq!([0, 1, 2, 3].map(count), [5, 1, 2, 4]);
    assert!(turns.windows(3).all(|three| three[0] != three[1] || three[1] != three[2]), "{turns:?}");
}

#[test]
fn random_two_prefers_the_less_loaded_and_never_takes_the_most_loaded() {
    let mut fleet = Fleet::balanced(&[1; 4], BalancePolicy::RandomTwo);
    for (node, load) in fleet.loads.iter_mut().enumerate() {
        load.live = [10, 20, 30, 40][node];
    }
    let mut counts = [0; 4];
    for random in 0..6_000 {
        counts[fleet.first(&AffinityHints::default(), random).unwrap()] += 1;
    }
    // Of six pairs the least loaded node is the better in three, the next in two, the third in one.
    assert!((2_800..3_200).contains(&counts[0]) && (1_850..2_150).contains(&counts[1]), "{counts:?}");
    assert!((880..1_120).contains(&counts[2]) && counts[3] == 0, "{counts:?}");
    assert_eq!(fleet.all(&AffinityHints::default(), 5).len(), 4);
}

#[test]
fn random_two_draws_by_weight_and_finds_the_only_open_node() {
    let counts =
        Fleet::balanced(&[1, 2, 3], BalancePolicy::RandomTwo).fill(6_000, |_| AffinityHints::default());
    for (count, expected) in counts.iter().zip([1_000, 2_000, 3_000]) {
        assert!(count.abs_diff(expected) < 120, "{counts:?}");
    }
    let mut fleet = Fleet::balanced(&[1; 100], BalancePolicy::RandomTwo);
    for (node, load) in fleet.loads.iter_mut().enumerate() {
        load.state = if node == 77 { NodeState::Up } else { NodeState::Down };
    }
    assert!((0..200).all(|random| fleet.first(&AffinityHints::default(), random) == Some(77)));
}
