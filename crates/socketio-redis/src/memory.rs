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
    Acks, Adapter, Answers, Bus, BusState, Flags, Local, Missed, NotSent, Offset, Operation, Page, Pending,
    RemoteAck, Replay, RequestFault, Room, Session, SocketFacts, Target, answered,
};
use crate::offset;
use crate::value::Value;

/// Events that a namespace's log keeps at most; the same as of a stream in Redis.
const MOST_ENTRIES: usize = 10_000;

/// Bytes that a namespace's log keeps at most, as [`Missed::weight`] counts them.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Events in one page of what a client has missed.
const PAGE_EVENTS: usize = 256;

/// Sessions that a namespace keeps at most; beyond, the connection's end is just that.
const MOST_SESSIONS: usize = 100_000;

/// How long another server may take to answer, as in Node.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// One node's place among the nodes of the process.
pub struct Memory {
    shared: Arc<Shared>,
    /// Which node.
    node: u64,
}

/// What the nodes have in common.
struct Shared {
    /// How long a session can be taken up again; `None`: not at all.
    recovery: Option<Duration>,
    spaces: Mutex<HashMap<Arc<str>, Arc<Space>>>,
    /// Of the next node.
    next: AtomicU64,
    /// Answers on their way from one node to another.
    tasks: TaskTracker,
}

/// One namespace of all nodes.
#[derive(Default)]
struct Space {
    locals: RwLock<Vec<(u64, Weak<dyn Local>)>>,
    log: Mutex<Log>,
    sessions: Mutex<HashMap<Box<str>, (Session, Instant)>>,
}

/// The events that may have to be sent again, in order.
#[derive(Default)]
struct Log {
    entries: VecDeque<Entry>,
    /// Of all entries.
    bytes: usize,
    /// The last place that was given.
    last: (u64, u64),
}

struct Entry {
    place: (u64, u64),
    missed: Arc<Missed>,
    target: Target,
    at: Instant,
}

impl Memory {
    /// The first node of a process. Sessions can be taken up again for as long as `recovery` says.
    pub fn new(recovery: Option<Duration>) -> Arc<Self> {
        let shared = Shared {
            recovery: recovery.filter(|time| !time.is_zero()),
            spaces: Mutex::default(),
            next: AtomicU64::new(1),
            tasks: TaskTracker::new(),
        };
        Arc::new(Self { shared: Arc::new(shared), node: 0 })
    }

    /// One more node of the same process.
    pub fn fellow(&self) -> Arc<Self> {
        let node = self.shared.next.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { shared: self.shared.clone(), node })
    }
}

impl Bus for Memory {
    fn adapter(&self, namespace: &Arc<str>, local: Weak<dyn Local>) -> Arc<dyn Adapter> {
        let space = self.shared.spaces.lock().entry(namespace.clone()).or_default().clone();
        space.locals.write().push((self.node, local));
        Arc::new(Place { shared: self.shared.clone(), space, node: self.node })
    }

    fn state(&self) -> BusState {
        BusState::Up
    }

    fn delivers_own(&self) -> bool {
        self.recovers()
    }

    fn recovers(&self) -> bool {
        self.shared.recovery.is_some()
    }

    fn close(&self) -> Pending<()> {
        for space in self.shared.spaces.lock().values() {
            space.locals.write().retain(|(node, _)| *node != self.node);
        }
        ready(())
    }
}

/// One namespace of one node.
struct Place {
    shared: Arc<Shared>,
    space: Arc<Space>,
    node: u64,
}

impl Place {
    fn others(&self) -> Vec<Arc<dyn Local>> {
        let locals = self.space.locals.read();
        locals
            .iter()
            .filter(|(node, _)| *node != self.node)
            .filter_map(|(_, local)| local.upgrade())
            .collect()
    }

    fn all(&self) -> Vec<Arc<dyn Local>> {
        self.space.locals.read().iter().filter_map(|(_, local)| local.upgrade()).collect()
    }

    /// Sends a broadcast to all nodes, this one included, through the log.
    fn send_logged(&self, keep: Duration, data: Vec<Value>, target: Target, flags: Flags) -> Option<Offset> {
        let mut log = self.space.log.lock();
        let offset = (!flags.volatile).then(|| log.push(data.clone(), target.clone(), keep));
        for local in self.all() {
            let (data, target, flags) = (data.clone(), target.clone(), flags.clone());
            local.deliver(Operation::Broadcast { data, target, flags }, offset.clone());
        }
        offset
    }
}

