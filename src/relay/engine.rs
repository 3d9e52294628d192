//! A relay thread: one epoll, one slab of tunnels, one scratch buffer, and the loop around them.
//!
//! Each socket is registered once, edge-triggered. One turn of the loop serves every tunnel that is ready, each up
//! to its quantum; a tunnel that wants more comes round again behind the others. Commands arrive over a channel,
//! and an eventfd wakes the thread for them.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::pipe::HEADROOM;
use super::tunnel::{Farewell, Live, Progress, Turn};
use super::{Closing, Command, Ledger, Tunnel, Why};
use crate::pace::Schedule;

/// Bytes that one read may give.
const READ: usize = 64 * 1024;
/// Events that one turn takes from epoll.
const EVENTS: usize = 256;
/// The wake-up's token; tunnels have the smaller ones.
const WAKE: u64 = u64::MAX;
/// Time between two sweeps for deadlines.
const SWEEP: u64 = 1_000;
/// The same while tunnels are being closed, so that a drain ends close to its deadline.
const BRISK_SWEEP: u64 = 100;

/// See the module.
pub struct Engine {
    number: usize,
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    inbox: Receiver<Command>,
    /// Tunnels of this thread; read by whoever looks for the emptiest thread.
    count: Arc<AtomicUsize>,
    ledger: Ledger,
    tunnels: Vec<Option<Box<Live>>>,
    /// Places in `tunnels` that are empty.
    free: Vec<usize>,
    /// Tunnels that want a turn.
    ready: VecDeque<usize>,
    scratch: Box<[u8]>,
    start: Instant,
    /// Milliseconds since `start`, taken once per turn.
    now: u64,
    next_sweep: u64,
    /// A tunnel may be running against a deadline.
    closing: bool,
    /// The end of all tunnels, once it is asked for.
    last_call: Option<LastCall>,
    /// State of the generator that masks our frames to nodes; it guards nothing.
    random: u64,
}

/// All tunnels are being ended.
struct LastCall {
    closing: Closing,
    /// When it began.
    since: u64,
    /// Who is closed when, soonest first: due time since `since`, place, session id.
    due: VecDeque<(u64, usize, u64)>,
}

