//! What goes to Redis, in the order in which it was handed over, whoever waits for the answers and whoever does not.
//!
//! Everything that is waiting goes in one write; what comes meanwhile goes in the next. So order costs nothing under
//! load: the longer a round trip takes, the more shares it.

use std::sync::Arc;

use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::line::{Line, Via, count_in, numsub};
use super::{Redis, RedisFault};
use crate::metrics::AdapterMetrics;

/// Commands that may wait.
const MOST_WAITING: usize = 16_384;

/// Commands that go in one write.
const MOST_AT_ONCE: usize = 256;

/// The answer to a command that was handed over.
pub type Answer = oneshot::Receiver<Result<Value, RedisFault>>;

/// What is to be sent.
enum Job {
    /// This.
    Command(Cmd),
    /// The question how many connections subscribe to a channel, which in a cluster every node must be asked.
    Count(Via, String),
}

struct Waiting {
    job: Job,
    back: Back,
}

/// The way back to whoever handed it over.
struct Back {
    answer: oneshot::Sender<Result<Value, RedisFault>>,
    since: Instant,
    /// Of commands that carry clients' messages.
    metrics: Option<Arc<dyn AdapterMetrics>>,
}

impl Back {
    fn send(self, result: Result<Value, RedisFault>) {
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
pub(super) struct Outgoing {
    sender: mpsc::Sender<Waiting>,
}

/// The end that sends them.
pub(super) struct Queue {
    receiver: mpsc::Receiver<Waiting>,
}

impl Outgoing {
    pub fn new() -> (Outgoing, Queue) {
        let (sender, receiver) = mpsc::channel(MOST_WAITING);
        (Outgoing { sender }, Queue { receiver })
    }

    /// Takes its place now. The answer may be thrown away.
    pub fn post(&self, command: Cmd, metrics: Option<Arc<dyn AdapterMetrics>>) -> Result<Answer, RedisFault> {
        self.put(Job::Command(command), metrics)
    }

    /// The same for a count, whose answer is a number.
    pub fn post_count(&self, via: Via, channel: &str) -> Result<Answer, RedisFault> {
        self.put(Job::Count(via, channel.to_owned()), None)
    }

    fn put(&self, job: Job, metrics: Option<Arc<dyn AdapterMetrics>>) -> Result<Answer, RedisFault> {
        let (answer, receiver) = oneshot::channel();
        let back = Back { answer, since: Instant::now(), metrics };
        self.sender.try_send(Waiting { job, back }).map_err(|refused| {
            if let Some(metrics) = refused.into_inner().back.metrics {
                metrics.record_unpublished();
            }
            RedisFault::Full
        })?;
        Ok(receiver)
    }
}

/// Sends what is handed over until the connection is closed.
pub(super) async fn send_all(redis: Arc<Redis>, mut queue: Queue) {
    let mut batch = Vec::with_capacity(MOST_AT_ONCE);
    while queue.receiver.recv_many(&mut batch, MOST_AT_ONCE).await > 0 {
        let (jobs, backs): (Vec<_>, Vec<_>) = batch.drain(..).map(|one| (one.job, one.back)).unzip();
        match redis.line() {
            Ok(line) => {
                let results = send(&line, jobs).await;
                for (result, back) in results.into_iter().zip(backs) {
                    if result.is_ok() && back.metrics.is_some() {
                        redis.refusals.taken();
                    }
                    back.send(result.map_err(|error| redis.fault(error)));
                }
            }
            Err(fault) => {
                let reason = fault.to_string();
                backs.into_iter().for_each(|back| back.send(Err(RedisFault::Away(reason.clone()))));
            }
        }
    }
}

async fn send(line: &Line, jobs: Vec<Job>) -> Vec<RedisResult<Value>> {
    match line {
        Line::One(_) => pipelined(line, jobs).await,
        // The commands belong to several servers. Each is handed to the connection in turn, so that those of one slot
        // keep their order.
        Line::Cluster(_) => {
            let each = jobs.into_iter().map(|job| async {
                match job {
                    Job::Command(command) => line.ask(&command).await,
                    Job::Count(via, channel) => {
                        line.subscribers(via, &channel).await.map(|count| Value::Int(count as i64))
                    }
                }
            });
            futures_util::future::join_all(each).await
        }
    }
}

async fn pipelined(line: &Line, jobs: Vec<Job>) -> Vec<RedisResult<Value>> {
    let mut pipeline = redis::Pipeline::with_capacity(jobs.len());
    let mut counts = Vec::with_capacity(jobs.len());
    for job in jobs {
        counts.push(matches!(job, Job::Count(..)));
        pipeline.add_command(match job {
            Job::Command(command) => command,
            Job::Count(via, channel) => numsub(via, &channel),
        });
    }
    pipeline.ignore_errors();
    match line.ask_all::<Vec<RedisResult<Value>>>(&pipeline).await {
        Ok(results) if results.len() == counts.len() => {
            let counted = |(result, is_count): (RedisResult<Value>, bool)| match is_count {
                true => result.map(|answer| Value::Int(count_in(&answer) as i64)),
                false => result,
            };
            results.into_iter().zip(counts).map(counted).collect()
        }
        Ok(_) => counts.iter().map(|_| Err(lost("an answer is missing"))).collect(),
        // An error of the connection, which cannot be cloned: it may have met any of them.
        Err(error) => counts.iter().map(|_| Err(lost(&error.to_string()))).collect(),
    }
}

fn lost(reason: &str) -> RedisError {
    std::io::Error::other(reason.to_owned()).into()
}
