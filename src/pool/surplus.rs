//! The surplus of a node: the tunnels that it has above its fair share of the pool's tunnels.
//!
//! A share is by weight, and at most the node's connection limit; what a full node cannot take is shared among the
//! others. A node gives up tunnels only when it has more than the tolerance allows, and then down to its share, so that
//! no more tunnels are moved than the other nodes have room for below their shares.

/// The tunnels of a node that is up, and what it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeOccupancy {
    /// Its tunnels.
    pub tunnels: u32,
    /// Its weight, at least 1.
    pub weight: u16,
    /// Its connection limit; `None` is no limit.
    pub max: Option<u32>,
}

/// The share of each node in whole tunnels, rounded up: together the shares have room for all tunnels.
pub(crate) fn shares(nodes: &[NodeOccupancy]) -> Vec<u32> {
    exact_shares(nodes).into_iter().map(round_up).collect()
}

/// The surplus of each node: 0 where it has at most `tolerance` (1 or more) times its share.
pub(crate) fn surplus(nodes: &[NodeOccupancy], tolerance: f64) -> Vec<u32> {
    let over = |(node, part): (&NodeOccupancy, f64)| {
        let is_over = f64::from(node.tunnels) > tolerance.max(1.0) * part;
        if is_over { node.tunnels.saturating_sub(round_up(part)) } else { 0 }
    };
    nodes.iter().zip(exact_shares(nodes)).map(over).collect()
}

/// The exact shares by weight. Nodes whose share would exceed their limit get their limit, round by round, until the
/// rest fits the other nodes.
fn exact_shares(nodes: &[NodeOccupancy]) -> Vec<f64> {
    let weight = |node: &NodeOccupancy| f64::from(node.weight.max(1));
    let mut parts: Vec<Option<f64>> = vec![None; nodes.len()];
    loop {
        let open = || nodes.iter().zip(&parts).filter(|(_, part)| part.is_none());
        let total: f64 = nodes.iter().map(|node| f64::from(node.tunnels)).sum();
        let taken: f64 = parts.iter().flatten().sum();
        let weights: f64 = open().map(|(node, _)| weight(node)).sum();
        let part = |node: &NodeOccupancy| (total - taken).max(0.0) * weight(node) / weights;
        let full: Vec<bool> = nodes
            .iter()
            .zip(&parts)
            .map(|(node, known)| known.is_none() && node.max.is_some_and(|max| f64::from(max) < part(node)))
            .collect();
        if !full.contains(&true) {
            return nodes
                .iter()
                .zip(&parts)
                .map(|(node, known)| known.unwrap_or_else(|| part(node)))
                .collect();
        }
        for ((node, known), _) in nodes.iter().zip(&mut parts).zip(full).filter(|(_, full)| *full) {
            *known = node.max.map(f64::from);
        }
    }
}

/// Rounds up, ignoring what only the arithmetic has added.
fn round_up(part: f64) -> u32 {
    (part - 1e-6).ceil().max(0.0) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(live: &[u32]) -> Vec<NodeOccupancy> {
        live.iter().map(|live| NodeOccupancy { tunnels: *live, weight: 1, max: None }).collect()
    }

    #[test]
    fn a_node_that_joins_gets_its_share_and_no_more_is_moved() {
        assert_eq!(surplus(&nodes(&[400, 400, 400, 0]), 1.1), [100, 100, 100, 0]);
        assert_eq!(surplus(&nodes(&[500, 400, 300, 0]), 1.1), [200, 100, 0, 0]);
        assert_eq!(surplus(&nodes(&[1, 1, 1, 0]), 1.1), [0; 4]);
        assert_eq!(surplus(&nodes(&[9, 0]), 1.1), [4, 0]);
    }

    #[test]
    fn what_is_within_the_tolerance_stays() {
        assert_eq!(surplus(&nodes(&[109, 91, 100]), 1.1), [0; 3]);
        assert_eq!(surplus(&nodes(&[115, 85, 100]), 1.1), [15, 0, 0]);
        assert_eq!(surplus(&nodes(&[]), 1.1), [0; 0]);
        assert_eq!(surplus(&nodes(&[0, 0]), 1.0), [0; 2]);
    }

    #[test]
    fn shares_go_by_weight_and_a_full_node_is_not_filled_further() {
        let mut nodes = nodes(&[300, 300, 0]);
        nodes[0].weight = 3;
        assert_eq!(shares(&nodes), [360, 120, 120]);
        assert_eq!(surplus(&nodes, 1.1), [0, 180, 0]);
        nodes[2].max = Some(20);
        assert_eq!(shares(&nodes), [435, 145, 20]);
        // More than all of them together take: nobody has room, and nobody is moved but down to what may be.
        let full = NodeOccupancy { tunnels: 50, weight: 1, max: Some(10) };
        assert_eq!(shares(&[full, full]), [10, 10]);
    }

    fn fleet() -> impl Strategy<Value = Vec<NodeOccupancy>> {
        let node = (0_u32..5_000, 1_u16..5, proptest::option::weighted(0.3, 1_u32..8_000));
        let node = node.prop_map(|(live, weight, max)| NodeOccupancy {
            tunnels: max.map_or(live, |max| live.min(max)),
            weight,
            max,
        });
        prop::collection::vec(node, 1..9)
    }

    proptest! {
        #[test]
        fn moved_clients_find_room_and_nobody_is_above_the_tolerance_then(
            nodes in fleet(), tolerance in 1.0_f64..2.0,
        ) {
            let (shares, surplus) = (shares(&nodes), surplus(&nodes, tolerance));
            let room: u64 = nodes.iter().zip(&shares).map(|(node, share)| u64::from(share.saturating_sub(node.tunnels))).sum();
            prop_assert!(surplus.iter().map(|count| u64::from(*count)).sum::<u64>() <= room);
            for ((node, share), surplus) in nodes.iter().zip(&shares).zip(&surplus) {
                prop_assert!(*surplus == 0 || node.tunnels - surplus == *share);
                prop_assert!(f64::from(node.tunnels - surplus) <= f64::from(*share) * tolerance);
                prop_assert!(node.max.is_none_or(|max| *share <= max));
            }
        }

        #[test]
        fn from_n_to_n_plus_one_even_nodes_at_most_one_in_n_plus_one_is_moved(n in 1_usize..40, each in 0_u32..10_000) {
            let mut live = vec![each; n];
            live.push(0);
            let nodes = nodes(&live);
            let moved: u32 = surplus(&nodes, 1.1).iter().sum();
            let total = each as usize * n;
            prop_assert!(moved as usize * (n + 1) <= total);
            // The new node takes them all.
            let most = live.iter().zip(surplus(&nodes, 1.1)).map(|(live, gone)| live - gone).max().unwrap_or(0);
            let average = total as f64 / (n + 1) as f64;
            prop_assert!(f64::from(most.max(moved)) <= (1.1 * average).max(average.ceil()));
        }
    }
}
