//! The old process: starts the new one, gives it everything, and ends.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::batch::BatchSize;
use super::link::{TalkFault, expect, lent, say, send_batch};
use super::program::Program;
use super::steps::{Give, Giver, Heard};
use super::words::{Drained, Hello, Known, Last, Take, VERSION, kind};
use crate::control::drain;
use crate::control::probe::nodes;
use crate::control::rebalance::Unfinished;
use crate::control::{Reload, report};
use crate::net::handover::Link;
use crate::proxy::Front;
use crate::relay::Frozen;
use crate::service;
use crate::shutdown::Phase;

/// The new process reads its config and asks its nodes within this.
const START: Duration = Duration::from_secs(60);
/// It holds the first batch within this; it takes some milliseconds. For the others it has all the time, because it
/// carries tunnels itself then.
const HOLD: Duration = Duration::from_secs(10);
/// From one look at what is still to finish here to the next.
const LOOK: Duration = Duration::from_millis(20);
/// A process that was killed is gone within this.
const DEATH: Duration = Duration::from_secs(10);

/// The binary was replaced.
#[derive(Debug, Clone, PartialEq)]
pub struct Replaced {
    /// The new process.
    pub process: u32,
    /// Tunnels that went over so far.
    pub tunnels: usize,
    /// The longest that one of them was carried by nobody.
    pub pause: Duration,
}

/// Why the binary was not replaced; this process goes on as before.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeFault {
    /// There is nothing that a new process could read.
    #[error("this balancer was not started from a file, so a new process would not know its config")]
    NoFile,
    /// It is ending, or being replaced already.
    #[error("this process is ending")]
    Ending,
    /// A listener has no second descriptor.
    #[error("no file descriptor is left to hand the listeners over with; raise the file limit")]
    NoDescriptors,
    /// The new process cannot be started.
    #[error("the new process cannot be started: {0}")]
    Start(#[from] io::Error),
    /// It was started and did not take over.
    #[error("the new process did not take over: {0}")]
    Talk(#[from] TalkFault),
    /// It ended.
    #[error("the new process ended ({0}); its log says why")]
    Died(String),
}

/// Who asks, and waits for the answer.
type Question = oneshot::Sender<Result<Replaced, Arc<UpgradeFault>>>;

/// The way to an upgrade. Upgrades run one after the other.
#[derive(Clone)]
pub struct Upgrader {
    ask: mpsc::Sender<Question>,
    /// Cancelled when everything has gone over.
    done: CancellationToken,
}

impl Upgrader {
    /// The way, and what walks it: upgrades when asked, or by SIGUSR2, until everything has gone over or the process
    /// ends. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The signal cannot be heard.
    pub fn new(reload: Arc<Reload>, program: Program) -> io::Result<(Self, impl Future<Output = ()> + Send)> {
        let (ask, asked) = mpsc::channel(4);
        let done = CancellationToken::new();
        let signal = signal(SignalKind::user_defined2())?;
        let upgrader = Self { ask, done: done.clone() };
        Ok((upgrader, serve(reload, program, (asked, signal), done)))
    }

    /// Replaces the binary. One that has begun goes on when the caller stops waiting.
    ///
    /// # Errors
    ///
    /// Why not; everything is as before.
    pub async fn replace(&self) -> Result<Replaced, Arc<UpgradeFault>> {
        let (answer, answered) = oneshot::channel();
        let ending = || Arc::new(UpgradeFault::Ending);
        self.ask.send(answer).await.map_err(|_| ending())?;
        answered.await.map_err(|_| ending())?
    }

    /// Waits until everything has gone over, and this process can end.
    pub async fn done(&self) {
        self.done.cancelled().await;
    }
}

async fn serve(
    reload: Arc<Reload>,
    program: Program,
    (mut asked, mut signal): (mpsc::Receiver<Question>, Signal),
    done: CancellationToken,
) {
    loop {
        let question = tokio::select! {
            question = asked.recv() => question,
            _ = signal.recv() => None,
            () = reload.front().shutdown.reached(Phase::Draining) => return,
        };
        let mut handing = Handing {
            reload: &reload,
            question,
            giver: Giver::Owns,
            replaced: None,
            batch: BatchSize::first(),
            unfinished: Vec::new(),
        };
        match handing.run(&program).await {
            Ok(()) => return done.cancel(),
            Err(fault) => handing.failed(fault),
        }
    }
}

/// One upgrade.
struct Handing<'a> {
    reload: &'a Arc<Reload>,
    question: Option<Question>,
    giver: Giver,
    /// Once there is no way back.
    replaced: Option<Replaced>,
    /// Of the next batch.
    batch: BatchSize,
    /// The rebalances that this process has left off.
    unfinished: Vec<Unfinished>,
}

