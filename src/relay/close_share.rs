//! A relay thread's share of a paced close: it counts its tunnels, gets their places in the schedule, and says which
//! tunnels are due.
//!
//! Counting scans the slab in chunks, one each tick, so that no message waits for it. Every step has its exact time: no
//! sweep is needed to close a tunnel that is due, nor to end it at its deadline.

use std::collections::{HashSet, VecDeque};
use std::mem;
use std::sync::Arc;

use super::paced_close::SharedClose;
use super::session::SessionInfo;
use super::tick::{SLAB_CHUNK, millis};
use super::tunnel::ActiveTunnel;

/// After how long a step whose tunnel is frozen is tried again, in milliseconds.
const RETRY_FROZEN: u64 = 10;

/// The share of one thread. Its times are on the thread's clock, in milliseconds.
#[derive(Debug)]
pub(super) struct CloseShare {
    shared: Arc<SharedClose>,
    /// The process ends: every tunnel that is adopted later is included and due at once.
    is_shutdown: bool,
    /// When the close was asked for.
    start: u64,
    /// When the thread received it.
    received: u64,
    /// When all tunnels have ended.
    end: u64,
    stage: CloseStage,
    /// Selected sessions that have not ended.
    open: HashSet<u64>,
    /// When tunnels get their Close frames, soonest first.
    due: VecDeque<CloseStep>,
    /// When tunnels that have got one are ended, soonest first.
    closing: VecDeque<CloseStep>,
}

/// A step of the schedule for one tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct CloseStep {
    at: u64,
    /// The tunnel's slot in the slab.
    slot: usize,
    id: u64,
}

/// A step that is due.
#[derive(Debug)]
pub(super) enum CloseTask {
    /// Send a Close frame to both sides.
    SendClose {
        /// The tunnel's slot.
        slot: usize,
        /// How long its peers have to answer, in milliseconds.
        grace: u64,
    },
    /// End the tunnel: its deadline has passed.
    Abort {
        /// The tunnel's slot.
        slot: usize,
    },
}

#[derive(Debug)]
enum CloseStage {
    /// Slots below `next_slot` have been scanned.
    Counting { next_slot: usize, found: Vec<SelectedTunnel> },
    /// The other threads have not counted yet. The tunnels found here have the places from `first` on.
    Waiting { first: u64, found: Vec<SelectedTunnel> },
    /// Every tunnel that was counted has its step.
    Scheduled,
}

/// A tunnel that is closed.
#[derive(Debug, Clone, Copy)]
struct SelectedTunnel {
    slot: usize,
    id: u64,
}

impl CloseShare {
    /// A share of `shared`, on its way to its thread.
    pub(super) fn new(shared: Arc<SharedClose>, is_shutdown: bool) -> Self {
        let stage = CloseStage::Counting { next_slot: 0, found: Vec::new() };
        let (open, due, closing) = Default::default();
        Self { shared, is_shutdown, start: 0, received: 0, end: 0, stage, open, due, closing }
    }

    /// The thread receives it, `now`; it was asked for at `start`.
    pub(super) fn receive(&mut self, start: u64, now: u64) {
        let close = &self.shared.close;
        self.received = now;
        self.start = start;
        self.end = self.start.saturating_add(millis(close.window.saturating_add(close.grace)));
    }

    /// The part that is common to all threads.
    pub(super) fn shared(&self) -> &Arc<SharedClose> {
        &self.shared
    }

    /// More of the slab is to be scanned.
    pub(super) fn is_counting(&self) -> bool {
        matches!(self.stage, CloseStage::Counting { .. })
    }

    /// The process ends with this close.
    pub(super) fn is_shutdown(&self) -> bool {
        self.is_shutdown
    }

    /// No tunnel is left, and none will be added.
    pub(super) fn is_finished(&self) -> bool {
        let is_done = matches!(self.stage, CloseStage::Scheduled) && self.open.is_empty();
        is_done && !self.is_shutdown && !self.shared.is_open()
    }

    /// Scans a chunk of the slab.
    pub(super) fn count_chunk(&mut self, tunnels: &[Option<Box<ActiveTunnel>>]) {
        let CloseStage::Counting { next_slot, found } = &mut self.stage else { return };
        let end = tunnels.len().min(*next_slot + SLAB_CHUNK);
        let chunk = tunnels.iter().enumerate().take(end).skip(mem::replace(next_slot, end));
        for (slot, tunnel) in chunk {
            if let Some(tunnel) = tunnel
                && tunnel.adopted_at <= self.received
                && self.shared.close.selector.matches(&tunnel.info)
                && self.open.insert(tunnel.info.id)
            {
                self.shared.add();
                found.push(SelectedTunnel { slot, id: tunnel.info.id });
            }
        }
        if end == tunnels.len() {
            let mut found = mem::take(found);
            found.retain(|tunnel| self.open.contains(&tunnel.id));
            let first = self.shared.report(found.len() as u64);
            self.stage = CloseStage::Waiting { first, found };
        }
    }

