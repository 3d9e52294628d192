//! What goes to Redis, in the order in which it was handed over, whoever waits for the answers and whoever does not.
//!
//! Everything that is waiting goes in one write; what comes meanwhile goes in the next. So order costs nothing under
//! load: the longer a round trip takes, the more shares it.

use std::sync::Arc;

use redis::{RedisError, RedisResult, Value};

use super::error::CommandError;
use super::publish_queue::{PublisherJob, PublisherQueue};
use super::redis_client::RedisClient;
use super::redis_connection::{RedisConnection, count_command, read_count};

/// Commands that go in one write.
const MAX_BATCH: usize = 256;

/// Sends what is handed over until the connection is closed.
pub(super) async fn run(redis: Arc<RedisClient>, mut queue: PublisherQueue) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while queue.receiver.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let (jobs, backs): (Vec<_>, Vec<_>) = batch.drain(..).map(|one| (one.job, one.back)).unzip();
        match redis.live_connection() {
            Ok(connection) => {
                let results = send(&connection, jobs).await;
                for (result, back) in results.into_iter().zip(backs) {
                    if result.is_ok() && back.metrics.is_some() {
                        redis.refusal.clear();
                    }
                    back.send(result.map_err(|error| redis.classify_error(error)));
                }
            }
            Err(fault) => {
                let reason = fault.to_string();
                backs.into_iter().for_each(|back| back.send(Err(CommandError::NotConnected(reason.clone()))));
            }
        }
    }
}

async fn send(connection: &RedisConnection, jobs: Vec<PublisherJob>) -> Vec<RedisResult<Value>> {
    match connection {
        RedisConnection::Server(_) => send_pipeline(connection, jobs).await,
        // The commands belong to several servers. Each is handed to the connection in turn, so that those of one slot
        // keep their order.
        RedisConnection::Cluster(_) => {
            let each = jobs.into_iter().map(|job| async {
                match job {
                    PublisherJob::Command(command) => connection.query(&command).await,
                    PublisherJob::Count(kind, channel) => connection
                        .subscriber_count(kind, &channel)
                        .await
                        .map(|count| Value::Int(count as i64)),
                }
            });
            futures_util::future::join_all(each).await
        }
    }
}

async fn send_pipeline(connection: &RedisConnection, jobs: Vec<PublisherJob>) -> Vec<RedisResult<Value>> {
    let mut pipeline = redis::Pipeline::with_capacity(jobs.len());
    let mut counts = Vec::with_capacity(jobs.len());
    for job in jobs {
        counts.push(matches!(job, PublisherJob::Count(..)));
        pipeline.add_command(match job {
            PublisherJob::Command(command) => command,
            PublisherJob::Count(kind, channel) => count_command(kind, &channel),
        });
    }
    pipeline.ignore_errors();
    match connection.query_pipeline::<Vec<RedisResult<Value>>>(&pipeline).await {
        Ok(results) if results.len() == counts.len() => {
            let counted = |(result, is_count): (RedisResult<Value>, bool)| match is_count {
                true => result.map(|answer| Value::Int(read_count(&answer) as i64)),
                false => result,
            };
            results.into_iter().zip(counts).map(counted).collect()
        }
        Ok(_) => counts.iter().map(|_| Err(lost_error("an answer is missing"))).collect(),
        // An error of the connection, which cannot be cloned: it may have met any of them.
        Err(error) => counts.iter().map(|_| Err(lost_error(&error.to_string()))).collect(),
    }
}

fn lost_error(reason: &str) -> RedisError {
    std::io::Error::other(reason.to_owned()).into()
}
