//! The subscriptions: each one that is wanted is on one connection, confirmed, and known to be heard.
//!
//! Channels and patterns are on one connection; in a cluster any node carries them. There each shard channel is on a
//! connection to the master of its slot.
//!
//! 1. connect, again and again if need be; in a cluster ask which master has which slots;
//! 2. ask for what is wanted there and not confirmed, take back what is not wanted there any more;
//! 3. prove it: the server's count of this connection's subscriptions is right, and a message to the connection's own
//!    channel, published on the connection for commands, comes back. Again every few seconds and after every doubt;
//! 4. when the connection ends, or a slot moves, begin with 1 for what is lost by that.
//!
//! Rules: a message counts only from the connection that holds the subscription, so none is heard twice while one moves;
//! [`ClientState`](super::ClientState) is not up while anything that is wanted is not proved. All is one task, and everything that
//! happens comes through one queue, so a confirmation and the messages after it keep their order.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use redis::{PushInfo, PushKind, RedisError, RedisResult};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::error::is_refusal;
use super::events::{EventReceiver, EventSender, SubscriberEvent};
use super::redis_client::{RedisClient, SubscriptionState};
use super::redis_connection::SubscriberConnection;
use super::slots::{NodeAddress, SlotMap, slot_of};
use super::subscription::{Subscription, SubscriptionKind};
use super::subscriptions::RoutedMessage;
use crate::backoff::RECONNECT;
use crate::random::random_u64;
use connection::{SubscriptionConnection, Verification};

mod connection;
mod routes;
mod work;

/// Between two looks at what is late.
const TICK: Duration = Duration::from_secs(1);

/// Between two checks of a connection, and two questions for the slots, that give no cause for one.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Subscriptions that are asked for before the answers to them are awaited.
const MAX_IN_FLIGHT: usize = 256;

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum ConnectionKey {
    /// The one server; in a cluster any node.
    Any,
    /// A master of a cluster.
    Master(NodeAddress),
}

impl fmt::Display for ConnectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionKey::Any => f.write_str("the connection for subscriptions"),
            ConnectionKey::Master(NodeAddress { host, port }) => {
                write!(f, "the connection for subscriptions to {host}:{port}")
            }
        }
    }
}

/// The state of the subscriber's task.
struct Subscriber {
    redis: Arc<RedisClient>,
    events: EventSender,
    connections: HashMap<ConnectionKey, SubscriptionConnection>,
    /// Which connection has which number.
    keys: HashMap<u64, ConnectionKey>,
    next_id: u64,
    /// In a cluster, once it is known.
    slots: Option<SlotMap>,
    /// Since when it is being asked for, or was last told.
    slots_asked: Instant,
    is_asking_slots: bool,
    /// Why the slots are not known.
    slots_error: Option<String>,
    /// Wanted, and no master has their slot.
    unrouted: HashSet<Subscription>,
    /// Wanted, and not confirmed any more.
    unconfirmed: HashSet<Subscription>,
    /// Wanted since a moment ago.
    recent: HashMap<Subscription, Instant>,
    /// Everything was proved at least once.
    was_verified: bool,
    /// The state may have changed.
    is_state_stale: bool,
    /// Questions and attempts on their way.
    tasks: JoinSet<()>,
}

/// Keeps the subscriptions until it is dropped.
pub(super) async fn run(redis: Arc<RedisClient>) {
    let (events, mut receiver) = EventSender::new();
    let mut subscriber = Subscriber::new(redis.clone(), events);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = receiver.recv() => match event {
                Some((id, event)) => subscriber.on_event(id, event),
                None => return,
            },
            () = redis.subscriptions.changed() => subscriber.apply_changes(),
            () = redis.recheck_subscriptions.notified() => subscriber.invalidate_all(),
            _ = ticks.tick() => subscriber.tick(&receiver),
        }
        subscriber.publish_state();
    }
}

impl Subscriber {
    fn new(redis: Arc<RedisClient>, events: EventSender) -> Self {
        Self {
            redis,
            events,
            connections: HashMap::new(),
            keys: HashMap::new(),
            next_id: 1,
            slots: None,
            slots_asked: Instant::now(),
            is_asking_slots: false,
            slots_error: None,
            unrouted: HashSet::new(),
            unconfirmed: HashSet::new(),
            recent: HashMap::new(),
            was_verified: false,
            is_state_stale: true,
            tasks: JoinSet::new(),
        }
    }

