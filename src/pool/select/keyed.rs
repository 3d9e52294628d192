//! Selection by key: the first node in rendezvous order that is below the load bound.

use super::candidates::Candidates;
use super::load::{LOAD_BOUND_MIN_TUNNELS, NodeLoad, TotalLoad};
use crate::affinity::hash::RendezvousKey;

impl<L: Fn(usize) -> NodeLoad> Candidates<'_, L> {
    /// The first node in rendezvous order that is under the load bound, or the first at all when none is.
    pub(super) fn select_by_key(&self, hash: u64) -> Option<usize> {
        let key = RendezvousKey::new(hash);
        let (guess, total) = if self.nodes.has_equal_weights {
            self.find_highest_draw(key)
        } else {
            self.find_lowest_score(key)
        };
        // Mostly the very first can be taken, so that is asked of it alone and not of every node.
        let first = match guess {
            Some(first) if self.is_candidate(first) => first,
            _ => self.nodes.first_in_order(key, |node| self.is_candidate(node))?,
        };
        if !self.exceeds_load_bound(first, total) {
            return Some(first);
        }
        let is_wanted = |node| self.is_candidate(node) && !self.exceeds_load_bound(node, total);
        self.nodes.first_in_order(key, is_wanted).or(Some(first))
    }

    /// The first of the nodes that are up in the order of equal weights.
    fn find_highest_draw(&self, key: RendezvousKey) -> (Option<usize>, TotalLoad) {
        let (mut winner, mut highest, mut total) = (usize::MAX, 0, TotalLoad::default());
        for (node, (rendezvous, limits)) in self.nodes.rendezvous.iter().zip(&self.nodes.limits).enumerate() {
            let load = (self.loads)(node);
            if self.is_up(load) {
                total.add(load, limits.weight);
                let draw = key.draw(rendezvous);
                (winner, highest) = if draw >= highest { (node, draw) } else { (winner, highest) };
            }
        }
        (Some(winner).filter(|winner| *winner != usize::MAX), total)
    }

    /// The first of the nodes that are up in the order of different weights. The node with the lowest bound is
    /// almost always the first, and needs no comparison when its score is below the second lowest bound.
    fn find_lowest_score(&self, key: RendezvousKey) -> (Option<usize>, TotalLoad) {
        let (mut guess, mut total) = (usize::MAX, TotalLoad::default());
        let (mut lowest, mut second_lowest) = (u64::MAX, u64::MAX);
        for (node, (rendezvous, limits)) in self.nodes.rendezvous.iter().zip(&self.nodes.limits).enumerate() {
            let load = (self.loads)(node);
            if self.is_up(load) {
                total.add(load, limits.weight);
                let bound = rendezvous.score_lower_bound(key.draw(rendezvous));
                second_lowest = second_lowest.min(bound.max(lowest));
                (guess, lowest) = if bound <= lowest { (node, bound) } else { (guess, lowest) };
            }
        }
        match self.nodes.rendezvous.get(guess) {
            Some(rendezvous) if rendezvous.score_upper_bound(key.draw(rendezvous)) < second_lowest => {
                (Some(guess), total)
            }
            _ => (self.nodes.first_in_order(key, |node| self.is_up((self.loads)(node))), total),
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
