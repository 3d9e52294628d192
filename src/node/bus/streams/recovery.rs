//! Connection state recovery (wire README, section 6): a session is kept under the client's secret for as long as it may
//! take to come back, and is taken once; what it has missed is read from the stream.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use redis::Value as Reply;
use tracing::debug;

use super::Streams;
use super::reader::{Entry, entries_in};
use crate::node::bus::peer::{Peer, not_sent, replied};
use crate::node::bus::settings::Streams as Settings;
use crate::node::bus::wire::envelope::Message;
use crate::node::bus::wire::{entry, session};
use crate::node::hub::adapter::{Missed, NotSent, Pending, Restored, Session};

/// Entries that are read at once, and how often at most: a hundred rounds, as Node.js.
const READ_AT_ONCE: usize = 1000;
const MOST_ROUNDS: usize = 100;

/// Keeps a session.
pub(super) fn save(peer: &Peer, settings: &Settings, left: &Session) -> Pending<Result<(), NotSent>> {
    let Some(duration) = settings.recovery else { return Box::pin(std::future::ready(Ok(()))) };
    let mut command = redis::cmd("SET");
    command.arg(format!("{}{}", settings.session_prefix, left.pid)).arg(session::write(left));
    command.arg("PX").arg(duration.max(Duration::from_millis(1)).as_millis() as u64);
    let posted = peer.shared.redis.post(command).map_err(|fault| not_sent(&fault));
    Box::pin(async move { replied(posted?).await.map(drop) })
}

/// Takes up a session if it is there and its client's last offset is still in the stream. Its key is gone after any try
/// that asks for it.
pub(super) fn restore(streams: &Streams, pid: &str, offset: &str) -> Pending<Option<Restored>> {
    // What is no offset does not even consume the session.
    let (Some(_), Some(seen)) = (streams.settings.recovery, session::parse_offset(offset)) else {
        return Box::pin(std::future::ready(None));
    };
    let source = Source {
        peer: streams.ephemeral.peer.clone(),
        stream: streams.stream.clone(),
        key: format!("{}{pid}", streams.settings.session_prefix),
    };
    let (pid, offset) = (pid.to_owned(), offset.to_owned());
    Box::pin(async move {
        let (kept, seen_entry) = tokio::join!(source.take(), source.range(&offset, &offset));
        let kept = kept?;
        if seen_entry?.is_empty() {
            debug!(offset, "the offset of a client that came back is not in the stream any more");
            return None;
        }
        let session =
            session::read(&kept).inspect_err(|fault| debug!(%fault, "a session cannot be read")).ok()?;
        // The key is what the client knows; what it holds is what a node wrote.
        if *session.pid != *pid {
            return None;
        }
        let missed = source.missed(&session, seen).await?;
        Some(Restored { session, missed })
    })
}

/// Where a session and what it missed come from.
struct Source {
    peer: Arc<Peer>,
    stream: Arc<str>,
    key: String,
}

impl Source {
    /// The session's text, which is gone then.
    async fn take(&self) -> Option<Vec<u8>> {
        let mut both = redis::pipe();
        both.atomic().get(&self.key).del(&self.key).ignore();
        let (kept,): (Option<Vec<u8>>,) = self.peer.shared.redis.ask_all(&both).await.ok()?;
        kept
    }

    async fn range(&self, first: &str, last: &str) -> Option<Vec<Entry>> {
        let mut command = redis::cmd("XRANGE");
        command.arg(&*self.stream).arg(first).arg(last).arg("COUNT").arg(READ_AT_ONCE);
        let reply: Reply = self.peer.shared.redis.ask(&command).await.ok()?;
        Some(entries_in(reply))
    }

    /// What came for the session after `seen`, in order; none if Redis goes away in between.
    async fn missed(&self, session: &Session, mut seen: (u64, u64)) -> Option<Vec<Missed>> {
        let rooms: HashSet<&str> = session.rooms.iter().map(|room| &*room.name).collect();
        let mut missed = Vec::new();
        for _ in 0..MOST_ROUNDS {
            let (time, sequence) = seen;
            let next = sequence.checked_add(1).map_or((time + 1, 0), |sequence| (time, sequence));
            let entries = self.range(&format!("{}-{}", next.0, next.1), "+").await?;
            let Some(last) = entries.last() else { break };
            seen = session::parse_offset(&last.id)?;
            missed.extend(entries.iter().filter_map(|entry| self.meant_for(entry, &rooms)));
        }
        Some(missed)
    }

    /// An entry as an event that the session has missed, if it is one.
    fn meant_for(&self, entry: &Entry, rooms: &HashSet<&str>) -> Option<Missed> {
        // The text must be exactly this: a peer's restore compares it so.
        if entry.field(b"type") != Some(b"3") || entry.field(b"nsp") != Some(self.peer.nsp.as_bytes()) {
            return None;
        }
        let read = entry::read(entry.fields()).ok()??;
        let Message::Broadcast { data, target, .. } = read.message else { return None };
        let is_in =
            |of: &[crate::node::hub::adapter::Room]| of.iter().any(|room| rooms.contains(&*room.name));
        let is_meant = (target.rooms.is_empty() || is_in(&target.rooms)) && !is_in(&target.except);
        is_meant.then(|| Missed { data, offset: entry.id.as_str().into() })
    }
}
