//! The life of the connection for commands: connect, check, serve, and begin anew.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use redis::RedisError;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::redis_client::{ClientState, RedisClient};
use super::redis_connection::RedisConnection;
use crate::backoff::RECONNECT;
use crate::random::random_u64;

/// Between two checks of a connection that gives no cause for one.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// The life of the connection, until it is closed.
pub(super) async fn run(redis: Arc<RedisClient>) {
    let mut failures = 0;
    loop {
        let connected = redis.closed.run_until_cancelled(connect(&redis)).await;
        let reason = match connected {
            None => break,
            Some(Ok((connection, gone))) => {
                failures = 0;
                match redis.closed.run_until_cancelled(serve(&redis, connection, &gone)).await {
                    None => break,
                    Some(reason) => reason,
                }
            }
            Some(Err(error)) => error.to_string(),
        };
        redis.set_down(reason);
        failures += 1;
        let pause = tokio::time::sleep(RECONNECT.delay(failures, random_u64()));
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
    let connection = RedisConnection::connect(
        &redis.address,
        redis.response_timeout,
        Some(Arc::new(move || ends.notify_one())),
    )
    .await?;
    connection.ping().await?;
    let connection = Arc::new(connection);
    redis.is_replica.store(false, Relaxed);
    redis.connection.store(Some(connection.clone()));
    redis.connections.fetch_add(1, Relaxed);
    // Whatever has ended the connection before may have met the subscriptions, too.
    redis.recheck_subscriptions.notify_one();
    redis.set_command_state(ClientState::Up);
    Ok((connection, gone))
}

/// Checks the connection, until there is a reason to leave it.
async fn serve(redis: &RedisClient, connection: Arc<RedisConnection>, gone: &Notify) -> String {
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
        if let Err(error) = connection.ping().await {
            return error.to_string();
        }
    }
}
