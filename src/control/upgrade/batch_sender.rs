//! Sends batches of tunnels to the new process, as [`OldOwnership`] decides.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::batch_size::BatchSize;
use super::channel::{ChannelError, receive, refusal, send_batch};
use super::child::ChildProcess;
use super::outcome::UpgradeError;
use super::ownership::{OldAction, OldEvent, OldOwnership};
use super::protocol::kind;
use crate::net::handover_socket::HandoverFrame;
use crate::proxy::ProxyContext;
use crate::relay::FrozenBatch;

/// The word that revokes a batch is in the socket within this, or the socket is full.
const REVOKE_TIME: Duration = Duration::from_millis(50);

/// The tunnels that have gone over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved {
    /// How many.
    pub tunnels: usize,
    /// The longest that one of them was carried by no process.
    pub pause: Duration,
}

/// A frozen batch. Dropping the [`FrozenBatch`] resumes it, which must not happen when the end of this process cuts the upgrade
/// short.
struct SentBatch {
    frozen: ManuallyDrop<FrozenBatch>,
    begun: Instant,
}

/// The batches of one upgrade, and the new process that gets them.
pub(super) struct BatchSender {
    front: Arc<ProxyContext>,
    /// The new process.
    pub child: ChildProcess,
    ownership: OldOwnership,
    /// Of the next batch.
    size: BatchSize,
    sent: Option<SentBatch>,
    /// What has gone over; `None` before the first batch.
    pub moved: Option<Moved>,
    /// There may be more tunnels than the last batch had.
    has_more: bool,
    /// What went wrong last.
    error: Option<UpgradeError>,
}

impl BatchSender {
    /// No batch has gone over. The new process has answered a ping, if it knows that.
    pub(super) fn new(front: &Arc<ProxyContext>, child: ChildProcess) -> Self {
        Self {
            front: Arc::clone(front),
            ownership: OldOwnership::new(child.settles),
            child,
            size: BatchSize::first(),
            sent: None,
            moved: None,
            has_more: true,
            error: None,
        }
    }

    /// Whether the new process can be told more.
    pub(super) fn is_open(&self) -> bool {
        self.ownership.is_open()
    }

    /// Hands one batch over. True when there may be more tunnels, because it was full or was revoked.
    ///
    /// # Errors
    ///
    /// Why no more can be handed over. What was offered is carried here again, or by a process that has it.
    pub(super) async fn hand_over(&mut self) -> Result<bool, UpgradeError> {
        let mut action = self.ownership.on(OldEvent::Offer);
        loop {
            let event = match action {
                OldAction::Ping => self.ping().await,
                OldAction::SendBatch { within } => self.send_batch(within).await,
                OldAction::AwaitAnswer | OldAction::AwaitFreed => self.answer().await,
                OldAction::Revoke => self.revoke().await,
                OldAction::Kill => self.kill().await,
                OldAction::Resume => self.resume(),
                OldAction::Release => self.release().await,
                OldAction::Forfeit => self.forfeit(),
                OldAction::Done => return Ok(self.has_more),
                OldAction::Stop => {
                    return Err(self.error.take().unwrap_or_else(|| ChannelError::Ended.into()));
                }
            };
            action = self.ownership.on(event);
        }
    }

    async fn ping(&mut self) -> OldEvent {
        match self.child.link.send(kind::PING, &[], &[]).await {
            Ok(()) => self.answer().await,
            Err(error) => self.failed(ChannelError::from(error).into()),
        }
    }

