//! The new process as the old one sees it: a child, and the channel to it.

use std::time::Duration;

use tokio::process::Child;
use tokio::time::timeout;

use super::channel::{ChannelError, expect, receive};
use super::outcome::UpgradeError;
use super::protocol::kind;
use crate::net::handover_socket::{HandoverFrame, HandoverSocket};
use crate::shutdown::{Phase, Shutdown};

/// A process that was killed is gone within this.
const DEATH: Duration = Duration::from_secs(10);
/// A process that has closed the channel is gone within this, or lives on.
const ENDING: Duration = Duration::from_secs(2);

/// The new process: started by this one, and not necessarily ready.
pub(super) struct ChildProcess {
    /// The channel to it.
    pub link: HandoverSocket,
    child: Child,
    /// See [`Ready::settles`](super::protocol::Ready::settles).
    pub settles: bool,
    /// The phase of this process.
    shutdown: Shutdown,
}

impl ChildProcess {
    /// A process that was just started.
    pub(super) fn new(link: HandoverSocket, child: Child, shutdown: Shutdown) -> Self {
        Self { link, child, settles: false, shutdown }
    }

    /// Its id, as long as it has not ended.
    pub(super) fn id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Asks whether it is alive, and waits for its answer.
    ///
    /// # Errors
    ///
    /// It has ended, it does not answer in time, or this process ends.
    pub(super) async fn ping(&mut self, within: Duration) -> Result<(), UpgradeError> {
        self.link.send(kind::PING, &[], &[]).await.map_err(ChannelError::from)?;
        tokio::select! {
            answer = expect(&mut self.link, kind::PONG, within) => Ok(answer.map(drop)?),
            () = self.shutdown.wait_for(Phase::Draining) => Err(UpgradeError::Ending),
        }
    }

    /// Waits for its next frame without a time limit.
    ///
    /// # Errors
    ///
    /// It has ended, or this process ends.
    pub(super) async fn receive(&mut self) -> Result<HandoverFrame, UpgradeError> {
        tokio::select! {
            frame = receive(&mut self.link) => Ok(frame?),
            () = self.shutdown.wait_for(Phase::Draining) => Err(UpgradeError::Ending),
        }
    }

    /// Kills it; true when it is dead.
    pub(super) async fn kill(&mut self) -> bool {
        // It may be dead already.
        let _ = self.child.start_kill();
        matches!(timeout(DEATH, self.child.wait()).await, Ok(Ok(_)))
    }

    /// Whether it is dead, after this error of the channel.
    pub(super) async fn is_dead(&mut self, error: &UpgradeError) -> bool {
        let is_end = matches!(error, UpgradeError::Channel(error) if error.is_end());
        let within = if is_end { ENDING } else { Duration::ZERO };
        matches!(timeout(within, self.child.wait()).await, Ok(Ok(_)))
    }

    /// Kills it, and gives the reason: the status that it ended with by itself, or else `error`.
    pub(super) async fn dismiss(&mut self, error: UpgradeError) -> UpgradeError {
        let is_end = matches!(&error, UpgradeError::Channel(error) if error.is_end());
        let is_dead = is_end && self.is_dead(&error).await;
        let status = self.child.try_wait().ok().flatten().filter(|_| is_dead);
        self.kill().await;
        status.map_or(error, |status| UpgradeError::Died(status.to_string()))
    }
}
