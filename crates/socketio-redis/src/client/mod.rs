//! A client of Redis that reconnects by itself: one connection for commands, and those that the subscriptions need
//! (`subscriber`).
//!
//! 1. connect (one server, the master that sentinels name, or a cluster), within a few seconds;
//! 2. serve; every few seconds, and whenever a command failed in a way that may be the connection's fault, check;
//! 3. when a check fails or the connection ends: say so, wait (longer each time, with jitter, for ever), and begin anew.
//!
//! Rules: the state is up while commands are answered and every subscription is verified. A command never waits for a
//! connection: without one it fails with [`CommandError::NotConnected`], so that local clients are still served. No command
//! is sent twice, because a repeated broadcast cannot be told from two.

use std::sync::Arc;
use std::time::Duration;

mod address;
mod slots;
mod subscription;
mod subscriptions;
mod error;
mod write_refusal;
mod redis_connection;
mod events;
mod publish_queue;
mod redis_client;
mod client_handle;
mod publisher;
mod subscriber;
mod supervisor;

pub use address::{AddressError, RedisAddress};
pub use client_handle::ClientHandle;
pub use error::CommandError;
pub use publish_queue::PendingReply;
pub use redis_client::{ClientState, RedisClient};
pub use redis_connection::RedisConnection;
pub use subscription::{Subscription, SubscriptionKind};
pub use subscriptions::{Listener, ReceivedMessage};
pub use write_refusal::WriteRefusal;

impl RedisClient {
    /// Begins to connect. An answer to a command may take `max_wait`.
    pub fn start(address: RedisAddress, max_wait: Duration) -> Arc<RedisClient> {
        let (redis, queue) = RedisClient::new(address, max_wait);
        redis.tasks.spawn(supervisor::run(redis.clone()));
        let closed = redis.closed.clone();
        let sending = publisher::run(redis.clone(), queue);
        redis.tasks.spawn(async move { closed.run_until_cancelled(sending).await });
        let (closed, subscriber) = (redis.closed.clone(), subscriber::run(redis.clone()));
        redis.tasks.spawn(async move { closed.run_until_cancelled(subscriber).await });
        redis.tasks.close();
        redis
    }
}
