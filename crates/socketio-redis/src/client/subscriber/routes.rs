//! Which connection a subscription belongs to. In a cluster that follows the slots, which are asked for again and again.

use super::work::connect_to_any;
use super::*;

/// What names a connection's own channel; sixteen hexadecimal digits follow.
const PROBE_PREFIX: &str = "mainstay-probe";

impl Subscriber {
    /// Where a subscription belongs; none while that is not known.
    pub(super) fn route(&self, subscription: &Subscription) -> Option<ConnectionKey> {
        if subscription.kind != SubscriptionKind::Shard || !self.redis.address.is_cluster() {
            return Some(ConnectionKey::Any);
        }
        self.slots.as_ref()?.master(slot_of(&subscription.channel)).cloned().map(ConnectionKey::Master)
    }

    /// Has a subscription asked for where it belongs.
    pub(super) fn enqueue(&mut self, subscription: Subscription) {
        match self.route(&subscription) {
            Some(key) => {
                self.unrouted.remove(&subscription);
                if !self.connections.contains_key(&key) {
                    self.connect(&key);
                }
                self.enqueue_on(&key, subscription);
            }
            None => {
                self.unrouted.insert(subscription);
                if self.slots.is_none() {
                    self.request_slots();
                }
            }
        }
    }

    /// The slots as a node tells them: what has moved is asked for where it is now.
    pub(super) fn on_slots(&mut self, told: RedisResult<SlotMap>) {
        (self.is_asking_slots, self.slots_asked) = (false, Instant::now());
        let slots = match told {
            Ok(slots) => slots,
            Err(error) => {
                debug!(%error, "no cluster node answers CLUSTER SLOTS");
                self.slots_error = Some(error.to_string());
                return;
            }
        };
        self.slots_error = None;
        if self.slots.as_ref() == Some(&slots) {
            return;
        }
        self.slots = Some(slots);
        let subscriptions = self
            .redis
            .subscriptions
            .all()
            .into_iter()
            .filter(|subscription| subscription.kind == SubscriptionKind::Shard);
        for subscription in subscriptions {
            let holder = self.redis.subscriptions.holder(&subscription).flatten();
            let is_there = holder.is_some_and(|id| self.keys.get(&id) == self.route(&subscription).as_ref());
            if !is_there {
                if holder.is_some() {
                    self.unconfirmed.insert(subscription.clone());
                }
                self.enqueue(subscription);
            }
        }
        self.move_to_slots();
    }

    /// Connections to nodes that have no slots end once everything has moved; the others' own channels follow.
    fn move_to_slots(&mut self) {
        let keys: Vec<ConnectionKey> = self.connections.keys().cloned().collect();
        for key in keys {
            let Some(connection) = self.connections.get(&key) else { continue };
            if connection.connection.is_none() {
                if !self.is_needed(&key) {
                    self.remove(&key);
                }
                continue;
            }
            let has_moved =
                connection.probe.as_ref().is_some_and(|own| self.route(own).as_ref() != Some(&key));
            let probe = self.new_probe(&key);
            if let Some(connection) = self.connections.get_mut(&key).filter(|_| has_moved) {
                connection.pending.extend(connection.probe.take().into_iter().chain(probe.clone()));
                (connection.probe, connection.probe_sent) = (probe, None);
                connection.invalidate();
                self.synchronise(&key);
            }
        }
    }

    pub(super) fn is_needed(&self, key: &ConnectionKey) -> bool {
        match (key, &self.slots) {
            (ConnectionKey::Master(node), Some(slots)) => slots.has_slots(node),
            _ => true,
        }
    }

    pub(super) fn remove(&mut self, key: &ConnectionKey) {
        if let Some(connection) = self.connections.remove(key) {
            self.keys.remove(&connection.id);
        }
    }

    /// The nodes of a cluster that a connection may go to, the first that answers; none where any of the place's will do.
    pub(super) fn candidate_nodes(&self, key: &ConnectionKey) -> Vec<NodeAddress> {
        match (key, &self.slots) {
            (ConnectionKey::Master(node), _) => vec![node.clone()],
            (ConnectionKey::Any, None) => Vec::new(),
            (ConnectionKey::Any, Some(slots)) => {
                let mut nodes = slots.nodes().to_vec();
                let middle = random_u64() as usize % nodes.len().max(1);
                nodes.rotate_left(middle);
                nodes
            }
        }
    }

    /// A channel for a connection alone.
    pub(super) fn new_probe(&self, key: &ConnectionKey) -> Option<Subscription> {
        let start = format!("{PROBE_PREFIX}-{:016x}", random_u64());
        let (kind, channel) = match (key, &self.slots) {
            (ConnectionKey::Master(node), Some(slots)) => {
                (SubscriptionKind::Shard, slots.channel_on(node, &start)?)
            }
            _ => (SubscriptionKind::Channel, start),
        };
        Some(Subscription { kind, channel: channel.into() })
    }

    /// Asks for the slots: a connection that is there, or any node that answers.
    pub(super) fn request_slots(&mut self) {
        if !self.redis.address.is_cluster() || std::mem::replace(&mut self.is_asking_slots, true) {
            return;
        }
        let mut lines: Vec<_> = self.connections.values().filter_map(|one| one.connection.clone()).collect();
        // Another one each time: one of them may be cut off from the rest.
        let first = random_u64() as usize % lines.len().max(1);
        lines.rotate_left(first);
        let nodes = self.candidate_nodes(&ConnectionKey::Any);
        let (redis, events) = (self.redis.clone(), self.events.for_connection(0));
        self.tasks.spawn(async move {
            let told = fetch_slots(&redis, lines, &nodes).await;
            events.send(SubscriberEvent::Slots(told));
        });
    }
}

async fn fetch_slots(
    redis: &RedisClient,
    lines: Vec<SubscriberConnection>,
    nodes: &[NodeAddress],
) -> RedisResult<SlotMap> {
    for live in lines {
        if let Ok(slots) = query_slots(&live).await {
            return Ok(slots);
        }
    }
    let (nobody, _receiver) = EventSender::new();
    let live = connect_to_any(redis, nodes, &nobody).await?;
    query_slots(&live).await
}

async fn query_slots(live: &SubscriberConnection) -> RedisResult<SlotMap> {
    let reply = live.query(redis::cmd("CLUSTER").arg("SLOTS")).await?;
    let unreadable = || std::io::Error::other("the answer to CLUSTER SLOTS cannot be read").into();
    SlotMap::read(&reply, live.host()).ok_or_else(unreadable)
}
