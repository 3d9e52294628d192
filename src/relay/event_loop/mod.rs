//! The event loop of a relay thread: one epoll, one slab of tunnels, one scratch buffer.
//!
//! Each socket is registered once, edge-triggered. One tick serves every tunnel that is ready, each up to its quantum;
//! a tunnel that wants more is served again behind the others. Commands arrive over a channel, and an eventfd wakes
//! the thread for them. Work on all tunnels (the sweep, paced closes, listings) takes a chunk of the slab each tick, so
//! that a tick is short however many tunnels there are.
//!
//! A panic in a tunnel ends that tunnel and no other: the loop notes which tunnel it serves, and catches once per tick,
//! not once per tunnel. What was begun for the others continues in the next tick.

mod background;
mod commands;
mod migration;
mod slab;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::close_share::CloseShare;
use super::command::RelayCommand;
use super::endpoint::SocketEvents;
use super::pipe::HEADROOM;
use super::session::CloseObserver;
use super::session_list::ListJob;
use super::thread_waker::ThreadWaker;
use super::tick::{CLOCK_ORIGIN, TickContext, TunnelProgress, millis};
use super::tunnel::ActiveTunnel;
use crate::affinity::hash::mix;

/// The most bytes of one read.
const READ_SIZE: usize = 64 * 1024;
/// The most events that one tick takes from epoll.
const MAX_EVENTS: usize = 256;
/// The token of the waker; tunnels have smaller ones.
const WAKE_TOKEN: u64 = u64::MAX;
/// Time between two sweeps for deadlines, in milliseconds.
const SWEEP_INTERVAL: u64 = 1_000;

/// The state of a relay thread.
pub(super) struct EventLoop {
    thread_index: usize,
    epoll: OwnedFd,
    waker: ThreadWaker,
    commands: Receiver<RelayCommand>,
    /// How many tunnels the thread has; read by whoever looks for the thread with the fewest.
    tunnel_count: Arc<AtomicUsize>,
    observer: CloseObserver,
    tunnels: Vec<Option<Box<ActiveTunnel>>>,
    /// Slots of `tunnels` that are empty.
    free_slots: Vec<usize>,
    /// Slots of tunnels that are to be served.
    ready: VecDeque<usize>,
    /// The slot of the tunnel that is served; `None` between two tunnels.
    current: Option<usize>,
    scratch: Box<[u8]>,
    start: Instant,
    /// Milliseconds since `start`, from [`CLOCK_ORIGIN`] on, taken once per tick.
    now: u64,
    /// When the next sweep begins.
    next_sweep: u64,
    /// Where the sweep that is under way continues.
    sweep_cursor: Option<usize>,
    /// Commands are left for the next tick.
    has_more_commands: bool,
    /// The paced closes that are under way.
    closes: Vec<CloseShare>,
    /// The listings that are asked for; the first is under way.
    list_jobs: VecDeque<ListJob>,
    /// State of the generator that masks frames to nodes; it protects nothing.
    mask_state: u64,
}

