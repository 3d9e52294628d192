//! How many tunnels a node has too many: its surplus over a fair share of what the pool carries.
//!
//! A share is by weight, and no larger than the node takes; what a full node cannot take is shared among the others.
//! A node gives up tunnels only when it has more than the tolerance allows, and then down to its share, so that not
//! one more is moved than the others have room for below theirs.

/// What counts about a node that is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its tunnels.
    pub live: u32,
    /// Its weight, at least 1.
    pub weight: u16,
    /// The most tunnels that it takes; `None` is no limit.
    pub max: Option<u32>,
}

/// The share of each node in whole tunnels, rounded up: together they have room for all.
pub fn shares(nodes: &[Standing]) -> Vec<u32> {
    parts(nodes).into_iter().map(whole).collect()
}

/// How many tunnels each node is to give up: none where it has at most `tolerance` (1 and more) times its share.
pub fn surplus(nodes: &[Standing], tolerance: f64) -> Vec<u32> {
    let over = |(node, part): (&Standing, f64)| {
        let is_over = f64::from(node.live) > tolerance.max(1.0) * part;
        if is_over { node.live.saturating_sub(whole(part)) } else { 0 }
    };
    nodes.iter().zip(parts(nodes)).map(over).collect()
}

/// The shares as they are by weight. Nodes whose share would be more than they take get what they take, one round
/// after the other, until what is left fits the rest.
fn parts(nodes: &[Standing]) -> Vec<f64> {
    let weight = |node: &Standing| f64::from(node.weight.max(1));
    let mut parts: Vec<Option<f64>> = vec![None; nodes.len()];
    loop {
        let open = || nodes.iter().zip(&parts).filter(|(_, part)| part.is_none());
        let total: f64 = nodes.iter().map(|node| f64::from(node.live)).sum();
        let taken: f64 = parts.iter().flatten().sum();
        let weights: f64 = open().map(|(node, _)| weight(node)).sum();
        let part = |node: &Standing| (total - taken).max(0.0) * weight(node) / weights;
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

/// Rounded up, but for what only the arithmetic has added.
fn whole(part: f64) -> u32 {
    (part - 1e-6).ceil().max(0.0) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(live: &[u32]) -> Vec<Standing> {
        live.iter().map(|live| Standing { live: *live, weight: 1, max: None }).collect()
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
        let full = Standing { live: 50, weight: 1, max: Some(10) };
        assert_eq!(shares(&[full, full]), [10, 10]);
    }

    fn fleet() -> impl Strategy<Value = Vec<Standing>> {
        let node = (0_u32..5_000, 1_u16..5, proptest::option::weighted(0.3, 1_u32..8_000));
        let node = node.prop_map(|(live, weight, max)| Standing {
            live: max.map_or(live, |max| live.min(max)),
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
            let room: u64 = nodes.iter().zip(&shares).map(|(node, share)| u64::from(share.saturating_sub(node.live))).sum();
            prop_assert!(surplus.iter().map(|count| u64::from(*count)).sum::<u64>() <= room);
            for ((node, share), surplus) in nodes.iter().zip(&shares).zip(&surplus) {
                prop_assert!(*surplus == 0 || node.live - surplus == *share);
                prop_assert!(f64::from(node.live - surplus) <= f64::from(*share) * tolerance);
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
