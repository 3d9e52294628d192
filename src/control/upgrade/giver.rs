//! The way to an upgrade: who asks for it, what it came to, and why not.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::handing::Handing;
use super::link::TalkFault;
use super::program::Program;
use crate::control::Reload;
use crate::shutdown::Phase;

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

/// Why the binary was not replaced; this process goes on as before, without what a new process that died had carried.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeFault {
    /// There is nothing that a new process could read.
    #[error("this balancer was not started from a file, so a new process would not know its config")]
    NoFile,
    /// It is ending.
    #[error("this process is ending")]
    Ending,
    /// It was replaced already.
    #[error("another process has taken over; ask again, and that one answers")]
    TakenOver,
    /// The process before this one is not done.
    #[error("the process before this one has not handed over all its tunnels yet; ask again")]
    Taking,
    /// Each process that was started knew a config that was not in effect any more.
    #[error("the config has changed whenever a new process was about to take over; ask again")]
    Reloaded,
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
pub(super) type Question = oneshot::Sender<Result<Replaced, Arc<UpgradeFault>>>;

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
        let mut handing = Handing::new(&reload, question, &mut asked);
        match handing.run(&program).await {
            Ok(()) => return done.cancel(),
            Err(fault) => handing.failed(fault),
        }
    }
}
