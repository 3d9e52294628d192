//! A relay thread: one epoll, one slab of tunnels, one scratch buffer, and the loop around them.
//!
//! Each socket is registered once, edge-triggered. One turn of the loop serves every tunnel that is ready, each up
//! to its quantum; a tunnel that wants more comes round again behind the others. Commands arrive over a channel,
//! and an eventfd wakes the thread for them. What concerns all tunnels (the sweep, a closing, a listing) takes a
//! stretch of the slab each turn, so that a turn is short however many tunnels there are.
//!
//! A panic in a tunnel ends that tunnel and no other: the loop notes whose turn it is, and catches once per turn of
//! its own, not once per tunnel. What was begun for the others is taken up again in the next turn.

mod migration;

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

use super::close_frame::CloseFrame;
use super::close_share::{CloseShare, CloseTask};
use super::paced_close::PacedClose;
use super::pipe::HEADROOM;
use super::session_list::ListJob;
use super::tick::{CLOCK_ORIGIN, TickContext, TunnelProgress};
use super::tunnel::ActiveTunnel;
use super::{CloseObserver, RelayCommand, SLAB_CHUNK, millis};

/// Bytes that one read may give.
const READ_SIZE: usize = 64 * 1024;
/// Events that one turn takes from epoll.
const MAX_EVENTS: usize = 256;
/// The wake-up's token; tunnels have the smaller ones.
const WAKE_TOKEN: u64 = u64::MAX;
/// Commands that one turn takes: a storm of handshakes does not hold up the messages of the others.
const MAX_COMMANDS: usize = 128;
/// Tunnels that one turn begins to close.
const MAX_CLOSES: usize = 128;
/// Time between two sweeps for deadlines, in milliseconds.
const SWEEP_INTERVAL: u64 = 1_000;

/// See the module.
pub struct EventLoop {
    thread_index: usize,
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    commands: Receiver<RelayCommand>,
    /// Tunnels of this thread; read by whoever looks for the emptiest thread.
    tunnel_count: Arc<AtomicUsize>,
    observer: CloseObserver,
    tunnels: Vec<Option<Box<ActiveTunnel>>>,
    /// Places in `tunnels` that are empty.
    free_slots: Vec<usize>,
    /// Tunnels that want a turn.
    ready: VecDeque<usize>,
    /// Whose turn it is; `None` between two tunnels.
    current: Option<usize>,
    scratch: Box<[u8]>,
    start: Instant,
    /// Milliseconds since `start`, from [`BEGINNING`] on, taken once per turn.
    now: u64,
    /// When the next sweep begins.
    next_sweep: u64,
    /// Where the sweep that is under way goes on.
    sweep_cursor: Option<usize>,
    /// Commands are left for the next turn.
    has_more_commands: bool,
    /// The closings that are under way.
    closes: Vec<CloseShare>,
    /// The listings that are asked for; the first is being made.
    list_jobs: VecDeque<ListJob>,
    /// State of the generator that masks our frames to nodes; it guards nothing.
    mask_state: u64,
}

