//! A relay thread: one epoll, one slab of tunnels, one scratch buffer, and the loop around them.
//!
//! Each socket is registered once, edge-triggered. One turn of the loop serves every tunnel that is ready, each up
//! to its quantum; a tunnel that wants more comes round again behind the others. Commands arrive over a channel,
//! and an eventfd wakes the thread for them. What concerns all tunnels (the sweep, a closing, a listing) takes a
//! stretch of the slab each turn, so that a turn is short however many tunnels there are.

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

use super::farewell::Farewell;
use super::listing::Listing;
use super::pipe::HEADROOM;
use super::round::{Round, Task};
use super::tunnel::Live;
use super::turn::{Progress, Turn};
use super::{Command, Ledger, STRETCH, Tunnel, millis};

/// Bytes that one read may give.
const READ: usize = 64 * 1024;
/// Events that one turn takes from epoll.
const EVENTS: usize = 256;
/// The wake-up's token; tunnels have the smaller ones.
const WAKE: u64 = u64::MAX;
/// Commands that one turn takes: a storm of handshakes does not hold up the messages of the others.
const COMMANDS: usize = 128;
/// Tunnels that one turn begins to close.
const CLOSES: usize = 128;
/// Time between two sweeps for deadlines, in milliseconds.
const SWEEP: u64 = 1_000;

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
    /// When the next sweep begins.
    next_sweep: u64,
    /// Where the sweep that is under way goes on.
    sweep_at: Option<usize>,
    /// Commands are left for the next turn.
    inbox_waits: bool,
    /// The closings that are under way.
    rounds: Vec<Round>,
    /// The listings that are asked for; the first is being made.
    listings: VecDeque<Listing>,
    /// State of the generator that masks our frames to nodes; it guards nothing.
    random: u64,
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
            sweep_at: None,
            inbox_waits: false,
            rounds: Vec::new(),
            listings: VecDeque::new(),
            random: RandomState::new().hash_one(number),
        })
    }

    /// Runs until every tunnel has ended in the last closing.
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
            self.now = millis(self.start.elapsed());
            let woken = self.sort_events(&mut events);
            self.serve_ready();
            if woken || self.inbox_waits {
                self.take_commands();
            }
            self.close_due();
            self.list();
            self.sweep();
            if self.rounds.iter().any(Round::is_last) && self.count.load(Relaxed) == 0 {
                return;
            }
        }
    }

    fn wait(&self) -> Timespec {
        let walks = self.sweep_at.is_some() || !self.listings.is_empty();
        let is_busy = !self.ready.is_empty() || self.inbox_waits || walks;
        if is_busy || self.rounds.iter().any(Round::is_counting) {
            return Timespec { tv_sec: 0, tv_nsec: 0 };
        }
        let due = self.rounds.iter().filter_map(Round::next);
        let until = due.fold(self.next_sweep, u64::min);
        let wait = Duration::from_millis(until.saturating_sub(self.now));
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
            Progress::Rests => {}
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
        let id = live.record.id;
        // Whoever waits for a closing then sees the node's count without this tunnel.
        drop(live);
        self.count.fetch_sub(1, Relaxed);
        self.rounds.iter_mut().for_each(|round| round.forget(id));
    }

    fn take_commands(&mut self) {
        let mut counter = [0; 8];
        // Only the wake-up matters; the channel holds what is to be done.
        let _ = rustix::io::read(&*self.wake, &mut counter);
        self.inbox_waits = true;
        for _ in 0..COMMANDS {
            match self.inbox.try_recv() {
                // Who asked may have given up by now.
                Ok(Command::Answer(to)) => drop(to.send(())),
                Ok(Command::Adopt(mut arriving)) => {
                    if let Some(tunnel) = arriving.tunnel.take() {
                        self.adopt(tunnel);
                    }
                }
                Ok(Command::Close(mut round)) => {
                    round.begin(self.start, self.now);
                    self.rounds.push(*round);
                }
                Ok(Command::List(listing)) => self.listings.push_back(*listing),
                Err(_) => {
                    self.inbox_waits = false;
                    return;
                }
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
        self.join_rounds(place, id);
        self.visit(place, |live, turn| live.turn(turn));
    }

    /// A tunnel that has come belongs to the closings that take it in.
    fn join_rounds(&mut self, place: usize, id: u64) {
        let Some(Some(live)) = self.tunnels.get(place) else { return };
        for round in self.rounds.iter_mut().filter(|round| round.welcomes(&live.record)) {
            // One that is still counting leaves out who came after it was heard of.
            round.join(place, id, self.now);
        }
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

    /// Goes on with the closings: counts a stretch, closes whose time has come, cuts whose deadline is here.
    fn close_due(&mut self) {
        if let Some(round) = self.rounds.iter_mut().find(|round| round.is_counting()) {
            round.count(&self.tunnels);
        }
        let mut closes = 0;
        for index in 0..self.rounds.len() {
            self.rounds[index].settle();
            while closes < CLOSES
                && let Some(task) = self.rounds[index].task(self.now)
            {
                closes += 1;
                match task {
                    Task::Cut(place) => self.visit(place, |live, turn| live.sweep(turn)),
                    Task::Close(place, grace) => self.close(place, index, grace),
                }
            }
        }
        self.rounds.retain(|round| !round.is_over());
    }

    fn close(&mut self, place: usize, round: usize, grace: u64) {
        let plan = Arc::clone(self.rounds[round].plan());
        let (code, reason, why) = (plan.closing.code, &*plan.closing.reason, plan.which.why());
        self.visit(place, |live, turn| {
            live.farewell(&Farewell { code, reason, why, grace }, turn);
            live.turn(turn)
        });
    }

    /// Goes on with the listing that is being made.
    fn list(&mut self) {
        if let Some(listing) = self.listings.front_mut()
            && listing.walk(&self.tunnels, self.now)
            && let Some(listing) = self.listings.pop_front()
        {
            listing.finish();
        }
    }

    /// Looks at a stretch of the slab for tunnels that are idle or past their deadline.
    fn sweep(&mut self) {
        if self.sweep_at.is_none() && self.now >= self.next_sweep {
            self.sweep_at = Some(0);
            self.next_sweep = self.now + SWEEP;
        }
        let Some(at) = self.sweep_at else { return };
        let until = self.tunnels.len().min(at + STRETCH);
        for place in at..until {
            if let Some(Some(live)) = self.tunnels.get(place)
                && live.wants_sweep(self.now)
            {
                self.visit(place, |live, turn| live.sweep(turn));
            }
        }
        self.sweep_at = (until < self.tunnels.len()).then_some(until);
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
