//! The event loop itself, with its epoll and real sockets; only its ticks are the test's.

mod orders;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustix::net::{SendFlags, send};
use tokio::sync::oneshot;

use super::*;
use crate::metrics::{CloseSide, Metrics};
use crate::relay::close_reason::CloseReason;
use crate::relay::command::{CommandSender, FreezeRequest};
use crate::relay::migration::frozen::FrozenTunnel;
use crate::relay::paced_close::{CloseHandle, PacedClose, SharedClose, TunnelSelector};
use crate::relay::session::{SessionEnd, SessionInfo, Tunnel, TunnelLimits};
use crate::relay::session_list::{ChoiceOrder, ListQuery, TunnelChoice};

/// An event loop whose ticks are the test's, with the peers of its tunnels. A tunnel's id is its slot.
struct SteppedLoop {
    event_loop: EventLoop,
    sender: CommandSender,
    metrics: Arc<Metrics>,
    peers: Vec<[UnixStream; 2]>,
    /// How each tunnel ended.
    ends: Arc<Mutex<Vec<(u64, SessionEnd)>>>,
}

impl SteppedLoop {
    /// An event loop with adopted tunnels. The observer panics at session 99.
    fn new(tunnels: u64) -> Self {
        let waker = ThreadWaker::new().unwrap();
        let ends: Arc<Mutex<Vec<_>>> = Arc::default();
        let told = Arc::clone(&ends);
        let observer: CloseObserver = Arc::new(move |info: &SessionInfo, end: &SessionEnd| {
            told.lock().push((info.id, *end));
            assert_ne!(info.id, 99, "the observer's own fault");
        });
        let (commands, inbox) = channel();
        let event_loop = EventLoop::new(0, waker.clone(), inbox, Arc::default(), observer).unwrap();
        let mut bench = Self {
            event_loop,
            sender: CommandSender::new(commands, waker),
            metrics: Metrics::new(1),
            peers: Vec::new(),
            ends,
        };
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
        self.event_loop.tunnel_count.fetch_add(1, Relaxed);
        self.event_loop.adopt(Tunnel {
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

    /// One tick, over the events up to now.
    fn tick(&mut self, work: impl FnOnce(&mut EventLoop, &mut Vec<epoll::Event>)) {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let buffer = rustix::buffer::spare_capacity(&mut events);
        epoll::wait(&self.event_loop.epoll, buffer, Some(&at_once)).unwrap();
        self.event_loop.catch_tunnel_panic(|event_loop| work(event_loop, &mut events));
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
        (self.metrics.node("chat", "ws1").live(), self.event_loop.tunnel_count.load(Relaxed))
    }
}

/// A short text message as a client sends it.
const HELLO: [u8; 11] = [0x81, 0x85, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o'];

fn panicked(id: u64) -> (u64, (CloseSide, u16, CloseReason)) {
    (id, (CloseSide::Balancer, 1006, CloseReason::Panicked))
}

fn ends(bench: &SteppedLoop) -> Vec<(u64, (CloseSide, u16, CloseReason))> {
    bench.ends.lock().iter().map(|(id, end)| (*id, (end.side, end.code, end.reason))).collect()
}

#[test]
fn a_panic_in_one_tunnel_ends_that_tunnel_alone_and_the_others_are_served() {
    let mut bench = SteppedLoop::new(3);
    bench.tick(EventLoop::run_tick);
    (0..3).for_each(|slot| bench.say(slot));
    bench.tick(|event_loop, events| {
        event_loop.mark_ready(events);
        event_loop.serve(1, |_, _| panic!("injected by the test"));
    });
    assert_eq!((ends(&bench), bench.live()), (vec![panicked(1)], (2, 2)));
    assert!(bench.is_gone(1));
    // Their events were taken in the tick that panicked.
    bench.tick(EventLoop::run_tick);
    assert!(bench.hears(0) && bench.hears(2));
    bench.adopt(3);
    bench.say(3);
    bench.tick(EventLoop::run_tick);
    assert!(bench.hears(3));
    drop(bench.event_loop);
    assert_eq!(bench.ends.lock().len(), 4);
}

#[test]
fn a_tunnel_that_panics_as_it_is_closed_is_not_left_to_the_closing() {
    let mut bench = SteppedLoop::new(2);
    let close =
        PacedClose::new(TunnelSelector::all(), CloseReason::Drained, 1012, "").with_grace(Duration::ZERO);
    let shared = Arc::new(SharedClose::new(close, 0, vec![bench.sender.waker().clone()]));
    let handle = CloseHandle::new(&shared);
    let mut share = CloseShare::new(shared, false);
    share.receive(bench.event_loop.now, bench.event_loop.now);
    bench.event_loop.closes.push(share);
    bench.tick(|event_loop, _| event_loop.serve(0, |_, _| panic!("injected by the test")));
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
    let mut bench = SteppedLoop::new(3);
    bench.tick(EventLoop::run_tick);
    let budget = Arc::new(AtomicUsize::new(9));
    let (reply, mut answer) = oneshot::channel();
    let request = FreezeRequest::new(&budget, &bench.sender, reply);
    bench.tick(|event_loop, _| {
        event_loop.freeze_with(request, |tunnel, now| {
            assert_ne!(tunnel.info.id, 1, "injected by the test");
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
    let mut bench = SteppedLoop::new(0);
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
            // That there is no more now is no error.
            let _ = to.read_to_end(&mut heard);
        }
        assert_eq!(heard, message);
    }
}

#[test]
fn a_listing_that_panics_ends_no_tunnel_and_not_the_next_listing() {
    let mut bench = SteppedLoop::new(2);
    let mut ask = |wanted: fn(&SessionInfo) -> bool| {
        let (selector, order) = (TunnelSelector::new(wanted), ChoiceOrder::Shuffled(1));
        let choice = TunnelChoice { selector, order };
        let (reply, answer) = oneshot::channel();
        bench.event_loop.list_jobs.push_back(ListJob::new(Arc::new(ListQuery::choice(choice, 9)), reply));
        answer
    };
    let (mut broken, mut whole) = (ask(|_| panic!("injected by the test")), ask(|_| true));
    bench.tick(EventLoop::run_tick);
    bench.tick(EventLoop::run_tick);
    assert!(broken.try_recv().is_err());
    assert_eq!(whole.try_recv().unwrap().len(), 2);
    assert_eq!((ends(&bench), bench.live()), (vec![], (2, 2)));
}

#[test]
fn i7_an_observer_that_panics_delays_nobody() {
    let mut bench = SteppedLoop::new(1);
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
    let mut bench = SteppedLoop::new(3);
    let broken = catch_unwind(AssertUnwindSafe(|| bench.tick(|_, _| panic!("between two tunnels"))));
    assert!(broken.is_err());
    let SteppedLoop { event_loop, ends, metrics, .. } = bench;
    drop(event_loop);
    assert_eq!((ends.lock().len(), metrics.node("chat", "ws1").live()), (3, 0));
}
