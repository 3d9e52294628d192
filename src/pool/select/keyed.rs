//! Selection by key: the first node in rendezvous order that is below the load bound.

use super::candidates::Candidates;
use super::load::{LOAD_BOUND_MIN_TUNNELS, NodeLoad, TotalLoad};
use crate::affinity::hash::RendezvousKey;

impl<L: Fn(usize) -> NodeLoad> Candidates<'_, L> {
    /// The first node in rendezvous order that is under the load bound, or the first at all when none is.
    pub(super) fn select_by_key(&self, key: u64) -> Option<usize> {
        let race = RendezvousKey::new(key);
        let (guess, total) = if self.nodes.has_equal_weights {
            self.find_highest_draw(race)
        } else {
            self.find_lowest_score(race)
        };
        // Mostly the very first can be taken, so that is asked of it alone and not of every node.
        let first = match guess {
            Some(first) if self.is_candidate(first) => first,
            _ => self.nodes.first_in_order(race, |node| self.is_candidate(node))?,
        };
        if !self.exceeds_load_bound(first, total) {
            return Some(first);
        }
        let is_wanted = |node| self.is_candidate(node) && !self.exceeds_load_bound(node, total);
        self.nodes.first_in_order(race, is_wanted).or(Some(first))
    }

    /// The first of the nodes that are up in the order of equal weights.
    fn find_highest_draw(&self, race: RendezvousKey) -> (Option<usize>, TotalLoad) {
        let (mut winner, mut highest, mut total) = (usize::MAX, 0, TotalLoad::default());
        for (node, (stand, limits)) in self.nodes.rendezvous.iter().zip(&self.nodes.limits).enumerate() {
            let load = (self.loads)(node);
            if self.is_up(load) {
                total.add(load, limits.weight);
                let draw = race.draw(stand);
                (winner, highest) = if draw >= highest { (node, draw) } else { (winner, highest) };
            }
        }
        (Some(winner).filter(|winner| *winner != usize::MAX), total)
    }

    /// The first of the nodes that are up in the order of different weights. Whoever may come soonest is almost
    /// always the first, and needs no comparison when it comes before the next soonest can.
    fn find_lowest_score(&self, race: RendezvousKey) -> (Option<usize>, TotalLoad) {
        let (mut guess, mut total) = (usize::MAX, TotalLoad::default());
        let (mut soonest, mut next_soonest) = (u64::MAX, u64::MAX);
        for (node, (stand, limits)) in self.nodes.rendezvous.iter().zip(&self.nodes.limits).enumerate() {
            let load = (self.loads)(node);
            if self.is_up(load) {
                total.add(load, limits.weight);
                let time = stand.score_lower_bound(race.draw(stand));
                next_soonest = next_soonest.min(time.max(soonest));
                (guess, soonest) = if time <= soonest { (node, time) } else { (guess, soonest) };
            }
        }
        match self.nodes.rendezvous.get(guess) {
            Some(stand) if stand.score_upper_bound(race.draw(stand)) < next_soonest => (Some(guess), total),
            _ => (self.nodes.first_in_order(race, |node| self.is_up((self.loads)(node))), total),
        }
    }

    /// Whether one more tunnel would bring the node above `load_bound` times its part of all tunnels, rounded
    /// up: live + 1 > ceil(x) is live >= x for whole numbers. A node with few tunnels is never above it: among few,
    /// a client's own tunnels would tip the balance between the requests of one Socket.IO session.
    fn exceeds_load_bound(&self, node: usize, total: TotalLoad) -> bool {
        let Some(bound) = self.request.load_bound else { return false };
        let live = (self.loads)(node).live;
        let part = f64::from(self.nodes.limits[node].weight) / f64::from(total.weight);
        live >= LOAD_BOUND_MIN_TUNNELS && f64::from(live) >= bound * (total.live as f64 + 1.0) * part
    }
}
