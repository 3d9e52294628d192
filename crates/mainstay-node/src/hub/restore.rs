//! A client comes back for its session: what it missed is sent first, and nothing is lost or sent twice meanwhile.
//!
//! 1. The bus gives what was missed page by page, and each goes out when the client has taken the one before. However
//!    much it missed, its queue does not grow, and it is not taken for a client that does not read.
//! 2. When it has caught up, events are noted from then on; what came in between is read from the log, the session is
//!    taken, and the socket comes into its rooms and gets the notes that the log did not have. All that is under one lock
//!    that every delivery of a logged event shares. Deliveries that lag behind pass it by (`seen`).
//!
//! Until the session is taken whatever fails leaves it to be claimed again.
//!
//! The secret alone is not enough: a session is taken up by the user that left it, in the namespace where it was left.
//! A client that comes with the token of another user gets a new session, and neither rooms nor events of the old one.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, interval};
use tracing::debug;

use super::adapter::{Missed, Offset, Replay, Room, Session, Target};
use super::namespace::Namespace;
use super::socket::{ClientConnection, NewSocket, Socket};
use super::{Event, offset};
use crate::auth::User;
use crate::value::Value;

/// Notes that are kept at most; a restoration that needs older ones fails, and its client gets a new session.
const MOST_NOTES: usize = 50_000;

/// How long a client may take nothing of what it has missed, and how long all of it may last. With more it is a new one.
const STALLED: Duration = Duration::from_secs(30);
const WHOLE: Duration = Duration::from_secs(300);

/// Between two looks whether a client has taken a page.
const LOOK: Duration = Duration::from_millis(5);

/// The restorations that are under way, and what has come since they began.
#[derive(Default)]
pub(super) struct ActiveReplays {
    /// How many there are.
    active: usize,
    notes: Mutex<EventNotes>,
}

#[derive(Default)]
struct EventNotes {
    /// Goes up when notes are thrown away.
    generation: u64,
    list: Vec<EventNote>,
}

/// An event that came while somebody was being restored.
struct EventNote {
    place: (u64, u64),
    offset: Offset,
    data: Vec<Value>,
    target: Target,
}

impl ActiveReplays {
    /// Notes an event, where somebody may need it.
    pub(super) fn note(&self, place: (u64, u64), offset: Offset, data: Vec<Value>, target: Target) {
        if self.active == 0 {
            return;
        }
        let mut notes = self.notes.lock();
        if notes.list.len() >= MOST_NOTES {
            notes.list.clear();
            notes.generation += 1;
        }
        notes.list.push(EventNote { place, offset, data, target });
    }

    fn begin(&mut self) -> (u64, usize) {
        self.active += 1;
        let notes = self.notes.get_mut();
        (notes.generation, notes.list.len())
    }

    fn end(&mut self) {
        self.active -= 1;
        if self.active == 0 {
            *self.notes.get_mut() = EventNotes::default();
        }
    }
}

/// Ends a restoration whose client has gone meanwhile.
struct ReplayGuard<'a>(&'a Namespace);

impl Drop for ReplayGuard<'_> {
    fn drop(&mut self) {
        self.0.replays.write().end();
    }
}

/// What a client that comes back shows, and the way to it.
pub struct RecoveryRequest {
    /// The secret.
    pub pid: Box<str>,
    /// The last event that it saw.
    pub offset: Box<str>,
    /// The way to it.
    pub client: Arc<dyn ClientConnection>,
    /// Its user.
    pub user: Option<User>,
}

