//! The relay: plain threads that carry tunnels once their handshake is over.
//!
//! A tunnel is handed over as two sockets, the bytes already read and a [`Record`] ([`Relay::adopt`]); from then on
//! it lives in one thread's slab until it ends, and its end is one [`Outcome`] given to the [`Ledger`].
//!
//! Rules of the hot path: one read and one write per message; no allocation, no lock, no clock call, no log. The
//! time is taken once per turn of a thread's loop; one sweep a second serves all idle deadlines. Nothing here knows
//! pools, routes or config: a tunnel carries the few values it needs ([`Rules`]).
//!
//! While tunnels run, the threads can be told to close some of them ([`Relay::close`]) and asked what they are
//! ([`Relay::sessions`]). Live tunnels go from one process to another as [parcels](parcel): [`Relay::freeze`].

mod endpoint;
mod event_loop;
mod close_frame;
mod session_list;
mod migration;
mod paced_close;
pub mod tunnel_state;
pub mod pipe;
mod keepalive;
mod close_share;
pub mod tls;
mod tunnel;
mod tick;
mod close_reason;

use std::future::Future;
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

pub use close_reason::CloseReason;
pub use migration::{FrozenBatch, FrozenTunnel, KeptTunnel, ReceivedTunnel, StageError, StagedTunnels};
pub use paced_close::{CLOSE_GRACE, CloseHandle, PacedClose, TunnelSelector};
pub use session_list::{ChoiceOrder, SessionSnapshot, TunnelChoice};

use crate::log::access::AccessSession;
use crate::metrics::{CloseSide, NodePermit};
use crate::net::connection_limit::ConnectionPermit;
use crate::net::tls::extracted::ExtractedTls;
use crate::ws::close;

/// Places of a slab that a thread looks at in one turn, when it has to look at all: some tens of microseconds.
const SLAB_CHUNK: usize = 512;

/// What the relay may need to know about a session, and gives back with its outcome.
#[derive(Debug)]
pub struct SessionInfo {
    /// Unique in the process.
    pub id: u64,
    /// The client, as the front desk believes it to be.
    pub client: IpAddr,
    /// Counts the tunnel as live on its node until the record is dropped.
    pub node_connection: NodePermit,
    /// The route that the request matched, as written in the config.
    pub route: Arc<str>,
    /// Generation of the state that the session was opened under.
    pub generation: u32,
    /// When the upgrade request was read.
    pub opened_at: SystemTime,
    /// Which affinity source placed the session, and how: the labels of `affinity_total`.
    pub affinity: (&'static str, &'static str),
    /// The key that places it wherever it comes back, where nothing but a key does.
    pub key: Option<u64>,
    /// The trace that the node was told.
    pub trace: [u8; 16],
    /// Counts the client's connection until the record is dropped; `None` where nobody counts.
    pub permit: Option<ConnectionPermit>,
}

impl SessionInfo {
    /// What the access log says of the session.
    pub fn to_log_session(&self) -> AccessSession {
        AccessSession {
            id: self.id,
            trace: self.trace,
            client: Some(self.client),
            route: Arc::clone(&self.route),
            pool: Arc::clone(&self.node_connection.pool),
            node: Arc::clone(&self.node_connection.node),
            affinity: self.affinity,
        }
    }
}

/// What a tunnel is held to.
#[derive(Debug, Clone, Copy)]
pub struct TunnelLimits {
    /// Without a byte in either direction for this long, the tunnel is closed with 1001.
    pub idle_timeout: Duration,
    /// The most payload bytes of one message; `u64::MAX` is no limit. Over it both sides get 1009.
    pub max_message_size: u64,
    /// A client that sends nothing for this long is asked with a Ping of the balancer's; nothing for as long again,
    /// and the tunnel is closed. `None`: clients are not asked.
    pub ping_interval: Option<Duration>,
    /// Once one side has sent a Close, ended its stream or hung up, the other has this long to do the same.
    pub close_timeout: Duration,
}

