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
//! [`super::RedisState`] is not up while anything that is wanted is not proved. All is one task, and everything that
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

use super::inbox::{Event, Inbox, Outlet};
use super::line::{SubscriptionLine, Via};
use super::slots::{NodeAddress, SlotMap, slot_of};
use super::supervisor::{BACKOFF, draw};
use super::wanted::{Message, Wish};
use super::{Listening, Redis, is_refusal};
use connection::{Connection, Proof};

mod connection;
mod routes;
mod work;

/// Between two looks at what is late.
const TICK: Duration = Duration::from_secs(1);

/// Between two checks of a connection, and two questions for the slots, that give no cause for one.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Subscriptions that are asked for before the answers to them are awaited.
const ASKED_AT_ONCE: usize = 256;

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// The one server; in a cluster any node.
    Any,
    /// A master of a cluster.
    Master(NodeAddress),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Any => f.write_str("the connection for subscriptions"),
            Key::Master(NodeAddress { host, port }) => {
                write!(f, "the connection for subscriptions to {host}:{port}")
            }
        }
    }
}

/// See the module.
struct Subscriber {
    redis: Arc<Redis>,
    inbox: Inbox,
    connections: HashMap<Key, Connection>,
    /// Which connection has which number.
    keys: HashMap<u64, Key>,
    next: u64,
    /// In a cluster, once it is known.
    slots: Option<SlotMap>,
    /// Since when it is being asked for, or was last told.
    slots_asked: Instant,
    is_asking_slots: bool,
    /// Why the slots are not known.
    no_slots: Option<String>,
    /// Wanted, and no master has their slot.
    unrouted: HashSet<Wish>,
    /// Wanted, and not confirmed any more.
    lost: HashSet<Wish>,
    /// Wanted since a moment ago.
    fresh: HashMap<Wish, Instant>,
    /// Everything was proved at least once.
    was_proved: bool,
    /// The state may have changed.
    is_stale: bool,
    /// Questions and attempts on their way.
    tasks: JoinSet<()>,
}

/// Keeps the subscriptions until it is dropped.
pub(super) async fn keep(redis: Arc<Redis>) {
    let (inbox, mut outlet) = Inbox::new();
    let mut subscriber = Subscriber::new(redis.clone(), inbox);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = outlet.take() => match event {
                Some((id, event)) => subscriber.take(id, event),
                None => return,
            },
            () = redis.wanted.has_changed() => subscriber.follow_changes(),
            () = redis.doubted.notified() => subscriber.doubt_all(),
            _ = ticks.tick() => subscriber.look(&outlet),
        }
        subscriber.tell();
    }
}

impl Subscriber {
    fn new(redis: Arc<Redis>, inbox: Inbox) -> Self {
        Self {
            redis,
            inbox,
            connections: HashMap::new(),
            keys: HashMap::new(),
            next: 1,
            slots: None,
            slots_asked: Instant::now(),
            is_asking_slots: false,
            no_slots: None,
            unrouted: HashSet::new(),
            lost: HashSet::new(),
            fresh: HashMap::new(),
            was_proved: false,
            is_stale: true,
            tasks: JoinSet::new(),
        }
    }

    /// Something has happened to a connection.
    fn take(&mut self, id: u64, event: Event) {
        if let Event::Push(push) = event {
            return self.take_push(id, push);
        }
        self.is_stale = true;
        while self.tasks.try_join_next().is_some() {}
        if let Event::Slots(told) = event {
            return self.take_slots(told);
        }
        let Some(key) = self.keys.get(&id).cloned() else { return };
        match event {
            Event::Connected(made) => self.connected(&key, made),
            Event::Answered(refused) => self.answered(&key, refused),
            Event::Counted(told) => self.counted(&key, told),
            Event::Published(is_published) => self.published(&key, is_published),
            Event::Push(_) | Event::Slots(_) => {}
        }
    }

    fn take_push(&mut self, id: u64, push: PushInfo) {
        let via = match push.kind {
            PushKind::Message | PushKind::PMessage | PushKind::SMessage => return self.hear(id, push),
            PushKind::Subscribe | PushKind::Unsubscribe => Via::Channel,
            PushKind::PSubscribe | PushKind::PUnsubscribe => Via::Pattern,
            PushKind::SSubscribe | PushKind::SUnsubscribe => Via::Shard,
            PushKind::Disconnection => {
                if let Some(key) = self.keys.get(&id).cloned() {
                    self.ended(&key, "the connection ended".to_owned());
                }
                return;
            }
            _ => return,
        };
        let name = push.data.first().and_then(|name| redis::from_redis_value_ref::<String>(name).ok());
        let (Some(key), Some(name)) = (self.keys.get(&id).cloned(), name) else { return };
        let wish = Wish { via, channel: name.into() };
        self.is_stale = true;
        match push.kind {
            PushKind::Subscribe | PushKind::PSubscribe | PushKind::SSubscribe => self.confirmed(&key, wish),
            _ => self.taken_back(&key, wish),
        }
    }

    fn hear(&mut self, id: u64, push: PushInfo) {
        let Some(message) = Message::read(push) else { return };
        if self.keys.get(&id).and_then(|key| self.connections.get(key)?.probe.as_ref()) == Some(&message.wish)
        {
            return self.heard_probe(id, &message.heard.payload);
        }
        self.redis.wanted.hear(id, message);
    }

