//! The relay: plain threads that carry tunnels once their handshake is over.
//!
//! A tunnel is handed over as two sockets, the bytes already read and a [`Record`] ([`Relay::adopt`]); from then on
//! it lives in one thread's slab until it ends, and its end is one [`Outcome`] given to the [`Ledger`].
//!
//! Rules of the hot path: one read and one write per message; no allocation, no lock, no clock call, no log. The
//! time is taken once per turn of a thread's loop; one sweep a second serves all idle deadlines. Nothing here knows
//! pools, routes or config: a tunnel carries the few values it needs ([`Rules`]).

mod end;
mod engine;
pub mod pipe;
pub mod tls;
mod tunnel;

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

use crate::metrics::{Seat, Side};
use crate::net::tls::departed::Departed;

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
}

/// What a tunnel is held to.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Without a byte in either direction for this long, the tunnel is closed with 1001.
    pub idle: Duration,
    /// The most payload bytes of one message; `u64::MAX` is no limit. Over it both sides get 1009.
    pub max_message: u64,
}

/// A tunnel on its way into the relay.
#[derive(Debug)]
pub struct Tunnel {
    /// The client's socket, non-blocking.
    pub client: OwnedFd,
    /// The node's socket, non-blocking.
    pub node: OwnedFd,
    /// The client's TLS connection, if it has one; what it has decrypted follows `from_client`.
    pub client_tls: Option<Departed>,
    /// The TLS connection to the node, if it has one; what it has decrypted follows `from_node`.
    pub node_tls: Option<Departed>,
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
    /// TLS 1.2 keys have sealed almost as many records as they may.
    Worn,
    /// The balancer stops.
    Shutdown,
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
            Self::Worn => "tls_keys_used_up",
            Self::Shutdown => "shutdown",
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
    Adopt(Box<Tunnel>),
    Close(Closing),
}

/// Ends every tunnel, and the thread once the last is gone.
#[derive(Debug, Clone)]
pub struct Closing {
    /// The close code for both sides.
    pub code: u16,
    /// The reason in the Close frame.
    pub reason: Arc<str>,
    /// The closes are spread evenly over this time, in random order.
    pub over: Duration,
    /// How long each waits for its peers to answer the Close.
    pub grace: Duration,
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

    /// Begins to end every tunnel; [`join`](Self::join) returns when the last is gone.
    pub fn close(&self, closing: &Closing) {
        for thread in &self.threads {
            thread.tell(Command::Close(closing.clone()));
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
        // A full eventfd counter means that the thread is being woken already.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        told
    }
}
