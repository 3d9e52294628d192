//! One upgrade in the old process: starts the new one, gives it everything, and ends.
//!
//! The old process is the owner of the service until its tunnels have gone over: when the new process dies before that,
//! it takes clients again with what it has. Then it *settles*: it closes its listeners, and only finishes what it has
//! begun.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::giver::{Question, Replaced, UpgradeFault};
use super::link::{TalkFault, expect, lent, read, say};
use super::offer::Offer;
use super::program::Program;
use super::successor::Successor;
use super::words::{Drained, Hello, Known, Last, Ready, Take, VERSION, kind};
use crate::control::apply::Still;
use crate::control::probe::nodes;
use crate::control::rebalance::Unfinished;
use crate::control::{Reload, report};
use crate::net::handover::Link;
use crate::proxy::drain::{self, DrainSnapshot};
use crate::proxy::upstream::Upstream;
use crate::proxy::{ProxyContext, UpstreamPool};
use crate::service;
use crate::shutdown::Phase;

/// The new process reads its config and asks its nodes within this.
const START: Duration = Duration::from_secs(60);
/// It says that it is there, and takes what is said to it, within this.
const WORD: Duration = Duration::from_secs(10);
/// The process before this one has given its tunnels within this, or is stuck.
const SETTLING: Duration = Duration::from_secs(30);
/// From one look at what is still to finish here to the next.
const LOOK: Duration = Duration::from_millis(20);
/// How often a new process is started anew because the config has changed meanwhile.
const STARTS: usize = 5;

/// See the module.
pub(super) struct Handing<'a> {
    reload: &'a Arc<Reload>,
    question: Option<Question>,
    /// Who asks for another one.
    asked: &'a mut mpsc::Receiver<Question>,
    offer: Offer,
    /// The rebalances that this process has left off.
    unfinished: Vec<Unfinished>,
}

impl<'a> Handing<'a> {
    /// Nothing has happened yet.
    pub fn new(
        reload: &'a Arc<Reload>,
        question: Option<Question>,
        asked: &'a mut mpsc::Receiver<Question>,
    ) -> Self {
        Self { reload, question, asked, offer: Offer::new(reload.front()), unfinished: Vec::new() }
    }

    fn front(&self) -> &Arc<ProxyContext> {
        self.reload.front()
    }

    /// Returns when nothing is left to do here.
    ///
    /// # Errors
    ///
    /// Why this process goes on.
    pub async fn run(&mut self, program: &Program) -> Result<(), UpgradeFault> {
        if !self.reload.has_file() {
            return Err(UpgradeFault::NoFile);
        }
        service::reloading();
        tracing::info!(program = %program.path().display(), "upgrade begins");
        for _ in 0..STARTS {
            match self.try_once(program).await {
                Err(UpgradeFault::Reloaded) => {
                    tracing::info!("the config has changed meanwhile, a new process is started anew");
                }
                outcome => return outcome,
            }
        }
        Err(UpgradeFault::Reloaded)
    }

    async fn try_once(&mut self, program: &Program) -> Result<(), UpgradeFault> {
        let settled = timeout(SETTLING, self.reload.predecessor().settled()).await;
        settled.map_err(|_| UpgradeFault::Taking)?;
        if self.front().shutdown.phase() != Phase::Serving {
            return Err(UpgradeFault::Ending);
        }
        let (mut new, generation) = self.start(program).await?;
        let reload = Arc::clone(self.reload);
        let still = match self.until_ready(&mut new).await {
            Ok(()) => reload.still().await,
            Err(fault) => return Err(new.dismiss(fault).await),
        };
        if self.front().state.load().generation != generation {
            new.kill().await;
            return Err(UpgradeFault::Reloaded);
        }
        if let Err(fault) = self.hand(&mut new, &still).await {
            return Err(self.go_on(&mut new, fault).await);
        }
        // Whoever waits for a change is told who answers.
        drop(still);
        self.finish(&mut new).await;
        Ok(())
    }

    /// Starts the new process, and says where this one stands; gives the generation that it has been told.
    async fn start(&self, program: &Program) -> Result<(Successor, u32), UpgradeFault> {
        let front = self.front();
        let (generation, sockets) = {
            // A change under way has been done then.
            let _still = self.reload.still().await;
            (front.state.load().generation, self.reload.sockets().ok_or(UpgradeFault::NoDescriptors)?)
        };
        let (listeners, sockets): (Vec<String>, Vec<OwnedFd>) = sockets.into_iter().unzip();
        let (link, theirs) = Link::pair()?;
        let mut new = Successor::new(link, program.start(theirs)?, front.shutdown.clone());
        let hello = Hello { version: VERSION, generation, clock: front.now(), listeners, settles: true };
        let hello = serde_json::to_vec(&hello).map_err(TalkFault::from)?;
        // One that ended at once may have said why: that is read next.
        let _ = new.link.send(kind::HELLO, &hello, &lent(&sockets)).await;
        Ok((new, generation))
    }

    async fn until_ready(&self, new: &mut Successor) -> Result<(), UpgradeFault> {
        let frame = tokio::select! {
            ready = expect(&mut new.link, kind::READY, START) => ready?,
            () = self.front().shutdown.reached(Phase::Draining) => return Err(UpgradeFault::Ending),
        };
        if !frame.body.is_empty() {
            new.settles = read::<Ready>(&frame)?.settles;
        }
        if new.settles { new.is_there(WORD).await } else { Ok(()) }
    }