    /// The server has confirmed a subscription.
    fn confirmed(&mut self, key: &Key, wish: Wish) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.held.insert(wish.clone());
        if connection.probe.as_ref() == Some(&wish) {
            return;
        }
        if self.route(&wish).as_ref() == Some(key) {
            self.claim(key, wish);
        } else if let Some(connection) = self.connections.get_mut(key) {
            connection.todo.push_back(wish);
        }
    }

    /// A connection has a subscription that belongs there; the one that had it before takes it back.
    pub(super) fn claim(&mut self, key: &Key, wish: Wish) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let id = connection.id;
        match self.redis.wanted.hold(&wish, id) {
            // Not wanted any more.
            None => connection.todo.push_back(wish),
            Some(before) => {
                self.lost.remove(&wish);
                self.fresh.remove(&wish);
                self.unrouted.remove(&wish);
                let before = before.filter(|before| *before != id);
                if let Some(other) = before.and_then(|before| self.keys.get(&before).cloned()) {
                    self.put(&other, wish);
                }
            }
        }
    }

    /// The server has taken a subscription back: as it was asked to, or because its slot has moved away.
    fn taken_back(&mut self, key: &Key, wish: Wish) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.held.remove(&wish);
        self.redis.wanted.lose(&wish, connection.id);
        match self.redis.wanted.holder(&wish) {
            None => self.settle(&wish),
            Some(Some(_)) => {}
            Some(None) => {
                self.lost.insert(wish.clone());
                if wish.via == Via::Shard {
                    self.ask_slots();
                }
                self.enqueue(wish);
            }
        }
    }

    /// Follows what is wanted now, and what is not any more.
    fn follow_changes(&mut self) {
        for wish in self.redis.wanted.take_changed() {
            match self.redis.wanted.holder(&wish) {
                Some(None) => {
                    if !self.lost.contains(&wish) {
                        self.fresh.entry(wish.clone()).or_insert_with(Instant::now);
                    }
                    self.enqueue(wish);
                }
                Some(Some(_)) => {}
                None => self.forget(wish),
            }
        }
        self.is_stale = true;
    }

    fn forget(&mut self, wish: Wish) {
        self.lost.remove(&wish);
        self.fresh.remove(&wish);
        self.unrouted.remove(&wish);
        let has_it =
            |connection: &Connection| connection.held.contains(&wish) || connection.asked.contains(&wish);
        let keys: Vec<Key> =
            self.connections.iter().filter(|(_, one)| has_it(one)).map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|key| self.put(key, wish.clone()));
        self.settle(&wish);
    }

    /// Tells whoever waits for it that no connection has a subscription, if that is so.
    pub(super) fn settle(&self, wish: &Wish) {
        let has_it =
            |connection: &Connection| connection.held.contains(wish) || connection.asked.contains(wish);
        if !self.connections.values().any(has_it) {
            self.redis.wanted.is_released(wish);
        }
    }

    fn put(&mut self, key: &Key, wish: Wish) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.todo.push_back(wish);
            self.work(key);
        }
    }

    /// Something has happened to the connection for commands: what it would tell must be proved again.
    fn doubt_all(&mut self) {
        let keys: Vec<Key> = self.connections.keys().cloned().collect();
        for key in keys {
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.is_doubted();
            }
            self.check_if_due(&key);
        }
        self.is_stale = true;
    }

    /// Looks at what is late.
    fn look(&mut self, outlet: &Outlet) {
        let dropped = outlet.dropped();
        if dropped > 0 {
            self.redis.dropped.fetch_add(dropped, Relaxed);
            warn!(dropped, "messages from redis found no room, the node does not keep up");
        }
        let patience = self.redis.patience;
        let late =
            self.fresh.iter().filter(|(_, since)| since.elapsed() > patience).map(|(wish, _)| wish.clone());
        let late: Vec<Wish> = late.collect();
        for wish in late {
            self.fresh.remove(&wish);
            self.lost.insert(wish);
        }
        let is_whole = self.unrouted.is_empty() && self.connections.values().all(|one| one.line.is_some());
        if self.redis.place.is_cluster() && (!is_whole || self.slots_asked.elapsed() >= CHECK_EVERY) {
            self.ask_slots();
        }
        let keys: Vec<Key> = self.connections.keys().cloned().collect();
        keys.iter().for_each(|key| self.look_at(key));
        self.is_stale = true;
    }

    /// Tells how the subscriptions are, if that may have changed.
    fn tell(&mut self) {
        if std::mem::take(&mut self.is_stale) {
            let listening = self.listening();
            self.was_proved |= listening == Listening::Proved;
            self.redis.listens(listening);
        }
    }

    fn listening(&self) -> Listening {
        if let Some((key, reason)) =
            self.connections.iter().find_map(|(key, one)| Some((key, one.reason.as_ref()?)))
        {
            return Listening::Unproved(format!("{key}: {reason}"));
        }
        if let Some(reason) = self.no_slots.as_ref().filter(|_| !self.unrouted.is_empty()) {
            return Listening::Unproved(format!("no node of the cluster tells its slots: {reason}"));
        }
        if self.slots.is_some() && !self.unrouted.is_empty() {
            return Listening::Unproved("a slot of the cluster has no master".to_owned());
        }
        if !self.lost.is_empty() {
            return Listening::Unproved("not every subscription is confirmed".to_owned());
        }
        let is = |proof| self.connections.values().any(|one| one.proof == proof);
        if is(Proof::Doubted) {
            return Listening::Unproved("the subscriptions are being checked".to_owned());
        }
        if !self.was_proved && (!self.fresh.is_empty() || !self.unrouted.is_empty() || is(Proof::New)) {
            return Listening::NotYet;
        }
        Listening::Proved
    }
}
