//! What is known of one subscription connection: what its server has confirmed, what is still to be asked of it, and
//! whether it was proved to hear.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::super::line::SubscriptionLine;
use super::super::wanted::Wish;
use crate::connection::Via;

/// Whether a connection is known to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// It is new.
    New,
    /// It did; something has happened since.
    Doubted,
    /// It does.
    Proved,
}

/// One subscription connection, or the attempt to have one.
pub(super) struct Connection {
    /// Of this attempt. Events of an earlier one are passed over.
    pub id: u64,
    /// The connection, while there is one.
    pub line: Option<SubscriptionLine>,
    /// Why there is none, after one ended or could not be made.
    pub reason: Option<String>,
    /// Attempts that failed, one after the other.
    pub failures: u32,
    /// Since when there is one.
    pub since: Instant,
    /// What the server has confirmed.
    pub held: HashSet<Wish>,
    /// What may differ from what is wanted, in the order in which it was.
    pub todo: VecDeque<Wish>,
    /// What the server refused, to be asked again a little later.
    pub later: HashSet<Wish>,
    /// What was asked and is not answered yet.
    pub asked: HashSet<Wish>,
    /// An answer is awaited.
    pub is_busy: bool,
    /// Whether it hears.
    pub proof: Proof,
    /// Its own channel; none where the server refuses it.
    pub probe: Option<Wish>,
    /// Of the last message that was sent there.
    pub number: u64,
    /// Since when that message is awaited.
    pub awaited: Option<Instant>,
    /// When it was last checked.
    pub checked: Instant,
    /// How often the server's count differed, one after the other.
    pub mismatches: u8,
}

impl Connection {
    /// One that is not there yet.
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            id: 0,
            line: None,
            reason: None,
            failures: 0,
            since: now,
            held: HashSet::new(),
            todo: VecDeque::new(),
            later: HashSet::new(),
            asked: HashSet::new(),
            is_busy: false,
            proof: Proof::New,
            probe: None,
            number: 0,
            awaited: None,
            checked: now,
            mismatches: 0,
        }
    }

    /// It is there.
    pub fn begins(&mut self, line: SubscriptionLine, probe: Option<Wish>) {
        self.line = Some(line);
        self.since = Instant::now();
        self.reason = None;
        self.todo.extend(probe.clone());
        self.probe = probe;
    }

    /// It is not there any more. Gives what its server had confirmed.
    pub fn ends(&mut self, reason: String) -> HashSet<Wish> {
        let was_stable = self.line.is_some() && self.since.elapsed() > STABLE;
        self.failures = if was_stable { 0 } else { self.failures + 1 };
        (self.line, self.reason, self.is_busy, self.awaited) = (None, Some(reason), false, None);
        self.todo.extend(self.later.drain().chain(self.asked.drain()));
        let mut held = std::mem::take(&mut self.held);
        if let Some(probe) = self.probe.take() {
            held.remove(&probe);
            self.todo.retain(|wish| *wish != probe);
        }
        self.is_doubted();
        held
    }

    /// Something has happened that it may not have survived.
    pub fn is_doubted(&mut self) {
        if self.proof == Proof::Proved {
            self.proof = Proof::Doubted;
        }
    }

    /// Whether it holds nothing but its own channel.
    pub fn is_empty(&self) -> bool {
        self.todo.is_empty()
            && self.asked.is_empty()
            && self.held.iter().all(|wish| Some(wish) == self.probe.as_ref())
    }

    /// Whether it is to be checked now.
    pub fn is_due(&self, every: Duration) -> bool {
        let is_free = self.line.is_some() && !self.is_busy && self.todo.is_empty() && self.awaited.is_none();
        is_free && (self.proof != Proof::Proved || self.checked.elapsed() >= every)
    }

    /// Whether the server counts other subscriptions than it has confirmed. Servers before Redis 7.0.3 do not tell those
    /// of shards.
    pub fn differs_from(&self, told: &Value) -> bool {
        let text = match told {
            Value::BulkString(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => text,
            _ => return false,
        };
        let count =
            |name| text.split_ascii_whitespace().find_map(|field| field.strip_prefix(name)?.parse().ok());
        [("sub=", Via::Channel), ("psub=", Via::Pattern), ("ssub=", Via::Shard)].iter().any(|(name, via)| {
            let held = self.held.iter().filter(|wish| wish.via == *via).count();
            count(*name).is_some_and(|counted: usize| counted != held)
        })
    }
}

/// How long a connection must have lived for its end to be no failure of the attempt.
const STABLE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_counts_is_compared_in_each_way_that_it_tells() {
        let mut connection = Connection::new();
        for (via, channel) in
            [(Via::Channel, "a"), (Via::Channel, "b"), (Via::Pattern, "c*"), (Via::Shard, "d")]
        {
            connection.held.insert(Wish { via, channel: channel.into() });
        }
        let differs = |text: &str| connection.differs_from(&Value::BulkString(text.into()));
        assert!(!differs("id=7 db=0 sub=2 psub=1 ssub=1 multi=-1"));
        assert!(!differs("id=7 db=0 sub=2 psub=1 multi=-1"), "an older server");
        assert!(differs("id=7 sub=1 psub=1 ssub=1"));
        assert!(differs("id=7 sub=2 psub=0 ssub=1"));
        assert!(differs("id=7 sub=2 psub=1 ssub=0"));
    }
}
