//! One upgrade in the old process: starts the new one, hands everything over, and ends.
//!
//! The old process owns the service until its tunnels have gone over: when the new process dies before that, it accepts
//! clients again with what it has. Then it *settles*: it closes its listeners, and only finishes what it has begun.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::batch_sender::BatchSender;
use super::channel::{ChannelError, borrow_all, decode, expect, send};
use super::child::ChildProcess;
use super::outcome::{Replaced, UpgradeError, UpgradeOrder};
use super::program::Program;
use super::protocol::{DrainRecord, FinalReport, HandedState, Hello, NodeRecord, Ready, VERSION, kind};
use crate::control::probe::all_nodes;
use crate::control::rebalance::PendingRebalance;
use crate::control::reload::ReloadLock;
use crate::control::{Reload, service_status};
use crate::net::handover_socket::HandoverSocket;
use crate::proxy::drain::{self, DrainSnapshot};
use crate::proxy::upstream::Upstream;
use crate::proxy::{ProxyContext, UpstreamPool};
use crate::service;
use crate::shutdown::Phase;

/// The new process reads its config and probes its nodes within this.
const START_TIME: Duration = Duration::from_secs(60);
/// The new process answers a ping, and reads what is sent to it, within this.
const REPLY_TIME: Duration = Duration::from_secs(10);
/// The process before this one has handed over its tunnels within this, or is stuck.
const SETTLE_TIME: Duration = Duration::from_secs(30);
/// How often this process checks what it still has to finish.
const FINISH_CHECK: Duration = Duration::from_millis(20);
/// How many new processes are started because the config changes meanwhile.
const STARTS: usize = 5;

/// The old process in one upgrade.
pub(super) struct OldProcess<'a> {
    reload: &'a Arc<Reload>,
    request: Option<UpgradeOrder>,
    /// Requests for another upgrade.
    requests: &'a mut mpsc::Receiver<UpgradeOrder>,
    /// The rebalances that this process has suspended.
    unfinished: Vec<PendingRebalance>,
}

impl<'a> OldProcess<'a> {
    /// Before the upgrade; `request` is the one that it answers.
    pub(super) fn new(
        reload: &'a Arc<Reload>,
        request: Option<UpgradeOrder>,
        requests: &'a mut mpsc::Receiver<UpgradeOrder>,
    ) -> Self {
        Self { reload, request, requests, unfinished: Vec::new() }
    }

    fn front(&self) -> &Arc<ProxyContext> {
        self.reload.front()
    }

    /// Hands everything over. Returns when nothing is left to do here.
    ///
    /// # Errors
    ///
    /// Why this process goes on.
    pub(super) async fn run(&mut self, program: &Program) -> Result<(), UpgradeError> {
        if !self.reload.has_file() {
            return Err(UpgradeError::NoFile);
        }
        service::notify_reloading();
        tracing::info!(program = %program.path().display(), "upgrade begins");
        for _ in 0..STARTS {
            match self.try_once(program).await {
                Err(UpgradeError::Reloaded) => {
                    tracing::info!("the config has changed meanwhile, another new process is started");
                }
                outcome => return outcome,
            }
        }
        Err(UpgradeError::Reloaded)
    }

    async fn try_once(&mut self, program: &Program) -> Result<(), UpgradeError> {
        let settled = timeout(SETTLE_TIME, self.reload.predecessor().wait_until_settled()).await;
        settled.map_err(|_| UpgradeError::PredecessorBusy)?;
        if self.front().shutdown.phase() != Phase::Serving {
            return Err(UpgradeError::Ending);
        }
        let (mut new, generation) = self.start(program).await?;
        let reload = Arc::clone(self.reload);
        let still = match self.until_ready(&mut new).await {
            Ok(()) => reload.lock().await,
            Err(error) => return Err(new.dismiss(error).await),
        };
        if self.front().state.load().generation != generation {
            new.kill().await;
            return Err(UpgradeError::Reloaded);
        }
        let mut sender = BatchSender::new(reload.front(), new);
        if let Err(error) = self.hand_over(&mut sender, &still).await {
            return Err(self.serve_again(&mut sender, error).await);
        }
        // Callers that wait for a reload are answered now: another process has taken over.
        drop(still);
        self.finish(&mut sender).await;
        Ok(())
    }

