//! The balance rules: where a client goes when nothing pins it and no key places it.
//!
//! Least connections, each in turn, the better of two, or the client's address as the key. Randomness and the
//! turn come with the question, so that the answer is exact.

use std::cmp::Ordering;

use super::{Balance, Candidates, Load};
use crate::affinity::{Prefixes, client_key, hash};

impl<L: Fn(usize) -> Load> Candidates<'_, L> {
    /// The best node by the pool's rule.
    pub(super) fn by_balance(&self) -> Option<usize> {
        match self.ask.balance {
            Balance::LeastConnections => self.least_loaded(),
            Balance::RoundRobin => self.in_turn(),
            Balance::RandomTwo => self.better_of_two(),
            Balance::ClientIp => self.by_key(client_key(self.ask.client, Prefixes::default())),
        }
    }

    /// The node with the fewest tunnels for its capacity, counting the one that is to come: an empty node with
    /// a small share is then not flooded, and of empty nodes the heaviest is the first.
    fn least_loaded(&self) -> Option<usize> {
        let mut best: Option<(usize, Cost)> = None;
        for node in 0..self.nodes.len() {
            let load = (self.loads)(node);
            if self.takes(node, load) {
                let cost = self.cost(node, load);
                if best.is_none_or(|(other, its_cost)| self.is_cheaper(node, cost, other, its_cost)) {
                    best = Some((node, cost));
                }
            }
        }
        best.map(|(node, _)| node)
    }

    /// The node whose turn it is.
    fn in_turn(&self) -> Option<usize> {
        let weight = |node: usize| u64::from(self.nodes.nodes[node].weight.max(1));
        let is_open = |node: &usize| self.takes(*node, (self.loads)(*node));
        let open = || (0..self.nodes.len()).filter(is_open);
        if self.nodes.equal {
            let count = u64::try_from(open().count()).ok().filter(|count| *count > 0)?;
            return open().nth(usize::try_from(self.ask.turn % count).ok()?);
        }
        let total: u64 = open().map(weight).sum();
        if total == 0 {
            return None;
        }
        // A stride near the golden section, without a common divisor, visits each of the `total` places once
        // and spreads the places of a heavy node evenly between those of the others.
        let place =
            (u128::from(self.ask.turn % total) * u128::from(stride(total)) % u128::from(total)) as u64;
        nth_by_weight(open().map(|node| (node, weight(node))), place)
    }

    /// The less loaded of two different nodes, drawn by capacity.
    fn better_of_two(&self) -> Option<usize> {
        let open = |but: Option<usize>| {
            (0..self.nodes.len()).filter_map(move |node| {
                let load = (self.loads)(node);
                let is_open = Some(node) != but && self.takes(node, load);
                // In parts of 1/1024 of a weight of 1, so that the smallest share is still some.
                is_open.then(|| (node, (self.capacity(node, load) * 1024.0) as u64))
            })
        };
        let draw_one = |but: Option<usize>, random: u64| {
            let total: u64 = open(but).map(|(_, capacity)| capacity).sum();
            let place = (u128::from(random) * u128::from(total)) >> 64;
            nth_by_weight(open(but), place as u64)
        };
        let first = draw_one(None, hash::mix(self.ask.draw))?;
        let Some(second) = draw_one(Some(first), hash::mix(!self.ask.draw)) else { return Some(first) };
        let cost = |node: usize| self.cost(node, (self.loads)(node));
        if self.is_cheaper(second, cost(second), first, cost(first)) { Some(second) } else { Some(first) }
    }

    fn cost(&self, node: usize, load: Load) -> Cost {
        Cost { tunnels: f64::from(load.live) + 1.0, capacity: self.capacity(node, load) }
    }

    fn capacity(&self, node: usize, load: Load) -> f64 {
        // Written so that a share that is no number counts as the smallest.
        let share = if load.share > 0.01 { load.share.min(1.0) } else { 0.01 };
        self.nodes.facts[node].stand.weight() * f64::from(share)
    }

    /// Whether `node` costs less than `other`; a tie falls by a fresh draw for each session.
    fn is_cheaper(&self, node: usize, cost: Cost, other: usize, its_cost: Cost) -> bool {
        let draw = |node: usize| self.nodes.facts[node].stand.draw(self.ask.draw);
        match cost.compare(its_cost) {
            Ordering::Equal => draw(node) > draw(other),
            order => order == Ordering::Less,
        }
    }
}

/// Tunnels for a capacity.
#[derive(Debug, Clone, Copy)]
struct Cost {
    tunnels: f64,
    capacity: f64,
}

impl Cost {
    /// Compares the quotients by products, which are exact for whole weights, so that ties are seen as such.
    fn compare(self, other: Self) -> Ordering {
        (self.tunnels * other.capacity).total_cmp(&(other.tunnels * self.capacity))
    }
}

/// The element in whose stretch `place` falls, when each is as long as its weight.
fn nth_by_weight(weighted: impl Iterator<Item = (usize, u64)>, mut place: u64) -> Option<usize> {
    for (node, weight) in weighted {
        match place.checked_sub(weight) {
            None => return Some(node),
            Some(left) => place = left,
        }
    }
    None
}

/// The largest number at or below `total` / 1.618 that has no common divisor with it.
fn stride(total: u64) -> u64 {
    let golden = (u128::from(total) * 0x9e37_79b9_7f4a_7c15) >> 64;
    let mut stride = (golden as u64).max(1);
    while greatest_common_divisor(stride, total) != 1 {
        stride -= 1;
    }
    stride
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_falls_to_the_node_in_whose_stretch_it_lies() {
        let weighted = [(4, 2), (7, 0), (9, 1)];
        let at = |place| nth_by_weight(weighted.into_iter(), place);
        assert_eq!([0, 1, 2, 3].map(at), [Some(4), Some(4), Some(9), None]);
    }

    #[test]
    fn a_stride_visits_every_place_once() {
        for total in (1..300).chain([64_000, 65_535, 999_983]) {
            assert_eq!(greatest_common_divisor(stride(total), total), 1, "{total}");
            assert!(stride(total) <= total);
        }
    }

    #[test]
    fn costs_are_compared_by_capacity_and_ties_are_exact() {
        let cost = |tunnels: f64, capacity: f64| Cost { tunnels, capacity };
        assert_eq!(cost(10.0, 1.0).compare(cost(30.0, 3.0)), Ordering::Equal);
        assert_eq!(cost(10.0, 1.0).compare(cost(29.0, 3.0)), Ordering::Greater);
        assert_eq!(cost(4_294_967_296.0, 1000.0).compare(cost(4_294_967_295.0, 1000.0)), Ordering::Greater);
    }
}
