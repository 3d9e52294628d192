//! Nodes of one process share rooms and sessions; or one node is alone.
//!
//! Calls go to the other hubs directly, and since a hub never blocks, neither do they. With recovery every broadcast
//! goes through one log for each namespace, and is delivered while the log is locked: the order of offsets is the order
//! in which every client gets them. Log and sessions are bounded in time and in size.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::adapter::{
    AckReplies, Adapter, AdapterState, BoxFuture, BroadcastFlags, LocalNamespace, MissedEvent, MissedPage,
    NamespaceAdapter, Offset, Operation, RemoteAck, RemoteSocket, RequestError, Room, SendError,
    ServerAnswers, Session, SessionReplay, Target, await_answer,
};
use crate::offset;
use crate::value::Value;

/// Events that a namespace's log keeps at most; the same as of a stream in Redis.
const MAX_ENTRIES: usize = 10_000;

/// Bytes that a namespace's log keeps at most, as [`MissedEvent::weight`] counts them.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Events in one page of what a client has missed.
const PAGE_EVENTS: usize = 256;

/// Sessions that a namespace keeps at most; beyond, the connection's end is just that.
const MAX_SESSIONS: usize = 100_000;

/// How long another server may take to answer, as in Node.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// One node's place among the nodes of the process.
pub struct MemoryAdapter {
    shared: Arc<MemoryCluster>,
    /// Which node.
    node: u64,
}

/// What the nodes have in common.
struct MemoryCluster {
    /// How long a session can be taken up again; `None`: not at all.
    recovery: Option<Duration>,
    spaces: Mutex<HashMap<Arc<str>, Arc<SharedNamespace>>>,
    /// Of the next node.
    next: AtomicU64,
    /// Answers on their way from one node to another.
    tasks: TaskTracker,
}

/// One namespace of all nodes.
#[derive(Default)]
struct SharedNamespace {
    locals: RwLock<Vec<(u64, Weak<dyn LocalNamespace>)>>,
    log: Mutex<EventLog>,
    sessions: Mutex<HashMap<Box<str>, (Session, Instant)>>,
}

/// The events that may have to be sent again, in order.
#[derive(Default)]
struct EventLog {
    entries: VecDeque<LogEntry>,
    /// Of all entries.
    bytes: usize,
    /// The last place that was given.
    last: (u64, u64),
}

struct LogEntry {
    place: (u64, u64),
    missed: Arc<MissedEvent>,
    target: Target,
    at: Instant,
}

impl MemoryAdapter {
    /// The first node of a process. Sessions can be taken up again for as long as `recovery` says.
    pub fn new(recovery: Option<Duration>) -> Arc<Self> {
        let shared = MemoryCluster {
            recovery: recovery.filter(|time| !time.is_zero()),
            spaces: Mutex::default(),
            next: AtomicU64::new(1),
            tasks: TaskTracker::new(),
        };
        Arc::new(Self { shared: Arc::new(shared), node: 0 })
    }

    /// One more node of the same process.
    pub fn another_server(&self) -> Arc<Self> {
        let node = self.shared.next.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { shared: self.shared.clone(), node })
    }
}

impl Adapter for MemoryAdapter {
    fn namespace(&self, namespace: &Arc<str>, local: Weak<dyn LocalNamespace>) -> Arc<dyn NamespaceAdapter> {
        let space = self.shared.spaces.lock().entry(namespace.clone()).or_default().clone();
        space.locals.write().push((self.node, local));
        Arc::new(MemoryNamespace { shared: self.shared.clone(), space, node: self.node })
    }

    fn state(&self) -> AdapterState {
        AdapterState::Up
    }

    fn delivers_own_broadcasts(&self) -> bool {
        self.recovers_sessions()
    }

    fn recovers_sessions(&self) -> bool {
        self.shared.recovery.is_some()
    }

    fn close(&self) -> BoxFuture<()> {
        for space in self.shared.spaces.lock().values() {
            space.locals.write().retain(|(node, _)| *node != self.node);
        }
        ready(())
    }
}

