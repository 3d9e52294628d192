//! The relay: plain threads that carry tunnels once their handshake is over.
//!
//! A tunnel is handed over as two sockets, the bytes already read and a [`Record`] ([`Relay::adopt`]); from then on
//! it lives in one thread's slab until it ends, and its end is one [`Outcome`] given to the [`Ledger`].
//!
//! Rules of the hot path: one read and one write per message; no allocation, no lock, no clock call, no log. The
//! time is taken once per turn of a thread's loop; one sweep a second serves all idle deadlines. Nothing here knows
//! pools, routes or config: a tunnel carries the few values it needs ([`Rules`]).
//!
//! While tunnels run, the threads can be told to close some of them ([`Relay::close_some`]) and asked what they are
//! ([`Relay::sessions`]).

mod closing;
mod end;
mod engine;
mod listing;
pub mod pipe;
mod pulse;
mod round;
mod tunnel;

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

pub use closing::{Closing, Departures, Which};
pub use listing::{Filter, Snapshot};

use crate::log::access::Session;
use crate::metrics::{Seat, Side};

/// Places of a slab that a thread looks at in one turn, when it has to look at all: some tens of microseconds.
const STRETCH: usize = 512;

/// What the relay may need to know about a session, and gives back with its outcome.
#[derive(Debug)]
pub struct Record {
    /// Unique in the process.
    pub id: u64,
    /// The client, as the front desk believes it to be.
    pub client: IpAddr,
    /// Counts the tunnel as live on its node until the record is dropped.
    pub seat: Seat,
    /// The route that the request matched, as written in the config.
    pub route: Arc<str>,
    /// Generation of the state that the session was opened under.
    pub generation: u32,
    /// When the upgrade request was read.
    pub opened_at: SystemTime,
    /// Which affinity source placed the session, and how: the labels of `affinity_total`.
    pub affinity: (&'static str, &'static str),
    /// The trace that the node was told.
    pub trace: [u8; 16],
}

impl Record {
    /// What the access log says of the session.
    pub fn session(&self) -> Session {
        Session {
            id: self.id,
            trace: self.trace,
            client: Some(self.client),
            route: Arc::clone(&self.route),
            pool: Arc::clone(&self.seat.pool),
            node: Arc::clone(&self.seat.node),
            affinity: self.affinity,
        }
    }
}

/// What a tunnel is held to.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Without a byte in either direction for this long, the tunnel is closed with 1001.
    pub idle: Duration,
    /// The most payload bytes of one message; `u64::MAX` is no limit. Over it both sides get 1009.
    pub max_message: u64,
    /// A client that sends nothing for this long is asked with a Ping of the balancer's; nothing for as long again,
    /// and the tunnel is closed. `None`: clients are not asked.
    pub ping: Option<Duration>,
}

/// A tunnel on its way into the relay.
#[derive(Debug)]
pub struct Tunnel {
    /// The client's socket, non-blocking.
    pub client: OwnedFd,
    /// The node's socket, non-blocking.
    pub node: OwnedFd,
    /// Bytes already read from the client, for the node.
    pub from_client: Bytes,
    /// Bytes already read from the node, for the client.
    pub from_node: Bytes,
    /// See [`Rules`].
    pub rules: Rules,
    /// See [`Record`].
    pub record: Record,
}

/// Why a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A peer sent a Close frame.
    Closed,
    /// A peer ended its stream without a Close frame.
    Ended,
    /// A peer's connection broke (reset, dead, unreachable).
    Broken,
    /// No byte in either direction for the idle time.
    Idle,
    /// A message over the limit.
    TooBig,
    /// The framing was lost.
    Garbage,
    /// The balancer stops.
    Shutdown,
    /// The tunnel's node, or pool, is drained.
    Drained,
    /// An operator ended this session.
    Killed,
    /// The client did not answer the balancer's Ping.
    Silent,
}

impl Why {
    /// The word in the access log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Ended => "ended",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::TooBig => "message_too_big",
            Self::Garbage => "garbage",
            Self::Shutdown => "shutdown",
            Self::Drained => "drained",
            Self::Killed => "killed",
            Self::Silent => "silent",
        }
    }
}

/// How a tunnel ended (invariant I7: exactly one for each).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Who ended it.
    pub side: Side,
    /// The close code: of the first Close frame, or 1006 where there was none.
    pub code: u16,
    /// Why.
    pub why: Why,
    /// From adoption to the end.
    pub duration: Duration,
    /// Bytes read from the client and from the node.
    pub bytes: [u64; 2],
    /// Text and binary messages from the client and from the node.
    pub messages: [u64; 2],
}

/// Takes the end of each tunnel. Called on a relay thread: it must not block.
pub type Ledger = Arc<dyn Fn(&Record, &Outcome) + Send + Sync>;

/// What a relay thread can be told.
enum Command {
    /// Say that the loop turns.
    Answer(oneshot::Sender<()>),
    Adopt(Box<Tunnel>),
    Close(Box<round::Round>),
    List(Box<listing::Listing>),
}

/// The relay threads.
pub struct Relay {
    threads: Vec<Thread>,
}

