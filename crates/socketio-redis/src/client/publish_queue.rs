//! Commands for Redis in the order in which they were handed over, and the way back of their answers.

use std::sync::Arc;

use redis::{Cmd, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::error::CommandError;
use super::subscription::SubscriptionKind;
use crate::metrics::AdapterMetrics;

/// Commands that may wait.
const MAX_WAITING: usize = 16_384;

/// The answer to a command that was handed over.
pub type PendingReply = oneshot::Receiver<Result<Value, CommandError>>;

/// What is to be sent.
pub(super) enum PublisherJob {
    /// This.
    Command(Cmd),
    /// The question how many connections subscribe to a channel, which in a cluster every node must be asked.
    Count(SubscriptionKind, String),
}

/// A job, and who waits for it.
pub(super) struct QueuedJob {
    /// What is to be sent.
    pub job: PublisherJob,
    /// Who waits.
    pub back: ReplySender,
}

/// The way back to whoever handed it over.
pub(super) struct ReplySender {
    answer: oneshot::Sender<Result<Value, CommandError>>,
    since: Instant,
    /// Of commands that carry clients' messages.
    pub metrics: Option<Arc<dyn AdapterMetrics>>,
}

impl ReplySender {
    /// Counts the result, and gives it to whoever waits.
    pub(super) fn send(self, result: Result<Value, CommandError>) {
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
    /// What is waiting.
    pub receiver: mpsc::Receiver<QueuedJob>,
}

impl Publisher {
    /// The two ends.
    pub(super) fn new() -> (Publisher, PublisherQueue) {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        (Publisher { sender }, PublisherQueue { receiver })
    }

    /// Takes its place now. The answer may be thrown away.
    pub(super) fn enqueue(
        &self,
        command: Cmd,
        metrics: Option<Arc<dyn AdapterMetrics>>,
    ) -> Result<PendingReply, CommandError> {
        self.push(PublisherJob::Command(command), metrics)
    }

    /// The same for a count, whose answer is a number.
    pub(super) fn enqueue_subscriber_count(
        &self,
        kind: SubscriptionKind,
        channel: &str,
    ) -> Result<PendingReply, CommandError> {
        self.push(PublisherJob::Count(kind, channel.to_owned()), None)
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
