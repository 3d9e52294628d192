//! Every order, up to a length, of what can meet in a relay thread: messages, ends, tunnels that are adopted, frozen,
//! resumed or released, between the moment when epoll reports events and the moment when they are handled.
//!
//! The event loop is the real one, with its epoll and real sockets; only its ticks are the test's, so that events are as
//! stale as can be. Slots are reused at once, and the sockets of released tunnels stay open here, as in another process.
//! Not explored: two threads at a time (they share nothing but counters), errors of the kernel, TLS.

use std::os::fd::AsFd;

use super::*;
use crate::relay::command::ThreadBatch;

/// Something that happens. Sessions go by their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoopStep {
    /// The client sends a message.
    Say(usize),
    /// Both peers close.
    Leave(usize),
    /// The balancer ends it.
    Cut(usize),
    /// The next session is adopted.
    Adopt,
    /// Epoll is asked for events.
    Poll,
    /// The events are handled.
    Serve,
    /// The first tunnel is frozen.
    Freeze,
    /// It comes back.
    Resume,
    /// It is another process's.
    Release,
}

const ACTS: [LoopStep; 12] = [
    LoopStep::Say(0),
    LoopStep::Say(1),
    LoopStep::Say(2),
    LoopStep::Leave(0),
    LoopStep::Cut(0),
    LoopStep::Cut(1),
    LoopStep::Adopt,
    LoopStep::Poll,
    LoopStep::Serve,
    LoopStep::Freeze,
    LoopStep::Resume,
    LoopStep::Release,
];

/// Sessions that there are at most.
const MOST: usize = 3;

/// What became of a session.
enum Fate {
    Lives,
    Ended,
    /// With its sockets, as the other process has them.
    Away([OwnedFd; 2]),
}

struct LoopModel {
    bench: SteppedLoop,
    /// Events that are not handled yet.
    events: Option<Vec<epoll::Event>>,
    frozen: Option<ThreadBatch>,
    fates: Vec<Fate>,
    /// Those whose peers have gone.
    left: Vec<usize>,
    said: Vec<Vec<u8>>,
}

impl LoopModel {
    fn new() -> Self {
        let fates = vec![Fate::Lives, Fate::Lives];
        let (bench, said) = (SteppedLoop::new(2), vec![Vec::new(); 2]);
        Self { bench, events: None, frozen: None, fates, left: Vec::new(), said }
    }

    /// Performs an act. Returns false when it cannot happen now.
    fn act(&mut self, act: LoopStep) -> bool {
        let lives = |world: &Self, id: usize| matches!(world.fates.get(id), Some(Fate::Lives));
        match act {
            LoopStep::Say(id) if self.is_there(id) => self.say(id),
            LoopStep::Leave(id) if lives(self, id) => {
                self.bench.peers[id].iter().for_each(|peer| peer.shutdown(Shutdown::Both).unwrap());
                self.left.push(id);
                self.fates[id] = Fate::Ended;
            }
            LoopStep::Cut(id)
                if lives(self, id) && self.slot(id).is_some_and(|slot| !self.is_frozen(slot)) =>
            {
                let slot = self.slot(id).unwrap();
                self.bench.event_loop.serve(slot, |_, _| TunnelProgress::Ended);
                self.fates[id] = Fate::Ended;
            }
            LoopStep::Adopt if self.fates.len() < MOST => {
                self.bench.adopt(self.fates.len() as u64);
                self.fates.push(Fate::Lives);
                self.said.push(Vec::new());
            }
            LoopStep::Poll if self.events.is_none() => self.events = Some(self.poll()),
            LoopStep::Serve if self.events.is_some() => {
                let mut events = self.events.take().unwrap();
                self.bench.event_loop.catch_tunnel_panic(|event_loop| event_loop.run_tick(&mut events));
            }
            LoopStep::Freeze if self.frozen.is_none() => return self.freeze(),
            LoopStep::Resume if self.frozen.is_some() => self.resume(),
            LoopStep::Release if self.frozen.is_some() => self.release(),
            _ => return false,
        }
        self.assert_sound();
        true
    }

    /// Its client is there.
    fn is_there(&self, id: usize) -> bool {
        let is_open = matches!(self.fates.get(id), Some(Fate::Lives | Fate::Away(_)));
        is_open && !self.left.contains(&id)
    }

    fn say(&mut self, id: usize) {
        let message = [0x81, 0x82, 0, 0, 0, 0, id as u8, self.said[id].len() as u8];
        self.bench.peers[id][0].write_all(&message).unwrap();
        self.said[id].extend_from_slice(&message);
    }

    fn poll(&mut self) -> Vec<epoll::Event> {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let buffer = rustix::buffer::spare_capacity(&mut events);
        epoll::wait(&self.bench.event_loop.epoll, buffer, Some(&at_once)).unwrap();
        events
    }

