//! A short queue that is fair among clients: each has its own line, and the lines take turns.
//!
//! One client with a thousand requests delays another by one, not by a thousand. When the room is used up, the newest
//! of the longest line makes way for a client whose line is shorter. It keeps no time: whoever waits too long is taken
//! out by [`FairQueue::retain`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A bounded queue that serves the clients in turn, whatever one of them puts in. `K` names a client.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    /// What waits, oldest first; no line is empty.
    lines: BTreeMap<K, VecDeque<T>>,
    /// The clients in the order of their turns, each once.
    turns: VecDeque<K>,
    /// The lines by their length, to find the longest.
    lengths: BTreeSet<(usize, K)>,
    len: usize,
}

impl<K, T> Default for FairQueue<K, T> {
    fn default() -> Self {
        Self { lines: BTreeMap::new(), turns: VecDeque::new(), lengths: BTreeSet::new(), len: 0 }
    }
}

impl<K: Copy + Ord, T> FairQueue<K, T> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts one into the line of its client. With `room` in all used up, gives back what had to make way for it.
    ///
    /// # Errors
    ///
    /// The item, when no line is longer than its own.
    pub fn push(&mut self, client: K, item: T, room: usize) -> Result<Option<T>, T> {
        let mut evicted = None;
        if self.len >= room {
            let own = self.lines.get(&client).map_or(0, VecDeque::len);
            match self.lengths.last() {
                Some((longest, other)) if *longest > own + 1 => {
                    evicted = self.change(*other, VecDeque::pop_back)
                }
                _ => return Err(item),
            }
        }
        if !self.lines.contains_key(&client) {
            self.turns.push_back(client);
        }
        self.change(client, |line| line.push_back(item));
        Ok(evicted.flatten())
    }

    /// The oldest of the client whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let client = self.turns.pop_front()?;
        let item = self.change(client, VecDeque::pop_front).flatten();
        if self.lines.contains_key(&client) {
            self.turns.push_back(client);
        }
        item
    }

    /// Takes out what `keep` does not want.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let stale: Vec<K> = self
            .lines
            .iter()
            .filter(|(_, line)| !line.iter().all(&mut keep))
            .map(|(client, _)| *client)
            .collect();
        for client in &stale {
            self.change(*client, |line| line.retain(&mut keep));
        }
        if !stale.is_empty() {
            let Self { lines, turns, .. } = self;
            turns.retain(|client| lines.contains_key(client));
        }
    }

    /// Changes the line of a client (which may be new) and what depends on its length, but for the turns.
    fn change<R>(&mut self, client: K, change: impl FnOnce(&mut VecDeque<T>) -> R) -> Option<R> {
        let line = self.lines.entry(client).or_default();
        let before = line.len();
        let result = change(line);
        let after = line.len();
        self.len = self.len + after - before;
        self.lengths.remove(&(before, client));
        if after == 0 {
            self.lines.remove(&client);
        } else {
            self.lengths.insert((after, client));
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(clients: &[(char, usize)], room: usize) -> FairQueue<char, (char, usize)> {
        let mut queue = FairQueue::default();
        for (client, count) in clients {
            for number in 0..*count {
                let _ = queue.push(*client, (*client, number), room);
            }
        }
        queue
    }

    fn order(queue: &mut FairQueue<char, (char, usize)>) -> String {
        std::iter::from_fn(|| queue.pop()).map(|(client, _)| client).collect()
    }

    #[test]
    fn clients_take_turns_however_many_one_of_them_has() {
        assert_eq!(order(&mut filled(&[('a', 5), ('b', 1), ('c', 2)], 100)), "abcacaaa");
    }

    #[test]
    fn one_client_alone_is_served_in_its_order() {
        let mut queue = filled(&[('a', 3)], 3);
        let numbers: Vec<usize> = std::iter::from_fn(|| queue.pop()).map(|(_, number)| number).collect();
        assert_eq!(numbers, [0, 1, 2]);
        assert!(queue.is_empty() && queue.pop().is_none());
    }

    #[test]
    fn in_a_full_queue_the_newest_of_the_longest_line_makes_way() {
        let mut queue = filled(&[('a', 4)], 4);
        assert_eq!(queue.push('b', ('b', 0), 4), Ok(Some(('a', 3))));
        assert_eq!(queue.push('c', ('c', 0), 4), Ok(Some(('a', 2))));
        assert_eq!(queue.push('d', ('d', 0), 4), Ok(Some(('a', 1))));
        assert_eq!(queue.push('e', ('e', 0), 4), Err(('e', 0)), "all lines are as short as its own would be");
        assert_eq!(queue.push('a', ('a', 9), 4), Err(('a', 9)));
        assert_eq!(order(&mut queue), "abcd");
    }

    #[test]
    fn a_client_cannot_push_others_out_by_asking_again() {
        let mut queue = filled(&[('a', 2), ('b', 1)], 3);
        assert_eq!(queue.push('b', ('b', 1), 3), Err(('b', 1)));
        assert_eq!(queue.push('a', ('a', 2), 3), Err(('a', 2)));
    }

    #[test]
    fn no_room_is_no_queue() {
        assert_eq!(FairQueue::default().push('a', 1, 0), Err(1));
    }

    proptest! {
        #[test]
        fn whatever_is_done_the_count_is_right_and_turns_are_fair(
            steps in proptest::collection::vec((0_u8..4, 0_u8..5), 0..200), room in 0_usize..20,
        ) {
            let mut queue: FairQueue<u8, (u8, usize)> = FairQueue::default();
            let mut left = 0;
            for (number, (step, client)) in steps.iter().enumerate() {
                match step {
                    0 | 1 => match queue.push(*client, (*client, number), room) {
                        Ok(evicted) => left += 1 - usize::from(evicted.is_some()),
                        Err(_) => prop_assert!(left >= room),
                    },
                    2 => left -= usize::from(queue.pop().is_some()),
                    _ => {
                        queue.retain(|(_, number)| number % 3 != 0);
                        left = queue.lines.values().map(VecDeque::len).sum();
                    }
                }
                prop_assert_eq!(queue.len(), left);
                prop_assert_eq!(queue.lines.len(), queue.turns.len());
                prop_assert_eq!(queue.lines.len(), queue.lengths.len());
            }
            let mut served: BTreeMap<u8, usize> = BTreeMap::new();
            let waiting: BTreeMap<u8, usize> = queue.lines.iter().map(|(client, line)| (*client, line.len())).collect();
            while let Some((client, _)) = queue.pop() {
                *served.entry(client).or_default() += 1;
                let fewest = waiting.iter().filter(|(client, count)| served.get(client).unwrap_or(&0) < count);
                let fewest = fewest.map(|(client, _)| served.get(client).copied().unwrap_or(0)).min().unwrap_or(usize::MAX);
                prop_assert!(served[&client] <= fewest.saturating_add(1));
            }
            prop_assert_eq!(served, waiting);
        }
    }
}
