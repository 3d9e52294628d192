//! Connection state recovery as in `@socket.io/redis-streams-adapter` 0.3: a session is kept under the client's secret
//! for as long as it may take to come back; what it has missed is in the stream.
//!
//! 1. the session is read, and stays where it is;
//! 2. what it has missed is given page by page: from the [`StreamTail`], which is extended back to the
//!    client's offset as far as there is room; what is older still is read from Redis in bounded pages, a few clients at a
//!    time, on a connection of its own, since a long answer must not be in the way of anything else;
//! 3. at last the session is taken: read and removed in one step, so that of two nodes one gets it. Whatever fails before
//!    that leaves the session to be claimed again.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use redis::Value as Reply;
use tracing::debug;

use super::reader::{StreamEntry, StreamReaders, entries_in};
use super::tail::{Audience, Position, StreamBroadcast, StreamTail};
use crate::adapter::{BoxFuture, MissedEvent, MissedPage, SendError, Session, SessionReplay};
use crate::offset::parse_offset;
use crate::peer::{Peer, await_reply, send_error};
use crate::settings::StreamsSettings as Settings;
use crate::wire::envelope::ClusterMessage;
use crate::wire::{entry, session};

/// Bytes of entries that one read from Redis should have.
const READ_BYTES: usize = 1 << 20;

/// Entries that one read asks for at most.
const MAX_ENTRIES_PER_READ: usize = 512;

/// Entries that one client's claim reads from Redis for it alone.
const MAX_ENTRIES_PER_CLAIM: usize = 100_000;

/// How often a session is asked for until there is an answer.
const TRIES: usize = 3;

/// Keeps a session.
pub(super) fn persist(peer: &Peer, settings: &Settings, left: &Session) -> BoxFuture<Result<(), SendError>> {
    let Some(duration) = settings.recovery else { return Box::pin(std::future::ready(Ok(()))) };
    let mut command = redis::cmd("SET");
    command.arg(key(settings, &left.pid)).arg(session::write(left));
    command.arg("PX").arg(millis(duration));
    let posted = peer.shared.redis.enqueue(command).map_err(|fault| send_error(&fault));
    Box::pin(async move { await_reply(posted?).await.map(drop) })
}

/// Removes a session that nobody is to claim.
pub(super) fn delete(peer: &Peer, settings: &Settings, pid: &str) -> BoxFuture<()> {
    let posted = peer.shared.redis.enqueue(redis::cmd("DEL").arg(key(settings, pid)).to_owned());
    Box::pin(async move {
        if let Ok(answer) = posted {
            drop(answer.await);
        }
    })
}

/// Finds a session that a client claims, if it is there and its client's last offset is still known.
pub(super) fn find(
    source: ReplaySource,
    settings: &Settings,
    pid: &str,
    offset: &str,
) -> BoxFuture<Option<Box<dyn SessionReplay>>> {
    let (Some(keep), Some(seen)) = (settings.recovery, parse_offset(offset)) else {
        return Box::pin(std::future::ready(None));
    };
    let (key, pid) = (key(settings, pid), pid.to_owned());
    Box::pin(async move {
        let kept = source.find(&key, keep).await?;
        let session = read(&kept, &pid)?;
        source.load_back_to(seen).await?;
        if !source.contains(seen).await? {
            debug!(pid = "claimed", "session not restored: its offset is not in the stream any more");
            return None;
        }
        let reader = source.audience(&session);
        let found = StreamReplay { source, key, kept, session, reader, seen, read: 0 };
        Some(Box::new(found) as Box<dyn SessionReplay>)
    })
}

fn key(settings: &Settings, pid: &str) -> String {
    format!("{}{pid}", settings.session_prefix)
}

fn millis(duration: Duration) -> u64 {
    duration.max(Duration::from_millis(1)).as_millis() as u64
}

fn read(kept: &[u8], pid: &str) -> Option<Session> {
    let session = session::read(kept).inspect_err(|fault| debug!(%fault, "session is unreadable")).ok()?;
    // The key is what the client knows; what it holds is what a node wrote.
    (*session.pid == *pid).then_some(session)
}

/// A session that was found and is not taken yet.
struct StreamReplay {
    source: ReplaySource,
    key: String,
    /// Its text.
    kept: Vec<u8>,
    session: Session,
    reader: Audience,
    /// Up to where its client has been given everything.
    seen: Position,
    /// Entries that were read from Redis for it.
    read: usize,
}

impl SessionReplay for StreamReplay {
    fn session(&self) -> &Session {
        &self.session
    }

    fn next_page(&mut self) -> Pin<Box<dyn Future<Output = Option<MissedPage>> + Send + '_>> {
        Box::pin(async move {
            if let Some(page) = self.source.tail.page(&self.reader, &mut self.seen) {
                return Some(page);
            }
            self.source.page(&self.reader, &mut self.seen, &mut self.read).await
        })
    }

    fn claim(mut self: Box<Self>) -> BoxFuture<Option<Session>> {
        Box::pin(async move {
            let mut both = redis::pipe();
            both.atomic().get(&self.key).del(&self.key).ignore();
            // Where the first answer was lost, the second one says whether it is still to be had.
            let kept = self.source.query(&both).await?;
            if kept != self.kept {
                // Its node has written it once more.
                self.session = read(&kept, &self.session.pid)?;
            }
            Some(self.session)
        })
    }
}