impl EventLoop {
    /// A thread's engine, not running yet.
    pub fn new(
        number: usize,
        wake: Arc<OwnedFd>,
        inbox: Receiver<RelayCommand>,
        count: Arc<AtomicUsize>,
        observer: CloseObserver,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*wake, epoll::EventData::new_u64(WAKE_TOKEN), epoll::EventFlags::IN)?;
        Ok(Self {
            thread_index: number,
            epoll,
            wake,
            commands: inbox,
            tunnel_count: count,
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
            mask_state: RandomState::new().hash_one(number),
        })
    }

    /// Runs until every tunnel has ended in the last closing.
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        loop {
            let wait = self.poll_timeout();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "epoll failed, the relay thread ends");
                    return;
                }
            }
            self.now = self.clock_at(Instant::now());
            self.catch_tunnel_panic(|engine| engine.run_tick(&mut events));
            if self.closes.iter().any(CloseShare::is_shutdown) && self.tunnel_count.load(Relaxed) == 0 {
                return;
            }
        }
    }

    /// One turn of the loop.
    fn run_tick(&mut self, events: &mut Vec<epoll::Event>) {
        let woken = self.mark_ready(events);
        self.serve_ready();
        if woken || self.has_more_commands {
            self.receive_commands();
        }
        self.advance_closes();
        self.advance_listing();
        self.sweep();
    }

    /// Does `work`; the tunnel whose turn it was at a panic ends by it. A panic at no tunnel's turn is the thread's own.
    fn catch_tunnel_panic(&mut self, work: impl FnOnce(&mut Self)) {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) else { return };
        let Some(slot) = self.current.take() else { resume_unwind(panic) };
        self.end_panicked(slot);
    }

    /// Ends a tunnel on which the balancer's own work broke off.
    fn end_panicked(&mut self, slot: usize) {
        if let Some(Some(tunnel)) = self.tunnels.get_mut(slot) {
            tracing::error!(id = tunnel.info.id, "a tunnel panicked, it ends");
            tunnel.mark_panicked();
        }
        self.end_tunnel(slot);
    }

    /// What the thread's clock shows at `instant`.
    fn clock_at(&self, instant: Instant) -> u64 {
        CLOCK_ORIGIN.saturating_add(millis(instant.saturating_duration_since(self.start)))
    }

    fn poll_timeout(&self) -> Timespec {
        let walks = self.sweep_cursor.is_some() || !self.list_jobs.is_empty();
        let is_busy = !self.ready.is_empty() || self.has_more_commands || walks;
        if is_busy || self.closes.iter().any(CloseShare::is_counting) {
            return Timespec { tv_sec: 0, tv_nsec: 0 };
        }
        let due = self.closes.iter().filter_map(CloseShare::next_due);
        let until = due.fold(self.next_sweep, u64::min);
        let wait = Duration::from_millis(until.saturating_sub(self.now));
        Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) }
    }

    /// Marks what the events name; true when there are commands.
    fn mark_ready(&mut self, events: &mut Vec<epoll::Event>) -> bool {
        let mut woken = false;
        for event in events.drain(..) {
            let token = event.data.u64();
            if token == WAKE_TOKEN {
                woken = true;
                continue;
            }
            let (slot, index) = ((token >> 1) as usize, (token & 1) as usize);
            let Some(Some(tunnel)) = self.tunnels.get_mut(slot) else { continue };
            let flags = event.flags;
            let hung_up =
                flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            tunnel.endpoint(index).set_ready(
                flags.contains(epoll::EventFlags::IN),
                flags.contains(epoll::EventFlags::OUT),
                hung_up,
            );
            if flags.contains(epoll::EventFlags::PRI) {
                tunnel.endpoint(index).set_urgent();
            }
            if !tunnel.is_queued {
                tunnel.is_queued = true;
                self.ready.push_back(slot);
            }
        }
        woken
    }

    /// One turn for each tunnel that is ready now.
    fn serve_ready(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(slot) = self.ready.pop_front() else { return };
            self.with_tunnel(slot, |tunnel, tick| tunnel.pump_both(tick));
        }
    }

    /// Lets `visit` work on a tunnel and does what its progress asks for.
    fn with_tunnel(
        &mut self,
        slot: usize,
        visit: impl FnOnce(&mut ActiveTunnel, &mut TickContext<'_>) -> TunnelProgress,
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
        let progress = visit(tunnel, &mut tick);
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

    fn end_tunnel(&mut self, slot: usize) {
        let Some(tunnel) = self.tunnels.get_mut(slot).and_then(Option::take) else { return };
        self.free_slots.push(slot);
        if tunnel.was_frozen {
            self.unregister(&tunnel);
        }
        let (id, now, observer) = (tunnel.info.id, self.now, &self.observer);
        let told = catch_unwind(AssertUnwindSafe(move || {
            observer(&tunnel.info, &tunnel.session_end(now));
            // Whoever waits for a closing then sees the node's count without this tunnel.
            drop(tunnel);
        }));
        if told.is_err() {
            tracing::error!(id, "the end of a tunnel panicked, it may not be counted");
        }
        self.forget_session(id);
    }

    /// The session `id` is not in the slab any more.
    fn forget_session(&mut self, id: u64) {
        self.tunnel_count.fetch_sub(1, Relaxed);
        self.closes.iter_mut().for_each(|share| share.remove(id));
    }

    fn receive_commands(&mut self) {
        let mut counter = [0; 8];
        // Only the wake-up matters; the channel holds what is to be done.
        let _ = rustix::io::read(&*self.wake, &mut counter);
        self.has_more_commands = true;
        for _ in 0..MAX_COMMANDS {
            match self.commands.try_recv() {
                // Who asked may have given up by now.
                Ok(RelayCommand::Acknowledge(to)) => drop(to.send(())),
                Ok(RelayCommand::Adopt(mut new_tunnel)) => {
                    if let Some(tunnel) = new_tunnel.tunnel.take() {
                        self.adopt(tunnel);
                    }
                }
                Ok(RelayCommand::Close(mut share)) => {
                    share.receive(self.clock_at(share.shared().begun), self.now);
                    self.closes.push(*share);
                }
                Ok(RelayCommand::List(listing)) => self.list_jobs.push_back(*listing),
                Ok(RelayCommand::Freeze(request)) => self.freeze(request),
                Ok(RelayCommand::Resume(parcels)) => self.resume(parcels),
                Ok(RelayCommand::Release(slots)) => self.release(slots),
                Ok(RelayCommand::Restore(restored)) => self.restore(restored),
                Err(_) => {
                    self.has_more_commands = false;
                    return;
                }
            }
        }
    }

    /// Goes on with the closings: counts a stretch, closes whose time has come, cuts whose deadline is here.
    fn advance_closes(&mut self) {
        if let Some(share) = self.closes.iter_mut().find(|share| share.is_counting()) {
            share.count_chunk(&self.tunnels);
        }
        let mut closes = 0;
        for index in 0..self.closes.len() {
            self.closes[index].update();
            while closes < MAX_CLOSES
                && let Some(task) = self.closes[index].next_task(self.now)
            {
                closes += 1;
                if self.postpone_if_frozen(index, &task) {
                    continue;
                }
                match task {
                    CloseTask::Abort(slot) => self.with_tunnel(slot, |tunnel, tick| tunnel.sweep(tick)),
                    CloseTask::SendClose(slot, grace) => self.send_close(slot, index, grace),
                }
            }
        }
        self.closes.retain(|share| !share.is_finished());
    }

    fn send_close(&mut self, slot: usize, share: usize, grace: u64) {
        let shared = Arc::clone(self.closes[share].shared());
        let PacedClose { code, cause: why, ref reason, .. } = shared.close;
        self.with_tunnel(slot, |tunnel, tick| {
            tunnel.begin_close(&CloseFrame { code, reason, cause: why, grace }, tick);
            tunnel.pump_both(tick)
        });
    }

    /// Goes on with the listing that is being made.
    fn advance_listing(&mut self) {
        let Some(mut listing) = self.list_jobs.pop_front() else { return };
        // Whom it wants, the caller says; that is not the tunnels' fault.
        let walked = catch_unwind(AssertUnwindSafe(|| listing.scan_chunk(&self.tunnels, self.now)));
        match walked {
            Ok(true) => listing.finish(),
            Ok(false) => self.list_jobs.push_front(listing),
            Err(_) => tracing::error!("a listing panicked, this thread's part of it is left out"),
        }
    }

    /// Looks at a stretch of the slab for tunnels that are idle or past their deadline.
    fn sweep(&mut self) {
        if self.sweep_cursor.is_none() && self.now >= self.next_sweep {
            self.sweep_cursor = Some(0);
            self.next_sweep = self.now + SWEEP_INTERVAL;
        }
        let Some(at) = self.sweep_cursor else { return };
        let until = self.tunnels.len().min(at + SLAB_CHUNK);
        for slot in at..until {
            if let Some(Some(tunnel)) = self.tunnels.get(slot)
                && tunnel.needs_sweep(self.now)
            {
                self.with_tunnel(slot, |tunnel, tick| tunnel.sweep(tick));
            }
        }
        self.sweep_cursor = (until < self.tunnels.len()).then_some(until);
    }

    fn next_random(&mut self) -> u64 {
        self.mask_state = crate::affinity::hash::mix(self.mask_state.wrapping_add(0x9e37_79b9_7f4a_7c15));
        self.mask_state
    }

    fn next_mask(&mut self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.next_random().to_ne_bytes();
        [a, b, c, d]
    }
}

/// A thread that ends in whatever way leaves no tunnel without its outcome (invariant I7).
impl Drop for EventLoop {
    fn drop(&mut self) {
        for slot in 0..self.tunnels.len() {
            self.end_tunnel(slot);
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
    use crate::metrics::{CloseSide, Metrics};
    use crate::relay::migration::{FreezeRequest, FrozenTunnel};
    use crate::relay::paced_close::SharedClose;
    use crate::relay::session_list::{ChoiceOrder, SessionQuery, TunnelChoice};
    use crate::relay::{
        CloseHandle, CloseReason, SessionEnd, SessionInfo, Tunnel, TunnelLimits, TunnelSelector,
    };

    /// An engine whose turns the test takes, with the peers of its tunnels; a tunnel's id is its place.
    struct Bench {
        engine: EventLoop,
        commands: Sender<RelayCommand>,
        metrics: Arc<Metrics>,
        peers: Vec<[UnixStream; 2]>,
        /// How each tunnel ended.
        ends: Arc<Mutex<Vec<(u64, SessionEnd)>>>,
    }

    impl Bench {
        /// With `tunnels` that have been adopted. The ledger panics at session 99.
        fn new(tunnels: u64) -> Self {
            let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
            let ends: Arc<Mutex<Vec<_>>> = Arc::default();
            let told = Arc::clone(&ends);
            let observer: CloseObserver = Arc::new(move |info: &SessionInfo, end: &SessionEnd| {
                told.lock().push((info.id, *end));
                assert_ne!(info.id, 99, "the ledger's own fault");
            });
            let (commands, inbox) = channel();
            let engine = EventLoop::new(0, wake, inbox, Arc::default(), observer).unwrap();
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
            self.engine.tunnel_count.fetch_add(1, Relaxed);
            self.engine.adopt(Tunnel {
                client,
                node,
                client_tls: None,
                node_tls: None,
                from_client: bytes::Bytes::new(),
                from_node: bytes::Bytes::new(),
                limits: TunnelLimits {
                    idle_timeout: Duration::MAX,
                    max_message_size: u64::MAX,
                    ping_interval: None,
                    close_timeout: Duration::from_secs(10),
                },
                info: SessionInfo {
                    id,
                    client: IpAddr::V4(Ipv4Addr::LOCALHOST),
                    node_connection: self.metrics.node("chat", "ws1").acquire_permit(),
                    route: Arc::from("/"),
                    generation: 1,
                    opened_at: SystemTime::UNIX_EPOCH,
                    affinity: ("none", "none"),
                    key: None,
                    trace: [0; 16],
                    permit: None,
                },
            });
        }

        /// One turn of the loop, over what has happened up to now.
        fn tick(&mut self, work: impl FnOnce(&mut EventLoop, &mut Vec<epoll::Event>)) {
            let mut events = Vec::with_capacity(MAX_EVENTS);
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let buffer = rustix::buffer::spare_capacity(&mut events);
            epoll::wait(&self.engine.epoll, buffer, Some(&at_once)).unwrap();
            self.engine.catch_tunnel_panic(|engine| work(engine, &mut events));
        }

        fn say(&mut self, slot: usize) {
            self.peers[slot][0].write_all(&HELLO).unwrap();
        }

        fn hears(&mut self, slot: usize) -> bool {
            let mut heard = [0; HELLO.len()];
            self.peers[slot][1].read_exact(&mut heard).is_ok_and(|()| heard == HELLO)
        }

        fn is_gone(&mut self, slot: usize) -> bool {
            // Unread bytes make the end a reset.
            let is_over = |peer: &mut UnixStream| match peer.read(&mut [0]) {
                Ok(len) => len == 0,
                Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
            };
            self.peers[slot].iter_mut().all(is_over)
        }

        fn live(&self) -> (u32, usize) {
            (self.metrics.node("chat", "ws1").live(), self.engine.tunnel_count.load(Relaxed))
        }
    }

    /// A short text message as a client sends it.
    const HELLO: [u8; 11] = [0x81, 0x85, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o'];

    fn panicked(id: u64) -> (u64, (CloseSide, u16, CloseReason)) {
        (id, (CloseSide::Balancer, 1006, CloseReason::Panicked))
    }

    fn ends(bench: &Bench) -> Vec<(u64, (CloseSide, u16, CloseReason))> {
        bench.ends.lock().iter().map(|(id, end)| (*id, (end.side, end.code, end.reason))).collect()
    }

    #[test]
    fn a_panic_in_one_tunnel_ends_that_tunnel_alone_and_the_others_are_served() {
        let mut bench = Bench::new(3);
        bench.tick(EventLoop::run_tick);
        (0..3).for_each(|slot| bench.say(slot));
        bench.tick(|engine, events| {
            engine.mark_ready(events);
            engine.with_tunnel(1, |_, _| panic!("as a test wants it"));
        });
        assert_eq!((ends(&bench), bench.live()), (vec![panicked(1)], (2, 2)));
        assert!(bench.is_gone(1));
        // Their events were taken in the turn that broke off.
        bench.tick(EventLoop::run_tick);
        assert!(bench.hears(0) && bench.hears(2));
        bench.adopt(3);
        bench.say(3);
        bench.tick(EventLoop::run_tick);
        assert!(bench.hears(3));
        drop(bench.engine);
        assert_eq!(bench.ends.lock().len(), 4);
    }

    #[test]
    fn a_tunnel_that_panics_as_it_is_closed_is_not_left_to_the_closing() {
        let mut bench = Bench::new(2);
        let close =
            PacedClose::new(TunnelSelector::all(), CloseReason::Drained, 1012, "").with_grace(Duration::ZERO);
        let shared = Arc::new(SharedClose::new(close, 0, vec![Arc::clone(&bench.engine.wake)]));
        let handle = CloseHandle::new(&shared);
        let mut share = CloseShare::new(shared, false);
        share.receive(bench.engine.now, bench.engine.now);
        bench.engine.closes.push(share);
        bench.tick(|engine, _| engine.with_tunnel(0, |_, _| panic!("as a test wants it")));
        for _ in 0..3 {
            bench.tick(EventLoop::run_tick);
        }
        assert_eq!(handle.left(), 0);
        let seen = ends(&bench);
        assert_eq!(seen, [panicked(0), (1, (CloseSide::Balancer, 1012, CloseReason::Drained))]);
        assert_eq!(bench.live(), (0, 0));
    }

    #[test]
    fn a_tunnel_that_panics_as_it_is_frozen_ends_alone() {
        let mut bench = Bench::new(3);
        bench.tick(EventLoop::run_tick);
        let budget = Arc::new(AtomicUsize::new(9));
        let (request, mut answer) = FreezeRequest::new(&budget, &bench.commands, &bench.engine.wake);
        bench.tick(|engine, _| {
            engine.freeze_with(request, |tunnel, now| {
                assert_ne!(tunnel.info.id, 1, "as a test wants it");
                tunnel.encode(now)
            });
        });
        assert_eq!((ends(&bench), bench.live()), (vec![panicked(1)], (2, 2)));
        assert!(bench.is_gone(1));
        let batch = answer.try_recv().unwrap();
        assert_eq!(batch.tunnels.iter().map(FrozenTunnel::id).collect::<Vec<_>>(), [0, 2]);
        drop(batch);
        [0, 2].into_iter().for_each(|slot| bench.say(slot));
        bench.tick(EventLoop::run_tick);
        bench.tick(EventLoop::run_tick);
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
        bench.tick(EventLoop::run_tick);
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
            let (mut heard, counted) = (Vec::new(), Instant::now());
            while heard.len() < message.len() && counted.elapsed() < Duration::from_secs(5) {
                bench.tick(EventLoop::run_tick);
                // That there is no more now is no fault.
                let _ = to.read_to_end(&mut heard);
            }
            assert_eq!(heard, message);
        }
    }

    #[test]
    fn a_listing_that_panics_ends_no_tunnel_and_not_the_next_listing() {
        let mut bench = Bench::new(2);
        let mut ask = |wanted: fn(&SessionInfo) -> bool| {
            let (selector, order) = (TunnelSelector::new(wanted), ChoiceOrder::Shuffled(1));
            let choice = TunnelChoice { selector, order };
            let (reply, answer) = oneshot::channel();
            bench.engine.list_jobs.push_back(ListJob::new(Arc::new(SessionQuery::choice(choice, 9)), reply));
            answer
        };
        let (mut broken, mut whole) = (ask(|_| panic!("as a test wants it")), ask(|_| true));
        bench.tick(EventLoop::run_tick);
        bench.tick(EventLoop::run_tick);
        assert!(broken.try_recv().is_err());
        assert_eq!(whole.try_recv().unwrap().len(), 2);
        assert_eq!((ends(&bench), bench.live()), (vec![], (2, 2)));
    }

    #[test]
    fn i7_a_ledger_that_panics_holds_up_nobody() {
        let mut bench = Bench::new(1);
        bench.adopt(99);
        drop(bench.peers.pop());
        bench.tick(EventLoop::run_tick);
        assert_eq!(bench.live(), (1, 1));
        bench.say(0);
        bench.tick(EventLoop::run_tick);
        assert!(bench.hears(0));
        assert_eq!(bench.ends.lock().len(), 1);
    }

    #[test]
    fn i7_a_thread_that_breaks_off_leaves_no_tunnel_without_an_outcome() {
        let mut bench = Bench::new(3);
        let broken = catch_unwind(AssertUnwindSafe(|| bench.tick(|_, _| panic!("of no tunnel"))));
        assert!(broken.is_err());
        let Bench { engine, ends, metrics, .. } = bench;
        drop(engine);
        assert_eq!((ends.lock().len(), metrics.node("chat", "ws1").live()), (3, 0));
    }
}
