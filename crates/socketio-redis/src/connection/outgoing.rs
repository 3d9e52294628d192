//! What goes to Redis, in the order in which it was handed over, whoever waits for the answers and whoever does not.
//!
//! Everything that is waiting goes in one write; what comes meanwhile goes in the next. So order costs nothing under
//! load: the longer a round trip takes, the more shares it.

use std::sync::Arc;

use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::line::{RedisConnection, SubscriptionKind, count_command, read_count};
use super::{CommandError, RedisClient};
use crate::metrics::AdapterMetrics;

/// Commands that may wait.
const MAX_WAITING: usize = 16_384;

/// Commands that go in one write.
const MAX_BATCH: usize = 256;

/// The answer to a command that was handed over.
pub type PendingReply = oneshot::Receiver<Result<Value, CommandError>>;

/// What is to be sent.
enum PublisherJob {
    /// This.
    Command(Cmd),
    /// The question how many connections subscribe to a channel, which in a cluster every node must be asked.
    Count(SubscriptionKind, String),
}

struct QueuedJob {
    job: PublisherJob,
    back: ReplySender,
}

/// The way back to whoever handed it over.
struct ReplySender {
    answer: oneshot::Sender<Result<Value, CommandError>>,
    since: Instant,
    /// Of commands that carry clients' messages.
    metrics: Option<Arc<dyn AdapterMetrics>>,
}

impl ReplySender {
    fn send(self, result: Result<Value, CommandError>) {
        match (&self.metrics, &result) {
            (Some(metrics), Ok(_)) => metrics.record_publish(self.since.elapsed()),
            (Some(metrics), Err(_)) => metrics.record_unpublished(),
            (None, _) => {}
        }
        // Whoever does not wait for it has dropped the other end.
        let _ = self.answer.send(result);
    }
}

/// The end where commands are handed over.
pub(super) struct Publisher {
    sender: mpsc::Sender<QueuedJob>,
}

/// The end that sends them.
pub(super) struct PublisherQueue {
    receiver: mpsc::Receiver<QueuedJob>,
}

impl Publisher {
    pub fn new() -> (Publisher, PublisherQueue) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        (Publisher { sender }, PublisherQueue { receiver })
    }

    /// Takes its place now. The answer may be thrown away.
    pub fn enqueue(
        &self,
        command: Cmd,
        metrics: Option<Arc<dyn AdapterMetrics>>,
    ) -> Result<PendingReply, CommandError> {
        self.push(PublisherJob::Command(command), metrics)
    }

    /// The same for a count, whose answer is a number.
    pub fn enqueue_subscriber_count(
        &self,
        via: SubscriptionKind,
        channel: &str,
    ) -> Result<PendingReply, CommandError> {
        self.push(PublisherJob::Count(via, channel.to_owned()), None)
    }

    fn push(
        &self,
        job: PublisherJob,
        metrics: Option<Arc<dyn AdapterMetrics>>,
    ) -> Result<PendingReply, CommandError> {
        let (answer, receiver) = oneshot::channel();
        let back = ReplySender { answer, since: Instant::now(), metrics };
        self.sender.try_send(QueuedJob { job, back }).map_err(|refused| {
            if let Some(metrics) = refused.into_inner().back.metrics {
                metrics.record_unpublished();
            }
            CommandError::QueueFull
        })?;
        Ok(receiver)
    }
}

/// Sends what is handed over until the connection is closed.
pub(super) async fn run(redis: Arc<RedisClient>, mut queue: PublisherQueue) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while queue.receiver.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let (jobs, backs): (Vec<_>, Vec<_>) = batch.drain(..).map(|one| (one.job, one.back)).unzip();
        match redis.live_connection() {
            Ok(line) => {
                let results = send(&line, jobs).await;
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

async fn send(line: &RedisConnection, jobs: Vec<PublisherJob>) -> Vec<RedisResult<Value>> {
    match line {
        RedisConnection::Server(_) => send_pipeline(line, jobs).await,
        // The commands belong to several servers. Each is handed to the connection in turn, so that those of one slot
        // keep their order.
        RedisConnection::Cluster(_) => {
            let each = jobs.into_iter().map(|job| async {
                match job {
                    PublisherJob::Command(command) => line.query(&command).await,
                    PublisherJob::Count(via, channel) => {
                        line.subscriber_count(via, &channel).await.map(|count| Value::Int(count as i64))
                    }
                }
            });
            futures_util::future::join_all(each).await
        }
    }
}

async fn send_pipeline(line: &RedisConnection, jobs: Vec<PublisherJob>) -> Vec<RedisResult<Value>> {
    let mut pipeline = redis::Pipeline::with_capacity(jobs.len());
    let mut counts = Vec::with_capacity(jobs.len());
    for job in jobs {
        counts.push(matches!(job, PublisherJob::Count(..)));
        pipeline.add_command(match job {
            PublisherJob::Command(command) => command,
            PublisherJob::Count(via, channel) => count_command(via, &channel),
        });
    }
    pipeline.ignore_errors();
    match line.query_pipeline::<Vec<RedisResult<Value>>>(&pipeline).await {
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