struct Thread {
    commands: Sender<Command>,
    /// Wakes the thread's epoll.
    wake: Arc<OwnedFd>,
    /// Tunnels on this thread, with those on their way to it.
    tunnels: Arc<AtomicUsize>,
    handle: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl Relay {
    /// Starts `threads` relay threads, at least one.
    pub fn start(threads: usize, ledger: &Ledger) -> io::Result<Self> {
        let start = |number| Thread::start(number, Arc::clone(ledger));
        Ok(Self { threads: (0..threads.max(1)).map(start).collect::<io::Result<_>>()? })
    }

    /// Gives the tunnel to the thread with the fewest. False when that thread has ended; the sockets are then
    /// closed.
    pub fn adopt(&self, tunnel: Tunnel) -> bool {
        let fewest = self.threads.iter().min_by_key(|thread| thread.tunnels.load(Relaxed));
        let Some(thread) = fewest else { return false };
        thread.tunnels.fetch_add(1, Relaxed);
        let taken = thread.tell(Command::Adopt(Box::new(tunnel)));
        if !taken {
            thread.tunnels.fetch_sub(1, Relaxed);
        }
        taken
    }

    /// Tunnels in all threads.
    pub fn live(&self) -> usize {
        self.threads.iter().map(|thread| thread.tunnels.load(Relaxed)).sum()
    }

    /// Begins to end every tunnel, also those that are still to come; [`join`](Self::join) returns when the last
    /// is gone.
    pub fn close(&self, closing: &Closing) {
        self.begin(Which::All, closing, true);
    }

    /// Begins to close some of the tunnels, spread over all threads together; the threads live on.
    ///
    /// Tunnels that are adopted later are not touched: first see to it that no new session comes to what is being
    /// closed, and ask again for those that were on their way.
    pub fn close_some(&self, which: Which, closing: &Closing) -> Departures {
        self.begin(which, closing, false)
    }

    fn begin(&self, which: Which, closing: &Closing, is_last: bool) -> Departures {
        let wakes = self.threads.iter().map(|thread| Arc::clone(&thread.wake)).collect();
        let seed = RandomState::new().hash_one(closing.over);
        let plan = closing::Plan::new(which, closing.clone(), seed, wakes);
        for thread in &self.threads {
            thread.tell(Command::Close(Box::new(round::Round::new(Arc::clone(&plan), is_last))));
        }
        Departures::new(&plan)
    }

    /// The `limit` sessions with the lowest ids above `after`, in their order. A page that is full may have more
    /// behind it: ask again with its last id.
    pub fn sessions(
        &self,
        filter: &Filter,
        after: Option<u64>,
        limit: usize,
    ) -> impl Future<Output = Vec<Snapshot>> + Send + use<> {
        let query = Arc::new(listing::Query { filter: filter.clone(), after, limit });
        let ask = |thread: &Thread| {
            let (reply, answer) = oneshot::channel();
            thread.tell(Command::List(Box::new(listing::Listing::new(Arc::clone(&query), reply))));
            answer
        };
        listing::page(self.threads.iter().map(ask).collect(), limit)
    }

    /// True once the loop of every thread has turned; false when one has ended.
    pub fn turned(&self) -> impl Future<Output = bool> + Send + use<> {
        let ask = |thread: &Thread| {
            let (reply, answer) = oneshot::channel();
            thread.tell(Command::Answer(reply)).then_some(answer)
        };
        let answers: Vec<_> = self.threads.iter().map(ask).collect();
        async move {
            for answer in answers {
                let Some(answer) = answer else { return false };
                if answer.await.is_err() {
                    return false;
                }
            }
            true
        }
    }

    /// Waits for the threads to end, which they do after [`close`](Self::close). Blocks.
    pub fn join(&self) {
        for thread in &self.threads {
            if let Some(handle) = thread.handle.lock().take()
                && handle.join().is_err()
            {
                tracing::error!("a relay thread panicked");
            }
        }
    }
}

impl Thread {
    fn start(number: usize, ledger: Ledger) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let tunnels = Arc::new(AtomicUsize::new(0));
        let (commands, inbox) = channel();
        let count = Arc::clone(&tunnels);
        let engine = engine::Engine::new(number, Arc::clone(&wake), inbox, count, ledger)?;
        let handle =
            std::thread::Builder::new().name(format!("relay-{number}")).spawn(move || engine.run())?;
        Ok(Self { commands, wake, tunnels, handle: parking_lot::Mutex::new(Some(handle)) })
    }

    fn tell(&self, command: Command) -> bool {
        let told = self.commands.send(command).is_ok();
        wake(&self.wake);
        told
    }
}

fn wake(eventfd: &OwnedFd) {
    // A full counter means that the thread is being woken already.
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}

/// As the threads' clocks count; a time too long to be told is the longest.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn idle_threads_turn_when_asked_and_ended_ones_do_not() {
        let ledger: Ledger = Arc::new(|_, _| {});
        let relay = Relay::start(3, &ledger).unwrap();
        assert!(relay.turned().await);
        let unanswered = relay.turned();
        relay.close(&Closing { code: 1001, reason: "".into(), over: Duration::ZERO, grace: Duration::ZERO });
        relay.join();
        assert!(!relay.turned().await);
        drop(unanswered);
    }
}
