//! Work of a relay thread on many tunnels, a bounded part of it in each tick: paced closes, listings, the sweep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::{EventLoop, SWEEP_INTERVAL};
use crate::relay::close_frame::CloseFrame;
use crate::relay::close_share::CloseTask;
use crate::relay::paced_close::PacedClose;
use crate::relay::tick::SLAB_CHUNK;

/// The most tunnels that one tick begins to close.
const MAX_CLOSES: usize = 128;

impl EventLoop {
    /// Advances the paced closes: counts a chunk of the slab, sends the Close frames that are due, ends the tunnels
    /// whose deadline has passed.
    pub(super) fn advance_closes(&mut self) {
        if let Some(close) = self.closes.iter_mut().find(|close| close.is_counting()) {
            close.count_chunk(&self.tunnels);
        }
        let mut tasks = 0;
        for index in 0..self.closes.len() {
            self.closes[index].update();
            while tasks < MAX_CLOSES
                && let Some(task) = self.closes[index].next_task(self.now)
            {
                tasks += 1;
                self.run_close_task(index, task);
            }
        }
        self.closes.retain(|close| !close.is_finished());
    }

    fn run_close_task(&mut self, index: usize, task: CloseTask) {
        if self.postpone_if_frozen(index, &task) {
            return;
        }
        match task {
            CloseTask::SendClose { slot, grace } => self.send_close(slot, index, grace),
            CloseTask::Abort { slot } => self.serve(slot, |tunnel, tick| tunnel.sweep(tick)),
        }
    }

    /// Postpones a task whose tunnel is frozen. Returns true when it is.
    fn postpone_if_frozen(&mut self, index: usize, task: &CloseTask) -> bool {
        let (CloseTask::SendClose { slot, .. } | CloseTask::Abort { slot }) = *task;
        let Some(Some(tunnel)) = self.tunnels.get(slot) else { return false };
        if tunnel.is_frozen() {
            self.closes[index].postpone(task, tunnel.info.id, self.now);
        }
        tunnel.is_frozen()
    }

    fn send_close(&mut self, slot: usize, index: usize, grace: u64) {
        let shared = Arc::clone(self.closes[index].shared());
        let PacedClose { code, cause, ref reason, .. } = shared.close;
        self.serve(slot, |tunnel, tick| {
            tunnel.begin_close(&CloseFrame { code, reason, cause, grace }, tick);
            tunnel.pump_both(tick)
        });
    }

    /// Advances the listing that is under way.
    pub(super) fn advance_listing(&mut self) {
        let Some(mut job) = self.list_jobs.pop_front() else { return };
        // The selector is the caller's: if it panics, no tunnel is to blame.
        let scanned = catch_unwind(AssertUnwindSafe(|| job.scan_chunk(&self.tunnels, self.now)));
        match scanned {
            Ok(true) => job.finish(),
            Ok(false) => self.list_jobs.push_front(job),
            Err(_) => tracing::error!("a listing panicked, this thread's part of it is left out"),
        }
    }

    /// Looks at a chunk of the slab for tunnels that are idle or past their deadline.
    pub(super) fn sweep(&mut self) {
        if self.sweep_cursor.is_none() && self.now >= self.next_sweep {
            self.sweep_cursor = Some(0);
            self.next_sweep = self.now + SWEEP_INTERVAL;
        }
        let Some(start) = self.sweep_cursor else { return };
        let end = self.tunnels.len().min(start + SLAB_CHUNK);
        for slot in start..end {
            if let Some(Some(tunnel)) = self.tunnels.get(slot)
                && tunnel.needs_sweep(self.now)
            {
                self.serve(slot, |tunnel, tick| tunnel.sweep(tick));
            }
        }
        self.sweep_cursor = (end < self.tunnels.len()).then_some(end);
    }
}
