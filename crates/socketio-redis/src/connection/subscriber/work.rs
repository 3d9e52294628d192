//! What the subscriber does with one connection: connect, ask, count and prove that it hears.

use super::*;

impl Subscriber {
    /// Begins to connect; after failures a little later.
    pub(super) fn connect(&mut self, key: &Key) {
        let id = self.next;
        self.next += 1;
        let connection = self.connections.entry(key.clone()).or_insert_with(Connection::new);
        self.keys.remove(&connection.id);
        self.keys.insert(id, key.clone());
        connection.id = id;
        let delay = match connection.failures {
            0 => Duration::ZERO,
            failures => BACKOFF.delay(failures, draw()),
        };
        let (redis, inbox, nodes) = (self.redis.clone(), self.inbox.of(id), self.nodes(key));
        self.tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            let made = connect_to(&redis, &nodes, &inbox).await;
            inbox.put(Event::Connected(made));
        });
    }

    pub(super) fn connected(&mut self, key: &Key, made: RedisResult<SubscriptionLine>) {
        let probe = self.probe(key);
        let Some(connection) = self.connections.get_mut(key) else { return };
        match made {
            Ok(line) => {
                debug!(%key, wanted = connection.todo.len(), "connected for subscriptions");
                connection.begins(line, probe);
                self.work(key);
                self.check_if_due(key);
            }
            Err(error) => self.ended(key, error.to_string()),
        }
    }

    /// A connection is over: what it held is lost, and asked for anew.
    pub(super) fn ended(&mut self, key: &Key, reason: String) {
        debug!(%key, reason, "a connection for subscriptions is over");
        self.is_stale = true;
        let Some(connection) = self.connections.get_mut(key) else { return };
        let id = connection.id;
        let held = connection.ends(reason);
        for wish in held {
            self.redis.wanted.lose(&wish, id);
            match self.redis.wanted.holder(&wish) {
                None => self.settle(&wish),
                Some(Some(_)) => {}
                Some(None) => {
                    self.lost.insert(wish.clone());
                    if let Some(connection) = self.connections.get_mut(key) {
                        connection.todo.push_back(wish);
                    }
                }
            }
        }
        if self.redis.place.is_cluster() {
            self.ask_slots();
        }
        match self.is_needed(key) {
            true => self.connect(key),
            false => self.remove(key),
        }
    }

    /// Asks the server for what is wanted there and not confirmed, and takes back what is not wanted there.
    pub(super) fn work(&mut self, key: &Key) {
        let Some(connection) = self.connections.get(key).filter(|one| !one.is_busy) else { return };
        let Some(line) = connection.line.clone() else { return };
        let (id, mut looked_at, mut batch) = (connection.id, HashSet::new(), Vec::new());
        let mut count = 0;
        for wish in &connection.todo {
            if batch.len() == ASKED_AT_ONCE {
                break;
            }
            count += 1;
            if looked_at.insert(wish.clone()) {
                let difference = self.difference(key, connection, wish);
                batch.extend(difference.map(|is_wanted| (wish.clone(), is_wanted)));
            }
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.todo.drain(..count);
        if !batch.is_empty() {
            connection.is_busy = true;
            connection.asked = batch.iter().map(|(wish, _)| wish.clone()).collect();
            let inbox = self.inbox.of(id);
            self.tasks.spawn(async move { inbox.put(Event::Answered(ask(&line, batch).await)) });
        }
        for wish in looked_at {
            match self.redis.wanted.holder(&wish) {
                None => self.settle(&wish),
                Some(None) => self.claim_if_held(key, wish),
                Some(Some(_)) => {}
            }
        }
    }

    /// Whether a wish is to be subscribed to, or taken back; none if it is as it should be.
    fn difference(&self, key: &Key, connection: &Connection, wish: &Wish) -> Option<bool> {
        let is_probe = connection.probe.as_ref() == Some(wish);
        let holder = self.redis.wanted.holder(wish);
        let belongs_here = is_probe || (holder.is_some() && self.route(wish).as_ref() == Some(key));
        match (belongs_here, connection.held.contains(wish)) {
            (true, false) => Some(true),
            // As long as no other connection has it, this one goes on hearing.
            (false, true) => (holder != Some(Some(connection.id))).then_some(false),
            _ => None,
        }
    }

    /// What was taken back and is wanted again before the server was asked is still held.
    fn claim_if_held(&mut self, key: &Key, wish: Wish) {
        let is_here = self.route(&wish).as_ref() == Some(key);
        let is_held = |one: &Connection| one.held.contains(&wish) && !one.asked.contains(&wish);
        if is_here && self.connections.get(key).is_some_and(is_held) {
            self.claim(key, wish);
        }
    }

    pub(super) fn answered(&mut self, key: &Key, refused: Vec<(Wish, RedisError)>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.is_busy = false;
        let asked = std::mem::take(&mut connection.asked);
        let mut asks_slots = false;
        for (wish, error) in refused {
            if !is_refusal(&error) {
                return self.ended(key, error.to_string());
            }
            if connection.probe.as_ref() == Some(&wish) {
                debug!(%key, %error, "redis refuses the channel that proves subscriptions");
                connection.probe = None;
                continue;
            }
            debug!(%key, channel = %wish.channel, %error, "redis refused a subscription");
            asks_slots = true;
            connection.later.insert(wish);
        }
        // What was confirmed, or is held back, is as it should be; what changed meanwhile is looked at again.
        let again = asked.into_iter().filter(|wish| !connection.later.contains(wish));
        connection.todo.extend(again);
        if asks_slots && self.redis.place.is_cluster() {
            self.ask_slots();
        }
        self.work(key);
        self.check_if_due(key);
    }

    pub(super) fn look_at(&mut self, key: &Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.line.is_none() {
            return;
        }
        let later: Vec<Wish> = connection.later.drain().collect();
        connection.todo.extend(later);
        if connection.awaited.is_some_and(|since| since.elapsed() > self.redis.patience) {
            return self.ended(key, "it does not hear its own messages".to_owned());
        }
        if connection.is_empty() && !self.is_needed(key) {
            return self.remove(key);
        }
        self.work(key);
        self.check_if_due(key);
    }

    pub(super) fn check_if_due(&mut self, key: &Key) {
        let Some(connection) = self.connections.get_mut(key).filter(|one| one.is_due(CHECK_EVERY)) else {
            return;
        };
        let Some(line) = connection.line.clone() else { return };
        (connection.is_busy, connection.checked) = (true, Instant::now());
        let inbox = self.inbox.of(connection.id);
        self.tasks.spawn(async move {
            inbox.put(Event::Counted(line.ask(redis::cmd("CLIENT").arg("INFO")).await));
        });
    }

    pub(super) fn counted(&mut self, key: &Key, told: RedisResult<redis::Value>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.is_busy = false;
        let differs = match told {
            Ok(told) => connection.differs_from(&told),
            // A server before Redis 6.2, or one that does not let this user ask: it answers at least.
            Err(error) if is_refusal(&error) => false,
            Err(error) => return self.ended(key, error.to_string()),
        };
        // Once may be a change that was under way.
        connection.mismatches = if differs { connection.mismatches + 1 } else { 0 };
        match connection.mismatches {
            0 => self.publish_probe(key),
            1 => connection.is_doubted(),
            _ => return self.ended(key, "the server counts other subscriptions".to_owned()),
        }
        self.work(key);
    }

    fn publish_probe(&mut self, key: &Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(probe) = connection.probe.clone() else {
            connection.proof = Proof::Proved;
            return;
        };
        connection.number += 1;
        connection.awaited = Some(Instant::now());
        let mut command = redis::cmd(if probe.via == Via::Shard { "SPUBLISH" } else { "PUBLISH" });
        command.arg(&*probe.channel).arg(connection.number);
        let (redis, inbox) = (self.redis.clone(), self.inbox.of(connection.id));
        self.tasks.spawn(async move {
            let published = match redis.line() {
                Ok(line) => line.ask::<redis::Value>(&command).await.is_ok(),
                Err(_) => false,
            };
            inbox.put(Event::Published(published));
        });
    }

    pub(super) fn published(&mut self, key: &Key, is_published: bool) {
        if let Some(connection) = self.connections.get_mut(key).filter(|_| !is_published) {
            connection.awaited = None;
        }
    }

    pub(super) fn heard_probe(&mut self, id: u64, payload: &[u8]) {
        let connection = self.keys.get(&id).and_then(|key| self.connections.get_mut(key));
        let Some(connection) = connection.filter(|one| payload == one.number.to_string().as_bytes()) else {
            return;
        };
        (connection.awaited, connection.proof) = (None, Proof::Proved);
        self.is_stale = true;
    }
}

pub(super) async fn connect_to(
    redis: &Redis,
    nodes: &[NodeAddress],
    inbox: &Inbox,
) -> RedisResult<SubscriptionLine> {
    let mut failed = None;
    for node in nodes {
        match SubscriptionLine::to_node(&redis.place, node, redis.patience, inbox.clone()).await {
            Ok(line) => return Ok(line),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        // The one master that is meant, or none that is known answers.
        Some(error) if nodes.len() == 1 => Err(error),
        _ => SubscriptionLine::connect(&redis.place, redis.patience, inbox.clone()).await,
    }
}

/// Sends commands together; gives those that were refused or lost.
async fn ask(line: &SubscriptionLine, batch: Vec<(Wish, bool)>) -> Vec<(Wish, RedisError)> {
    let asked = batch.into_iter().map(|(wish, is_wanted)| async move {
        let answer = line.set(wish.via, &wish.channel, is_wanted).await;
        answer.err().map(|error| (wish, error))
    });
    futures_util::future::join_all(asked).await.into_iter().flatten().collect()
}
