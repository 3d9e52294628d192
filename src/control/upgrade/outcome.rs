//! What an upgrade comes to: the binary was replaced, or why not.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::channel::ChannelError;

/// The binary was replaced.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Replaced {
    /// The id of the new process.
    pub process: u32,
    /// Tunnels that went over so far.
    pub tunnels: usize,
    /// The longest that a tunnel was carried by no process.
    pub pause: Duration,
}

/// Why the binary was not replaced. This process goes on as before, without the tunnels of a new process that died.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    /// There is no file that a new process could read.
    #[error("this balancer was not started from a file, so a new process would not know its config")]
    NoFile,
    /// This process is ending.
    #[error("this process is ending")]
    Ending,
    /// This process was replaced already.
    #[error("another process has taken over; ask again, and that one answers")]
    TakenOver,
    /// The process before this one still has tunnels to hand over.
    #[error("the process before this one has not handed over all its tunnels yet; ask again")]
    PredecessorBusy,
    /// Each process that was started had read a config that was out of date by then.
    #[error("the config has changed whenever a new process was about to take over; ask again")]
    Reloaded,
    /// A listener cannot be duplicated.
    #[error("no file descriptor is left to hand the listeners over with; raise the file limit")]
    NoDescriptors,
    /// The new process cannot be started.
    #[error("the new process cannot be started: {0}")]
    Start(#[from] io::Error),
    /// It was started and did not take over.
    #[error("the new process did not take over: {0}")]
    Channel(#[from] ChannelError),
    /// It ended.
    #[error("the new process ended ({0}); its log says why")]
    Died(String),
}

/// Somebody asks for an upgrade and waits for the outcome.
pub(super) type UpgradeOrder = oneshot::Sender<Result<Replaced, Arc<UpgradeError>>>;
