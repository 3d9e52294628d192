//! A thread's part in a closing: it counts, gets its places in the schedule, and says whose time has come.
//!
//! Counting walks the slab in stretches, one each turn, so that no message waits for it. The time of every step is
//! exact: no sweep is needed to close a tunnel when it is due, nor to cut it at its deadline.

use std::collections::{HashSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use super::closing::Plan;
use super::tunnel::Live;
use super::{STRETCH, millis};

/// See the module.
#[derive(Debug)]
pub struct Round {
    plan: Arc<Plan>,
    /// Tunnels that are adopted later belong to it, too, and are due at once: the process ends.
    is_last: bool,
    /// When the closing began, on the thread's clock in milliseconds, as the times below.
    since: u64,
    /// When the thread heard of it.
    heard: u64,
    /// When everything has ended.
    end: u64,
    stage: Stage,
    /// Sessions that are meant and have not ended.
    open: HashSet<u64>,
    /// Who is told to close when, soonest first.
    due: VecDeque<Step>,
    /// Who was told to, and when it is cut, soonest first.
    leaving: VecDeque<Step>,
}

/// Something that a round does to one tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    at: u64,
    /// The tunnel's place in the slab.
    pub place: usize,
    id: u64,
}

/// What is to be done now.
#[derive(Debug)]
pub enum Task {
    /// A Close to both sides, and this long for their answers, in milliseconds.
    Close(usize, u64),
    /// The deadline is here.
    Cut(usize),
}

#[derive(Debug)]
enum Stage {
    /// Places below `at` have been looked at.
    Counting {
        at: usize,
        found: Vec<(usize, u64)>,
    },
    /// The others have not counted yet.
    Waiting {
        first: u64,
        found: Vec<(usize, u64)>,
    },
    Scheduled,
}

impl Round {
    /// A part in `plan`, on its way to its thread.
    pub fn new(plan: Arc<Plan>, is_last: bool) -> Self {
        let stage = Stage::Counting { at: 0, found: Vec::new() };
        let (open, due, leaving) = Default::default();
        Self { plan, is_last, since: 0, heard: 0, end: 0, stage, open, due, leaving }
    }

    /// The thread whose clock began at `start` has heard of it.
    pub fn begin(&mut self, start: Instant, now: u64) {
        let closing = &self.plan.closing;
        self.heard = now;
        self.since = millis(self.plan.begun.saturating_duration_since(start));
        self.end = self.since.saturating_add(millis(closing.over.saturating_add(closing.grace)));
    }

    /// What all threads share.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// There is more of the slab to look at.
    pub fn is_counting(&self) -> bool {
        matches!(self.stage, Stage::Counting { .. })
    }

    /// Belongs to the end of the process.
    pub fn is_last(&self) -> bool {
        self.is_last
    }

    /// Nobody is left.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Scheduled) && self.open.is_empty() && !self.is_last
    }

    /// Looks at a stretch of the slab.
    pub fn count(&mut self, tunnels: &[Option<Box<Live>>]) {
        let Stage::Counting { at, found } = &mut self.stage else { return };
        let until = tunnels.len().min(*at + STRETCH);
        for place in mem::replace(at, until)..until {
            if let Some(live) = &tunnels[place]
                && live.adopted <= self.heard
                && self.plan.which.matches(&live.record)
                && self.open.insert(live.record.id)
            {
                self.plan.add();
                found.push((place, live.record.id));
            }
        }
        if until == tunnels.len() {
            let mut found = mem::take(found);
            found.retain(|(_, id)| self.open.contains(id));
            let first = self.plan.report(found.len() as u64);
            self.stage = Stage::Waiting { first, found };
        }
    }

    /// A tunnel that came after the end of the process had begun.
    pub fn join(&mut self, place: usize, id: u64) {
        if self.open.insert(id) {
            self.plan.add();
            self.due.push_front(Step { at: 0, place, id });
        }
    }

    /// The session has ended.
    pub fn forget(&mut self, id: u64) {
        if self.open.remove(&id) {
            self.plan.remove();
        }
    }

    /// When the next step is due; `None` while the round waits for other threads.
    pub fn next(&self) -> Option<u64> {
        self.due.front().into_iter().chain(self.leaving.front()).map(|step| step.at).min()
    }

    /// Heeds what the other threads and the caller have said meanwhile.
    pub fn settle(&mut self) {
        if let Stage::Waiting { first, found } = &mut self.stage
            && self.plan.is_counted()
        {
            let (first, found) = (*first, mem::take(found));
            let schedule = self.plan.schedule();
            let due = |index: usize| self.since.saturating_add(millis(schedule.due(first + index as u64)));
            let steps = found.iter().enumerate();
            let mut steps: Vec<_> =
                steps.map(|(index, &(place, id))| Step { at: due(index), place, id }).collect();
            steps.sort_unstable();
            self.due.extend(steps);
            self.stage = Stage::Scheduled;
        }
        if self.plan.is_stopped() && matches!(self.stage, Stage::Scheduled) {
            for step in mem::take(&mut self.due) {
                self.forget(step.id);
            }
        }
    }

    /// What is due at `now`; each call gives the next.
    pub fn task(&mut self, now: u64) -> Option<Task> {
        while let Some(step) = self.leaving.front().filter(|step| step.at <= now) {
            let Step { place, id, .. } = *step;
            self.leaving.pop_front();
            if self.open.contains(&id) {
                return Some(Task::Cut(place));
            }
        }
        while let Some(step) = self.due.front().filter(|step| step.at <= now) {
            let Step { place, id, .. } = *step;
            self.due.pop_front();
            if self.open.contains(&id) {
                let grace = millis(self.plan.closing.grace).min(self.end.saturating_sub(now));
                self.leaving.push_back(Step { at: now.saturating_add(grace), place, id });
                return Some(Task::Close(place, grace));
            }
        }
        None
    }
}

/// A thread that ends, in whatever way, holds nobody up.
impl Drop for Round {
    fn drop(&mut self) {
        if self.is_counting() {
            self.plan.report(0);
        }
        for _ in self.open.drain() {
            self.plan.remove();
        }
    }
}