/// Where sessions and what they have missed come from.
pub(super) struct ReplaySource {
    peer: Arc<Peer>,
    readers: Arc<StreamReaders>,
    tail: Arc<StreamTail>,
    stream: Arc<str>,
}

impl ReplaySource {
    /// That of one stream.
    pub(super) fn new(peer: &Arc<Peer>, readers: &Arc<StreamReaders>, stream: &Arc<str>) -> Self {
        Self {
            peer: peer.clone(),
            readers: readers.clone(),
            tail: readers.tail(stream),
            stream: stream.clone(),
        }
    }

    fn audience(&self, session: &Session) -> Audience {
        Audience {
            nsp: self.peer.nsp.clone(),
            rooms: session.rooms.iter().map(|room| room.name.clone()).collect(),
        }
    }

    /// The session's text; it stays for as long again as sessions are kept.
    async fn find(&self, key: &str, keep: Duration) -> Option<Vec<u8>> {
        let mut both = redis::pipe();
        both.get(key).cmd("PEXPIRE").arg(key).arg(millis(keep)).ignore();
        self.query(&both).await
    }

    /// Asks for a session when it is this client's turn, and again if there is no answer in time.
    async fn query(&self, both: &redis::Pipeline) -> Option<Vec<u8>> {
        let _turn = self.readers.claim_permit().await;
        for _ in 0..TRIES {
            match self.peer.shared.redis.query_pipeline::<(Option<Vec<u8>>,)>(both).await {
                Ok((kept,)) => return kept,
                Err(fault) => debug!(%fault, "reading a session failed"),
            }
        }
        None
    }

    /// Reads older entries into the tail, back to a position, as far as there is room; one client does it for all.
    async fn load_back_to(&self, back: Position) -> Option<()> {
        if self.tail.load_until(back).is_none() {
            return Some(());
        }
        let _loading = self.tail.loading.lock().await;
        let mut count = 64;
        while let Some(until) = self.tail.load_until(back) {
            let entries = self.range("XREVRANGE", until, back, count).await?;
            let from = match entries.last() {
                Some(oldest) if entries.len() == count => before(parse_offset(&oldest.id)?),
                _ => before(back),
            };
            count = next_count(count, &entries);
            let older = entries.iter().filter_map(broadcast).collect();
            self.tail.extend_back(until, older, from);
        }
        Some(())
    }

    /// Whether the last event that a client has seen is known.
    async fn contains(&self, at: Position) -> Option<bool> {
        match self.tail.contains(at) {
            Some(is_there) => Some(is_there),
            None => Some(!self.range("XRANGE", at, at, 1).await?.is_empty()),
        }
    }

    /// What a reader has missed before the tail begins, some of it.
    async fn page(&self, reader: &Audience, seen: &mut Position, read: &mut usize) -> Option<MissedPage> {
        let until = self.tail.from();
        let mut page = MissedPage { missed: Vec::new(), is_last: false };
        let entries = self.range("XRANGE", after(*seen), until, 64).await?;
        *read += entries.len();
        if *read > MAX_ENTRIES_PER_CLAIM {
            debug!("session not restored: too many missed entries");
            return None;
        }
        *seen = match entries.last() {
            Some(last) => parse_offset(&last.id)?,
            None => until,
        };
        let meant = entries.iter().filter_map(broadcast).filter(|one| reader.receives(one));
        page.missed.extend(meant.map(|one| one.missed));
        Some(page)
    }

    /// Entries between two positions; the first one is where the reading begins.
    async fn range(
        &self,
        name: &str,
        first: Position,
        last: Position,
        count: usize,
    ) -> Option<Vec<StreamEntry>> {
        let spelled = |(ms, sequence): Position| format!("{ms}-{sequence}");
        let mut command = redis::cmd(name);
        command.arg(&*self.stream).arg(spelled(first)).arg(spelled(last)).arg("COUNT").arg(count);
        let reply: Reply = self.readers.query_history(&command).await?;
        Some(entries_in(reply))
    }
}

/// An entry as a broadcast to clients, if it is one.
pub(super) fn broadcast(entry: &StreamEntry) -> Option<StreamBroadcast> {
    // The text must be exactly this: a peer's restore compares it so.
    if entry.field(b"type") != Some(b"3") {
        return None;
    }
    let read = entry::read(entry.fields()).ok()??;
    let ClusterMessage::Broadcast { data, target, request: None, .. } = read.message else { return None };
    let (at, missed) = (parse_offset(&entry.id)?, MissedEvent::new(data, entry.id.as_str().into()));
    Some(StreamBroadcast { at, nsp: read.nsp.into(), missed: Arc::new(missed), target })
}

/// How many entries to ask for next, from what the last ones weighed.
fn next_count(count: usize, entries: &[StreamEntry]) -> usize {
    let bytes: usize = entries.iter().map(StreamEntry::size).sum();
    match bytes {
        0..=READ_BYTES => (count * 2).min(MAX_ENTRIES_PER_READ),
        _ => (count / 4).max(1),
    }
}

fn after((ms, sequence): Position) -> Position {
    sequence.checked_add(1).map_or((ms + 1, 0), |sequence| (ms, sequence))
}

fn before((ms, sequence): Position) -> Position {
    match (ms, sequence.checked_sub(1)) {
        (ms, Some(sequence)) => (ms, sequence),
        (0, None) => (0, 0),
        (ms, None) => (ms - 1, u64::MAX),
    }
}
