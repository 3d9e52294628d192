//! The answers of clients to one event, as they come in from this node and the others.

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use socketio_redis::adapter::{AckReplies, RemoteAck, SendError};
use socketio_redis::value::Value;

/// Why not every client that was asked has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AckError {
    /// The time is over.
    #[error("operation has timed out")]
    Timeout,
    /// The other nodes were not asked.
    #[error(transparent)]
    SendError(#[from] SendError),
}

/// The answers of clients; with a fault come those that were heard.
pub type AckResult = Result<Vec<Value>, (AckError, Vec<Value>)>;

/// Answers as they come in, up to a time.
pub(super) struct AckCollector {
    pub(super) end: Instant,
    /// Those that have come.
    pub(super) heard: Vec<Value>,
}

impl AckCollector {
    /// Those of this node's clients.
    pub(super) async fn local(
        &mut self,
        count: u64,
        mut heard: mpsc::Receiver<Value>,
    ) -> Result<(), AckError> {
        for _ in 0..count {
            match timeout_at(self.end, heard.recv()).await {
                Ok(Some(answer)) => self.heard.push(answer),
                Ok(None) | Err(_) => return Err(AckError::Timeout),
            }
        }
        Ok(())
    }

    /// Those of all nodes: every node's count, and as many answers as the counts say. Both sources are heard at the same
    /// time, so that what is partial is so because of the time alone.
    pub(super) async fn all(
        &mut self,
        asked: Option<AckReplies>,
        count: u64,
        mut heard: mpsc::Receiver<Value>,
    ) -> Result<(), AckError> {
        let Some(AckReplies { servers, replies: mut remote }) = asked else {
            return self.local(count, heard).await;
        };
        let (mut counts, mut wanted) = (0, count);
        let (mut is_local_over, mut is_remote_over) = (false, false);
        while counts < servers || (self.heard.len() as u64) < wanted {
            if is_local_over && is_remote_over {
                return Err(AckError::Timeout);
            }
            let next = async {
                tokio::select! {
                    answer = heard.recv(), if !is_local_over => AckEvent::Local(answer),
                    told = remote.recv(), if !is_remote_over => AckEvent::Remote(told),
                }
            };
            match timeout_at(self.end, next).await.map_err(|_| AckError::Timeout)? {
                AckEvent::Local(Some(answer)) | AckEvent::Remote(Some(RemoteAck::Ack(answer))) => {
                    self.heard.push(answer)
                }
                AckEvent::Remote(Some(RemoteAck::Count(more))) => {
                    counts += 1;
                    wanted += more;
                }
                AckEvent::Local(None) => is_local_over = true,
                AckEvent::Remote(None) => is_remote_over = true,
            }
        }
        Ok(())
    }
}

/// What came next; `None`: nothing more comes from there.
enum AckEvent {
    Local(Option<Value>),
    Remote(Option<RemoteAck>),
}
