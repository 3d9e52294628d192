//! What is known of one subscription connection: what its server has confirmed, what is still to be asked of it, and
//! whether it was proved to hear.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::super::redis_connection::SubscriberConnection;
use super::super::subscription::{Subscription, SubscriptionKind};

/// Whether a connection is known to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verification {
    /// It is new.
    New,
    /// It did; something has happened since.
    Doubted,
    /// It does.
    Verified,
}

/// One subscription connection, or the attempt to have one.
pub(super) struct SubscriptionConnection {
    /// Of this attempt. Events of an earlier one are passed over.
    pub id: u64,
    /// The connection, while there is one.
    pub connection: Option<SubscriberConnection>,
    /// Why there is none, after one ended or could not be made.
    pub reason: Option<String>,
    /// Attempts that failed, one after the other.
    pub failures: u32,
    /// Since when there is one.
    pub since: Instant,
    /// What the server has confirmed.
    pub confirmed: HashSet<Subscription>,
    /// What may differ from what is wanted, in the order in which it was.
    pub pending: VecDeque<Subscription>,
    /// What the server refused, to be asked again a little later.
    pub retry_later: HashSet<Subscription>,
    /// What was asked and is not answered yet.
    pub in_flight: HashSet<Subscription>,
    /// An answer is awaited.
    pub is_busy: bool,
    /// Whether it hears.
    pub verification: Verification,
    /// Its own channel; none where the server refuses it.
    pub probe: Option<Subscription>,
    /// Of the last message that was sent there.
    pub probe_number: u64,
    /// Since when that message is awaited.
    pub probe_sent: Option<Instant>,
    /// When it was last checked.
    pub checked: Instant,
    /// How often the server's count differed, one after the other.
    pub mismatches: u8,
}

impl SubscriptionConnection {
    /// One that is not there yet.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            id: 0,
            connection: None,
            reason: None,
            failures: 0,
            since: now,
            confirmed: HashSet::new(),
            pending: VecDeque::new(),
            retry_later: HashSet::new(),
            in_flight: HashSet::new(),
            is_busy: false,
            verification: Verification::New,
            probe: None,
            probe_number: 0,
            probe_sent: None,
            checked: now,
            mismatches: 0,
        }
    }

    /// It is there.
    pub(super) fn set_connected(&mut self, live: SubscriberConnection, probe: Option<Subscription>) {
        self.connection = Some(live);
        self.since = Instant::now();
        self.reason = None;
        self.pending.extend(probe.clone());
        self.probe = probe;
    }

    /// It is not there any more. Gives what its server had confirmed.
    pub(super) fn set_disconnected(&mut self, reason: String) -> HashSet<Subscription> {
        let was_stable = self.connection.is_some() && self.since.elapsed() > STABLE;
        self.failures = if was_stable { 0 } else { self.failures + 1 };
        (self.connection, self.reason, self.is_busy, self.probe_sent) = (None, Some(reason), false, None);
        self.pending.extend(self.retry_later.drain().chain(self.in_flight.drain()));
        let mut held = std::mem::take(&mut self.confirmed);
        if let Some(probe) = self.probe.take() {
            held.remove(&probe);
            self.pending.retain(|subscription| *subscription != probe);
        }
        self.invalidate();
        held
    }

    /// Something has happened that it may not have survived.
    pub(super) fn invalidate(&mut self) {
        if self.verification == Verification::Verified {
            self.verification = Verification::Doubted;
        }
    }

    /// Whether it holds nothing but its own channel.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
            && self.in_flight.is_empty()
            && self.confirmed.iter().all(|subscription| Some(subscription) == self.probe.as_ref())
    }

    /// Whether it is to be checked now.
    pub(super) fn needs_check(&self, every: Duration) -> bool {
        let is_free = self.connection.is_some()
            && !self.is_busy
            && self.pending.is_empty()
            && self.probe_sent.is_none();
        is_free && (self.verification != Verification::Verified || self.checked.elapsed() >= every)
    }

    /// Whether the server counts other subscriptions than it has confirmed. Servers before Redis 7.0.3 do not tell those
    /// of shards.
    pub(super) fn count_differs(&self, told: &Value) -> bool {
        let text = match told {
            Value::BulkString(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => text,
            _ => return false,
        };
        let count =
            |name| text.split_ascii_whitespace().find_map(|field| field.strip_prefix(name)?.parse().ok());
        [
            ("sub=", SubscriptionKind::Channel),
            ("psub=", SubscriptionKind::Pattern),
            ("ssub=", SubscriptionKind::Shard),
        ]
        .iter()
        .any(|(name, kind)| {
            let held = self.confirmed.iter().filter(|subscription| subscription.kind == *kind).count();
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
        let mut connection = SubscriptionConnection::new();
        for (kind, channel) in [
            (SubscriptionKind::Channel, "a"),
            (SubscriptionKind::Channel, "b"),
            (SubscriptionKind::Pattern, "c*"),
            (SubscriptionKind::Shard, "d"),
        ] {
            connection.confirmed.insert(Subscription { kind, channel: channel.into() });
        }
        let differs = |text: &str| connection.count_differs(&Value::BulkString(text.into()));
        assert!(!differs("id=7 db=0 sub=2 psub=1 ssub=1 multi=-1"));
        assert!(!differs("id=7 db=0 sub=2 psub=1 multi=-1"), "an older server");
        assert!(differs("id=7 sub=1 psub=1 ssub=1"));
        assert!(differs("id=7 sub=2 psub=0 ssub=1"));
        assert!(differs("id=7 sub=2 psub=1 ssub=0"));
    }
}
