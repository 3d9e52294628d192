//! The recovery of a session: its client gets what it missed first, and nothing is lost or sent twice meanwhile.
//!
//! 1. The bus gives what was missed page by page, and each goes out when the client has taken the one before. However
//!    much it missed, its queue does not grow, and it is not taken for a client that does not read.
//! 2. When it has caught up, events are noted from then on; what came in between is read from the log, the session is
//!    taken, and the socket comes into its rooms and gets the notes that the log did not have. All that is under one lock
//!    that every delivery of a logged event shares. Deliveries that lag behind pass it by (`replayed_to`).
//!
//! Until the session is taken whatever fails leaves it to be claimed again.
//!
//! The secret alone is not enough: a session is taken up by the user that left it, in the namespace where it was left.
//! A client that comes with the token of another user gets a new session, and neither rooms nor events of the old one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, interval};
use tracing::debug;

use super::event::Event;
use super::namespace::Namespace;
use super::socket::{ClientConnection, NewSocket, Socket};
use crate::auth::User;
use socketio_redis::adapter::{MissedEvent, Room, Session, SessionReplay, Target};
use socketio_redis::offset;

/// How long a client may take nothing of what it has missed. With more it gets a new session.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the replay of all that it has missed may last.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(300);

/// How often it is checked whether a client has taken a page.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// A client that claims an earlier session.
pub struct SessionRecovery {
    /// The secret of the session.
    pub pid: Box<str>,
    /// The last event that the client saw.
    pub offset: Box<str>,
    /// The client's connection.
    pub client: Arc<dyn ClientConnection>,
    /// Its user.
    pub user: Option<User>,
}

/// Ends a recovery, also one whose client has gone meanwhile.
struct ReplayGuard<'a>(&'a Namespace);

impl Drop for ReplayGuard<'_> {
    fn drop(&mut self) {
        self.0.replays.write().end();
    }
}

impl SessionRecovery {
    /// Takes up the session: same id, rooms and data, and all that was missed is sent. `greet` is called after that and
    /// before anything newer. `None`: there is no such session, and the client is to come in as a new one.
    pub async fn run(self, namespace: &Namespace, greet: impl FnOnce(&Arc<Socket>)) -> Option<Arc<Socket>> {
        let shown = offset::parse_offset(&self.offset)?;
        let mut replay = namespace.adapter.find_session(&self.pid, &self.offset).await?;
        if !self.may_recover(namespace, replay.session()) {
            debug!(namespace = %namespace.name(), "session of another user is not recovered");
            return None;
        }
        let seen = self.catch_up(namespace, &mut *replay, shown).await?;
        let begun = namespace.replays.write().begin();
        let guard = ReplayGuard(namespace);
        let rest = read_rest(&mut *replay).await?;
        let session = replay.claim().await?;
        if !self.may_recover(namespace, &session) {
            return None;
        }
        let socket = self.enter(namespace, session, Unseen { rest, seen, begun }, greet)?;
        drop(guard);
        namespace.mark_changed(&socket);
        let rooms: Vec<Room> = socket.rooms();
        rooms.iter().for_each(|room| drop(namespace.adapter.create_room(room)));
        Some(socket)
    }

    fn may_recover(&self, namespace: &Namespace, session: &Session) -> bool {
        session.user.as_deref() == self.user.as_ref().map(User::as_str)
            && session.namespace.as_deref().is_none_or(|name| *name == **namespace.name())
    }

    /// Sends what was missed at the client's pace, until there is nothing more for now. Gives the last event's place.
    async fn catch_up(
        &self,
        namespace: &Namespace,
        replay: &mut dyn SessionReplay,
        mut seen: (u64, u64),
    ) -> Option<(u64, u64)> {
        let end = Instant::now() + REPLAY_TIMEOUT;
        loop {
            let page = replay.next_page().await?;
            page.missed.iter().for_each(|missed| send_missed(namespace, missed, &*self.client, &mut seen));
            if page.is_last {
                return Some(seen);
            }
            if !page.missed.is_empty() && !wait_until_taken(&*self.client, end).await {
                debug!(namespace = %namespace.name(), "recovering client does not read what it has missed");
                return None;
            }
        }
    }

    /// The socket comes into the namespace, under the lock that every delivery of a logged event shares. `None` when the
    /// notes that it needs are gone; its session is then kept again.
    fn enter(
        self,
        namespace: &Namespace,
        session: Session,
        unseen: Unseen,
        greet: impl FnOnce(&Arc<Socket>),
    ) -> Option<Arc<Socket>> {
        let Unseen { rest, mut seen, begun: (generation, first) } = unseen;
        let replays = namespace.replays.write();
        let notes = replays.notes.lock();
        if notes.generation != generation {
            drop(notes);
            drop(replays);
            namespace.run_or_spawn(namespace.adapter.persist_session(session), drop);
            return None;
        }
        let socket = namespace.new_socket(NewSocket {
            id: session.sid.into(),
            pid: Some(session.pid),
            client: self.client,
            user: self.user,
            data: session.data,
        });
        rest.iter().for_each(|missed| send_missed(namespace, missed, socket.client(), &mut seen));
        namespace.room_index.add(&socket);
        namespace.room_index.join(&socket, &session.rooms);
        for note in &notes.list[first..] {
            if note.place > seen && is_target_of(&note.target, &socket) {
                socket.client().event(&Event::new(namespace.name(), &note.data, Some(&note.offset)));
                seen = note.place;
            }
        }
        socket.replayed_to.set(seen).expect("a new socket has seen nothing");
        greet(&socket);
        Some(socket)
    }
}

/// What a client that has caught up has not seen yet.
struct Unseen {
    /// What the log has since then.
    rest: Vec<Arc<MissedEvent>>,
    /// The last event that it has seen.
    seen: (u64, u64),
    /// Where its notes begin: their generation, and how many are older.
    begun: (u64, usize),
}

fn send_missed(
    namespace: &Namespace,
    missed: &MissedEvent,
    client: &dyn ClientConnection,
    seen: &mut (u64, u64),
) {
    client.event(&Event::replayed(namespace.name(), missed));
    *seen = (*seen).max(offset::parse_offset(&missed.offset).unwrap_or_default());
}

/// What came since the client had caught up.
async fn read_rest(replay: &mut dyn SessionReplay) -> Option<Vec<Arc<MissedEvent>>> {
    let mut rest = Vec::new();
    loop {
        let page = replay.next_page().await?;
        rest.extend(page.missed);
        if page.is_last {
            return Some(rest);
        }
    }
}

/// Returns when the client has taken everything; `false` if it has gone, or takes nothing for too long.
async fn wait_until_taken(client: &dyn ClientConnection, end: Instant) -> bool {
    let end = end.min(Instant::now() + STALL_TIMEOUT);
    let mut look = interval(CHECK_INTERVAL);
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
