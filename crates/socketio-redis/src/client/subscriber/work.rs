//! What the subscriber does with one connection: connect, ask, count and prove that it hears.

use super::*;

impl Subscriber {
    /// Begins to connect; after failures a little later.
    pub(super) fn connect(&mut self, key: &ConnectionKey) {
        let id = self.next_id;
        self.next_id += 1;
        let connection = self.connections.entry(key.clone()).or_insert_with(SubscriptionConnection::new);
        self.keys.remove(&connection.id);
        self.keys.insert(id, key.clone());
        connection.id = id;
        let delay = match connection.failures {
            0 => Duration::ZERO,
            failures => RECONNECT.delay(failures, random_u64()),
        };
        let (redis, events, nodes) =
            (self.redis.clone(), self.events.for_connection(id), self.candidate_nodes(key));
        self.tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            let made = connect_to_any(&redis, &nodes, &events).await;
            events.send(SubscriberEvent::Connected(made));
        });
    }

    pub(super) fn on_connected(&mut self, key: &ConnectionKey, made: RedisResult<SubscriberConnection>) {
        let probe = self.new_probe(key);
        let Some(connection) = self.connections.get_mut(key) else { return };
        match made {
            Ok(live) => {
                debug!(%key, wanted = connection.pending.len(), "subscription connection established");
                connection.set_connected(live, probe);
                self.synchronise(key);
                self.check_if_due(key);
            }
            Err(error) => self.on_disconnected(key, error.to_string()),
        }
    }

    /// A connection is over: what it held is lost, and asked for anew.
    pub(super) fn on_disconnected(&mut self, key: &ConnectionKey, reason: String) {
        debug!(%key, reason, "subscription connection closed");
        self.is_state_stale = true;
        let Some(connection) = self.connections.get_mut(key) else { return };
        let id = connection.id;
        let held = connection.set_disconnected(reason);
        for subscription in held {
            self.redis.subscriptions.mark_lost(&subscription, id);
            match self.redis.subscriptions.holder(&subscription) {
                None => self.release_if_unused(&subscription),
                Some(Some(_)) => {}
                Some(None) => {
                    self.unconfirmed.insert(subscription.clone());
                    if let Some(connection) = self.connections.get_mut(key) {
                        connection.pending.push_back(subscription);
                    }
                }
            }
        }
        if self.redis.address.is_cluster() {
            self.request_slots();
        }
        match self.is_needed(key) {
            true => self.connect(key),
            false => self.remove(key),
        }
    }

    /// Asks the server for what is wanted there and not confirmed, and takes back what is not wanted there.
    pub(super) fn synchronise(&mut self, key: &ConnectionKey) {
        let Some(connection) = self.connections.get(key).filter(|one| !one.is_busy) else { return };
        let Some(live) = connection.connection.clone() else { return };
        let (id, mut looked_at, mut batch) = (connection.id, HashSet::new(), Vec::new());
        let mut count = 0;
        for subscription in &connection.pending {
            if batch.len() == MAX_IN_FLIGHT {
                break;
            }
            count += 1;
            if looked_at.insert(subscription.clone()) {
                let difference = self.wanted_change(key, connection, subscription);
                batch.extend(difference.map(|is_wanted| (subscription.clone(), is_wanted)));
            }
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.pending.drain(..count);
        if !batch.is_empty() {
            connection.is_busy = true;
            connection.in_flight = batch.iter().map(|(subscription, _)| subscription.clone()).collect();
            let events = self.events.for_connection(id);
            self.tasks.spawn(async move {
                events.send(SubscriberEvent::Answered(send_changes(&live, batch).await))
            });
        }
        for subscription in looked_at {
            match self.redis.subscriptions.holder(&subscription) {
                None => self.release_if_unused(&subscription),
                Some(None) => self.claim_if_held(key, subscription),
                Some(Some(_)) => {}
            }
        }
    }

    /// Whether a subscription is to be subscribed to, or taken back; none if it is as it should be.
    fn wanted_change(
        &self,
        key: &ConnectionKey,
        connection: &SubscriptionConnection,
        subscription: &Subscription,
    ) -> Option<bool> {
        let is_probe = connection.probe.as_ref() == Some(subscription);
        let holder = self.redis.subscriptions.holder(subscription);
        let belongs_here = is_probe || (holder.is_some() && self.route(subscription).as_ref() == Some(key));
        match (belongs_here, connection.confirmed.contains(subscription)) {
            (true, false) => Some(true),
            // As long as no other connection has it, this one goes on hearing.
            (false, true) => (holder != Some(Some(connection.id))).then_some(false),
            _ => None,
        }
    }

    /// What was taken back and is wanted again before the server was asked is still held.
    fn claim_if_held(&mut self, key: &ConnectionKey, subscription: Subscription) {
        let is_here = self.route(&subscription).as_ref() == Some(key);
        let is_held = |one: &SubscriptionConnection| {
            one.confirmed.contains(&subscription) && !one.in_flight.contains(&subscription)
        };
        if is_here && self.connections.get(key).is_some_and(is_held) {
            self.claim(key, subscription);
        }
    }

    pub(super) fn on_answered(&mut self, key: &ConnectionKey, refused: Vec<(Subscription, RedisError)>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.is_busy = false;
        let asked = std::mem::take(&mut connection.in_flight);
        let mut asks_slots = false;
        for (subscription, error) in refused {
            if !is_refusal(&error) {
                return self.on_disconnected(key, error.to_string());
            }
            if connection.probe.as_ref() == Some(&subscription) {
                debug!(%key, %error, "redis refused the probe channel");
                connection.probe = None;
                continue;
            }
            debug!(%key, channel = %subscription.channel, %error, "redis refused a subscription");
            asks_slots = true;
            connection.retry_later.insert(subscription);
        }
        // What was confirmed, or is held back, is as it should be; what changed meanwhile is looked at again.
        let again = asked.into_iter().filter(|subscription| !connection.retry_later.contains(subscription));
        connection.pending.extend(again);
        if asks_slots && self.redis.address.is_cluster() {
            self.request_slots();
        }
        self.synchronise(key);
        self.check_if_due(key);
    }

    pub(super) fn check_connection(&mut self, key: &ConnectionKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.connection.is_none() {
            return;
        }
        let later: Vec<Subscription> = connection.retry_later.drain().collect();
        connection.pending.extend(later);
        if connection.probe_sent.is_some_and(|since| since.elapsed() > self.redis.response_timeout) {
            return self.on_disconnected(key, "it does not hear its own messages".to_owned());
        }
        if connection.is_empty() && !self.is_needed(key) {
            return self.remove(key);
        }
        self.synchronise(key);
        self.check_if_due(key);
    }

    pub(super) fn check_if_due(&mut self, key: &ConnectionKey) {
        let Some(connection) = self.connections.get_mut(key).filter(|one| one.needs_check(CHECK_EVERY))
        else {
            return;
        };
        let Some(live) = connection.connection.clone() else { return };
        (connection.is_busy, connection.checked) = (true, Instant::now());
        let events = self.events.for_connection(connection.id);
        self.tasks.spawn(async move {
            events.send(SubscriberEvent::Counted(live.query(redis::cmd("CLIENT").arg("INFO")).await));
        });
    }

    pub(super) fn on_count(&mut self, key: &ConnectionKey, told: RedisResult<redis::Value>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.is_busy = false;
        let differs = match told {
            Ok(told) => connection.count_differs(&told),
            // A server before Redis 6.2, or one that does not let this user ask: it answers at least.
            Err(error) if is_refusal(&error) => false,
            Err(error) => return self.on_disconnected(key, error.to_string()),
        };
        // Once may be a change that was under way.
        connection.mismatches = if differs { connection.mismatches + 1 } else { 0 };
        match connection.mismatches {
            0 => self.publish_probe(key),
            1 => connection.invalidate(),
            _ => return self.on_disconnected(key, "the server counts other subscriptions".to_owned()),
        }
        self.synchronise(key);
    }

    fn publish_probe(&mut self, key: &ConnectionKey) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(probe) = connection.probe.clone() else {
            connection.verification = Verification::Verified;
            return;
        };
        connection.probe_number += 1;
        connection.probe_sent = Some(Instant::now());
        let mut command =
            redis::cmd(if probe.kind == SubscriptionKind::Shard { "SPUBLISH" } else { "PUBLISH" });
        command.arg(&*probe.channel).arg(connection.probe_number);
        let (redis, events) = (self.redis.clone(), self.events.for_connection(connection.id));
        self.tasks.spawn(async move {
            let published = match redis.live_connection() {
                Ok(live) => live.query::<redis::Value>(&command).await.is_ok(),
                Err(_) => false,
            };
            events.send(SubscriberEvent::Published(published));
        });
    }

    pub(super) fn on_probe_published(&mut self, key: &ConnectionKey, is_published: bool) {
        if let Some(connection) = self.connections.get_mut(key).filter(|_| !is_published) {
            connection.probe_sent = None;
        }
    }

    pub(super) fn on_probe(&mut self, id: u64, payload: &[u8]) {
        let connection = self.keys.get(&id).and_then(|key| self.connections.get_mut(key));
        let Some(connection) = connection.filter(|one| payload == one.probe_number.to_string().as_bytes())
        else {
            return;
        };
        (connection.probe_sent, connection.verification) = (None, Verification::Verified);
        self.is_state_stale = true;
    }
}

pub(super) async fn connect_to_any(
    redis: &RedisClient,
    nodes: &[NodeAddress],
    events: &EventSender,
) -> RedisResult<SubscriberConnection> {
    let mut failed = None;
    for node in nodes {
        match SubscriberConnection::connect_to_node(
            &redis.address,
            node,
            redis.response_timeout,
            events.clone().push_handler(),
        )
        .await
        {
            Ok(live) => return Ok(live),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        // The one master that is meant, or none that is known answers.
        Some(error) if nodes.len() == 1 => Err(error),
        _ => {
            SubscriberConnection::connect(
                &redis.address,
                redis.response_timeout,
                events.clone().push_handler(),
            )
            .await
        }
    }
}

/// Sends commands together; gives those that were refused or lost.
async fn send_changes(
    live: &SubscriberConnection,
    batch: Vec<(Subscription, bool)>,
) -> Vec<(Subscription, RedisError)> {
    let asked = batch.into_iter().map(|(subscription, is_wanted)| async move {
        let answer = live.set_subscribed(subscription.kind, &subscription.channel, is_wanted).await;
        answer.err().map(|error| (subscription, error))
    });
    futures_util::future::join_all(asked).await.into_iter().flatten().collect()
}
