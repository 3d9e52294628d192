//! What one relay thread counts for one node: bytes and messages, by one writer.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::labels::{MESSAGE_KINDS, TrafficDirection};

/// What one relay thread has relayed for one node. Two cache lines of its own (processors fetch lines in pairs),
/// so that no other thread's writes slow this thread's down.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct MeterShard {
    /// By [`TrafficDirection`]: bytes.
    bytes: [AtomicU64; 2],
    /// By [`TrafficDirection`] and index into [`MESSAGE_KINDS`]: whole messages.
    messages: [[AtomicU64; MESSAGE_KINDS.len()]; 2],
}

impl MeterShard {
    /// Counts what one read brought: bytes, and the messages that ended in them, in the order of [`MESSAGE_KINDS`].
    #[inline]
    pub(crate) fn add(&self, direction: TrafficDirection, bytes: u64, messages: &[u32; MESSAGE_KINDS.len()]) {
        let direction = direction as usize;
        add_unshared(&self.bytes[direction], bytes);
        for (sum, &count) in self.messages[direction].iter().zip(messages) {
            if count != 0 {
                add_unshared(sum, u64::from(count));
            }
        }
    }

    pub(super) fn totals(&self) -> RelayedTotals {
        RelayedTotals {
            bytes: array::from_fn(|direction| self.bytes[direction].load(Relaxed)),
            messages: array::from_fn(|direction| {
                array::from_fn(|kind| self.messages[direction][kind].load(Relaxed))
            }),
        }
    }
}

/// Adds without a locked instruction, which is right because the shard has one writer.
#[inline]
fn add_unshared(sum: &AtomicU64, by: u64) {
    sum.store(sum.load(Relaxed).wrapping_add(by), Relaxed);
}

/// Bytes and messages as they were at one moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct RelayedTotals {
    /// By [`TrafficDirection`].
    pub bytes: [u64; 2],
    /// By [`TrafficDirection`] and index into [`MESSAGE_KINDS`].
    pub messages: [[u64; MESSAGE_KINDS.len()]; 2],
}

impl RelayedTotals {
    pub(super) fn add(&mut self, other: &Self) {
        for direction in 0..2 {
            self.bytes[direction] = self.bytes[direction].wrapping_add(other.bytes[direction]);
            for (sum, more) in self.messages[direction].iter_mut().zip(other.messages[direction]) {
                *sum = sum.wrapping_add(more);
            }
        }
    }
}