impl Namespace {
    /// Takes up a session: same id, rooms and data, and all that was missed is sent. `greet` is called after that and
    /// before anything newer. `None`: there is no such session, and the client is to come in as a new one.
    pub async fn restore(
        &self,
        back: RecoveryRequest,
        greet: impl FnOnce(&Arc<Socket>),
    ) -> Option<Arc<Socket>> {
        let shown = offset::parse(&back.offset)?;
        let mut replay = self.adapter.find_session(&back.pid, &back.offset).await?;
        if !self.may_recover(replay.session(), back.user.as_ref()) {
            debug!(namespace = %self.name(), "session of another user is not taken up");
            return None;
        }
        let mut seen = self.catch_up(&mut *replay, &*back.client, shown).await?;
        let (generation, first) = self.replays.write().begin();
        let underway = ReplayGuard(self);
        let rest = read_rest(&mut *replay).await?;
        let session = replay.take().await?;
        if !self.may_recover(&session, back.user.as_ref()) {
            return None;
        }
        let restoring = self.replays.write();
        let notes = restoring.notes.lock();
        if notes.generation != generation {
            drop(notes);
            drop(restoring);
            self.drive(self.adapter.save_session(session), drop);
            return None;
        }
        let socket = self.new_socket(NewSocket {
            id: session.sid.into(),
            pid: Some(session.pid),
            client: back.client,
            user: back.user,
            data: session.data,
        });
        for missed in &rest {
            self.replay(missed, socket.client(), &mut seen);
        }
        self.room_index.add(&socket);
        self.room_index.join(&socket, &session.rooms);
        for note in &notes.list[first..] {
            if note.place > seen && is_target_of(&note.target, &socket) {
                socket.client().event(&Event::new(self.name(), &note.data, Some(&note.offset)));
                seen = note.place;
            }
        }
        socket.replayed_to.set(seen).expect("a new socket has seen nothing");
        greet(&socket);
        drop(notes);
        drop(restoring);
        drop(underway);
        self.mark_changed(&socket);
        let rooms: Vec<Room> = socket.rooms();
        rooms.iter().for_each(|room| drop(self.adapter.room_opened(room)));
        Some(socket)
    }

    /// What a socket that can be claimed by `pid` leaves behind.
    pub(super) fn session_of(&self, socket: &Socket, pid: &str) -> Session {
        Session {
            sid: (**socket.id()).into(),
            pid: pid.into(),
            rooms: socket.rooms(),
            data: socket.data(),
            user: socket.user().map(|user| user.as_str().into()),
            namespace: Some((**self.name()).into()),
        }
    }

    fn may_recover(&self, session: &Session, user: Option<&User>) -> bool {
        session.user.as_deref() == user.map(User::as_str)
            && session.namespace.as_deref().is_none_or(|namespace| *namespace == **self.name())
    }
}

impl Namespace {
    /// Sends what was missed at the client's pace, until there is nothing more for now. Gives the last event's place.
    async fn catch_up(
        &self,
        replay: &mut dyn Replay,
        client: &dyn ClientConnection,
        mut seen: (u64, u64),
    ) -> Option<(u64, u64)> {
        let end = Instant::now() + WHOLE;
        loop {
            let page = replay.next().await?;
            page.missed.iter().for_each(|missed| self.replay(missed, client, &mut seen));
            if page.is_last {
                return Some(seen);
            }
            if !page.missed.is_empty() && !wait_until_taken(client, end).await {
                debug!(namespace = %self.name(), "a client that came back does not take what it has missed");
                return None;
            }
        }
    }

    fn replay(&self, missed: &Missed, client: &dyn ClientConnection, seen: &mut (u64, u64)) {
        client.event(&Event::replayed(self.name(), missed));
        *seen = (*seen).max(offset::parse(&missed.offset).unwrap_or_default());
    }
}

/// What came since the client had caught up.
async fn read_rest(replay: &mut dyn Replay) -> Option<Vec<Arc<Missed>>> {
    let mut rest = Vec::new();
    loop {
        let page = replay.next().await?;
        rest.extend(page.missed);
        if page.is_last {
            return Some(rest);
        }
    }
}

/// Returns when the client has taken everything; `false` if it has gone, or takes nothing for too long.
async fn wait_until_taken(client: &dyn ClientConnection, end: Instant) -> bool {
    let end = end.min(Instant::now() + STALLED);
    let mut look = interval(LOOK);
    while !client.is_ready() {
        if client.is_gone() || Instant::now() > end {
            return false;
        }
        look.tick().await;
    }
    true
}

fn is_target_of(target: &Target, socket: &Socket) -> bool {
    let is_in = |room: &Room| socket.is_in(&room.name);
    (target.rooms.is_empty() || target.rooms.iter().any(is_in)) && !target.except.iter().any(is_in)
}
