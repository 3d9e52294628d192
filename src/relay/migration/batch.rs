//! A batch of frozen tunnels, of all threads.

use tokio::sync::oneshot;

use super::frozen::FrozenTunnel;
use crate::relay::command::ThreadBatch;

/// A batch that is frozen. Dropped without a decision, it is resumed.
#[derive(Debug)]
#[must_use = "dropping it resumes it"]
pub struct FrozenBatch(Vec<ThreadBatch>);

impl FrozenBatch {
    /// Collects what the threads answer.
    pub(in crate::relay) async fn collect(answers: Vec<oneshot::Receiver<ThreadBatch>>) -> Self {
        let mut batches = Vec::new();
        for answer in answers {
            // A thread that has ended has no tunnels.
            batches.extend(answer.await);
        }
        Self(batches)
    }

    /// How many tunnels are in it.
    pub fn len(&self) -> usize {
        self.0.iter().map(|batch| batch.tunnels.len()).sum()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tunnels.
    pub fn tunnels(&self) -> impl Iterator<Item = &FrozenTunnel> {
        self.0.iter().flat_map(|batch| &batch.tunnels)
    }

    /// Gives every tunnel back to its thread, which picks up what has arrived meanwhile.
    ///
    /// Only while no other process can have been told to activate them: see the steps of a migration.
    pub fn resume(self) {
        drop(self);
    }

    /// The tunnels are another process's: closes the descriptors here, and wipes what is left of the tunnels. They are
    /// not counted here any more after [one tick](crate::relay::Relay::wait_one_tick); nothing can be sent from here
    /// since the freeze.
    pub fn release(mut self) {
        self.0.iter_mut().for_each(ThreadBatch::release);
    }
}