    /// Starts the new process and sends it the listeners; gives the config generation that it was told.
    async fn start(&self, program: &Program) -> Result<(ChildProcess, u32), UpgradeError> {
        let front = self.front();
        let (generation, sockets) = {
            // A change under way is complete then.
            let _still = self.reload.lock().await;
            (
                front.state.load().generation,
                self.reload.sockets_to_hand_over().ok_or(UpgradeError::NoDescriptors)?,
            )
        };
        let (listeners, sockets): (Vec<String>, Vec<OwnedFd>) = sockets.into_iter().unzip();
        let (link, theirs) = HandoverSocket::pair()?;
        let mut new = ChildProcess::new(link, program.start(theirs)?, front.shutdown.clone());
        let hello = Hello { version: VERSION, generation, clock: front.now(), listeners, settles: true };
        let hello = serde_json::to_vec(&hello).map_err(ChannelError::from)?;
        // A process that ended at once may have said why: that is read next.
        let _ = new.link.send(kind::HELLO, &hello, &borrow_all(&sockets)).await;
        Ok((new, generation))
    }

    async fn until_ready(&self, new: &mut ChildProcess) -> Result<(), UpgradeError> {
        let frame = tokio::select! {
            ready = expect(&mut new.link, kind::READY, START_TIME) => ready?,
            () = self.front().shutdown.wait_for(Phase::Draining) => return Err(UpgradeError::Ending),
        };
        if !frame.body.is_empty() {
            new.settles = decode::<Ready>(&frame)?.settles;
        }
        if new.settles { new.ping(REPLY_TIME).await } else { Ok(()) }
    }

    /// Everything up to the moment that the tunnels have gone over and this process has settled.
    async fn hand_over(
        &mut self,
        sender: &mut BatchSender,
        still: &ReloadLock<'_>,
    ) -> Result<(), UpgradeError> {
        self.front().shutdown.set_handing_over(true);
        self.unfinished = self.reload.rebalancer().suspend().await;
        self.reload.pause_accepting().await;
        let state = self.handed_state(still);
        let sent = timeout(REPLY_TIME, send(&mut sender.child.link, kind::STATE, &state)).await;
        sent.map_err(|_| ChannelError::TimedOut(REPLY_TIME))??;
        let mut has_more = sender.hand_over().await;
        if sender.moved.is_some() {
            tracing::info!(process = sender.child.id(), "another process has taken over");
        }
        loop {
            match has_more {
                Ok(true) => has_more = sender.hand_over().await,
                Ok(false) => break,
                // It has carried none, or all that it carried has ended with it.
                Err(error) if sender.moved.is_none() || sender.child.is_dead(&error).await => {
                    return Err(error);
                }
                Err(error) => {
                    self.keep_rest(&error);
                    break;
                }
            }
        }
        self.settle(sender).await;
        Ok(())
    }

    /// What the new process continues from; it is what is shown here from now on.
    fn handed_state(&self, still: &ReloadLock<'_>) -> HandedState {
        let front = self.front();
        let record = |(pool, node): (Arc<UpstreamPool>, Arc<Upstream>)| NodeRecord {
            pool: pool.config.name.to_string(),
            node: node.node.id.to_string(),
            address: node.node.address.to_string(),
            health: node.health_memory(),
        };
        HandedState {
            counted: front.metrics.freeze(),
            nodes: all_nodes(&front.state.load()).into_iter().map(record).collect(),
            drains: drain_records(front),
            left: still.removals(),
            rebalances: self.unfinished.clone(),
        }
    }

    /// What has not gone over is carried here to its end, or by a process that has it.
    fn keep_rest(&self, error: &UpgradeError) {
        tracing::error!(fault = %error, left = self.front().relay.tunnel_count(), "the tunnels that are left stay here");
    }