    /// Something has happened to a connection.
    fn on_event(&mut self, id: u64, event: SubscriberEvent) {
        if let SubscriberEvent::Push(push) = event {
            return self.on_push(id, push);
        }
        self.is_state_stale = true;
        while self.tasks.try_join_next().is_some() {}
        if let SubscriberEvent::Slots(told) = event {
            return self.on_slots(told);
        }
        let Some(key) = self.keys.get(&id).cloned() else { return };
        match event {
            SubscriberEvent::Connected(made) => self.on_connected(&key, made),
            SubscriberEvent::Answered(refused) => self.on_answered(&key, refused),
            SubscriberEvent::Counted(told) => self.on_count(&key, told),
            SubscriberEvent::Published(is_published) => self.on_probe_published(&key, is_published),
            SubscriberEvent::Push(_) | SubscriberEvent::Slots(_) => {}
        }
    }

    fn on_push(&mut self, id: u64, push: PushInfo) {
        let kind = match push.kind {
            PushKind::Message | PushKind::PMessage | PushKind::SMessage => {
                return self.on_message(id, push);
            }
            PushKind::Subscribe | PushKind::Unsubscribe => SubscriptionKind::Channel,
            PushKind::PSubscribe | PushKind::PUnsubscribe => SubscriptionKind::Pattern,
            PushKind::SSubscribe | PushKind::SUnsubscribe => SubscriptionKind::Shard,
            PushKind::Disconnection => {
                if let Some(key) = self.keys.get(&id).cloned() {
                    self.on_disconnected(&key, "the connection ended".to_owned());
                }
                return;
            }
            _ => return,
        };
        let name = push.data.first().and_then(|name| redis::from_redis_value_ref::<String>(name).ok());
        let (Some(key), Some(name)) = (self.keys.get(&id).cloned(), name) else { return };
        let subscription = Subscription { kind, channel: name.into() };
        self.is_state_stale = true;
        match push.kind {
            PushKind::Subscribe | PushKind::PSubscribe | PushKind::SSubscribe => {
                self.on_confirmed(&key, subscription)
            }
            _ => self.on_unsubscribed(&key, subscription),
        }
    }

    fn on_message(&mut self, id: u64, push: PushInfo) {
        let Some(message) = RoutedMessage::read(push) else { return };
        if self.keys.get(&id).and_then(|key| self.connections.get(key)?.probe.as_ref())
            == Some(&message.subscription)
        {
            return self.on_probe(id, &message.heard.payload);
        }
        self.redis.subscriptions.dispatch(id, message);
    }

