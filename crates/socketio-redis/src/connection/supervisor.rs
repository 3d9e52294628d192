//! The life of the connection for commands: connect, check, serve, and begin anew.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use aws_lc_rs::rand;
use redis::RedisError;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::line::RedisConnection;
use super::{ClientState, RedisClient};
use crate::backoff::Backoff;

/// Delays between attempts to connect.
pub(super) const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(100), most: Duration::from_secs(5) };

/// Between two checks of a connection that gives no cause for one.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// The life of the connection, until it is closed.
pub(super) async fn run(redis: Arc<RedisClient>) {
    let mut failures = 0;
    loop {
        let connected = redis.closed.run_until_cancelled(connect(&redis)).await;
        let reason = match connected {
            None => break,
            Some(Ok((line, gone))) => {
                failures = 0;
                match redis.closed.run_until_cancelled(serve(&redis, line, &gone)).await {
                    None => break,
                    Some(reason) => reason,
                }
            }
            Some(Err(error)) => error.to_string(),
        };
        redis.set_down(reason);
        failures += 1;
        let pause = tokio::time::sleep(BACKOFF.delay(failures, random_u64()));
        if redis.closed.run_until_cancelled(pause).await.is_none() {
            break;
        }
    }
    redis.connection.store(None);
}

/// A new connection that answers, open for commands; and what is notified when it ends.
async fn connect(redis: &RedisClient) -> Result<(Arc<RedisConnection>, Arc<Notify>), RedisError> {
    let gone = Arc::new(Notify::new());
    let ends = gone.clone();
    let line = RedisConnection::connect(
        &redis.address,
        redis.response_timeout,
        Some(Arc::new(move || ends.notify_one())),
    )
    .await?;
    line.ping().await?;
    let line = Arc::new(line);
    redis.is_replica.store(false, Relaxed);
    redis.connection.store(Some(line.clone()));
    redis.connections.fetch_add(1, Relaxed);
    // Whatever has ended the connection before may have met the subscriptions, too.
    redis.recheck_subscriptions.notify_one();
    redis.set_command_state(ClientState::Up);
    Ok((line, gone))
}

/// Checks the connection, until there is a reason to leave it.
async fn serve(redis: &RedisClient, line: Arc<RedisConnection>, gone: &Notify) -> String {
    let mut checks = interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // A cluster has several connections, and makes new ones by itself.
            () = gone.notified() => if !redis.address.is_cluster() { return "the connection ended".to_owned() },
            () = redis.check_connection.notified() => {}
            _ = checks.tick() => {}
        }
        if redis.is_replica.swap(false, Relaxed) {
            return "the server has become a replica".to_owned();
        }
        if let Err(error) = line.ping().await {
            return error.to_string();
        }
    }
}

/// A number for jitter; without a source of randomness the delays are only not spread.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    let _ = rand::fill(&mut bytes);
    u64::from_be_bytes(bytes)
}
