//! The life of the connection: connect, subscribe, check, serve, and begin anew.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use aws_lc_rs::rand;
use redis::{PushInfo, PushKind, RedisError};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use super::line::{Inbox, Line, Outlet, Via};
use super::wanted::Wish;
use super::{Redis, RedisState};
use crate::pace::Backoff;

/// Delays between attempts to connect.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), most: Duration::from_secs(5) };

/// Between two checks of a connection that gives no cause for one.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Subscriptions that are sent before the answers to them are awaited.
const SUBSCRIBED_AT_ONCE: usize = 256;

/// The life of the connection, until it is closed.
pub(super) async fn supervise(redis: Arc<Redis>) {
    let mut failures = 0;
    loop {
        let connected = redis.closed.run_until_cancelled(connect(&redis)).await;
        let reason = match connected {
            None => break,
            Some(Ok((line, mut outlet))) => {
                failures = 0;
                match redis.closed.run_until_cancelled(serve(&redis, line, &mut outlet)).await {
                    None => break,
                    Some(reason) => reason,
                }
            }
            Some(Err(error)) => error.to_string(),
        };
        redis.is_away(reason);
        failures += 1;
        let pause = tokio::time::sleep(BACKOFF.delay(failures, draw()));
        if redis.closed.run_until_cancelled(pause).await.is_none() {
            break;
        }
    }
    redis.line.store(None);
}

/// A new connection with everything subscribed and checked, open for commands.
async fn connect(redis: &Redis) -> Result<(Arc<Line>, Outlet), RedisError> {
    let (inbox, outlet) = Inbox::new();
    let line = Arc::new(Line::connect(&redis.place, redis.patience, Some(inbox)).await?);
    let mut done = HashSet::new();
    subscribe_missing(redis, &line, &mut done).await?;
    check(redis, &line).await?;
    redis.wrong.store(false, Relaxed);
    redis.line.store(Some(line.clone()));
    // Whoever wished in the meantime saw no line; whoever wishes from here on subscribes on this one.
    subscribe_missing(redis, &line, &mut done).await?;
    redis.connections.fetch_add(1, Relaxed);
    let before = redis.state.send_replace(RedisState::Up);
    if before != RedisState::Up {
        info!(redis = %redis.place.name(), subscriptions = done.len(), "redis is up");
    }
    Ok((line, outlet))
}

/// Subscribes to what is wanted and not `done`.
async fn subscribe_missing(redis: &Redis, line: &Line, done: &mut HashSet<Wish>) -> Result<(), RedisError> {
    let missing: Vec<Wish> = redis.wanted.all().into_iter().filter(|wish| !done.contains(wish)).collect();
    for some in missing.chunks(SUBSCRIBED_AT_ONCE) {
        let asked = some.iter().map(|wish| line.subscribe(wish.via, &wish.channel));
        futures_util::future::try_join_all(asked).await?;
    }
    done.extend(missing);
    Ok(())
}

/// Whether the server answers, and counts the subscriptions that only this node can have.
async fn check(redis: &Redis, line: &Line) -> Result<(), RedisError> {
    line.ping().await?;
    for wish in redis.wanted.own() {
        // Nobody could count a pattern; and what is not wanted any more while it is asked for proves nothing.
        let counted = line.subscribers(wish.via, &wish.channel).await?;
        if counted == 0 && redis.wanted.contains(&wish) {
            let lost = format!("the subscription to {} is lost", wish.channel);
            return Err(std::io::Error::other(lost).into());
        }
    }
    Ok(())
}

/// Hands on what is heard and checks the connection, until there is a reason to leave it.
async fn serve(redis: &Redis, line: Arc<Line>, outlet: &mut Outlet) -> String {
    let mut checks = interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let cause = tokio::select! {
            push = outlet.take() => match push {
                Some(push) => hear(redis, push),
                None => Cause::Gone,
            },
            () = redis.suspect.notified() => Cause::Doubt,
            _ = checks.tick() => Cause::Doubt,
        };
        if let Err(reason) = answer(redis, &line, outlet, cause).await {
            return reason;
        }
    }
}

/// What may be wrong with a connection.
enum Cause {
    /// Nothing.
    None,
    /// Perhaps something: check.
    Doubt,
    /// Subscriptions may have moved with a slot: subscribe again, then check.
    Moved,
    /// It ended.
    Gone,
}

fn hear(redis: &Redis, push: PushInfo) -> Cause {
    match push.kind {
        PushKind::Disconnection if redis.place.is_cluster() => Cause::Moved,
        PushKind::Disconnection => Cause::Gone,
        PushKind::SUnsubscribe => {
            // The server says so by itself when a slot moves away; after our own wish the channel is not wanted.
            let name = push.data.first().and_then(|name| redis::from_redis_value_ref::<String>(name).ok());
            let wish = name.map(|name| Wish { via: Via::Shard, channel: name.into() });
            if wish.is_some_and(|wish| redis.wanted.contains(&wish)) { Cause::Moved } else { Cause::None }
        }
        _ => {
            redis.wanted.hear(push);
            Cause::None
        }
    }
}

async fn answer(redis: &Redis, line: &Line, outlet: &Outlet, cause: Cause) -> Result<(), String> {
    if redis.wrong.swap(false, Relaxed) {
        return Err("the server has become a replica".to_owned());
    }
    let checked = match cause {
        Cause::None => return Ok(()),
        Cause::Gone => return Err("the connection ended".to_owned()),
        Cause::Doubt => check(redis, line).await,
        Cause::Moved => match subscribe_missing(redis, line, &mut HashSet::new()).await {
            Ok(()) => check(redis, line).await,
            Err(error) => Err(error),
        },
    };
    let dropped = outlet.dropped();
    if dropped > 0 {
        redis.dropped.fetch_add(dropped, Relaxed);
        warn!(dropped, "messages from redis found no room, the node does not keep up");
    }
    checked.map_err(|error| error.to_string())
}

/// A number for jitter; without a source of randomness the delays are only not spread.
pub(in crate::node::bus) fn draw() -> u64 {
    let mut bytes = [0; 8];
    let _ = rand::fill(&mut bytes);
    u64::from_be_bytes(bytes)
}