impl Handing<'_> {
    fn front(&self) -> &Arc<Front> {
        self.reload.front()
    }

    async fn run(&mut self, program: &Program) -> Result<(), UpgradeFault> {
        if !self.reload.has_file() {
            return Err(UpgradeFault::NoFile);
        }
        let reload = Arc::clone(self.reload);
        let _still = reload.still().await;
        service::reloading();
        tracing::info!("upgrade begins");
        let (names, sockets): (Vec<_>, Vec<_>) =
            self.reload.sockets().ok_or(UpgradeFault::NoDescriptors)?.into_iter().unzip();
        let (mut link, theirs) = Link::pair()?;
        let mut child = program.start(theirs)?;
        let outcome = self.hand(&mut link, &mut child, (names, &lent(&sockets))).await;
        if outcome.is_err() && self.replaced.is_none() {
            // Before anything of its own is carried again: a process that is dead cannot.
            return Err(self.revoke(&mut child, outcome.err()).await);
        }
        outcome
    }

    /// Everything up to the end.
    async fn hand(
        &mut self,
        link: &mut Link,
        child: &mut Child,
        (listeners, sockets): (Vec<String>, &[BorrowedFd<'_>]),
    ) -> Result<(), UpgradeFault> {
        let front = Arc::clone(self.front());
        let hello = Hello {
            version: VERSION,
            generation: front.state.load().generation,
            clock: front.now(),
            listeners,
        };
        let hello = serde_json::to_vec(&hello).map_err(TalkFault::from)?;
        // One that ended at once may have said why: that is read next.
        let _ = link.send(kind::HELLO, &hello, sockets).await;
        tokio::select! {
            ready = expect(link, kind::READY, START) => drop(ready?),
            () = front.shutdown.reached(Phase::Draining) => return Err(UpgradeFault::Ending),
        }
        self.reload.rest().await;
        say(link, kind::TAKE, &self.take()).await?;
        if let Err(fault) = self.give(link, child).await {
            // Also when it had the batch and died before it heard so: somebody has to take new clients.
            self.replaced = None;
            return Err(fault);
        }
        self.unfinished = self.reload.rebalances().unfinished();
        front.shutdown.relieve();
        self.reload.leave_sockets();
        front.state.load().pools.values().for_each(|pool| pool.release());
        front.metrics.upgrade(true);
        tracing::info!(process = child.id(), "another process has taken over");
        self.finish(link, child).await
    }

    /// What the new process goes on from; it is what is shown here from now on.
    fn take(&self) -> Take {
        let front = self.front();
        let known = |(pool, node): (Arc<crate::proxy::Pool>, Arc<crate::proxy::upstream::Upstream>)| Known {
            pool: pool.config.name.to_string(),
            node: node.node.id.to_string(),
            address: node.node.address.to_string(),
            health: node.memory(),
        };
        let nodes = nodes(&front.state.load()).into_iter().map(known).collect();
        Take { counted: front.metrics.hold(), nodes }
    }

    /// One batch.
    async fn give(&mut self, link: &mut Link, child: &mut Child) -> Result<usize, UpgradeFault> {
        let begun = Instant::now();
        // Frozen tunnels that are dropped go on here, as they must not when this is cut short by the end of the process.
        let frozen = ManuallyDrop::new(self.front().relay.freeze(self.batch.tunnels()).await);
        self.giver = Giver::offering(self.replaced.is_none());
        let count = frozen.len();
        let within = if self.giver == Giver::Offered { HOLD } else { Duration::MAX };
        let held = async {
            match send_batch(link, frozen.parcels()).await {
                // One that closed the socket may have refused the batch before that.
                Err(fault) if !fault.is_end() => Err(fault),
                _ => expect(link, kind::HELD, within).await,
            }
        };
        let fault = match timeout(within, held).await.unwrap_or(Err(TalkFault::Late(within))) {
            Ok(_) => return self.let_go(link, ManuallyDrop::into_inner(frozen), begun).await.map(|()| count),
            Err(fault) => fault,
        };
        let heard = match fault {
            TalkFault::Told(_) => Heard::Refused,
            TalkFault::Late(_) => Heard::Late,
            _ => Heard::Broken,
        };
        if self.giver.hear(heard) == Give::Kill {
            self.kill(child, frozen).await;
        } else {
            ManuallyDrop::into_inner(frozen).resume();
        }
        Err(fault.into())
    }

    async fn let_go(&mut self, link: &mut Link, frozen: Frozen, begun: Instant) -> Result<(), UpgradeFault> {
        let count = frozen.len();
        let gave = self.giver.hear(Heard::Held);
        debug_assert_eq!(gave, Give::LetGo);
        frozen.let_go();
        // The keys are wiped and the descriptors closed when every thread has turned; then the others may.
        self.front().relay.turned().await;
        // It goes on when this does not reach it, too: then the end of the socket tells it.
        let said = link.send(kind::GO, &[], &[]).await;
        let pause = begun.elapsed();
        self.batch = self.batch.after(count, pause);
        let replaced = self.replaced.get_or_insert(Replaced { process: 0, tunnels: 0, pause });
        replaced.tunnels += count;
        replaced.pause = replaced.pause.max(pause);
        Ok(said.map_err(TalkFault::from)?)
    }

    /// Kills the new process, and carries the batch again once it is dead.
    async fn kill(&mut self, child: &mut Child, frozen: ManuallyDrop<Frozen>) {
        // It may be dead already.
        let _ = child.start_kill();
        let dead = timeout(DEATH, child.wait()).await;
        let frozen = ManuallyDrop::into_inner(frozen);
        match dead {
            Ok(Ok(_)) if self.giver.hear(Heard::Dead) == Give::Resume => frozen.resume(),
            dead => {
                // Never two owners: whoever cannot be seen dead may carry them.
                tracing::error!(
                    ?dead,
                    tunnels = frozen.len(),
                    "the new process does not die, its tunnels are lost"
                );
                frozen.let_go();
            }
        }
    }

    /// Handshakes and requests that were begun here are finished here, and the tunnels that come of them go over.
    async fn finish(&mut self, link: &mut Link, child: &mut Child) -> Result<(), UpgradeFault> {
        let front = Arc::clone(self.front());
        if let Some(replaced) = &mut self.replaced {
            replaced.process = child.id().unwrap_or_default();
        }
        let deadline = Instant::now() + self.reload.config().shutdown.drain;
        let mut is_open = true;
        loop {
            let limit = self.batch.tunnels();
            if is_open && front.relay.live() > 0 {
                match self.give(link, child).await {
                    // What was left is on its way to a process that has it, or is carried here to its end.
                    Err(fault) => {
                        tracing::error!(%fault, left = front.relay.live(), "the tunnels that are left stay here");
                        is_open = false;
                    }
                    Ok(count) if count == limit => continue,
                    Ok(_) => {}
                }
            }
            self.answer();
            front.relay.turned().await;
            let places = front.admission().places.taken();
            if places == 0 && front.relay.live() == 0 {
                break;
            }
            if Instant::now() >= deadline && (is_open || front.relay.live() == 0) {
                tracing::warn!(connections = places, "requests are cut at the end of the drain time");
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        if is_open {
            // What it had shown is what the other shows without this, so a fault loses a few counts and no more.
            let rebalances = std::mem::take(&mut self.unfinished);
            let last = Last { counted: front.metrics.counted(), drains: drains(&front), rebalances };
            let _ = say(link, kind::LAST, &last).await;
        }
        Ok(())
    }

    /// Tells who asked that it is done, once.
    fn answer(&mut self) {
        if let (Some(replaced), Some(question)) = (&self.replaced, self.question.take()) {
            let Replaced { process, tunnels, pause } = replaced;
            tracing::info!(process, tunnels, ?pause, "the tunnels have gone over");
            // Whoever has stopped waiting hears nothing.
            let _ = question.send(Ok(replaced.clone()));
        }
    }

    /// Kills the new process, and serves as before.
    async fn revoke(&self, child: &mut Child, fault: Option<UpgradeFault>) -> UpgradeFault {
        let ended = matches!(&fault, Some(UpgradeFault::Talk(fault)) if fault.is_end());
        let status = match ended {
            // It has closed the socket, so it is about to end, or has.
            true => timeout(Duration::from_secs(2), child.wait()).await.ok().and_then(Result::ok),
            false => None,
        };
        // It may be dead already.
        let _ = child.start_kill();
        let _ = timeout(DEATH, child.wait()).await;
        self.front().metrics.go_on();
        self.reload.accept_again();
        match (status, fault) {
            (Some(status), _) => UpgradeFault::Died(status.to_string()),
            (None, Some(fault)) => fault,
            (None, None) => UpgradeFault::Ending,
        }
    }

    fn failed(&mut self, fault: UpgradeFault) {
        tracing::error!(%fault, "upgrade failed, this process serves on");
        self.front().metrics.upgrade(false);
        service::ready(&report::status(self.front()));
        if let Some(question) = self.question.take() {
            // Whoever has stopped waiting hears nothing.
            let _ = question.send(Err(Arc::new(fault)));
        }
    }
}

fn drains(front: &Front) -> Vec<Drained> {
    let drained = |drain: drain::Snapshot| Drained {
        pool: drain.pool,
        node: drain.node,
        is_ordered: drain.is_ordered,
        over: drain.order.over,
        code: drain.order.code,
        reason: drain.order.reason,
        elapsed: drain.so_far.elapsed,
        closed: drain.so_far.closed,
    };
    drain::snapshots(front).into_iter().map(drained).collect()
}