    /// Everything up to the moment that the tunnels have gone over and this process has settled.
    async fn hand(&mut self, new: &mut Successor, still: &Still<'_>) -> Result<(), UpgradeFault> {
        self.front().shutdown.hand_over(true);
        self.unfinished = self.reload.rebalances().leave_off().await;
        self.reload.rest().await;
        let take = self.take(still);
        timeout(WORD, say(&mut new.link, kind::TAKE, &take)).await.map_err(|_| TalkFault::Late(WORD))??;
        let mut is_more = self.offer.give(new).await;
        if self.offer.moved.is_some() {
            tracing::info!(process = new.id(), "another process has taken over");
        }
        loop {
            match is_more {
                Ok(true) => is_more = self.offer.give(new).await,
                Ok(false) => break,
                // It has carried none, or all that it carried has ended with it.
                Err(fault) if self.offer.moved.is_none() || new.is_dead(&fault).await => return Err(fault),
                Err(fault) => {
                    self.give_up(new, &fault);
                    break;
                }
            }
        }
        self.settle(new).await;
        Ok(())
    }

    /// What the new process goes on from; it is what is shown here from now on.
    fn take(&self, still: &Still<'_>) -> Take {
        let front = self.front();
        let known = |(pool, node): (Arc<UpstreamPool>, Arc<Upstream>)| Known {
            pool: pool.config.name.to_string(),
            node: node.node.id.to_string(),
            address: node.node.address.to_string(),
            health: node.health_memory(),
        };
        Take {
            counted: front.metrics.hold(),
            nodes: nodes(&front.state.load()).into_iter().map(known).collect(),
            drains: drains(front),
            left: still.removals(),
            rebalances: self.unfinished.clone(),
        }
    }

    /// What was left is on its way to a process that has it, or is carried here to its end.
    fn give_up(&self, new: &mut Successor, fault: &UpgradeFault) {
        tracing::error!(%fault, left = self.front().relay.live(), "the tunnels that are left stay here");
        new.is_open = false;
    }

    /// From here on this process never serves again: it has no listener, and governs nothing.
    async fn settle(&mut self, new: &mut Successor) {
        let front = Arc::clone(self.front());
        front.shutdown.relieve();
        front.state.load().pools.values().for_each(|pool| pool.close_idle_connections());
        self.reload.leave_sockets();
        if new.settles && new.is_open && new.link.send(kind::SETTLED, &[], &[]).await.is_err() {
            new.is_open = false;
        }
        front.metrics.upgrade(true);
        let Some(moved) = self.offer.moved else { return };
        let (process, tunnels, pause) = (new.id(), moved.tunnels, moved.pause);
        tracing::info!(process, tunnels, ?pause, "the tunnels have gone over");
        if let Some(question) = self.question.take() {
            // Whoever has stopped waiting hears nothing.
            let _ = question.send(Ok(Replaced { process, tunnels, pause }));
        }
    }

    /// Handshakes and requests that were begun here are finished here, and the tunnels that come of them go over, as do
    /// those that the process before this one has still to give.
    async fn finish(&mut self, new: &mut Successor) {
        let front = Arc::clone(self.front());
        let deadline = Instant::now() + self.reload.config().shutdown.drain;
        loop {
            while let Ok(question) = self.asked.try_recv() {
                // Whoever has stopped waiting hears nothing.
                let _ = question.send(Err(Arc::new(UpgradeFault::TakenOver)));
            }
            if new.is_open && front.relay.live() > 0 {
                match self.offer.give(new).await {
                    Err(fault) => self.give_up(new, &fault),
                    Ok(true) => continue,
                    Ok(false) => {}
                }
            }
            front.relay.turned().await;
            // Before the tunnels are counted: the last of them are here when it has ended.
            let is_last = self.reload.predecessor().has_ended();
            let (places, live) = (front.admission.connections.taken(), front.relay.live());
            if is_last && places == 0 && live == 0 {
                break;
            }
            if is_last && Instant::now() >= deadline && (new.is_open || live == 0) {
                tracing::warn!(connections = places, "requests are cut at the end of the drain time");
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        if new.is_open {
            // What it had shown is what the other shows without this, so a fault loses a few counts and no more.
            let rebalances = if new.settles { Vec::new() } else { std::mem::take(&mut self.unfinished) };
            let last = Last { counted: front.metrics.counted(), drains: drains(&front), rebalances };
            let _ = say(&mut new.link, kind::LAST, &last).await;
        }
    }

    /// Kills the new process, and serves as before with what is here.
    async fn go_on(&mut self, new: &mut Successor, fault: UpgradeFault) -> UpgradeFault {
        let fault = new.dismiss(fault).await;
        let front = Arc::clone(self.front());
        front.metrics.go_on();
        front.shutdown.hand_over(false);
        for one in std::mem::take(&mut self.unfinished) {
            self.reload.rebalances().resume(&one);
        }
        self.reload.accept_again();
        if let Some(moved) = self.offer.moved {
            tracing::error!(lost = moved.tunnels, left = front.relay.live(), "the new process is dead");
            // It has spoken for the service.
            service::taken_over(&report::status(&front));
        }
        fault
    }

    /// Says that this process goes on.
    pub fn failed(&mut self, fault: UpgradeFault) {
        tracing::error!(%fault, "upgrade failed, this process serves on");
        self.front().metrics.upgrade(false);
        service::ready(&report::status(self.front()));
        if let Some(question) = self.question.take() {
            // Whoever has stopped waiting hears nothing.
            let _ = question.send(Err(Arc::new(fault)));
        }
    }
}

fn drains(front: &ProxyContext) -> Vec<Drained> {
    let drained = |drain: DrainSnapshot| Drained {
        pool: drain.pool,
        node: drain.node,
        is_ordered: drain.is_ordered,
        over: drain.order.over,
        code: drain.order.code,
        reason: drain.order.reason,
        elapsed: drain.progress.elapsed,
        closed: drain.progress.closed,
    };
    drain::snapshots(front).into_iter().map(drained).collect()
}
