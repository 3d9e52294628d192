//! Starts upgrades, one after the other: when the admin API asks, or on SIGUSR2.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::old_process::OldProcess;
use super::outcome::{Replaced, UpgradeError, UpgradeOrder};
use super::program::Program;
use crate::control::Reload;
use crate::shutdown::Phase;

/// Requests upgrades, which run one after the other.
#[derive(Clone)]
pub(crate) struct Upgrader {
    requests: mpsc::Sender<UpgradeOrder>,
    /// Cancelled when everything has gone over.
    done: CancellationToken,
}

impl Upgrader {
    /// The upgrader, and the task that performs upgrades. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The signal cannot be handled.
    pub(crate) fn new(program: Program) -> io::Result<(Self, UpgradeTask)> {
        let (sender, requests) = mpsc::channel(4);
        let done = CancellationToken::new();
        let signal = signal(SignalKind::user_defined2())?;
        let upgrader = Self { requests: sender, done: done.clone() };
        Ok((upgrader, UpgradeTask { program, requests, signal, done }))
    }

    /// Replaces the binary. An upgrade that has begun goes on when the caller stops waiting.
    ///
    /// # Errors
    ///
    /// Why not; everything is as before.
    pub(crate) async fn upgrade(&self) -> Result<Replaced, Arc<UpgradeError>> {
        let (request, outcome) = oneshot::channel();
        let ending = || Arc::new(UpgradeError::Ending);
        self.requests.send(request).await.map_err(|_| ending())?;
        outcome.await.map_err(|_| ending())?
    }

    /// Waits until everything has gone over, and this process can end.
    pub(crate) async fn done(&self) {
        self.done.cancelled().await;
    }
}

/// Performs the upgrades that are requested.
pub(crate) struct UpgradeTask {
    program: Program,
    requests: mpsc::Receiver<UpgradeOrder>,
    signal: Signal,
    done: CancellationToken,
}

impl UpgradeTask {
    /// Performs upgrades until everything has gone over or the process ends.
    pub(crate) async fn run(mut self, reload: Arc<Reload>) {
        loop {
            let request = tokio::select! {
                request = self.requests.recv() => request,
                _ = self.signal.recv() => None,
                () = reload.front().shutdown.wait_for(Phase::Draining) => return,
            };
            let mut process = OldProcess::new(&reload, request, &mut self.requests);
            match process.run(&self.program).await {
                Ok(()) => return self.done.cancel(),
                Err(error) => process.fail(error),
            }
        }
    }
}
