//! The balance rules: where a client goes when nothing pins it and no key places it.
//!
//! Least connections, each in turn, the better of two, or the client's address as the key. Randomness and the
//! turn come with the question, so that the answer is exact.

use super::candidates::Candidates;
use super::load::NodeLoad;
use super::request::BalancePolicy;
use crate::affinity::hash::{self, RendezvousKey};
use crate::affinity::{ClientPrefixes, hash_client};

impl<L: Fn(usize) -> NodeLoad> Candidates<'_, L> {
    /// The best node by the pool's rule.
    pub(super) fn select_by_policy(&self) -> Option<usize> {
        match self.request.balance {
            BalancePolicy::LeastConnections => self.least_loaded(),
            BalancePolicy::RoundRobin => self.next_in_rotation(),
            BalancePolicy::RandomTwo => self.better_of_two(),
            BalancePolicy::ClientIp => {
                self.select_by_key(hash_client(self.request.client, ClientPrefixes::default()))
            }
        }
    }

    /// The node with the fewest tunnels for its capacity, counting the one that is to come: an empty node with
    /// a small share is then not flooded, and of empty nodes the heaviest is the first.
    fn least_loaded(&self) -> Option<usize> {
        let heaviest = f64::from(self.nodes.max_weight);
        let mut best: Option<(usize, Cost)> = None;
        // With more live tunnels than this a node cannot be the best, whatever its capacity.
        let mut beyond = u32::MAX;
        for node in 0..self.nodes.len() {
            let load = (self.loads)(node);
            if load.live > beyond || !self.can_take(node, load) {
                continue;
            }
            let cost = self.cost(node, load);
            if best.is_none_or(|(other, its_cost)| self.is_cheaper(node, cost, other, its_cost)) {
                best = Some((node, cost));
                beyond = (cost.tunnels / cost.capacity * heaviest) as u32;
            }
        }
        best.map(|(node, _)| node)
    }

    /// The node whose turn it is.
    fn next_in_rotation(&self) -> Option<usize> {
        let weight = |node: usize| u64::from(self.nodes.limits[node].weight);
        let is_open = |node: &usize| self.can_take(*node, (self.loads)(*node));
        let open = || (0..self.nodes.len()).filter(is_open);
        if self.nodes.has_equal_weights {
            let count = u64::try_from(open().count()).ok().filter(|count| *count > 0)?;
            return open().nth(usize::try_from(self.request.sequence % count).ok()?);
        }
        let total: u64 = open().map(weight).sum();
        if total == 0 {
            return None;
        }
        // A stride near the golden section, without a common divisor, visits each of the `total` places once
        // and spreads the places of a heavy node evenly between those of the others.
        let place = (u128::from(self.request.sequence % total) * u128::from(stride(total))
            % u128::from(total)) as u64;
        nth_weighted(open().map(|node| (node, weight(node))), place)
    }

    /// The less loaded of two different nodes, drawn by capacity.
    fn better_of_two(&self) -> Option<usize> {
        let first = self.draw_by_capacity(self.request.random, None)?;
        let Some(second) = self.draw_by_capacity(!self.request.random, Some(first)) else {
            return Some(first);
        };
        let cost = |node: usize| self.cost(node, (self.loads)(node));
        if self.is_cheaper(second, cost(second), first, cost(first)) { Some(second) } else { Some(first) }
    }

    /// A node drawn by capacity, but not this one.
    fn draw_by_capacity(&self, seed: u64, but: Option<usize>) -> Option<usize> {
        let open = |node: usize| {
            let load = (self.loads)(node);
            let is_open = Some(node) != but && self.can_take(node, load);
            is_open.then(|| self.capacity(node, load))
        };
        // Any node, kept as often as its capacity is of the greatest: mostly the first try is as good.
        let mut random = seed;
        for _ in 0..8 {
            random = hash::mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
            let node = scale_below(random, self.nodes.len() as u64) as usize;
            let needed = scale_below(hash::mix(random), u64::from(self.nodes.max_weight) << 32) as f64
                / 4_294_967_296.0;
            if node < self.nodes.len() && open(node).is_some_and(|capacity| capacity > needed) {
                return Some(node);
            }
        }
        // In parts of 1/1024 of a weight of 1, so that the smallest share is still some.
        let weighted =
            || (0..self.nodes.len()).filter_map(|node| Some((node, (open(node)? * 1024.0) as u64)));
        let total = weighted().map(|(_, capacity)| capacity).sum();
        nth_weighted(weighted(), scale_below(hash::mix(random), total))
    }

    #[inline]
    fn cost(&self, node: usize, load: NodeLoad) -> Cost {
        Cost { tunnels: f64::from(load.live) + 1.0, capacity: self.capacity(node, load) }
    }

    #[inline]
    fn capacity(&self, node: usize, load: NodeLoad) -> f64 {
        // Written so that a share that is no number counts as the smallest.
        let share = if load.slow_start_factor > 0.01 { load.slow_start_factor.min(1.0) } else { 0.01 };
        f64::from(self.nodes.limits[node].weight) * f64::from(share)
    }

    /// Whether `node` costs less than `other`; a tie falls by a fresh draw for each session.
    #[inline]
    fn is_cheaper(&self, node: usize, cost: Cost, other: usize, its_cost: Cost) -> bool {
        let (product, its_product) = cost.cross_multiply(its_cost);
        product < its_product || (product == its_product && self.wins_tie(node, other))
    }

    #[cold]
    fn wins_tie(&self, node: usize, other: usize) -> bool {
        let key = RendezvousKey::new(self.request.random);
        let [draw, its_draw] = [node, other].map(|node| key.draw(&self.nodes.rendezvous[node]));
        draw > its_draw
    }
}