/// One namespace of one node.
struct MemoryNamespace {
    shared: Arc<MemoryCluster>,
    space: Arc<SharedNamespace>,
    node: u64,
}

impl MemoryNamespace {
    fn others(&self) -> Vec<Arc<dyn LocalNamespace>> {
        let locals = self.space.locals.read();
        locals
            .iter()
            .filter(|(node, _)| *node != self.node)
            .filter_map(|(_, local)| local.upgrade())
            .collect()
    }

    fn all(&self) -> Vec<Arc<dyn LocalNamespace>> {
        self.space.locals.read().iter().filter_map(|(_, local)| local.upgrade()).collect()
    }

    /// Sends a broadcast to all nodes, this one included, through the log.
    fn send_logged(
        &self,
        keep: Duration,
        data: Vec<Value>,
        target: Target,
        flags: BroadcastFlags,
    ) -> Option<Offset> {
        let mut log = self.space.log.lock();
        let offset = (!flags.volatile).then(|| log.push(data.clone(), target.clone(), keep));
        for local in self.all() {
            let (data, target, flags) = (data.clone(), target.clone(), flags.clone());
            local.deliver(Operation::Broadcast { data, target, flags }, offset.clone());
        }
        offset
    }
}

impl NamespaceAdapter for MemoryNamespace {
    fn send(&self, operation: Operation) -> BoxFuture<Result<Option<Offset>, SendError>> {
        let offset = match (operation, self.shared.recovery) {
            (Operation::Broadcast { data, target, flags }, Some(keep)) => {
                self.send_logged(keep, data, target, flags)
            }
            (operation, _) => {
                self.others().iter().for_each(|local| local.deliver(operation.clone(), None));
                None
            }
        };
        ready(Ok(offset))
    }

    fn broadcast_with_ack(
        &self,
        data: Vec<Value>,
        target: Target,
        flags: BroadcastFlags,
    ) -> BoxFuture<Result<AckReplies, SendError>> {
        let others = self.others();
        let (told, heard) = mpsc::channel(256);
        for local in &others {
            let (count, mut answers) = local.broadcast_with_ack(data.clone(), &target, &flags);
            let told = told.clone();
            self.shared.tasks.spawn(async move {
                let mut is_wanted = told.send(RemoteAck::Count(count)).await.is_ok();
                while is_wanted && let Some(answer) = answers.recv().await {
                    is_wanted = told.send(RemoteAck::Ack(answer)).await.is_ok();
                }
            });
        }
        ready(Ok(AckReplies { servers: others.len(), replies: heard }))
    }

    fn fetch_sockets(
        &self,
        target: Target,
        _: BroadcastFlags,
    ) -> BoxFuture<Result<Vec<RemoteSocket>, RequestError>> {
        ready(Ok(self.others().iter().flat_map(|local| local.fetch_sockets(&target)).collect()))
    }

    fn server_side_emit_with_ack(&self, data: Vec<Value>) -> BoxFuture<ServerAnswers> {
        let asked: Vec<_> =
            self.others().iter().map(|local| local.server_side_emit_with_ack(data.clone())).collect();
        Box::pin(async move {
            let (expected, end) = (asked.len(), Instant::now() + REQUEST_TIMEOUT);
            let mut heard = Vec::new();
            for answer in asked {
                if let Ok(answer) = timeout_at(end, await_answer(answer)).await {
                    heard.push(answer);
                }
            }
            if heard.len() == expected {
                return Ok(heard);
            }
            Err((RequestError::Timeout { received: heard.len(), expected }, heard))
        })
    }

    fn server_count(&self) -> BoxFuture<Result<usize, RequestError>> {
        ready(Ok(self.all().len()))
    }

    fn all_rooms(&self) -> BoxFuture<Result<Vec<Room>, RequestError>> {
        ready(Ok(self.others().iter().flat_map(|local| local.rooms()).collect()))
    }

