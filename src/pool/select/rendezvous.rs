//! Rendezvous order: the node that a key falls to.

use crate::affinity::hash::{RendezvousKey, RendezvousScore};
use crate::pool::NodeSet;

impl NodeSet {
    /// The node that this key falls to among those that are wanted, whatever they carry.
    pub(crate) fn owner_of_key(&self, key: u64, is_wanted: impl Fn(usize) -> bool) -> Option<usize> {
        self.first_in_order(RendezvousKey::new(key), is_wanted)
    }

    /// The first node in rendezvous order among those that are wanted.
    pub(super) fn first_in_order(
        &self,
        key: RendezvousKey,
        is_wanted: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut best: Option<(usize, RendezvousScore)> = None;
        let mut bound = u64::MAX;
        for (node, rendezvous) in self.rendezvous.iter().enumerate() {
            let draw = key.draw(rendezvous);
            if rendezvous.score_lower_bound(draw) > bound || !is_wanted(node) {
                continue;
            }
            let score = rendezvous.score(draw);
            if best.is_none_or(|(_, first)| score.wins_over(first)) {
                best = Some((node, score));
                bound = score.upper_bound();
            }
        }
        best.map(|(node, _)| node)
    }
}