    fn slot(&self, id: usize) -> Option<usize> {
        let is_it = |tunnel: &Option<Box<ActiveTunnel>>| {
            tunnel.as_ref().is_some_and(|tunnel| tunnel.info.id == id as u64)
        };
        self.bench.event_loop.tunnels.iter().position(is_it)
    }

    fn is_frozen(&self, slot: usize) -> bool {
        self.bench.event_loop.tunnels[slot].as_ref().is_some_and(|tunnel| tunnel.is_frozen())
    }

    fn freeze(&mut self) -> bool {
        let budget = Arc::new(AtomicUsize::new(1));
        let (reply, mut answer) = oneshot::channel();
        let request = FreezeRequest::new(&budget, &self.bench.sender, reply);
        self.bench.event_loop.freeze(request);
        self.frozen = answer.try_recv().ok().filter(|batch| !batch.tunnels.is_empty());
        self.frozen.is_some()
    }

    fn resume(&mut self) {
        drop(self.frozen.take());
        self.bench.event_loop.run_commands();
    }

    fn release(&mut self) {
        let mut batch = self.frozen.take().unwrap();
        let mut slots = Vec::new();
        for tunnel in std::mem::take(&mut batch.tunnels) {
            let abroad = tunnel.sockets().map(|socket| socket.as_fd().try_clone_to_owned().unwrap());
            // A session whose peers have left while it was away has its end over there.
            self.fates[tunnel.id() as usize] = Fate::Away(abroad);
            slots.push(tunnel.slot);
        }
        self.bench.event_loop.release(slots);
    }

    /// The slab holds every tunnel once, and every empty place is free once.
    fn assert_sound(&self) {
        let event_loop = &self.bench.event_loop;
        let mut free = event_loop.free_slots.clone();
        free.sort_unstable();
        free.dedup();
        let empty: Vec<usize> =
            (0..event_loop.tunnels.len()).filter(|slot| event_loop.tunnels[*slot].is_none()).collect();
        assert_eq!((free.len(), &free), (event_loop.free_slots.len(), &empty));
        let held = event_loop.tunnels.iter().flatten().count();
        assert_eq!(self.bench.live(), (held as u32, held));
    }

    /// Nothing more happens from outside: every tunnel that lives has relayed its own messages, all of them and no other.
    fn settle(mut self) {
        if self.frozen.is_some() {
            self.resume();
        }
        if let Some(mut events) = self.events.take() {
            self.bench.event_loop.run_tick(&mut events);
        }
        loop {
            let mut events = self.poll();
            if events.is_empty() && self.bench.event_loop.ready.is_empty() {
                break;
            }
            self.bench.event_loop.run_tick(&mut events);
        }
        self.assert_sound();
        let ends: Vec<u64> = self.bench.ends.lock().iter().map(|(id, _)| *id).collect();
        for (id, fate) in std::mem::take(&mut self.fates).iter().enumerate() {
            let mut heard = Vec::new();
            // That there is no more now is no error.
            let _ = self.bench.peers[id][1].read_to_end(&mut heard);
            let end_count = ends.iter().filter(|ended| **ended == id as u64).count();
            let is_held = self.slot(id).is_some();
            match fate {
                Fate::Lives => assert_eq!((&heard, end_count, is_held), (&self.said[id], 0, true)),
                // What it had said may be on its way for ever.
                Fate::Ended => {
                    assert_eq!((self.said[id].starts_with(&heard), end_count, is_held), (true, 1, false))
                }
                Fate::Away([client, _]) => {
                    let mut client = UnixStream::from(client.try_clone().unwrap());
                    let _ = client.read_to_end(&mut heard);
                    if self.left.contains(&id) {
                        self.said[id] = heard.clone();
                    }
                    assert_eq!((&heard, end_count, is_held), (&self.said[id], 0, false));
                }
            }
        }
    }
}

/// Plays every order of `length` acts. Returns how many there are.
fn explore(length: usize) -> usize {
    let (mut order, mut played) = (vec![0; length], 0);
    loop {
        let mut world = LoopModel::new();
        let stuck = order.iter().position(|&act| !world.act(ACTS[act]));
        if stuck.is_none() {
            world.settle();
            played += 1;
        }
        // The next order; all that begin like one that is stuck are passed over.
        let mut at = stuck.unwrap_or(length - 1);
        while order[at] + 1 == ACTS.len() {
            let Some(before) = at.checked_sub(1) else { return played };
            at = before;
        }
        order[at] += 1;
        order[at + 1..].fill(0);
    }
}

/// The number of acts in an order, unless `MAINSTAY_ORDERS` says another: 6 take half a minute, 7 some minutes.
const LENGTH: usize = 5;

#[test]
fn in_every_order_of_events_each_tunnel_relays_its_own_messages_and_ends_once() {
    let length = std::env::var("MAINSTAY_ORDERS").ok().and_then(|length| length.parse().ok());
    let begun = Instant::now();
    let played = explore(length.unwrap_or(LENGTH));
    println!("{played} orders in {:?}", begun.elapsed());
    assert!(played > 10_000, "{played}");
}
