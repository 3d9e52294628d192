//! The new process as the old one has it: a child, and the link to it.

use std::time::Duration;

use tokio::process::Child;
use tokio::time::timeout;

use super::giver::UpgradeFault;
use super::link::{TalkFault, expect};
use super::words::kind;
use crate::net::handover::Link;
use crate::shutdown::{Phase, Shutdown};

/// A process that was killed, or has closed its end of the link, is gone within this.
const DEATH: Duration = Duration::from_secs(10);
/// The same where it has closed the link and may live on.
const ENDING: Duration = Duration::from_secs(2);

/// See the module.
pub struct Successor {
    /// The link to it.
    pub link: Link,
    child: Child,
    /// See [`Ready::settles`](super::words::Ready::settles).
    pub settles: bool,
    /// More can be said to it.
    pub is_open: bool,
    /// Whether this process ends meanwhile.
    shutdown: Shutdown,
}

impl Successor {
    /// A process that was started.
    pub fn new(link: Link, child: Child, shutdown: Shutdown) -> Self {
        Self { link, child, settles: false, is_open: true, shutdown }
    }

    /// Its id, as long as it has not ended.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Asks whether it is there, and waits for the answer; for ever, where there is no time. Nothing may be frozen.
    ///
    /// # Errors
    ///
    /// It has ended, it is late, or this process ends.
    pub async fn is_there(&mut self, within: Duration) -> Result<(), UpgradeFault> {
        self.link.send(kind::PING, &[], &[]).await.map_err(TalkFault::from)?;
        self.hears(kind::PONG, within).await
    }

    /// Waits until it says that it holds nothing of a batch that was taken back.
    ///
    /// # Errors
    ///
    /// It has ended, or this process ends.
    pub async fn has_freed(&mut self) -> Result<(), UpgradeFault> {
        loop {
            match self.hears(kind::FREED, Duration::MAX).await {
                // It had said so before it read that.
                Err(UpgradeFault::Talk(TalkFault::Strange(kind::HELD))) => {}
                heard => return heard,
            }
        }
    }

    /// Waits for a word, or for the end of this process.
    ///
    /// # Errors
    ///
    /// It has ended, it is late, it says something else, or this process ends.
    pub async fn hears(&mut self, word: u8, within: Duration) -> Result<(), UpgradeFault> {
        tokio::select! {
            heard = expect(&mut self.link, word, within) => Ok(heard.map(drop)?),
            () = self.shutdown.reached(Phase::Draining) => Err(UpgradeFault::Ending),
        }
    }

    /// Kills it; true when it is dead.
    pub async fn kill(&mut self) -> bool {
        // It may be dead already.
        let _ = self.child.start_kill();
        matches!(timeout(DEATH, self.child.wait()).await, Ok(Ok(_)))
    }

    /// Whether it is dead, when this is what was heard last.
    pub async fn is_dead(&mut self, fault: &UpgradeFault) -> bool {
        let is_end = matches!(fault, UpgradeFault::Talk(fault) if fault.is_end());
        let within = if is_end { ENDING } else { Duration::ZERO };
        matches!(timeout(within, self.child.wait()).await, Ok(Ok(_)))
    }

    /// Kills it, and says why it came to that: what it ended with of its own accord, or the fault.
    pub async fn dismiss(&mut self, fault: UpgradeFault) -> UpgradeFault {
        let is_end = matches!(&fault, UpgradeFault::Talk(fault) if fault.is_end());
        let is_dead = is_end && self.is_dead(&fault).await;
        let status = self.child.try_wait().ok().flatten().filter(|_| is_dead);
        self.kill().await;
        status.map_or(fault, |status| UpgradeFault::Died(status.to_string()))
    }
}