    /// From here on this process never serves again: it closes its listeners, and governs nothing.
    async fn settle(&mut self, sender: &mut BatchSender) {
        let front = Arc::clone(self.front());
        front.shutdown.supersede();
        front.state.load().pools.values().for_each(|pool| pool.close_idle_connections());
        self.reload.release_sockets();
        if sender.child.settles && sender.is_open() {
            // Where this does not get through, nothing after it does.
            let _ = sender.child.link.send(kind::SETTLED, &[], &[]).await;
        }
        front.metrics.record_upgrade(true);
        let Some(moved) = sender.moved else { return };
        let (process, tunnels, pause) = (sender.child.id(), moved.tunnels, moved.pause);
        tracing::info!(process, tunnels, ?pause, "the tunnels have gone over");
        if let Some(request) = self.request.take() {
            // The caller may have stopped waiting.
            let _ = request.send(Ok(Replaced { process, tunnels, pause }));
        }
    }

    /// Finishes the handshakes and requests that were begun here, and hands over the tunnels that come of them and those
    /// that the process before this one has still to give.
    async fn finish(&mut self, sender: &mut BatchSender) {
        let front = Arc::clone(self.front());
        let deadline = Instant::now() + self.reload.config().shutdown.drain;
        loop {
            while let Ok(request) = self.requests.try_recv() {
                // The caller may have stopped waiting.
                let _ = request.send(Err(Arc::new(UpgradeError::TakenOver)));
            }
            if sender.is_open() && front.relay.tunnel_count() > 0 {
                match sender.hand_over().await {
                    Err(error) => self.keep_rest(&error),
                    Ok(true) => continue,
                    Ok(false) => {}
                }
            }
            front.relay.wait_one_tick().await;
            // Before the tunnels are counted: the last of them are here when it has ended.
            let is_last = self.reload.predecessor().has_ended();
            let (places, live) = (front.admission.connections.connections(), front.relay.tunnel_count());
            if is_last && places == 0 && live == 0 {
                break;
            }
            if is_last && Instant::now() >= deadline && (sender.is_open() || live == 0) {
                tracing::warn!(connections = places, "requests aborted at the end of the drain time");
                break;
            }
            tokio::time::sleep(FINISH_CHECK).await;
        }
        if sender.is_open() {
            let new = &mut sender.child;
            let rebalances = if new.settles { Vec::new() } else { std::mem::take(&mut self.unfinished) };
            let counted = front.metrics.export();
            let report = FinalReport { counted, drains: drain_records(&front), rebalances };
            // The other process shows what this one had shown without it: at worst a few counts are lost.
            let _ = send(&mut new.link, kind::FINAL, &report).await;
        }
    }

    /// Kills the new process, and serves as before with what is here.
    async fn serve_again(&mut self, sender: &mut BatchSender, error: UpgradeError) -> UpgradeError {
        let error = sender.child.dismiss(error).await;
        let front = Arc::clone(self.front());
        front.metrics.unfreeze();
        front.shutdown.set_handing_over(false);
        for one in std::mem::take(&mut self.unfinished) {
            self.reload.rebalancer().resume(&one);
        }
        self.reload.resume_accepting();
        if let Some(moved) = sender.moved {
            tracing::error!(
                lost = moved.tunnels,
                left = front.relay.tunnel_count(),
                "the new process is dead"
            );
            // The new process had reported to the service manager.
            service::notify_taken_over(&service_status::status_line(&front));
        }
        error
    }

    /// Reports that the upgrade failed and this process serves on.
    pub(super) fn fail(&mut self, error: UpgradeError) {
        tracing::error!(fault = %error, "upgrade failed, this process serves on");
        self.front().metrics.record_upgrade(false);
        service::notify_ready(&service_status::status_line(self.front()));
        if let Some(request) = self.request.take() {
            // The caller may have stopped waiting.
            let _ = request.send(Err(Arc::new(error)));
        }
    }
}

fn drain_records(front: &ProxyContext) -> Vec<DrainRecord> {
    let record = |drain: DrainSnapshot| DrainRecord {
        pool: drain.pool,
        node: drain.node,
        is_ordered: drain.is_ordered,
        over: drain.order.over,
        code: drain.order.code,
        reason: drain.order.reason,
        elapsed: drain.progress.elapsed,
        closed: drain.progress.closed,
    };
    drain::snapshots(front).into_iter().map(record).collect()
}