/// A tunnel on its way into the relay.
#[derive(Debug)]
pub struct Tunnel {
    /// The client's socket, non-blocking.
    pub client: OwnedFd,
    /// The node's socket, non-blocking.
    pub node: OwnedFd,
    /// The client's TLS connection, if it has one; what it has decrypted follows `from_client`.
    pub client_tls: Option<ExtractedTls>,
    /// The TLS connection to the node, if it has one; what it has decrypted follows `from_node`.
    pub node_tls: Option<ExtractedTls>,
    /// Bytes already read from the client, for the node.
    pub from_client: Bytes,
    /// Bytes already read from the node, for the client.
    pub from_node: Bytes,
    /// See [`Rules`].
    pub limits: TunnelLimits,
    /// See [`Record`].
    pub info: SessionInfo,
}

/// How a tunnel ended (invariant I7: exactly one for each).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionEnd {
    /// Who ended it.
    pub side: CloseSide,
    /// The close code: of the first Close frame, or 1006 where there was none.
    pub code: u16,
    /// Why.
    pub reason: CloseReason,
    /// From adoption to the end.
    pub duration: Duration,
    /// Bytes read from the client and from the node.
    pub bytes: [u64; 2],
    /// Text and binary messages from the client and from the node.
    pub messages: [u64; 2],
}

impl SessionEnd {
    /// Of a tunnel that the balancer ended before anything passed.
    fn without_traffic(code: u16, reason: CloseReason) -> Self {
        let (bytes, messages) = ([0; 2], [0; 2]);
        Self { side: CloseSide::Balancer, code, reason, duration: Duration::ZERO, bytes, messages }
    }
}

/// Takes the end of each tunnel. Called on a relay thread: it must not block.
pub type CloseObserver = Arc<dyn Fn(&SessionInfo, &SessionEnd) + Send + Sync>;

/// What a relay thread can be told.
enum RelayCommand {
    /// Say that the loop turns.
    Acknowledge(oneshot::Sender<()>),
    Adopt(Box<PendingAdoption>),
    Close(Box<close_share::CloseShare>),
    List(Box<session_list::ListJob>),
    Freeze(migration::FreezeRequest),
    Resume(Vec<FrozenTunnel>),
    Release(Vec<usize>),
    Restore(migration::RestoredTunnels),
}

/// A tunnel on its way to its thread. If it does not get there, because the thread has ended, that is its outcome:
/// the session is open, and every open session has one (invariant I7).
struct PendingAdoption {
    /// `None` once it is there.
    tunnel: Option<Tunnel>,
    observer: CloseObserver,
}

impl Drop for PendingAdoption {
    fn drop(&mut self) {
        let Some(Tunnel { info, .. }) = &self.tunnel else { return };
        (self.observer)(info, &SessionEnd::without_traffic(close::GOING_AWAY, CloseReason::Shutdown));
    }
}

/// The relay threads.
pub struct Relay {
    threads: Vec<RelayThread>,
}

