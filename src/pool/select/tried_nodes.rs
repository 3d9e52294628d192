//! The nodes that a session has tried.

/// The nodes that are marked; the first 128 need no allocation.
#[derive(Debug, Default)]
pub(super) struct TriedNodes {
    first: [u64; 2],
    more: Vec<usize>,
}

impl TriedNodes {
    #[inline]
    pub(super) fn contains(&self, node: usize) -> bool {
        match self.first.get(node / 64) {
            Some(word) => word >> (node % 64) & 1 == 1,
            None => self.contains_beyond(node),
        }
    }

    #[cold]
    fn contains_beyond(&self, node: usize) -> bool {
        self.more.contains(&node)
    }

    pub(super) fn insert(&mut self, node: usize) {
        match self.first.get_mut(node / 64) {
            Some(word) => *word |= 1 << (node % 64),
            None => self.more.push(node),
        }
    }
}
