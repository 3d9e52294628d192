//! Which connection a subscription belongs to. In a cluster that follows the slots, which are asked for again and again.

use super::work::connect_to;
use super::*;

/// What names a connection's own channel; sixteen hexadecimal digits follow.
const PROBE: &str = "mainstay-probe";

impl Subscriber {
    /// Where a subscription belongs; none while that is not known.
    pub(super) fn route(&self, wish: &Wish) -> Option<Key> {
        if wish.via != Via::Shard || !self.redis.place.is_cluster() {
            return Some(Key::Any);
        }
        self.slots.as_ref()?.master(slot_of(&wish.channel)).cloned().map(Key::Master)
    }

    /// Has a wish asked for where it belongs.
    pub(super) fn enqueue(&mut self, wish: Wish) {
        match self.route(&wish) {
            Some(key) => {
                self.unrouted.remove(&wish);
                if !self.connections.contains_key(&key) {
                    self.connect(&key);
                }
                self.put(&key, wish);
            }
            None => {
                self.unrouted.insert(wish);
                if self.slots.is_none() {
                    self.ask_slots();
                }
            }
        }
    }

    /// The slots as a node tells them: what has moved is asked for where it is now.
    pub(super) fn take_slots(&mut self, told: RedisResult<SlotMap>) {
        (self.is_asking_slots, self.slots_asked) = (false, Instant::now());
        let slots = match told {
            Ok(slots) => slots,
            Err(error) => {
                debug!(%error, "no node of the cluster tells its slots");
                self.no_slots = Some(error.to_string());
                return;
            }
        };
        self.no_slots = None;
        if self.slots.as_ref() == Some(&slots) {
            return;
        }
        self.slots = Some(slots);
        let wishes = self.redis.wanted.all().into_iter().filter(|wish| wish.via == Via::Shard);
        for wish in wishes {
            let holder = self.redis.wanted.holder(&wish).flatten();
            let is_there = holder.is_some_and(|id| self.keys.get(&id) == self.route(&wish).as_ref());
            if !is_there {
                if holder.is_some() {
                    self.lost.insert(wish.clone());
                }
                self.enqueue(wish);
            }
        }
        self.follow_slots();
    }

    /// Connections to nodes that have no slots end once everything has moved; the others' own channels follow.
    fn follow_slots(&mut self) {
        let keys: Vec<Key> = self.connections.keys().cloned().collect();
        for key in keys {
            let Some(connection) = self.connections.get(&key) else { continue };
            if connection.line.is_none() {
                if !self.is_needed(&key) {
                    self.remove(&key);
                }
                continue;
            }
            let has_moved =
                connection.probe.as_ref().is_some_and(|own| self.route(own).as_ref() != Some(&key));
            let probe = self.probe(&key);
            if let Some(connection) = self.connections.get_mut(&key).filter(|_| has_moved) {
                connection.todo.extend(connection.probe.take().into_iter().chain(probe.clone()));
                (connection.probe, connection.awaited) = (probe, None);
                connection.is_doubted();
                self.work(&key);
            }
        }
    }

    pub(super) fn is_needed(&self, key: &Key) -> bool {
        match (key, &self.slots) {
            (Key::Master(node), Some(slots)) => slots.has_slots(node),
            _ => true,
        }
    }

    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(connection) = self.connections.remove(key) {
            self.keys.remove(&connection.id);
        }
    }

    /// The nodes of a cluster that a connection may go to, the first that answers; none where any of the place's will do.
    pub(super) fn nodes(&self, key: &Key) -> Vec<NodeAddress> {
        match (key, &self.slots) {
            (Key::Master(node), _) => vec![node.clone()],
            (Key::Any, None) => Vec::new(),
            (Key::Any, Some(slots)) => {
                let mut nodes = slots.nodes().to_vec();
                let middle = draw() as usize % nodes.len().max(1);
                nodes.rotate_left(middle);
                nodes
            }
        }
    }

    /// A channel for a connection alone.
    pub(super) fn probe(&self, key: &Key) -> Option<Wish> {
        let start = format!("{PROBE}-{:016x}", draw());
        let (via, channel) = match (key, &self.slots) {
            (Key::Master(node), Some(slots)) => (Via::Shard, slots.name_on(node, &start)?),
            _ => (Via::Channel, start),
        };
        Some(Wish { via, channel: channel.into() })
    }

    /// Asks for the slots: a connection that is there, or any node that answers.
    pub(super) fn ask_slots(&mut self) {
        if !self.redis.place.is_cluster() || std::mem::replace(&mut self.is_asking_slots, true) {
            return;
        }
        let mut lines: Vec<_> = self.connections.values().filter_map(|one| one.line.clone()).collect();
        // Another one each time: one of them may be cut off from the rest.
        let first = draw() as usize % lines.len().max(1);
        lines.rotate_left(first);
        let nodes = self.nodes(&Key::Any);
        let (redis, inbox) = (self.redis.clone(), self.inbox.of(0));
        self.tasks.spawn(async move {
            let told = slots_of(&redis, lines, &nodes).await;
            inbox.put(Event::Slots(told));
        });
    }
}

async fn slots_of(
    redis: &Redis,
    lines: Vec<SubscriptionLine>,
    nodes: &[NodeAddress],
) -> RedisResult<SlotMap> {
    for line in lines {
        if let Ok(slots) = ask_slots(&line).await {
            return Ok(slots);
        }
    }
    let (nobody, _outlet) = Inbox::new();
    let line = connect_to(redis, nodes, &nobody).await?;
    ask_slots(&line).await
}

async fn ask_slots(line: &SubscriptionLine) -> RedisResult<SlotMap> {
    let reply = line.ask(redis::cmd("CLUSTER").arg("SLOTS")).await?;
    let unreadable = || std::io::Error::other("the answer to CLUSTER SLOTS cannot be read").into();
    SlotMap::read(&reply, line.host()).ok_or_else(unreadable)
}