    fn persist_session(&self, session: Session) -> BoxFuture<Result<(), SendError>> {
        let Some(keep) = self.shared.recovery else { return ready(Ok(())) };
        let now = Instant::now();
        let mut sessions = self.space.sessions.lock();
        // A full table is looked through for what has expired, so that looking is seldom.
        if sessions.len() >= MAX_SESSIONS || sessions.len() == sessions.capacity() {
            sessions.retain(|_, (_, until)| *until > now);
        }
        if sessions.len() >= MAX_SESSIONS {
            return ready(Err(SendError::QueueFull));
        }
        sessions.insert(session.pid.clone(), (session, now + keep));
        ready(Ok(()))
    }

    fn find_session(&self, pid: &str, offset: &str) -> BoxFuture<Option<Box<dyn SessionReplay>>> {
        let found = self.space.sessions.lock().get(pid).cloned();
        let session = found.filter(|(_, until)| *until > Instant::now()).map(|(session, _)| session);
        let replay =
            session.zip(offset::parse_offset(offset)).and_then(|(session, seen)| {
                self.space.log.lock().find(seen)?;
                Some(Box::new(MemoryReplay { space: self.space.clone(), session, seen })
                    as Box<dyn SessionReplay>)
            });
        ready(replay)
    }

    fn delete_session(&self, pid: &str) -> BoxFuture<()> {
        self.space.sessions.lock().remove(pid);
        ready(())
    }
}

/// A session that was found and is not taken yet.
struct MemoryReplay {
    space: Arc<SharedNamespace>,
    session: Session,
    /// Up to where its client has been given everything.
    seen: (u64, u64),
}

impl SessionReplay for MemoryReplay {
    fn session(&self) -> &Session {
        &self.session
    }

    fn next_page(&mut self) -> Pin<Box<dyn Future<Output = Option<MissedPage>> + Send + '_>> {
        let page = self.space.log.lock().page(&mut self.seen, &self.session.rooms);
        Box::pin(std::future::ready(page))
    }

    fn claim(self: Box<Self>) -> BoxFuture<Option<Session>> {
        let taken = self.space.sessions.lock().remove(&self.session.pid);
        ready(taken.map(|(session, _)| session))
    }
}

impl EventLog {
    fn push(&mut self, data: Vec<Value>, target: Target, keep: Duration) -> Offset {
        let (now, since) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH));
        let ms = since.unwrap_or(Duration::ZERO).as_millis() as u64;
        // A clock that is set back must not turn the order of offsets around.
        let place = if ms > self.last.0 { (ms, 0) } else { (self.last.0, self.last.1 + 1) };
        self.last = place;
        let missed = Arc::new(MissedEvent::new(data, format_offset(place)));
        self.bytes += missed.weight();
        self.entries.push_back(LogEntry { place, missed, target, at: now });
        while self.entries.front().is_some_and(|first| {
            now - first.at > keep || self.entries.len() > MAX_ENTRIES || self.bytes > MAX_BYTES
        }) {
            self.bytes -= self.entries.pop_front().map_or(0, |first| first.missed.weight());
        }
        format_offset(place)
    }

    /// Where an event stands; `None` when it is not in the log any more.
    fn find(&self, place: (u64, u64)) -> Option<usize> {
        self.entries.binary_search_by_key(&place, |entry| entry.place).ok()
    }

    /// Some of what a socket in these rooms has missed since an event, and how far that goes; `None` when that event is
    /// not in the log any more.
    fn page(&self, seen: &mut (u64, u64), rooms: &[Room]) -> Option<MissedPage> {
        let at = self.find(*seen)?;
        let is_in = |names: &[Room]| names.iter().any(|name| rooms.iter().any(|room| room.name == name.name));
        let mut page = MissedPage { missed: Vec::new(), is_last: true };
        for entry in self.entries.range(at + 1..) {
            if page.missed.len() == PAGE_EVENTS {
                page.is_last = false;
                break;
            }
            *seen = entry.place;
            if (entry.target.rooms.is_empty() || is_in(&entry.target.rooms)) && !is_in(&entry.target.except) {
                page.missed.push(entry.missed.clone());
            }
        }
        Some(page)
    }
}

fn format_offset((ms, count): (u64, u64)) -> Offset {
    format!("{ms}-{count}").into()
}

fn ready<T: Send + 'static>(value: T) -> BoxFuture<T> {
    Box::pin(std::future::ready(value))
}