    /// Whether a tunnel that is adopted now is closed, too.
    pub(super) fn includes(&self, info: &SessionInfo) -> bool {
        self.is_shutdown || self.shared.includes(info)
    }

    /// Adds a tunnel that was adopted after the close had begun.
    pub(super) fn add_late(&mut self, slot: usize, id: u64, now: u64) {
        if !self.open.insert(id) {
            return;
        }
        let at = if self.is_shutdown {
            self.shared.add();
            0
        } else {
            self.shared.add_late();
            self.start.saturating_add(millis(self.shared.due_late(id))).max(now)
        };
        insert_sorted(&mut self.due, CloseStep { at, slot, id });
    }

    /// Removes a session that has ended.
    pub(super) fn remove(&mut self, id: u64) {
        if self.open.remove(&id) {
            self.shared.remove();
        }
    }

    /// Removes a session that is another process's: it has not ended, and is not left either.
    pub(super) fn remove_migrated(&mut self, id: u64) {
        if !self.open.remove(&id) {
            return;
        }
        match self.is_counting() {
            // It has not been reported yet.
            true => self.shared.remove(),
            false => self.shared.remove_migrated(),
        }
    }

    /// When the next step is due; `None` while the share waits for other threads.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.due.front().into_iter().chain(self.closing.front()).map(|step| step.at).min()
    }

    /// Applies what the other threads and the caller have decided meanwhile.
    pub(super) fn update(&mut self) {
        if let CloseStage::Waiting { first, found } = &mut self.stage
            && self.shared.is_counted()
        {
            let (first, found) = (*first, mem::take(found));
            let schedule = self.shared.schedule();
            let due = |index: usize| self.start.saturating_add(millis(schedule.due(first + index as u64)));
            let steps = found.iter().enumerate();
            self.due.extend(steps.map(|(index, &SelectedTunnel { slot, id })| CloseStep {
                at: due(index),
                slot,
                id,
            }));
            self.due.make_contiguous().sort_unstable();
            self.stage = CloseStage::Scheduled;
        }
        if self.shared.is_stopped() && matches!(self.stage, CloseStage::Scheduled) {
            for step in mem::take(&mut self.due) {
                self.remove(step.id);
            }
        }
    }

    /// Postpones the task that came last: its tunnel, of the session `id`, is frozen.
    pub(super) fn postpone(&mut self, task: &CloseTask, id: u64, now: u64) {
        let (queue, slot) = match *task {
            CloseTask::Abort { slot } => (&mut self.closing, slot),
            CloseTask::SendClose { slot, .. } => {
                // Its deadline counts from the moment when it gets its Close frame.
                if let Some(at) = self.closing.iter().rposition(|step| step.id == id) {
                    self.closing.remove(at);
                }
                (&mut self.due, slot)
            }
        };
        let at = now.saturating_add(RETRY_FROZEN);
        let behind = queue.partition_point(|step| step.at <= at);
        queue.insert(behind, CloseStep { at, slot, id });
    }

    /// The next task that is due at `now`.
    pub(super) fn next_task(&mut self, now: u64) -> Option<CloseTask> {
        while let Some(step) = self.closing.front().filter(|step| step.at <= now) {
            let CloseStep { slot, id, .. } = *step;
            self.closing.pop_front();
            if self.open.contains(&id) {
                return Some(CloseTask::Abort { slot });
            }
        }
        while let Some(step) = self.due.front().filter(|step| step.at <= now) {
            let CloseStep { at, slot, id } = *step;
            self.due.pop_front();
            if self.open.contains(&id) {
                let grace = millis(self.shared.close.grace);
                // A tunnel that was adopted after the window has the whole grace as well.
                let end = self.end.max(at.saturating_add(grace));
                let grace = grace.min(end.saturating_sub(now));
                insert_sorted(&mut self.closing, CloseStep { at: now.saturating_add(grace), slot, id });
                return Some(CloseTask::SendClose { slot, grace });
            }
        }
        None
    }
}

/// Inserts a step in order; mostly it is the last.
fn insert_sorted(steps: &mut VecDeque<CloseStep>, step: CloseStep) {
    let index = steps.partition_point(|other| *other <= step);
    steps.insert(index, step);
}