struct RelayThread {
    commands: Sender<RelayCommand>,
    /// Wakes the thread's epoll.
    wake: Arc<OwnedFd>,
    /// Tunnels on this thread, with those on their way to it.
    tunnels: Arc<AtomicUsize>,
    /// For tunnels that it does not take any more.
    observer: CloseObserver,
    handle: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl Relay {
    /// Starts `threads` relay threads, at least one.
    pub fn start(threads: usize, observer: &CloseObserver) -> io::Result<Self> {
        let start = |number| RelayThread::start(number, Arc::clone(observer));
        Ok(Self { threads: (0..threads.max(1)).map(start).collect::<io::Result<_>>()? })
    }

    /// Gives the tunnel to the thread with the fewest. False when that thread has ended; the sockets are then
    /// closed, and the ledger has heard of it.
    pub fn adopt(&self, tunnel: Tunnel) -> bool {
        let fewest = self.threads.iter().min_by_key(|thread| thread.tunnels.load(Relaxed));
        let Some(thread) = fewest else { return false };
        thread.tunnels.fetch_add(1, Relaxed);
        let new_tunnel = PendingAdoption { tunnel: Some(tunnel), observer: Arc::clone(&thread.observer) };
        let taken = thread.send(RelayCommand::Adopt(Box::new(new_tunnel)));
        if !taken {
            thread.tunnels.fetch_sub(1, Relaxed);
        }
        taken
    }

    /// Tunnels in all threads.
    pub fn tunnel_count(&self) -> usize {
        self.threads.iter().map(|thread| thread.tunnels.load(Relaxed)).sum()
    }

    /// The `limit` sessions with the lowest ids above `after`, in their order. A page that is full may have more
    /// behind it: ask again with its last id.
    pub fn list_sessions(
        &self,
        selector: TunnelSelector,
        after: Option<u64>,
        limit: usize,
    ) -> impl Future<Output = Vec<SessionSnapshot>> + Send + use<> {
        let page = self.query_threads(session_list::SessionQuery::page(selector, after, limit));
        async { page.await.into_iter().map(|(_, snapshot)| snapshot).collect() }
    }

    /// The ids of the `limit` sessions that are the first to be closed of those that are meant, first things first;
    /// without those that are being closed already.
    pub fn choose(
        &self,
        choice: TunnelChoice,
        limit: usize,
    ) -> impl Future<Output = Vec<u64>> + Send + use<> {
        let chosen = self.query_threads(session_list::SessionQuery::choice(choice, limit));
        async { chosen.await.into_iter().map(|(_, snapshot)| snapshot.id).collect() }
    }

    fn query_threads(
        &self,
        query: session_list::SessionQuery,
    ) -> impl Future<Output = Vec<(u64, SessionSnapshot)>> + Send + use<> {
        let limit = query.limit;
        let query = Arc::new(query);
        let ask = |thread: &RelayThread| {
            let (reply, answer) = oneshot::channel();
            thread.send(RelayCommand::List(Box::new(session_list::ListJob::new(Arc::clone(&query), reply))));
            answer
        };
        session_list::merge_page(self.threads.iter().map(ask).collect(), limit)
    }

    /// True once the loop of every thread has turned; false when one has ended.
    pub fn wait_one_tick(&self) -> impl Future<Output = bool> + Send + use<> {
        let ask = |thread: &RelayThread| {
            let (reply, answer) = oneshot::channel();
            thread.send(RelayCommand::Acknowledge(reply)).then_some(answer)
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

    /// Waits for the threads to end, which they do after [`shut_down`](Self::shut_down). Blocks.
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

impl RelayThread {
    fn start(number: usize, observer: CloseObserver) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let tunnels = Arc::new(AtomicUsize::new(0));
        let (commands, inbox) = channel();
        let count = Arc::clone(&tunnels);
        let engine =
            event_loop::EventLoop::new(number, Arc::clone(&wake), inbox, count, Arc::clone(&observer))?;
        let handle =
            std::thread::Builder::new().name(format!("relay-{number}")).spawn(move || engine.run())?;
        Ok(Self { commands, wake, tunnels, observer, handle: parking_lot::Mutex::new(Some(handle)) })
    }

    fn send(&self, command: RelayCommand) -> bool {
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
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Shutdown};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::Receiver;

    use super::*;
    use crate::metrics::Metrics;
    use crate::ws::frame;

    /// What anything that has to happen may take at most.
    const DEADLINE: Duration = Duration::from_secs(10);

    /// A relay, the nodes' meters, and the outcomes as they come.
    struct Stage {
        relay: Relay,
        metrics: Arc<Metrics>,
        ends: Receiver<(u64, SessionEnd)>,
    }

    /// Both peers of a tunnel.
    struct Peers {
        client: UnixStream,
        node: UnixStream,
    }

    impl Stage {
        fn set(threads: usize) -> Self {
            let (sender, ends) = channel();
            let sender = parking_lot::Mutex::new(sender);
            let observer: CloseObserver = Arc::new(move |info: &SessionInfo, end: &SessionEnd| {
                let _ = sender.lock().send((info.id, *end));
            });
            let relay = Relay::start(threads, &observer).unwrap();
            Self { relay, metrics: Metrics::new(threads), ends }
        }

        fn tunnel(&self, id: u64, node: &str) -> Peers {
            let limits = TunnelLimits {
                idle_timeout: Duration::from_secs(3600),
                max_message_size: u64::MAX,
                ping_interval: None,
                close_timeout: Duration::from_secs(10),
            };
            self.tunnel_with(id, node, limits)
        }

        fn tunnel_with(&self, id: u64, node: &str, limits: TunnelLimits) -> Peers {
            let (tunnel, peers) = self.new_tunnel(id, node, limits);
            assert!(self.relay.adopt(tunnel));
            peers
        }

        fn new_tunnel(&self, id: u64, node: &str, limits: TunnelLimits) -> (Tunnel, Peers) {
            let info = SessionInfo {
                id,
                client: IpAddr::V4(Ipv4Addr::LOCALHOST),
                node_connection: self.metrics.node("chat", node).acquire_permit(),
                route: Arc::from("/"),
                generation: 3,
                opened_at: SystemTime::UNIX_EPOCH,
                affinity: ("cookie", "kept"),
                key: None,
                trace: [0; 16],
                permit: None,
            };
            let pair = || {
                let (ours, theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                theirs.set_read_timeout(Some(DEADLINE)).unwrap();
                (OwnedFd::from(ours), theirs)
            };
            let ((client, client_peer), (node, node_peer)) = (pair(), pair());
            let early = Bytes::new();
            let tunnel = Tunnel {
                client,
                node,
                client_tls: None,
                node_tls: None,
                from_client: early.clone(),
                from_node: early,
                limits,
                info,
            };
            (tunnel, Peers { client: client_peer, node: node_peer })
        }

        fn next_end(&self) -> (u64, SessionEnd) {
            self.ends.recv_timeout(DEADLINE).expect("a tunnel ends")
        }

        fn end(self) {
            self.relay.shut_down(end(0));
            self.relay.join();
        }
    }

    impl Peers {
        /// A message of the client's that reaches the node.
        fn say(&mut self, word: &str) {
            let said = frame(1, word.as_bytes(), Some([1; 4]));
            self.client.write_all(&said).unwrap();
            assert_eq!(read(&mut self.node, said.len()), said);
        }

        /// Both hear a Close with this code and answer it.
        fn part(&mut self, code: u16) {
            assert_eq!((close_code(&mut self.client), close_code(&mut self.node)), (code, code));
            self.client.write_all(&close::encode_close(code, "", Some([1; 4]))).unwrap();
            self.node.write_all(&close::encode_close(code, "", None)).unwrap();
        }
    }

    fn frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        frame::encode_control(opcode, payload, mask)
    }

    fn read(peer: &mut UnixStream, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        peer.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn close_code(peer: &mut UnixStream) -> u16 {
        let head = read(peer, 2);
        assert_eq!(head[0], 0x88, "a Close");
        let mask = if head[1] & 0x80 == 0 { vec![0; 4] } else { read(peer, 4) };
        let payload = read(peer, usize::from(head[1] & 0x7f));
        u16::from_be_bytes([payload[0] ^ mask[0], payload[1] ^ mask[1]])
    }

    /// A close of the tunnels of one node, as a drain does it.
    fn drain(node: &'static str, window: u64, grace: u64) -> PacedClose {
        closing(on_node(node), window, grace)
    }

    fn closing(selector: TunnelSelector, window: u64, grace: u64) -> PacedClose {
        let close = PacedClose::new(selector, CloseReason::Drained, 1012, "moved");
        close.over(Duration::from_millis(window)).with_grace(Duration::from_millis(grace))
    }

    fn on_node(node: &'static str) -> TunnelSelector {
        TunnelSelector::new(move |info| &*info.node_connection.node == node)
    }

    fn end(grace: u64) -> PacedClose {
        PacedClose { cause: CloseReason::Shutdown, ..closing(TunnelSelector::all(), 0, grace) }
    }

    #[tokio::test]
    async fn closing_the_tunnels_of_one_node_leaves_the_others_and_the_threads() {
        let stage = Stage::set(3);
        let mut leaving: Vec<Peers> = (0..7).map(|id| stage.tunnel(id, "ws1")).collect();
        let mut staying: Vec<Peers> = (7..12).map(|id| stage.tunnel(id, "ws2")).collect();
        let handle = stage.relay.close(drain("ws1", 50, 60_000));
        assert_eq!(handle.counted().await, 7);
        let mut late = stage.tunnel(12, "ws1");
        leaving.iter_mut().for_each(|peers| peers.part(1012));
        handle.finished().await;
        assert_eq!((handle.selected(), handle.left(), handle.closed()), (7, 0, 7));
        for _ in 0..7 {
            let (id, end) = stage.next_end();
            assert!(id < 7);
            assert_eq!((end.side, end.code, end.reason), (CloseSide::Balancer, 1012, CloseReason::Drained));
        }
        staying.iter_mut().for_each(|peers| peers.say("still here"));
        late.say("came later");
        assert_eq!(stage.relay.tunnel_count(), 6);
        stage.end();
    }

    #[tokio::test]
    async fn i11_a_closing_that_nobody_answers_ends_all_the_same() {
        let stage = Stage::set(2);
        let peers: Vec<Peers> = (0..40).map(|id| stage.tunnel(id, "ws1")).collect();
        let handle = stage.relay.close(closing(TunnelSelector::all(), 60, 40));
        handle.finished().await;
        assert_eq!((handle.selected(), stage.relay.tunnel_count()), (40, 0));
        for mut peers in peers {
            assert_eq!((close_code(&mut peers.client), close_code(&mut peers.node)), (1012, 1012));
            assert_eq!((peers.client.read(&mut [0]).unwrap(), peers.node.read(&mut [0]).unwrap()), (0, 0));
        }
        stage.end();
    }

    #[tokio::test]
    async fn one_session_is_killed_and_an_unknown_one_is_counted_as_none() {
        let stage = Stage::set(2);
        let (mut one, mut other) = (stage.tunnel(u64::MAX, "ws1"), stage.tunnel(5, "ws1"));
        let kill = |id: u64| PacedClose {
            cause: CloseReason::Killed,
            ..closing(TunnelSelector::sessions([id].into()), 0, 60_000)
        };
        assert_eq!(stage.relay.close(kill(4)).counted().await, 0);
        let handle = stage.relay.close(kill(u64::MAX));
        assert_eq!(handle.counted().await, 1);
        one.part(1012);
        handle.finished().await;
        let (id, end) = stage.next_end();
        assert_eq!((id, end.reason), (u64::MAX, CloseReason::Killed));
        other.say("untouched");
        stage.end();
    }

    #[tokio::test]
    async fn a_tunnel_that_ends_by_itself_is_not_left_to_a_closing() {
        let stage = Stage::set(1);
        let peers: Vec<Peers> = (0..3).map(|id| stage.tunnel(id, "ws1")).collect();
        let first = stage.relay.close(closing(TunnelSelector::all(), 3_600_000, 0));
        assert_eq!(first.counted().await, 3);
        // One is due at the start of each window, the others much later.
        assert_eq!(stage.next_end().1.reason, CloseReason::Drained);
        let second = stage.relay.close(drain("ws1", 3_600_000, 0));
        assert_eq!(second.counted().await, 2);
        assert_eq!(stage.next_end().1.reason, CloseReason::Drained);
        // The thread answers when the turn that ended it is over.
        assert_eq!(stage.relay.list_sessions(TunnelSelector::all(), None, 9).await.len(), 1);
        assert_eq!((first.left(), second.left()), (1, 1));
        drop(peers);
        assert_ne!(stage.next_end().1.side, CloseSide::Balancer);
        first.finished().await;
        second.finished().await;
        stage.end();
    }

    #[tokio::test]
    async fn the_end_of_the_process_overtakes_a_closing_and_takes_what_comes_late() {
        let stage = Stage::set(2);
        let _peers: Vec<Peers> = (0..6).map(|id| stage.tunnel(id, "ws1")).collect();
        let handle = stage.relay.close(drain("ws1", 3_600_000, 3_600_000));
        assert_eq!(handle.counted().await, 6);
        stage.relay.shut_down(end(60_000));
        let mut late = stage.tunnel(6, "ws1");
        late.part(1012);
        stage.relay.shut_down(end(0));
        stage.relay.join();
        handle.finished().await;
        let ends: Vec<_> = stage.ends.try_iter().collect();
        assert_eq!(ends.len(), 7);
        // One was due at the start of the window.
        let drained = ends.iter().filter(|(_, end)| end.reason == CloseReason::Drained).count();
        let shut = ends.iter().filter(|(_, end)| end.reason == CloseReason::Shutdown).count();
        assert_eq!((drained, shut), (1, 6), "{ends:?}");
        let gone = stage.relay.close(drain("ws1", 0, 0));
        assert_eq!(gone.counted().await, 0);
        assert_eq!(stage.relay.list_sessions(TunnelSelector::all(), None, 10).await, []);
    }

    #[tokio::test]
    async fn a_listing_shows_tunnels_as_they_run() {
        let stage = Stage::set(2);
        let (mut one, _other) = (stage.tunnel(9, "ws1"), stage.tunnel(4, "ws2"));
        one.say("hello");
        one.say("again");
        one.node.write_all(&frame(1, b"yes", None)).unwrap();
        read(&mut one.client, 5);
        let [quiet, busy] = &stage.relay.list_sessions(TunnelSelector::all(), None, 10).await[..] else {
            panic!("two sessions")
        };
        assert_eq!((quiet.id, quiet.last_message_at, quiet.bytes), (4, None, [0, 0]));
        assert_eq!((busy.id, busy.bytes, busy.messages), (9, [22, 5], [2, 1]));
        assert!(busy.last_message_at.is_some_and(|at| at.elapsed().unwrap_or_default() < DEADLINE));
        assert_eq!((&*busy.pool, &*busy.node, &*busy.route), ("chat", "ws1", "/"));
        assert_eq!((busy.generation, busy.opened_at), (3, SystemTime::UNIX_EPOCH));
        assert_eq!((busy.affinity, busy.round_trip, busy.is_closing), (("cookie", "kept"), None, false));
        let of = |pool: &str, node: Option<&str>| {
            let (pool, node) = (pool.to_owned(), node.map(str::to_owned));
            let selector = TunnelSelector::new(move |info| {
                *info.node_connection.pool == pool
                    && node.as_ref().is_none_or(|node| *info.node_connection.node == *node)
            });
            let page = stage.relay.list_sessions(selector, None, 10);
            async { page.await.iter().map(|session| session.id).collect::<Vec<_>>() }
        };
        assert_eq!(of("chat", Some("ws2")).await, [4]);
        assert_eq!(of("chat", None).await, [4, 9]);
        assert_eq!(of("other", None).await, [0; 0]);
        stage.end();
    }

    #[tokio::test]
    async fn pages_of_a_listing_hold_every_session_once_in_order() {
        let stage = Stage::set(3);
        let ids: Vec<u64> = (0..120).map(crate::affinity::hash::mix).collect();
        let _peers: Vec<Peers> = ids.iter().map(|id| stage.tunnel(*id, "ws1")).collect();
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = stage.relay.list_sessions(TunnelSelector::all(), after, 50).await;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            listed.extend(page.iter().map(|session| session.id));
        }
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        assert_eq!(listed, sorted);
        assert_eq!(stage.relay.list_sessions(TunnelSelector::all(), None, 0).await, []);
        stage.end();
    }

    #[tokio::test]
    async fn the_quietest_are_chosen_and_then_they_alone_are_closed() {
        let stage = Stage::set(2);
        let mut peers: Vec<Peers> =
            (0..6).map(|id| stage.tunnel(id, ["ws1", "ws2"][id as usize / 5])).collect();
        peers[4].say("busy");
        let choose = |order, limit| {
            let selector = TunnelSelector::new(|info| &*info.node_connection.node == "ws1" && info.id != 2);
            stage.relay.choose(TunnelChoice { selector, order }, limit)
        };
        let mut quietest = Vec::new();
        // The first message may come in the millisecond in which the others were adopted.
        for _ in 0..1000 {
            quietest = choose(ChoiceOrder::Quietest, 3).await;
            // Among themselves they are as quiet as their threads are old.
            quietest.sort_unstable();
            if quietest == [0, 1, 3] {
                break;
            }
            peers[4].say("busy");
        }
        assert_eq!(quietest, [0, 1, 3]);
        let any = choose(ChoiceOrder::Shuffled(7), 9).await;
        assert_eq!(any, choose(ChoiceOrder::Shuffled(7), 9).await);
        assert_eq!(any.iter().sum::<u64>(), 8);
        let selector = TunnelSelector::sessions([1, 3].into());
        let close = PacedClose { cause: CloseReason::Rebalanced, ..closing(selector, 0, 60_000) };
        let handle = stage.relay.close(close);
        assert_eq!(handle.counted().await, 2);
        assert_eq!(close_code(&mut peers[1].client), 1012);
        let mut left = choose(ChoiceOrder::Quietest, 9).await;
        left.sort_unstable();
        assert_eq!(left, [0, 4], "those that are being closed are not chosen again");
        for id in [3, 1] {
            drop(peers.swap_remove(id));
        }
        assert_eq!([stage.next_end().1.reason, stage.next_end().1.reason], [CloseReason::Rebalanced; 2]);
        stage.end();
    }

    #[tokio::test]
    async fn a_quiet_client_is_asked_and_its_pong_never_reaches_the_node() {
        let stage = Stage::set(1);
        let ping = Some(Duration::from_millis(1));
        let limits = TunnelLimits {
            idle_timeout: Duration::from_secs(3600),
            max_message_size: u64::MAX,
            ping_interval: ping,
            close_timeout: Duration::from_secs(10),
        };
        let mut peers = stage.tunnel_with(1, "ws1", limits);
        for _ in 0..2 {
            let asked = read(&mut peers.client, 10);
            assert_eq!(asked[..2], [0x89, 8]);
            let pong = frame(frame::opcode::PONG, &asked[2..], Some([5, 6, 7, 8]));
            peers.client.write_all(&pong[..7]).unwrap();
            peers.client.write_all(&pong[7..]).unwrap();
            peers.say("behind it");
        }
        let session = stage.relay.list_sessions(TunnelSelector::all(), None, 1).await.remove(0);
        assert!(session.round_trip.is_some());
        assert_eq!((session.bytes[0], session.messages[0]), (2 * (14 + 15), 2));
        stage.end();
    }

    #[tokio::test]
    async fn a_client_that_does_not_answer_is_closed_and_the_node_is_told() {
        let stage = Stage::set(1);
        let ping = Some(Duration::from_millis(1));
        let limits = TunnelLimits {
            idle_timeout: Duration::from_secs(3600),
            max_message_size: u64::MAX,
            ping_interval: ping,
            close_timeout: Duration::from_secs(10),
        };
        let mut peers = stage.tunnel_with(1, "ws1", limits);
        assert_eq!(close_code(&mut peers.node), 1001);
        peers.node.write_all(&close::encode_close(1001, "", None)).unwrap();
        let (_, end) = stage.next_end();
        assert_eq!((end.side, end.code, end.reason), (CloseSide::Client, 1006, CloseReason::Silent));
        assert_eq!(read(&mut peers.client, 10)[..2], [0x89, 8]);
        assert_eq!(close_code(&mut peers.client), 1001);
        assert_eq!(peers.client.read(&mut [0]).unwrap(), 0);
        stage.end();
    }

    /// A pool whose half-ended tunnels have a second.
    const SHORT: TunnelLimits = TunnelLimits {
        idle_timeout: Duration::from_secs(3600),
        max_message_size: u64::MAX,
        ping_interval: None,
        close_timeout: Duration::from_secs(1),
    };

    #[test]
    fn a_side_that_ends_behind_what_the_other_does_not_take_ends_its_tunnel_by_the_close_time() {
        let stage = Stage::set(1);
        for id in [0, 1] {
            let mut peers = stage.tunnel_with(id, "ws1", SHORT);
            let (peer, side) = match id {
                0 => (&mut peers.client, CloseSide::Client),
                _ => (&mut peers.node, CloseSide::Node),
            };
            peer.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
            let news = frame(2, &[0; 100], (id == 0).then_some([0; 4]));
            while peer.write_all(&news).is_ok() {}
            peer.shutdown(Shutdown::Write).unwrap();
            let (ended, end) = stage.next_end();
            assert_eq!((ended, end.side, end.code), (id, side, 1006));
            assert_eq!(end.reason, CloseReason::CloseTimeout);
            drop(peers);
        }
        stage.end();
    }

    #[test]
    fn a_tunnel_that_is_adopted_with_a_close_has_the_close_time() {
        let stage = Stage::set(1);
        let (mut tunnel, mut peers) = stage.new_tunnel(1, "ws1", SHORT);
        tunnel.from_node = close::encode_close(3000, "", None).into();
        assert!(stage.relay.adopt(tunnel));
        assert_eq!(close_code(&mut peers.client), 3000);
        let (_, end) = stage.next_end();
        assert_eq!((end.side, end.code, end.reason), (CloseSide::Node, 3000, CloseReason::CloseTimeout));
        assert!(end.duration >= Duration::from_secs(1));
        assert_eq!((peers.client.read(&mut [0]).unwrap(), peers.node.read(&mut [0]).unwrap()), (0, 0));
        stage.end();
    }

    #[test]
    fn i7_a_tunnel_that_comes_after_the_end_has_its_outcome_too() {
        let stage = Stage::set(1);
        stage.relay.shut_down(end(0));
        stage.relay.join();
        let meter = stage.metrics.node("chat", "a");
        let limits = TunnelLimits {
            idle_timeout: Duration::from_secs(3600),
            max_message_size: u64::MAX,
            ping_interval: None,
            close_timeout: Duration::from_secs(10),
        };
        let (tunnel, _peers) = stage.new_tunnel(7, "a", limits);
        assert!(!stage.relay.adopt(tunnel));
        let (id, end) = stage.next_end();
        assert_eq!(
            (id, end.side, end.code, end.reason),
            (7, CloseSide::Balancer, 1001, CloseReason::Shutdown)
        );
        assert_eq!((meter.live(), stage.relay.tunnel_count()), (0, 0));
    }

    #[test]
    fn a_client_that_takes_nothing_any_more_is_silent_whatever_the_node_sends() {
        let stage = Stage::set(1);
        let ping = Some(Duration::from_millis(1));
        let limits = TunnelLimits {
            idle_timeout: Duration::from_secs(3600),
            max_message_size: u64::MAX,
            ping_interval: ping,
            close_timeout: Duration::from_secs(10),
        };
        let mut peers = stage.tunnel_with(1, "ws1", limits);
        peers.node.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        let news = frame(2, &[0; 100], None);
        while peers.node.write_all(&news).is_ok() {}
        assert_eq!(close_code(&mut peers.node), 1001);
        drop(peers.node);
        assert_eq!(stage.next_end().1.reason, CloseReason::Silent);
        stage.end();
    }

    #[test]
    fn pongs_of_our_own_do_not_keep_an_idle_tunnel_open() {
        let stage = Stage::set(1);
        let limits = TunnelLimits {
            idle_timeout: Duration::from_millis(2_500),
            max_message_size: u64::MAX,
            ping_interval: Some(Duration::from_millis(1)),
            close_timeout: Duration::from_secs(10),
        };
        let mut peers = stage.tunnel_with(1, "ws1", limits);
        loop {
            let head = read(&mut peers.client, 2);
            let payload = read(&mut peers.client, usize::from(head[1]));
            if head[0] == 0x88 {
                assert_eq!(payload[2..], *b"idle");
                break;
            }
            peers.client.write_all(&frame(frame::opcode::PONG, &payload, Some([5; 4]))).unwrap();
        }
        drop(peers);
        assert_eq!(stage.next_end().1.reason, CloseReason::Idle);
        stage.end();
    }

    #[test]
    fn a_client_that_has_closed_or_ended_its_stream_is_not_asked() {
        let stage = Stage::set(1);
        let ping = Some(Duration::from_millis(1));
        let limits = TunnelLimits {
            idle_timeout: Duration::from_millis(2_500),
            max_message_size: u64::MAX,
            ping_interval: ping,
            close_timeout: Duration::from_secs(10),
        };
        let (mut closed, mut ended) =
            (stage.tunnel_with(1, "ws1", limits), stage.tunnel_with(2, "ws1", limits));
        closed.client.write_all(&close::encode_close(1000, "", Some([1; 4]))).unwrap();
        ended.client.shutdown(Shutdown::Write).unwrap();
        assert_eq!((close_code(&mut closed.client), close_code(&mut ended.client)), (1001, 1001));
        stage.end();
    }

    #[tokio::test]
    async fn what_was_relayed_is_in_the_metrics_while_a_tunnel_runs_and_after_it() {
        let stage = Stage::set(2);
        let mut peers = stage.tunnel(1, "ws1");
        let is_exact = || {
            let text = stage.metrics.render();
            let lines = [
                "mainstay_bytes_total{pool=\"chat\",direction=\"in\"} 33\n",
                "mainstay_messages_total{pool=\"chat\",direction=\"in\",kind=\"text\"} 3\n",
            ];
            lines.iter().all(|line| text.contains(line))
        };
        for _ in 0..3 {
            peers.say("hello");
        }
        // The thread answers when the turn that relayed the last of them is over.
        assert_eq!(stage.relay.list_sessions(TunnelSelector::all(), None, 1).await[0].messages, [3, 0]);
        assert!(is_exact());
        drop(peers);
        let (_, end) = stage.next_end();
        assert_eq!((end.bytes[0], end.messages[0]), (33, 3));
        assert!(is_exact());
        stage.end();
    }

    #[tokio::test]
    async fn idle_threads_turn_when_asked_and_ended_ones_do_not() {
        let observer: CloseObserver = Arc::new(|_, _| {});
        let relay = Relay::start(3, &observer).unwrap();
        assert!(relay.wait_one_tick().await);
        let unanswered = relay.wait_one_tick();
        relay.shut_down(end(0));
        relay.join();
        assert!(!relay.wait_one_tick().await);
        drop(unanswered);
    }
}