    async fn send_batch(&mut self, within: Duration) -> OldEvent {
        let begun = Instant::now();
        let frozen = ManuallyDrop::new(self.front.relay.freeze(self.size.tunnels()).await);
        let sent = self.sent.insert(SentBatch { frozen, begun });
        let (link, mut is_whole) = (&mut self.child.link, false);
        let answer = timeout(within, async {
            match send_batch(link, sent.frozen.tunnels()).await {
                // A process that closed the socket may have refused the batch before that.
                Err(error) if !error.is_end() => Err(error),
                sent => {
                    is_whole = sent.is_ok();
                    receive(link).await
                }
            }
        });
        match answer.await {
            Ok(Ok(frame)) => self.answered(&frame),
            Ok(Err(error)) => self.failed(error.into()),
            Err(_) => {
                self.error = Some(ChannelError::TimedOut(within).into());
                if is_whole { OldEvent::Late } else { OldEvent::Stuck }
            }
        }
    }

    async fn answer(&mut self) -> OldEvent {
        match self.child.receive().await {
            Ok(frame) => self.answered(&frame),
            Err(error) => self.failed(error),
        }
    }

    fn answered(&mut self, frame: &HandoverFrame) -> OldEvent {
        let (event, error) = match frame.kind {
            kind::PONG => (OldEvent::Alive, ChannelError::UnexpectedFrame(frame.kind)),
            kind::HELD => (OldEvent::Held, ChannelError::UnexpectedFrame(frame.kind)),
            kind::FREED => (OldEvent::Freed, ChannelError::UnexpectedFrame(frame.kind)),
            kind::FAULT => (OldEvent::Refused, refusal(frame)),
            other => (OldEvent::Broken, ChannelError::UnexpectedFrame(other)),
        };
        // Where the machine does not expect this answer, this is why it ends.
        self.error = Some(error.into());
        event
    }

    fn failed(&mut self, error: UpgradeError) -> OldEvent {
        let is_ending = matches!(error, UpgradeError::Ending);
        self.error = Some(error);
        if is_ending { OldEvent::ShuttingDown } else { OldEvent::Broken }
    }

    async fn revoke(&mut self) -> OldEvent {
        match timeout(REVOKE_TIME, self.child.link.send(kind::REVOKE, &[], &[])).await {
            Ok(Ok(())) => {
                let tunnels = self.sent.as_ref().map_or(0, |sent| sent.frozen.len());
                tracing::warn!(tunnels, "the new process is late, the batch is taken back");
                OldEvent::Revoked
            }
            Ok(Err(error)) => self.failed(ChannelError::from(error).into()),
            Err(_) => OldEvent::NoRoom,
        }
    }

    async fn kill(&mut self) -> OldEvent {
        if self.child.kill().await { OldEvent::Dead } else { OldEvent::Undead }
    }

    fn resume(&mut self) -> OldEvent {
        if let Some(SentBatch { frozen, begun }) = self.sent.take() {
            self.size = self.size.after(frozen.len(), begun.elapsed());
            ManuallyDrop::into_inner(frozen).resume();
        }
        self.has_more = true;
        OldEvent::Resumed
    }

    async fn release(&mut self) -> OldEvent {
        let Some(SentBatch { frozen, begun }) = self.sent.take() else { return OldEvent::Broken };
        let count = frozen.len();
        self.has_more = count == self.size.tunnels();
        ManuallyDrop::into_inner(frozen).release();
        // The keys are wiped and the descriptors closed when every thread has turned; then the new process may go on.
        self.front.relay.wait_one_tick().await;
        // The new process goes on without this word, too: then at the end of the socket.
        let said = self.child.link.send(kind::GO, &[], &[]).await;
        let pause = begun.elapsed();
        self.size = self.size.after(count, pause);
        let moved = self.moved.get_or_insert(Moved { tunnels: 0, pause });
        moved.tunnels += count;
        moved.pause = moved.pause.max(pause);
        match said {
            Ok(()) => OldEvent::Released,
            Err(error) => self.failed(ChannelError::from(error).into()),
        }
    }

    fn forfeit(&mut self) -> OldEvent {
        if let Some(SentBatch { frozen, .. }) = self.sent.take() {
            tracing::error!(tunnels = frozen.len(), "the new process does not die, its tunnels are lost");
            ManuallyDrop::into_inner(frozen).release();
        }
        OldEvent::Released
    }
}
