//! Rendezvous order: the node that a key falls to.

use crate::affinity::hash::{Arrival, Race};
use crate::pool::Nodes;

impl Nodes {
    /// The node that this key falls to among those that are wanted, whatever they carry.
    pub fn owner(&self, key: u64, is_wanted: impl Fn(usize) -> bool) -> Option<usize> {
        self.first_in_order(Race::new(key), is_wanted)
    }

    /// The first node in rendezvous order among those that are wanted.
    pub(super) fn first_in_order(&self, race: Race, is_wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let mut best: Option<(usize, Arrival)> = None;
        let mut deadline = u64::MAX;
        for (node, stand) in self.stands.iter().enumerate() {
            let draw = race.draw(stand);
            if stand.not_before(draw) > deadline || !is_wanted(node) {
                continue;
            }
            let arrival = stand.arrival(draw);
            if best.is_none_or(|(_, first)| arrival.is_before(first)) {
                best = Some((node, arrival));
                deadline = arrival.deadline();
            }
        }
        best.map(|(node, _)| node)
    }
}