/// Tunnels for a capacity.
#[derive(Debug, Clone, Copy)]
struct Cost {
    tunnels: f64,
    capacity: f64,
}

impl Cost {
    /// Two products that compare as the quotients of `self` and `other` do, and which are exact for whole
    /// weights, so that ties are seen as such.
    #[inline]
    fn cross_multiply(self, other: Self) -> (f64, f64) {
        (self.tunnels * other.capacity, other.tunnels * self.capacity)
    }
}

/// A random number of 64 bits as one below `limit`.
fn scale_below(random: u64, limit: u64) -> u64 {
    ((u128::from(random) * u128::from(limit)) >> 64) as u64
}

/// The element in whose stretch `place` falls, when each is as long as its weight.
fn nth_weighted(weighted: impl Iterator<Item = (usize, u64)>, mut place: u64) -> Option<usize> {
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
    while gcd(stride, total) != 1 {
        stride -= 1;
    }
    stride
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::*;

    #[test]
    fn a_place_falls_to_the_node_in_whose_stretch_it_lies() {
        let weighted = [(4, 2), (7, 0), (9, 1)];
        let at = |place| nth_weighted(weighted.into_iter(), place);
        assert_eq!([0, 1, 2, 3].map(at), [Some(4), Some(4), Some(9), None]);
    }

    #[test]
    fn a_stride_visits_every_place_once() {
        for total in (1..300).chain([64_000, 65_535, 999_983]) {
            assert_eq!(gcd(stride(total), total), 1, "{total}");
            assert!(stride(total) <= total);
        }
    }

    #[test]
    fn costs_are_compared_by_capacity_and_ties_are_exact() {
        let cost = |tunnels: f64, capacity: f64| Cost { tunnels, capacity };
        let order = |one: Cost, other: Cost| {
            let (product, its_product) = one.cross_multiply(other);
            product.total_cmp(&its_product)
        };
        assert_eq!(order(cost(10.0, 1.0), cost(30.0, 3.0)), Ordering::Equal);
        assert_eq!(order(cost(10.0, 1.0), cost(29.0, 3.0)), Ordering::Greater);
        assert_eq!(order(cost(4_294_967_296.0, 1000.0), cost(4_294_967_295.0, 1000.0)), Ordering::Greater);
    }
}
