//! Batches of tunnels on their way to the new process, as [`steps`](super::steps) says.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::batch::BatchSize;
use super::giver::UpgradeFault;
use super::link::{TalkFault, expect, send_batch};
use super::steps::{Give, Giver, Heard};
use super::successor::Successor;
use super::words::kind;
use crate::proxy::ProxyContext;
use crate::relay::Frozen;

/// The new process holds a batch within this; it takes some milliseconds. So long are tunnels frozen at most that it does
/// not get.
const HOLD: Duration = Duration::from_millis(900);
/// The word that takes a batch back is in the socket within this, or the socket is full.
const WORD: Duration = Duration::from_millis(50);

/// See the module.
pub struct Offer {
    front: Arc<ProxyContext>,
    /// Of the next batch.
    size: BatchSize,
    giver: Giver,
    /// What has gone over; `None` before the first batch.
    pub moved: Option<Moved>,
}

/// What has gone over.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// Tunnels.
    pub tunnels: usize,
    /// The longest that one of them was carried by nobody.
    pub pause: Duration,
}

/// A batch that was frozen and sent. Frozen tunnels that are dropped go on here, as they must not when this is cut short by
/// the end of the process.
struct Sent {
    frozen: ManuallyDrop<Frozen>,
    begun: Instant,
}

impl Offer {
    /// Nothing has gone over.
    pub fn new(front: &Arc<ProxyContext>) -> Self {
        Self { front: Arc::clone(front), size: BatchSize::first(), giver: Giver::Owns, moved: None }
    }

    /// Gives one batch; true when there may be more, because it was full or had to be taken back. Before the first is
    /// frozen, the new process has said that it is there.
    ///
    /// # Errors
    ///
    /// Why no more can be given; what was offered is carried here again, or by a process that has it.
    pub async fn give(&mut self, new: &mut Successor) -> Result<bool, UpgradeFault> {
        if new.settles && self.moved.is_some() {
            new.is_there(Duration::MAX).await?;
        }
        let begun = Instant::now();
        let frozen = ManuallyDrop::new(self.front.relay.freeze(self.size.tunnels()).await);
        self.giver = Giver::offering(self.moved.is_none());
        // One that cannot be taken back is waited for, where it carries others.
        let within = if self.moved.is_none() || new.settles { HOLD } else { Duration::MAX };
        let mut is_whole = false;
        let held = async {
            match send_batch(&mut new.link, frozen.parcels()).await {
                // One that closed the socket may have refused the batch before that.
                Err(fault) if !fault.is_end() => Err(fault),
                sent => {
                    is_whole = sent.is_ok();
                    expect(&mut new.link, kind::HELD, within).await
                }
            }
        };
        let held = timeout(within, held).await.unwrap_or(Err(TalkFault::Late(within)));
        let sent = Sent { frozen, begun };
        match held {
            Ok(_) => self.let_go(new, sent).await,
            Err(fault) => self.is_not_held(new, sent, (fault, is_whole)).await,
        }
    }

    async fn is_not_held(
        &mut self,
        new: &mut Successor,
        sent: Sent,
        (fault, is_whole): (TalkFault, bool),
    ) -> Result<bool, UpgradeFault> {
        let heard = match fault {
            TalkFault::Told(_) => Heard::Refused,
            TalkFault::Late(_) if is_whole => Heard::Late,
            TalkFault::Late(_) => Heard::Stuck,
            _ => Heard::Broken,
        };
        match self.giver.hear(heard) {
            Give::Revoke => self.revoke(new, sent).await,
            give => self.keep(new, sent, (give, fault)).await,
        }
    }

    /// The batch stays here, as soon as the new process cannot have it.
    async fn keep(
        &mut self,
        new: &mut Successor,
        sent: Sent,
        (give, fault): (Give, TalkFault),
    ) -> Result<bool, UpgradeFault> {
        match give {
            Give::Kill => self.kill(new, sent.frozen).await,
            _ => ManuallyDrop::into_inner(sent.frozen).resume(),
        }
        Err(fault.into())
    }

    async fn let_go(&mut self, new: &mut Successor, sent: Sent) -> Result<bool, UpgradeFault> {
        let count = sent.frozen.len();
        let is_full = count == self.size.tunnels();
        let gave = self.giver.hear(Heard::Held);
        debug_assert_eq!(gave, Give::LetGo);
        ManuallyDrop::into_inner(sent.frozen).let_go();
        // The keys are wiped and the descriptors closed when every thread has turned; then the others may.
        self.front.relay.turned().await;
        // It goes on when this does not reach it, too: then the end of the socket tells it.
        let said = new.link.send(kind::GO, &[], &[]).await;
        let pause = sent.begun.elapsed();
        self.size = self.size.after(count, pause);
        let moved = self.moved.get_or_insert(Moved { tunnels: 0, pause });
        moved.tunnels += count;
        moved.pause = moved.pause.max(pause);
        said.map_err(TalkFault::from)?;
        Ok(is_full)
    }

    /// Takes back what a process that carries others is late with; where the socket has no room for the word, waits.
    async fn revoke(&mut self, new: &mut Successor, sent: Sent) -> Result<bool, UpgradeFault> {
        let count = sent.frozen.len();
        match timeout(WORD, new.link.send(kind::BACK, &[], &[])).await {
            Ok(Ok(())) => {
                let gave = self.giver.hear(Heard::Revoked);
                debug_assert_eq!(gave, Give::Resume);
                ManuallyDrop::into_inner(sent.frozen).resume();
                self.size = self.size.after(count, sent.begun.elapsed());
                tracing::warn!(tunnels = count, "the new process is late, the batch is taken back");
                new.has_freed().await?;
                return Ok(true);
            }
            Ok(Err(fault)) => {
                let give = self.giver.hear(Heard::Broken);
                return self.keep(new, sent, (give, fault.into())).await;
            }
            Err(_) => {}
        }
        match new.hears(kind::HELD, Duration::MAX).await {
            Ok(()) => self.let_go(new, sent).await,
            Err(UpgradeFault::Talk(fault)) => {
                let is_refused = matches!(fault, TalkFault::Told(_));
                let give = self.giver.hear(if is_refused { Heard::Refused } else { Heard::Broken });
                self.keep(new, sent, (give, fault)).await
            }
            // This process ends, and with it the link: then they are the other's.
            Err(fault) => Err(fault),
        }
    }

    /// Kills the new process, and carries the batch again once it is dead.
    async fn kill(&mut self, new: &mut Successor, frozen: ManuallyDrop<Frozen>) {
        let is_dead = new.kill().await;
        let frozen = ManuallyDrop::into_inner(frozen);
        if is_dead && self.giver.hear(Heard::Dead) == Give::Resume {
            return frozen.resume();
        }
        // Never two owners: whoever cannot be seen dead may carry them.
        tracing::error!(tunnels = frozen.len(), "the new process does not die, its tunnels are lost");
        frozen.let_go();
    }
}