/// A thread that ends, in whatever way, delays no other.
impl Drop for CloseShare {
    fn drop(&mut self) {
        if self.is_counting() {
            self.shared.report(0);
        }
        for _ in self.open.drain() {
            self.shared.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::metrics::Metrics;
    use crate::relay::thread_waker::ThreadWaker;
    use crate::relay::{
        CloseHandle, CloseReason, PacedClose, SessionInfo, Tunnel, TunnelLimits, TunnelSelector,
    };

    type Slab = Vec<Option<Box<ActiveTunnel>>>;

    /// A thread's slab with tunnels of these ids.
    fn slab(ids: std::ops::Range<u64>) -> Slab {
        let (socket, _) = UnixStream::pair().unwrap();
        let metrics = Metrics::new(1);
        let tunnel = ids.map(|id| {
            let info = SessionInfo {
                id,
                client: IpAddr::V4(Ipv4Addr::LOCALHOST),
                node_connection: metrics.node("chat", "ws1").acquire_permit(),
                route: Arc::from("/"),
                generation: 1,
                opened_at: SystemTime::UNIX_EPOCH,
                affinity: ("none", "none"),
                key: None,
                trace: [0; 16],
                permit: None,
            };
            let end = || OwnedFd::from(socket.try_clone().unwrap());
            let limits = TunnelLimits {
                idle_timeout: Duration::MAX,
                max_message_size: u64::MAX,
                ping_interval: None,
                close_timeout: Duration::from_secs(10),
            };
            let (from_client, from_node) = Default::default();
            let tunnel = Tunnel {
                client: end(),
                node: end(),
                client_tls: None,
                node_tls: None,
                from_client,
                from_node,
                limits,
                info,
            };
            Some(Box::new(ActiveTunnel::new(tunnel, 0).unwrap().0))
        });
        tunnel.collect()
    }

    fn waker() -> ThreadWaker {
        ThreadWaker::new().unwrap()
    }

    /// The parts of as many threads in one closing, all counted.
    fn shares(slabs: &[Slab], over: u64, grace: u64) -> (Vec<CloseShare>, CloseHandle) {
        counted(close(over, grace), slabs)
    }

    fn close(window: u64, grace: u64) -> PacedClose {
        let close = PacedClose::new(TunnelSelector::all(), CloseReason::Drained, 1012, "");
        close.over(Duration::from_millis(window)).with_grace(Duration::from_millis(grace))
    }

    fn counted(close: PacedClose, slabs: &[Slab]) -> (Vec<CloseShare>, CloseHandle) {
        let wakers = slabs.iter().map(|_| waker()).collect();
        let shared = Arc::new(SharedClose::new(close, 7, wakers));
        let count = |slab: &Slab| {
            let mut share = CloseShare::new(Arc::clone(&shared), false);
            share.receive(0, 0);
            while share.is_counting() {
                share.count_chunk(slab);
            }
            share
        };
        let mut shares: Vec<CloseShare> = slabs.iter().map(count).collect();
        shares.iter_mut().for_each(CloseShare::update);
        (shares, CloseHandle::new(&shared))
    }

    #[test]
    fn no_second_is_busier_than_1_3_times_the_mean_over_all_threads_together() {
        let slabs = [slab(0..17), slab(17..17), slab(17..200)];
        let (mut shares, handle) = shares(&slabs, 20_000, 5_000);
        assert_eq!(handle.selected(), 200);
        let (mut seconds, mut cuts, mut first) = ([0; 20], 0, Vec::new());
        for now in (0..=25_000).step_by(10) {
            for (thread, share) in shares.iter_mut().enumerate() {
                while let Some(task) = share.next_task(now) {
                    match task {
                        CloseTask::SendClose { slot, grace } => {
                            assert_eq!(grace, 5_000);
                            seconds[now as usize / 1_000] += 1;
                            first.push((thread, slot));
                        }
                        CloseTask::Abort { .. } => cuts += 1,
                    }
                }
            }
        }
        assert_eq!((seconds.iter().sum::<u64>(), cuts), (200, 200));
        assert!(seconds.iter().all(|count| *count <= 13), "{seconds:?}");
        // Neither thread by thread nor in the order of the slab.
        assert!(!first.is_sorted() && first[..30].iter().any(|(thread, _)| *thread == 0));
    }

    #[test]
    fn a_stopped_close_keeps_the_tunnels_that_are_not_due() {
        let slabs = [slab(0..10)];
        let (mut shares, handle) = shares(&slabs, 10_000, 5_000);
        let told = std::iter::from_fn(|| shares[0].next_task(4_500)).count();
        assert_eq!((told, handle.left()), (5, 10));
        handle.stop();
        shares[0].update();
        assert_eq!(handle.left(), 5);
        assert!(shares[0].next_task(8_000).is_none());
        assert_eq!(std::iter::from_fn(|| shares[0].next_task(9_500)).count(), 5);
    }

    #[test]
    fn a_tunnel_that_migrates_has_not_ended_and_is_not_left() {
        let slabs = [slab(0..10)];
        let (mut shares, handle) = shares(&slabs, 10_000, 5_000);
        (0..3).for_each(|id| shares[0].remove(id));
        (3..7).for_each(|id| shares[0].remove_migrated(id));
        // A session that is not selected, or has ended, changes nothing.
        [0, 3, 77].into_iter().for_each(|id| shares[0].remove_migrated(id));
        assert_eq!((handle.left(), handle.closed()), (3, 3));
        (7..10).for_each(|id| shares[0].remove(id));
        assert_eq!((handle.left(), handle.closed()), (0, 6));
        assert!(shares[0].is_finished());
    }

    #[test]
    fn a_thread_that_is_gone_delays_no_close() {
        let slabs = [slab(0..3), slab(3..6)];
        let (mut shares, handle) = shares(&slabs, 0, 0);
        shares.pop();
        assert_eq!(handle.left(), 3);
        (0..3).for_each(|id| shares[0].remove(id));
        assert!(shares[0].is_finished());
        assert_eq!(handle.left(), 0);
        drop(slabs);
    }

    #[test]
    fn a_tunnel_that_is_adopted_after_the_thread_has_received_the_close_is_not_counted() {
        let mut slab = slab(0..3);
        slab[1].as_mut().unwrap().adopted_at = 1;
        assert_eq!(shares(&[slab], 0, 0).1.selected(), 2);
    }

    #[test]
    fn a_close_that_includes_later_tunnels_schedules_them_until_it_is_stopped() {
        let slabs = [slab(0..2)];
        let (mut shares, handle) = counted(close(10_000, 5_000).including_later(), &slabs);
        let share = &mut shares[0];
        let info = |at: usize| &slabs[0][at].as_ref().unwrap().info;
        assert!(share.includes(info(0)));
        (100..200).for_each(|id| share.add_late(0, id, 4_000));
        assert_eq!((handle.selected(), handle.left()), (102, 102));
        let (mut closes, mut cuts) = (Vec::new(), 0);
        for now in (4_000..=15_000).step_by(10) {
            while let Some(task) = share.next_task(now) {
                match task {
                    CloseTask::SendClose { grace, .. } => closes.push((now, grace)),
                    CloseTask::Abort { .. } => cuts += 1,
                }
            }
        }
        assert_eq!((closes.len(), cuts), (102, 102));
        assert!(closes.iter().all(|(now, grace)| *now <= 10_000 && now + grace <= 15_000), "{closes:?}");
        // Those whose time would have been over already, and evenly the others.
        let at_once = closes.iter().filter(|(now, _)| *now == 4_000).count();
        assert!((25..60).contains(&at_once), "{at_once}");
        (0..200).for_each(|id| share.remove(id));
        assert!(handle.left() == 0 && !share.is_finished(), "others may come");
        // Behind the window: at once, and with the whole grace.
        share.add_late(0, 300, 20_000);
        assert!(matches!(share.next_task(20_000), Some(CloseTask::SendClose { slot: 0, grace: 5_000 })));
        assert!(share.next_task(24_999).is_none());
        assert!(matches!(share.next_task(25_000), Some(CloseTask::Abort { slot: 0 })));
        share.remove(300);
        handle.stop();
        share.update();
        assert!(share.is_finished() && !share.includes(info(0)));
    }

    #[test]
    fn a_large_slab_is_counted_a_chunk_at_a_time() {
        let mut slab: Slab = (0..3 * SLAB_CHUNK).map(|_| None).collect();
        slab.extend(self::slab(0..2));
        let wakers = vec![waker()];
        let mut share = CloseShare::new(Arc::new(SharedClose::new(close(0, 0), 0, wakers)), false);
        let mut ticks = 0;
        while share.is_counting() {
            share.count_chunk(&slab);
            ticks += 1;
        }
        assert_eq!((ticks, share.open.len()), (4, 2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn i11_every_close_is_finished_by_its_window_and_its_grace(
            counts in prop::collection::vec(0_u64..6, 1..4), over in 0_u64..100_000, grace in 0_u64..10_000,
            late in 0_u64..1_000,
        ) {
            let slabs: Vec<Slab> = counts.iter().map(|count| slab(0..*count)).collect();
            let (mut shares, _handle) = shares(&slabs, over, grace);
            for (share, count) in shares.iter_mut().zip(&counts) {
                let (mut closes, mut cuts, mut last) = (0, 0, 0);
                while let Some(next) = share.next_due() {
                    // A tick may come late, but not after the end.
                    let now = (next + late).min(over + grace);
                    prop_assert!(next >= last && next <= over + grace);
                    last = next;
                    while let Some(task) = share.next_task(now) {
                        match task {
                            CloseTask::SendClose { .. } => closes += 1,
                            CloseTask::Abort { .. } => cuts += 1,
                        }
                    }
                }
                prop_assert_eq!((closes, cuts), (*count, *count));
            }
        }
    }
}