impl Adapter for Place {
    fn send(&self, operation: Operation) -> Pending<Result<Option<Offset>, NotSent>> {
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

    fn ask(&self, data: Vec<Value>, target: Target, flags: Flags) -> Pending<Result<Acks, NotSent>> {
        let others = self.others();
        let (told, heard) = mpsc::channel(256);
        for local in &others {
            let (count, mut answers) = local.ask(data.clone(), &target, &flags);
            let told = told.clone();
            self.shared.tasks.spawn(async move {
                let mut is_wanted = told.send(RemoteAck::Count(count)).await.is_ok();
                while is_wanted && let Some(answer) = answers.recv().await {
                    is_wanted = told.send(RemoteAck::Ack(answer)).await.is_ok();
                }
            });
        }
        ready(Ok(Acks { nodes: others.len(), heard }))
    }

    fn fetch(&self, target: Target, _: Flags) -> Pending<Result<Vec<SocketFacts>, RequestFault>> {
        ready(Ok(self.others().iter().flat_map(|local| local.fetch(&target)).collect()))
    }

    fn ask_servers(&self, data: Vec<Value>) -> Pending<Answers> {
        let asked: Vec<_> = self.others().iter().map(|local| local.ask_server(data.clone())).collect();
        Box::pin(async move {
            let (expected, end) = (asked.len(), Instant::now() + REQUEST_TIME);
            let mut heard = Vec::new();
            for answer in asked {
                if let Ok(answer) = timeout_at(end, answered(answer)).await {
                    heard.push(answer);
                }
            }
            if heard.len() == expected {
                return Ok(heard);
            }
            Err((RequestFault::Timeout { heard: heard.len(), expected }, heard))
        })
    }

    fn servers(&self) -> Pending<Result<usize, RequestFault>> {
        ready(Ok(self.all().len()))
    }

    fn rooms(&self) -> Pending<Result<Vec<Room>, RequestFault>> {
        ready(Ok(self.others().iter().flat_map(|local| local.rooms()).collect()))
    }

    fn room_opened(&self, _: &Room) -> Pending<()> {
        ready(())
    }

    fn room_emptied(&self, _: &Room) {}

    fn save_session(&self, session: Session) -> Pending<Result<(), NotSent>> {
        let Some(keep) = self.shared.recovery else { return ready(Ok(())) };
        let now = Instant::now();
        let mut sessions = self.space.sessions.lock();
        // A full table is looked through for what has expired, so that looking is seldom.
        if sessions.len() >= MOST_SESSIONS || sessions.len() == sessions.capacity() {
            sessions.retain(|_, (_, until)| *until > now);
        }
        if sessions.len() >= MOST_SESSIONS {
            return ready(Err(NotSent::Full));
        }
        sessions.insert(session.pid.clone(), (session, now + keep));
        ready(Ok(()))
    }

    fn find_session(&self, pid: &str, offset: &str) -> Pending<Option<Box<dyn Replay>>> {
        let found = self.space.sessions.lock().get(pid).cloned();
        let session = found.filter(|(_, until)| *until > Instant::now()).map(|(session, _)| session);
        let replay = session.zip(offset::parse(offset)).and_then(|(session, seen)| {
            self.space.log.lock().find(seen)?;
            Some(Box::new(Found { space: self.space.clone(), session, seen }) as Box<dyn Replay>)
        });
        ready(replay)
    }

    fn forget_session(&self, pid: &str) -> Pending<()> {
        self.space.sessions.lock().remove(pid);
        ready(())
    }
}

/// A session that was found and is not taken yet.
struct Found {
    space: Arc<Space>,
    session: Session,
    /// Up to where its client has been given everything.
    seen: (u64, u64),
}

impl Replay for Found {
    fn session(&self) -> &Session {
        &self.session
    }

    fn next(&mut self) -> Pin<Box<dyn Future<Output = Option<Page>> + Send + '_>> {
        let page = self.space.log.lock().page(&mut self.seen, &self.session.rooms);
        Box::pin(std::future::ready(page))
    }

    fn take(self: Box<Self>) -> Pending<Option<Session>> {
        let taken = self.space.sessions.lock().remove(&self.session.pid);
        ready(taken.map(|(session, _)| session))
    }
}

impl Log {
    fn push(&mut self, data: Vec<Value>, target: Target, keep: Duration) -> Offset {
        let (now, since) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH));
        let ms = since.unwrap_or(Duration::ZERO).as_millis() as u64;
        // A clock that is set back must not turn the order of offsets around.
        let place = if ms > self.last.0 { (ms, 0) } else { (self.last.0, self.last.1 + 1) };
        self.last = place;
        let missed = Arc::new(Missed::new(data, spelled(place)));
        self.bytes += missed.weight();
        self.entries.push_back(Entry { place, missed, target, at: now });
        while self.entries.front().is_some_and(|first| {
            now - first.at > keep || self.entries.len() > MOST_ENTRIES || self.bytes > MOST_BYTES
        }) {
            self.bytes -= self.entries.pop_front().map_or(0, |first| first.missed.weight());
        }
        spelled(place)
    }

    /// Where an event stands; `None` when it is not in the log any more.
    fn find(&self, place: (u64, u64)) -> Option<usize> {
        self.entries.binary_search_by_key(&place, |entry| entry.place).ok()
    }

    /// Some of what a socket in these rooms has missed since an event, and how far that goes; `None` when that event is
    /// not in the log any more.
    fn page(&self, seen: &mut (u64, u64), rooms: &[Room]) -> Option<Page> {
        let at = self.find(*seen)?;
        let is_in = |names: &[Room]| names.iter().any(|name| rooms.iter().any(|room| room.name == name.name));
        let mut page = Page { missed: Vec::new(), is_last: true };
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

fn spelled((ms, count): (u64, u64)) -> Offset {
    format!("{ms}-{count}").into()
}

fn ready<T: Send + 'static>(value: T) -> Pending<T> {
    Box::pin(std::future::ready(value))
}