impl EventLoop {
    /// The event loop of a thread, not running yet.
    pub(super) fn new(
        thread_index: usize,
        waker: ThreadWaker,
        commands: Receiver<RelayCommand>,
        tunnel_count: Arc<AtomicUsize>,
        observer: CloseObserver,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKE_TOKEN), EventFlags::IN)?;
        Ok(Self {
            thread_index,
            epoll,
            waker,
            commands,
            tunnel_count,
            observer,
            tunnels: Vec::new(),
            free_slots: Vec::new(),
            ready: VecDeque::new(),
            current: None,
            scratch: vec![0; HEADROOM + READ_SIZE].into_boxed_slice(),
            start: Instant::now(),
            now: CLOCK_ORIGIN,
            next_sweep: CLOCK_ORIGIN + SWEEP_INTERVAL,
            sweep_cursor: None,
            has_more_commands: false,
            closes: Vec::new(),
            list_jobs: VecDeque::new(),
            mask_state: RandomState::new().hash_one(thread_index),
        })
    }

    /// Runs until every tunnel has ended in the close of a shutdown.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        loop {
            if let Err(error) = self.poll_events(&mut events, self.poll_timeout()) {
                tracing::error!(%error, "epoll failed, the relay thread ends");
                return;
            }
            self.now = self.clock_at(Instant::now());
            self.catch_tunnel_panic(|event_loop| event_loop.run_tick(&mut events));
            if self.closes.iter().any(CloseShare::is_shutdown) && self.tunnel_count.load(Relaxed) == 0 {
                return;
            }
        }
    }

    /// One tick of the loop.
    fn run_tick(&mut self, events: &mut Vec<epoll::Event>) {
        let is_woken = self.mark_ready(events);
        self.serve_ready();
        if is_woken || self.has_more_commands {
            self.run_commands();
        }
        self.advance_closes();
        self.advance_listing();
        self.sweep();
    }

    fn poll_events(&self, events: &mut Vec<epoll::Event>, timeout: Timespec) -> io::Result<()> {
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// How long the thread may wait for events: not at all while it has work.
    fn poll_timeout(&self) -> Timespec {
        let is_scanning = self.sweep_cursor.is_some() || !self.list_jobs.is_empty();
        let is_busy = !self.ready.is_empty() || self.has_more_commands || is_scanning;
        if is_busy || self.closes.iter().any(CloseShare::is_counting) {
            return Timespec { tv_sec: 0, tv_nsec: 0 };
        }
        let due = self.closes.iter().filter_map(CloseShare::next_due);
        let until = due.fold(self.next_sweep, u64::min);
        let wait = Duration::from_millis(until.saturating_sub(self.now));
        Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) }
    }

    /// What the thread's clock shows at `instant`.
    fn clock_at(&self, instant: Instant) -> u64 {
        CLOCK_ORIGIN.saturating_add(millis(instant.saturating_duration_since(self.start)))
    }

    /// Applies the events to their tunnels. Returns true when the waker is among them.
    fn mark_ready(&mut self, events: &mut Vec<epoll::Event>) -> bool {
        let mut is_woken = false;
        for event in events.drain(..) {
            let token = event.data.u64();
            if token == WAKE_TOKEN {
                is_woken = true;
                continue;
            }
            let (slot, index) = ((token >> 1) as usize, (token & 1) as usize);
            let Some(Some(tunnel)) = self.tunnels.get_mut(slot) else { continue };
            let flags = event.flags;
            let endpoint = tunnel.endpoint(index);
            endpoint.apply_events(SocketEvents {
                is_readable: flags.contains(EventFlags::IN),
                is_writable: flags.contains(EventFlags::OUT),
                has_hung_up: flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
            });
            if flags.contains(EventFlags::PRI) {
                endpoint.set_urgent();
            }
            if !tunnel.is_queued {
                tunnel.is_queued = true;
                self.ready.push_back(slot);
            }
        }
        is_woken
    }

    /// Serves each tunnel that is ready now, once.
    fn serve_ready(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(slot) = self.ready.pop_front() else { return };
            self.serve(slot, |tunnel, tick| tunnel.pump_both(tick));
        }
    }

    /// Lets `work` run on a tunnel and does what its progress asks for.
    fn serve(
        &mut self,
        slot: usize,
        work: impl FnOnce(&mut ActiveTunnel, &mut TickContext<'_>) -> TunnelProgress,
    ) {
        let mask = self.next_mask();
        let Some(Some(tunnel)) = self.tunnels.get_mut(slot) else { return };
        if tunnel.is_frozen() {
            tunnel.is_queued = false;
            return;
        }
        let mut tick =
            TickContext { scratch: &mut self.scratch, thread: self.thread_index, now: self.now, mask };
        tunnel.is_queued = false;
        self.current = Some(slot);
        let progress = work(tunnel, &mut tick);
        self.current = None;
        match progress {
            TunnelProgress::Idle => {}
            TunnelProgress::Yielded => {
                tunnel.is_queued = true;
                self.ready.push_back(slot);
            }
            TunnelProgress::Ended => self.end_tunnel(slot),
        }
    }

    /// Does `work`. A panic ends the tunnel that was served; a panic between two tunnels is the thread's own.
    fn catch_tunnel_panic(&mut self, work: impl FnOnce(&mut Self)) {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) else { return };
        let Some(slot) = self.current.take() else { resume_unwind(panic) };
        self.end_panicked(slot);
    }

    /// Ends a tunnel on which the balancer's own work panicked.
    fn end_panicked(&mut self, slot: usize) {
        if let Some(Some(tunnel)) = self.tunnels.get_mut(slot) {
            tracing::error!(id = tunnel.info.id, "a tunnel panicked, it ends");
            tunnel.mark_panicked();
        }
        self.end_tunnel(slot);
    }

    /// Takes a tunnel out of the slab, tells the observer of its end and closes its sockets.
    fn end_tunnel(&mut self, slot: usize) {
        let Some(tunnel) = self.tunnels.get_mut(slot).and_then(Option::take) else { return };
        self.free_slots.push(slot);
        if tunnel.was_frozen {
            self.unregister(&tunnel);
        }
        let (id, now, observer) = (tunnel.info.id, self.now, &self.observer);
        let observed = catch_unwind(AssertUnwindSafe(move || {
            observer(&tunnel.info, &tunnel.session_end(now));
            // Before the closes hear of it: whoever waits for one then sees the node's count without this tunnel.
            drop(tunnel);
        }));
        if observed.is_err() {
            tracing::error!(id, "the end of a tunnel panicked, it may not be counted");
        }
        self.forget_session(id);
    }

    /// The session is not in the slab any more.
    fn forget_session(&mut self, id: u64) {
        self.tunnel_count.fetch_sub(1, Relaxed);
        self.closes.iter_mut().for_each(|close| close.remove(id));
    }

    fn next_mask(&mut self) -> [u8; 4] {
        self.mask_state = mix(self.mask_state.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let [a, b, c, d, ..] = self.mask_state.to_ne_bytes();
        [a, b, c, d]
    }
}

/// A thread that ends in whatever way leaves no tunnel without its end (invariant I7).
impl Drop for EventLoop {
    fn drop(&mut self) {
        for slot in 0..self.tunnels.len() {
            self.end_tunnel(slot);
        }
    }
}

#[cfg(test)]
mod tests;
