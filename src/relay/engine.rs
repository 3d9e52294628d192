//! A relay thread: one epoll, one slab of tunnels, one scratch buffer, and the loop around them.
//!
//! Each socket is registered once, edge-triggered. One turn of the loop serves every tunnel that is ready, each up
//! to its quantum; a tunnel that wants more comes round again behind the others. Commands arrive over a channel,
//! and an eventfd wakes the thread for them. What concerns all tunnels (the sweep, a closing, a listing) takes a
//! stretch of the slab each turn, so that a turn is short however many tunnels there are.
//!
//! A panic in a tunnel ends that tunnel and no other: the loop notes whose turn it is, and catches once per turn of
//! its own, not once per tunnel. What was begun for the others is taken up again in the next turn.

mod moving;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::farewell::Farewell;
use super::listing::Listing;
use super::paced_close::PacedClose;
use super::pipe::HEADROOM;
use super::round::{Round, Task};
use super::tunnel::Live;
use super::turn::{BEGINNING, Progress, Turn};
use super::{Command, Ledger, STRETCH, millis};

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
    /// Whose turn it is; `None` between two tunnels.
    at_turn: Option<usize>,
    scratch: Box<[u8]>,
    start: Instant,
    /// Milliseconds since `start`, from [`BEGINNING`] on, taken once per turn.
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
            at_turn: None,
            scratch: vec![0; HEADROOM + READ].into_boxed_slice(),
            start: Instant::now(),
            now: BEGINNING,
            next_sweep: BEGINNING + SWEEP,
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
            self.now = self.clock(Instant::now());
            self.contain(|engine| engine.serve(&mut events));
            if self.rounds.iter().any(Round::is_last) && self.count.load(Relaxed) == 0 {
                return;
            }
        }
    }

    /// One turn of the loop.
    fn serve(&mut self, events: &mut Vec<epoll::Event>) {
        let woken = self.sort_events(events);
        self.serve_ready();
        if woken || self.inbox_waits {
            self.take_commands();
        }
        self.close_due();
        self.list();
        self.sweep();
    }

    /// Does `work`; the tunnel whose turn it was at a panic ends by it. A panic at no tunnel's turn is the thread's own.
    fn contain(&mut self, work: impl FnOnce(&mut Self)) {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) else { return };
        let Some(place) = self.at_turn.take() else { resume_unwind(panic) };
        self.fail(place);
    }

    /// Ends a tunnel on which the balancer's own work broke off.
    fn fail(&mut self, place: usize) {
        if let Some(Some(live)) = self.tunnels.get_mut(place) {
            tracing::error!(id = live.record.id, "a tunnel panicked, it ends");
            live.fail();
        }
        self.end(place);
    }

    /// What the thread's clock shows at `instant`.
    fn clock(&self, instant: Instant) -> u64 {
        BEGINNING.saturating_add(millis(instant.saturating_duration_since(self.start)))
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
            if flags.contains(epoll::EventFlags::PRI) {
                live.end(index).note_urgent();
            }
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
        if live.is_frozen() {
            live.queued = false;
            return;
        }
        let mut turn = Turn { scratch: &mut self.scratch, thread: self.number, now: self.now, mask };
        live.queued = false;
        self.at_turn = Some(place);
        let progress = visit(live, &mut turn);
        self.at_turn = None;
        match progress {
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
        if live.was_lent {
            self.unregister(&live);
        }
        let (id, now, ledger) = (live.record.id, self.now, &self.ledger);
        let told = catch_unwind(AssertUnwindSafe(move || {
            ledger(&live.record, &live.outcome(now));
            // Whoever waits for a closing then sees the node's count without this tunnel.
            drop(live);
        }));
        if told.is_err() {
            tracing::error!(id, "the end of a tunnel panicked, it may not be counted");
        }
        self.forget(id);
    }

    /// The session `id` is not in the slab any more.
    fn forget(&mut self, id: u64) {
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
                    round.begin(self.clock(round.shared().begun), self.now);
                    self.rounds.push(*round);
                }
                Ok(Command::List(listing)) => self.listings.push_back(*listing),
                Ok(Command::Freeze(freezing)) => self.freeze(freezing),
                Ok(Command::Resume(parcels)) => self.resume(parcels),
                Ok(Command::LetGo(places)) => self.let_go(places),
                Ok(Command::Land(landing)) => self.land(landing),
                Err(_) => {
                    self.inbox_waits = false;
                    return;
                }
            }
        }
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
                if self.postpones(index, &task) {
                    continue;
                }
                match task {
                    Task::Cut(place) => self.visit(place, |live, turn| live.sweep(turn)),
                    Task::Close(place, grace) => self.close(place, index, grace),
                }
            }
        }
        self.rounds.retain(|round| !round.is_over());
    }

    fn close(&mut self, place: usize, round: usize, grace: u64) {
        let shared = Arc::clone(self.rounds[round].shared());
        let PacedClose { code, why, ref reason, .. } = shared.close;
        self.visit(place, |live, turn| {
            live.farewell(&Farewell { code, reason, why, grace }, turn);
            live.turn(turn)
        });
    }

    /// Goes on with the listing that is being made.
    fn list(&mut self) {
        let Some(mut listing) = self.listings.pop_front() else { return };
        // Whom it wants, the caller says; that is not the tunnels' fault.
        let walked = catch_unwind(AssertUnwindSafe(|| listing.walk(&self.tunnels, self.now)));
        match walked {
            Ok(true) => listing.finish(),
            Ok(false) => self.listings.push_front(listing),
            Err(_) => tracing::error!("a listing panicked, this thread's part of it is left out"),
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

/// A thread that ends in whatever way leaves no tunnel without its outcome (invariant I7).
impl Drop for Engine {
    fn drop(&mut self) {
        for place in 0..self.tunnels.len() {
            self.end(place);
        }
    }
}

#[cfg(test)]
mod tests {
    mod orders;

    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Sender, channel};
    use std::time::SystemTime;

    use parking_lot::Mutex;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::net::{SendFlags, send};
    use tokio::sync::oneshot;

    use super::*;
    use crate::metrics::{Metrics, Side};
    use crate::relay::listing::{ChoiceOrder, Query, TunnelChoice};
    use crate::relay::moving::{Freezing, Parcel};
    use crate::relay::paced_close::SharedClose;
    use crate::relay::{CloseHandle, Outcome, Record, Rules, Tunnel, TunnelSelector, Why};

    /// An engine whose turns the test takes, with the peers of its tunnels; a tunnel's id is its place.
    struct Bench {
        engine: Engine,
        commands: Sender<Command>,
        metrics: Arc<Metrics>,
        peers: Vec<[UnixStream; 2]>,
        /// How each tunnel ended.
        ends: Arc<Mutex<Vec<(u64, Outcome)>>>,
    }

    impl Bench {
        /// With `tunnels` that have been adopted. The ledger panics at session 99.
        fn new(tunnels: u64) -> Self {
            let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
            let ends: Arc<Mutex<Vec<_>>> = Arc::default();
            let told = Arc::clone(&ends);
            let ledger: Ledger = Arc::new(move |record: &Record, outcome: &Outcome| {
                told.lock().push((record.id, *outcome));
                assert_ne!(record.id, 99, "the ledger's own fault");
            });
            let (commands, inbox) = channel();
            let engine = Engine::new(0, wake, inbox, Arc::default(), ledger).unwrap();
            let mut bench = Self { engine, commands, metrics: Metrics::new(1), peers: Vec::new(), ends };
            (0..tunnels).for_each(|id| bench.adopt(id));
            bench
        }

        fn adopt(&mut self, id: u64) {
            let pair = || {
                let (ours, theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                theirs.set_nonblocking(true).unwrap();
                (OwnedFd::from(ours), theirs)
            };
            let ((client, client_peer), (node, node_peer)) = (pair(), pair());
            self.peers.push([client_peer, node_peer]);
            self.take(id, client, node);
        }

        fn take(&mut self, id: u64, client: OwnedFd, node: OwnedFd) {
            self.engine.count.fetch_add(1, Relaxed);
            self.engine.adopt(Tunnel {
                client,
                node,
                client_tls: None,
                node_tls: None,
                from_client: bytes::Bytes::new(),
                from_node: bytes::Bytes::new(),
                rules: Rules {
                    idle: Duration::MAX,
                    max_message: u64::MAX,
                    ping: None,
                    close: Duration::from_secs(10),
                },
                record: Record {
                    id,
                    client: IpAddr::V4(Ipv4Addr::LOCALHOST),
                    seat: self.metrics.node("chat", "ws1").seat(),
                    route: Arc::from("/"),
                    generation: 1,
                    opened_at: SystemTime::UNIX_EPOCH,
                    affinity: ("none", "none"),
                    key: None,
                    trace: [0; 16],
                    place: None,
                },
            });
        }

        /// One turn of the loop, over what has happened up to now.
        fn turn(&mut self, work: impl FnOnce(&mut Engine, &mut Vec<epoll::Event>)) {
            let mut events = Vec::with_capacity(EVENTS);
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let buffer = rustix::buffer::spare_capacity(&mut events);
            epoll::wait(&self.engine.epoll, buffer, Some(&at_once)).unwrap();
            self.engine.contain(|engine| work(engine, &mut events));
        }

        fn say(&mut self, place: usize) {
            self.peers[place][0].write_all(&HELLO).unwrap();
        }

        fn hears(&mut self, place: usize) -> bool {
            let mut heard = [0; HELLO.len()];
            self.peers[place][1].read_exact(&mut heard).is_ok_and(|()| heard == HELLO)
        }

        fn is_gone(&mut self, place: usize) -> bool {
            // Unread bytes make the end a reset.
            let is_over = |peer: &mut UnixStream| match peer.read(&mut [0]) {
                Ok(len) => len == 0,
                Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            };
            self.peers[place].iter_mut().all(is_over)
        }

        fn live(&self) -> (u32, usize) {
            (self.metrics.node("chat", "ws1").live(), self.engine.count.load(Relaxed))
        }
    }

    /// A short text message as a client sends it.
    const HELLO: [u8; 11] = [0x81, 0x85, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o'];

    fn panicked(id: u64) -> (u64, (Side, u16, Why)) {
        (id, (Side::Balancer, 1006, Why::Panicked))
    }

    fn ends(bench: &Bench) -> Vec<(u64, (Side, u16, Why))> {
        bench.ends.lock().iter().map(|(id, end)| (*id, (end.side, end.code, end.why))).collect()
    }

    #[test]
    fn a_panic_in_one_tunnel_ends_that_tunnel_alone_and_the_others_are_served() {
        let mut bench = Bench::new(3);
        bench.turn(Engine::serve);
        (0..3).for_each(|place| bench.say(place));
        bench.turn(|engine, events| {
            engine.sort_events(events);
            engine.visit(1, |_, _| panic!("as a test wants it"));
        });
        assert_eq!((ends(&bench), bench.live()), (vec![panicked(1)], (2, 2)));
        assert!(bench.is_gone(1));
        // Their events were taken in the turn that broke off.
        bench.turn(Engine::serve);
        assert!(bench.hears(0) && bench.hears(2));
        bench.adopt(3);
        bench.say(3);
        bench.turn(Engine::serve);
        assert!(bench.hears(3));
        drop(bench.engine);
        assert_eq!(bench.ends.lock().len(), 4);
    }

    #[test]
    fn a_tunnel_that_panics_as_it_is_closed_is_not_left_to_the_closing() {
        let mut bench = Bench::new(2);
        let close = PacedClose::new(TunnelSelector::all(), Why::Drained, 1012, "").with_grace(Duration::ZERO);
        let shared = Arc::new(SharedClose::new(close, 0, vec![Arc::clone(&bench.engine.wake)]));
        let handle = CloseHandle::new(&shared);
        let mut round = Round::new(shared, false);
        round.begin(bench.engine.now, bench.engine.now);
        bench.engine.rounds.push(round);
        bench.turn(|engine, _| engine.visit(0, |_, _| panic!("as a test wants it")));
        for _ in 0..3 {
            bench.turn(Engine::serve);
        }
        assert_eq!(handle.left(), 0);
        let seen = ends(&bench);
        assert_eq!(seen, [panicked(0), (1, (Side::Balancer, 1012, Why::Drained))]);
        assert_eq!(bench.live(), (0, 0));
    }

    #[test]
    fn a_tunnel_that_panics_as_it_is_frozen_ends_alone() {
        let mut bench = Bench::new(3);
        bench.turn(Engine::serve);
        let budget = Arc::new(AtomicUsize::new(9));
        let (freezing, mut answer) = Freezing::asked(&budget, &bench.commands, &bench.engine.wake);
        bench.turn(|engine, _| {
            engine.freeze_with(freezing, |live, now| {
                assert_ne!(live.record.id, 1, "as a test wants it");
                live.pack(now)
            });
        });
        assert_eq!((ends(&bench), bench.live()), (vec![panicked(1)], (2, 2)));
        assert!(bench.is_gone(1));
        let batch = answer.try_recv().unwrap();
        assert_eq!(batch.parcels.iter().map(Parcel::id).collect::<Vec<_>>(), [0, 2]);
        drop(batch);
        [0, 2].into_iter().for_each(|place| bench.say(place));
        bench.turn(Engine::serve);
        bench.turn(Engine::serve);
        assert!(bench.hears(0) && bench.hears(2));
    }

    fn tcp() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = listener.accept().unwrap().0;
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours.into(), theirs)
    }

    #[test]
    fn urgent_data_stays_in_its_place_and_stalls_nothing() {
        let mut bench = Bench::new(0);
        let ((client, from), (node, mut to)) = (tcp(), tcp());
        bench.take(0, client, node);
        bench.turn(Engine::serve);
        let payload: Vec<u8> = (0..1000).map(|at| at as u8).collect();
        let message = [&[0x82, 0xfe, 0x03, 0xe8, 0, 0, 0, 0][..], &payload].concat();
        for marks in [vec![], vec![0], vec![1, 2], vec![500], vec![1007], vec![3, 400, 401, 1000]] {
            let mut at = 0;
            for mark in marks {
                // The last byte of what is sent so is the urgent one.
                send(&from, &message[at..=mark], SendFlags::OOB).unwrap();
                at = mark + 1;
            }
            send(&from, &message[at..], SendFlags::empty()).unwrap();
            let (mut heard, begun) = (Vec::new(), Instant::now());
            while heard.len() < message.len() && begun.elapsed() < Duration::from_secs(5) {
                bench.turn(Engine::serve);
                // That there is no more now is no fault.
                let _ = to.read_to_end(&mut heard);
            }
            assert_eq!(heard, message);
        }
    }

    #[test]
    fn a_listing_that_panics_ends_no_tunnel_and_not_the_next_listing() {
        let mut bench = Bench::new(2);
        let mut ask = |wanted: fn(&Record) -> bool| {
            let (selector, order) = (TunnelSelector::new(wanted), ChoiceOrder::Shuffled(1));
            let choice = TunnelChoice { selector, order };
            let (reply, answer) = oneshot::channel();
            bench.engine.listings.push_back(Listing::new(Arc::new(Query::choice(choice, 9)), reply));
            answer
        };
        let (mut broken, mut whole) = (ask(|_| panic!("as a test wants it")), ask(|_| true));
        bench.turn(Engine::serve);
        bench.turn(Engine::serve);
        assert!(broken.try_recv().is_err());
        assert_eq!(whole.try_recv().unwrap().len(), 2);
        assert_eq!((ends(&bench), bench.live()), (vec![], (2, 2)));
    }

    #[test]
    fn i7_a_ledger_that_panics_holds_up_nobody() {
        let mut bench = Bench::new(1);
        bench.adopt(99);
        drop(bench.peers.pop());
        bench.turn(Engine::serve);
        assert_eq!(bench.live(), (1, 1));
        bench.say(0);
        bench.turn(Engine::serve);
        assert!(bench.hears(0));
        assert_eq!(bench.ends.lock().len(), 1);
    }

    #[test]
    fn i7_a_thread_that_breaks_off_leaves_no_tunnel_without_an_outcome() {
        let mut bench = Bench::new(3);
        let broken = catch_unwind(AssertUnwindSafe(|| bench.turn(|_, _| panic!("of no tunnel"))));
        assert!(broken.is_err());
        let Bench { engine, ends, metrics, .. } = bench;
        drop(engine);
        assert_eq!((ends.lock().len(), metrics.node("chat", "ws1").live()), (3, 0));
    }
}