impl Engine {
    /// A thread's engine, not running yet.
    pub fn new(
        number: usize,
        wake: Arc<OwnedFd>,
        inbox: Receiver<Command>,
        count: Arc<AtomicUsize>,
        ledger: Ledger,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Self {
            number,
            epoll,
            wake,
            inbox,
            count,
            ledger,
            tunnels: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            scratch: vec![0; HEADROOM + READ].into_boxed_slice(),
            start: Instant::now(),
            now: 0,
            next_sweep: SWEEP,
            closing: false,
            last_call: None,
            random: RandomState::new().hash_one(number),
        })
    }

    /// Runs until every tunnel has ended after a [`Closing`].
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let wait = self.wait();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "epoll failed, the relay thread ends");
                    return;
                }
            }
            self.now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
            let woken = self.sort_events(&mut events);
            self.serve_ready();
            if woken {
                self.take_commands();
            }
            self.close_due();
            if self.now >= self.next_sweep {
                self.sweep();
            }
            if self.last_call.is_some() && self.count.load(Relaxed) == 0 {
                return;
            }
        }
    }

    fn wait(&self) -> Timespec {
        let due = self.last_call.as_ref().and_then(|call| Some(call.since + call.due.front()?.0));
        let until = due.map_or(self.next_sweep, |due| due.min(self.next_sweep));
        let wait = if self.ready.is_empty() { until.saturating_sub(self.now) } else { 0 };
        let wait = Duration::from_millis(wait);
        Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) }
    }

    /// Marks what the events name; true when there are commands.
    fn sort_events(&mut self, events: &mut Vec<epoll::Event>) -> bool {
        let mut woken = false;
        for event in events.drain(..) {
            let token = event.data.u64();
            if token == WAKE {
                woken = true;
                continue;
            }
            let (place, index) = ((token >> 1) as usize, (token & 1) as usize);
            let Some(Some(live)) = self.tunnels.get_mut(place) else { continue };
            let flags = event.flags;
            let hung_up =
                flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            live.end(index).wake(
                flags.contains(epoll::EventFlags::IN),
                flags.contains(epoll::EventFlags::OUT),
                hung_up,
            );
            if !live.queued {
                live.queued = true;
                self.ready.push_back(place);
            }
        }
        woken
    }

    /// One turn for each tunnel that is ready now.
    fn serve_ready(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(place) = self.ready.pop_front() else { return };
            self.visit(place, |live, turn| live.turn(turn));
        }
    }

    /// Lets `visit` work on a tunnel and does what its progress asks for.
    fn visit(&mut self, place: usize, visit: impl FnOnce(&mut Live, &mut Turn<'_>) -> Progress) {
        let mask = self.mask();
        let Some(Some(live)) = self.tunnels.get_mut(place) else { return };
        let mut turn = Turn { scratch: &mut self.scratch, thread: self.number, now: self.now, mask };
        live.queued = false;
        match visit(live, &mut turn) {
            Progress::Rests => self.closing |= live.is_closing(),
            Progress::WantsMore => {
                live.queued = true;
                self.ready.push_back(place);
            }
            Progress::Over => self.end(place),
        }
    }

    fn end(&mut self, place: usize) {
        let Some(live) = self.tunnels.get_mut(place).and_then(Option::take) else { return };
        self.free.push(place);
        (self.ledger)(&live.record, &live.outcome(self.now));
        self.count.fetch_sub(1, Relaxed);
    }

    fn take_commands(&mut self) {
        let mut counter = [0; 8];
        // Only the wake-up matters; the channel holds what is to be done.
        let _ = rustix::io::read(&*self.wake, &mut counter);
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Adopt(tunnel) => self.adopt(*tunnel),
                Command::Close(closing) => self.begin_last_call(closing),
            }
        }
    }

    fn adopt(&mut self, tunnel: Tunnel) {
        let mask = self.mask();
        let id = tunnel.record.id;
        let mut turn = Turn { scratch: &mut self.scratch, thread: self.number, now: self.now, mask };
        let live = Box::new(Live::adopt(tunnel, &mut turn));
        let place = self.free.pop().unwrap_or_else(|| {
            self.tunnels.push(None);
            self.tunnels.len() - 1
        });
        let registered = self.register(place, &live);
        self.tunnels[place] = Some(live);
        if let Err(error) = registered {
            tracing::error!(%error, "a socket could not be polled, its tunnel ends");
            return self.end(place);
        }
        if let Some(call) = &mut self.last_call {
            call.due.push_front((0, place, id));
        }
        self.visit(place, |live, turn| live.turn(turn));
    }

    fn register(&self, place: usize, live: &Live) -> io::Result<()> {
        use epoll::EventFlags as Flags;
        for (index, end) in live.ends().iter().enumerate() {
            let token = (place as u64) << 1 | index as u64;
            let flags = Flags::IN | Flags::OUT | Flags::RDHUP | Flags::ET;
            epoll::add(&self.epoll, end.socket(), epoll::EventData::new_u64(token), flags)?;
        }
        Ok(())
    }

    fn begin_last_call(&mut self, closing: Closing) {
        let open = self.tunnels.iter().enumerate();
        let open: Vec<(usize, u64)> =
            open.filter_map(|(place, live)| Some((place, live.as_ref()?.record.id))).collect();
        let schedule = Schedule::new(open.len() as u64, closing.over, self.draw());
        let due = |index: usize| u64::try_from(schedule.due(index as u64).as_millis()).unwrap_or(u64::MAX);
        let mut due: Vec<_> =
            open.iter().enumerate().map(|(index, &(place, id))| (due(index), place, id)).collect();
        due.sort_unstable();
        self.last_call = Some(LastCall { closing, since: self.now, due: due.into() });
    }

    /// Closes those whose time in the last call has come.
    fn close_due(&mut self) {
        loop {
            let Some(call) = &mut self.last_call else { return };
            let elapsed = self.now - call.since;
            let Some(&(due, place, id)) = call.due.front() else { return };
            if due > elapsed {
                return;
            }
            call.due.pop_front();
            let Closing { code, ref reason, grace, .. } = call.closing;
            let (reason, grace) = (Arc::clone(reason), u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
            self.visit(place, |live, turn| {
                if live.record.id == id {
                    live.farewell(&Farewell { code, reason: &reason, why: Why::Shutdown, grace }, turn);
                }
                live.turn(turn)
            });
        }
    }

    fn sweep(&mut self) {
        self.closing = self.last_call.is_some();
        for place in 0..self.tunnels.len() {
            if let Some(Some(live)) = self.tunnels.get(place)
                && live.wants_sweep(self.now)
            {
                self.visit(place, |live, turn| live.sweep(turn));
            }
        }
        self.next_sweep = self.now + if self.closing { BRISK_SWEEP } else { SWEEP };
    }

    fn draw(&mut self) -> u64 {
        self.random = crate::affinity::hash::mix(self.random.wrapping_add(0x9e37_79b9_7f4a_7c15));
        self.random
    }

    fn mask(&mut self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.draw().to_ne_bytes();
        [a, b, c, d]
    }
}
