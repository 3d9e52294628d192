//! Own broadcasts on their way: written, and not yet read back.
//!
//! A broadcast whose answer was lost may be in the stream or not. If it is read back before its fate is decided it counts
//! as sent; if the hub was told that it was not sent, and has delivered it itself, it is passed over when it is read.
//! Two broadcasts of the same content are the same here: which of them is delivered when nobody can tell.

use std::collections::HashMap;

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::adapter::Offset;

/// Broadcasts that were given up and may still turn up. More are not kept; they would be delivered twice.
const MAX_GIVEN_UP: usize = 4096;

/// What is known of one that is on its way.
#[derive(Debug, Clone, PartialEq)]
enum BroadcastFate {
    /// Written; no answer yet, not read yet.
    Sent,
    /// Read back before the answer came.
    Read(Offset),
    /// The hub was told that it was not sent.
    GivenUp,
}

/// Own broadcasts, by the hash of what they say.
#[derive(Debug, Default)]
pub(super) struct OwnBroadcasts {
    fates: Mutex<FateTable>,
}

#[derive(Debug, Default)]
struct FateTable {
    of: HashMap<u64, Vec<BroadcastFate>>,
    given_up: usize,
}

impl FateTable {
    /// Takes out the first that is so.
    fn take(&mut self, hash: u64, is: impl Fn(&BroadcastFate) -> bool) -> Option<BroadcastFate> {
        let fates = self.of.get_mut(&hash)?;
        let place = fates.iter().position(is)?;
        let fate = fates.swap_remove(place);
        if fates.is_empty() {
            self.of.remove(&hash);
        }
        Some(fate)
    }
}

/// The hash of what a broadcast says.
pub(super) fn content_hash(data: &[u8]) -> u64 {
    xxh3_64(data)
}

impl OwnBroadcasts {
    /// One is about to be written.
    pub(super) fn record_sent(&self, hash: u64) {
        self.fates.lock().of.entry(hash).or_default().push(BroadcastFate::Sent);
    }

    /// Its fate is known from the answer, which may be a refusal.
    pub(super) fn record_answered(&self, hash: u64) {
        let mut table = self.fates.lock();
        if table.take(hash, |fate| matches!(fate, BroadcastFate::Read(_))).is_none() {
            table.take(hash, |fate| *fate == BroadcastFate::Sent);
        }
    }

    /// The answer was lost. Gives its offset if it has been read back already; otherwise it counts as not sent.
    pub(super) fn give_up(&self, hash: u64) -> Option<Offset> {
        let mut table = self.fates.lock();
        if let Some(BroadcastFate::Read(offset)) =
            table.take(hash, |fate| matches!(fate, BroadcastFate::Read(_)))
        {
            return Some(offset);
        }
        table.take(hash, |fate| *fate == BroadcastFate::Sent);
        if table.given_up < MAX_GIVEN_UP {
            table.given_up += 1;
            table.of.entry(hash).or_default().push(BroadcastFate::GivenUp);
        }
        None
    }

    /// It was read back. Says whether it is to be delivered.
    pub(super) fn record_read(&self, hash: u64, offset: &Offset) -> bool {
        let mut table = self.fates.lock();
        if table.take(hash, |fate| *fate == BroadcastFate::Sent).is_some() {
            table.of.entry(hash).or_default().push(BroadcastFate::Read(offset.clone()));
            return true;
        }
        if table.take(hash, |fate| *fate == BroadcastFate::GivenUp).is_some() {
            table.given_up -= 1;
            return false;
        }
        // Its answer came first.
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset() -> Offset {
        "1-0".into()
    }

    #[test]
    fn whichever_of_answer_and_entry_comes_first_it_is_delivered_once_and_nothing_is_kept() {
        let own = OwnBroadcasts::default();
        own.record_sent(7);
        own.record_answered(7);
        assert!(own.record_read(7, &offset()));
        own.record_sent(7);
        assert!(own.record_read(7, &offset()));
        own.record_answered(7);
        assert!(own.fates.lock().of.is_empty());
    }

    #[test]
    fn a_lost_answer_is_no_loss_if_the_entry_was_read_and_no_second_delivery_if_it_comes_later() {
        let own = OwnBroadcasts::default();
        own.record_sent(7);
        assert!(own.record_read(7, &offset()));
        assert_eq!(own.give_up(7), Some(offset()));
        own.record_sent(7);
        assert_eq!(own.give_up(7), None);
        assert!(!own.record_read(7, &offset()));
        assert!(
            own.record_read(7, &offset()),
            "what another broadcast of the same content says is delivered"
        );
        assert!(own.fates.lock().of.is_empty());
    }
}