    /// The server has confirmed a subscription.
    fn on_confirmed(&mut self, key: &ConnectionKey, subscription: Subscription) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.confirmed.insert(subscription.clone());
        if connection.probe.as_ref() == Some(&subscription) {
            return;
        }
        if self.route(&subscription).as_ref() == Some(key) {
            self.claim(key, subscription);
        } else if let Some(connection) = self.connections.get_mut(key) {
            connection.pending.push_back(subscription);
        }
    }

    /// A connection has a subscription that belongs there; the one that had it before takes it back.
    pub(super) fn claim(&mut self, key: &ConnectionKey, subscription: Subscription) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let id = connection.id;
        match self.redis.subscriptions.confirm(&subscription, id) {
            // Not wanted any more.
            None => connection.pending.push_back(subscription),
            Some(before) => {
                self.unconfirmed.remove(&subscription);
                self.recent.remove(&subscription);
                self.unrouted.remove(&subscription);
                let before = before.filter(|before| *before != id);
                if let Some(other) = before.and_then(|before| self.keys.get(&before).cloned()) {
                    self.enqueue_on(&other, subscription);
                }
            }
        }
    }

    /// The server has taken a subscription back: as it was asked to, or because its slot has moved away.
    fn on_unsubscribed(&mut self, key: &ConnectionKey, subscription: Subscription) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.confirmed.remove(&subscription);
        self.redis.subscriptions.mark_lost(&subscription, connection.id);
        match self.redis.subscriptions.holder(&subscription) {
            None => self.release_if_unused(&subscription),
            Some(Some(_)) => {}
            Some(None) => {
                self.unconfirmed.insert(subscription.clone());
                if subscription.kind == SubscriptionKind::Shard {
                    self.request_slots();
                }
                self.enqueue(subscription);
            }
        }
    }

    /// Follows what is wanted now, and what is not any more.
    fn apply_changes(&mut self) {
        for subscription in self.redis.subscriptions.take_changed() {
            match self.redis.subscriptions.holder(&subscription) {
                Some(None) => {
                    if !self.unconfirmed.contains(&subscription) {
                        self.recent.entry(subscription.clone()).or_insert_with(Instant::now);
                    }
                    self.enqueue(subscription);
                }
                Some(Some(_)) => {}
                None => self.remove_subscription(subscription),
            }
        }
        self.is_state_stale = true;
    }

    fn remove_subscription(&mut self, subscription: Subscription) {
        self.unconfirmed.remove(&subscription);
        self.recent.remove(&subscription);
        self.unrouted.remove(&subscription);
        let has_it = |connection: &SubscriptionConnection| {
            connection.confirmed.contains(&subscription) || connection.in_flight.contains(&subscription)
        };
        let keys: Vec<ConnectionKey> =
            self.connections.iter().filter(|(_, one)| has_it(one)).map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|key| self.enqueue_on(key, subscription.clone()));
        self.release_if_unused(&subscription);
    }

    /// Tells whoever waits for it that no connection has a subscription, if that is so.
    pub(super) fn release_if_unused(&self, subscription: &Subscription) {
        let has_it = |connection: &SubscriptionConnection| {
            connection.confirmed.contains(subscription) || connection.in_flight.contains(subscription)
        };
        if !self.connections.values().any(has_it) {
            self.redis.subscriptions.mark_released(subscription);
        }
    }

    fn enqueue_on(&mut self, key: &ConnectionKey, subscription: Subscription) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.pending.push_back(subscription);
            self.synchronise(key);
        }
    }

    /// Something has happened to the connection for commands: what it would tell must be proved again.
    fn invalidate_all(&mut self) {
        let keys: Vec<ConnectionKey> = self.connections.keys().cloned().collect();
        for key in keys {
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.invalidate();
            }
            self.check_if_due(&key);
        }
        self.is_state_stale = true;
    }

    /// Looks at what is late.
    fn tick(&mut self, receiver: &EventReceiver) {
        let dropped = receiver.take_dropped();
        if dropped > 0 {
            self.redis.dropped.fetch_add(dropped, Relaxed);
            warn!(dropped, "receive queue full: messages from redis dropped");
        }
        let max_wait = self.redis.response_timeout;
        let late = self
            .recent
            .iter()
            .filter(|(_, since)| since.elapsed() > max_wait)
            .map(|(subscription, _)| subscription.clone());
        let late: Vec<Subscription> = late.collect();
        for subscription in late {
            self.recent.remove(&subscription);
            self.unconfirmed.insert(subscription);
        }
        let is_whole =
            self.unrouted.is_empty() && self.connections.values().all(|one| one.connection.is_some());
        if self.redis.address.is_cluster() && (!is_whole || self.slots_asked.elapsed() >= CHECK_EVERY) {
            self.request_slots();
        }
        let keys: Vec<ConnectionKey> = self.connections.keys().cloned().collect();
        keys.iter().for_each(|key| self.check_connection(key));
        self.is_state_stale = true;
    }

    /// Tells how the subscriptions are, if that may have changed.
    fn publish_state(&mut self) {
        if std::mem::take(&mut self.is_state_stale) {
            let listening = self.state();
            self.was_verified |= listening == SubscriptionState::Verified;
            self.redis.set_subscription_state(listening);
        }
    }

    fn state(&self) -> SubscriptionState {
        if let Some((key, reason)) =
            self.connections.iter().find_map(|(key, one)| Some((key, one.reason.as_ref()?)))
        {
            return SubscriptionState::Unverified(format!("{key}: {reason}"));
        }
        if let Some(reason) = self.slots_error.as_ref().filter(|_| !self.unrouted.is_empty()) {
            return SubscriptionState::Unverified(format!("no cluster node answers CLUSTER SLOTS: {reason}"));
        }
        if self.slots.is_some() && !self.unrouted.is_empty() {
            return SubscriptionState::Unverified("a slot of the cluster has no master".to_owned());
        }
        if !self.unconfirmed.is_empty() {
            return SubscriptionState::Unverified("not every subscription is confirmed".to_owned());
        }
        let is = |proof| self.connections.values().any(|one| one.verification == proof);
        if is(Verification::Doubted) {
            return SubscriptionState::Unverified("the subscriptions are being checked".to_owned());
        }
        if !self.was_verified
            && (!self.recent.is_empty() || !self.unrouted.is_empty() || is(Verification::New))
        {
            return SubscriptionState::Starting;
        }
        SubscriptionState::Verified
    }
}
