//! Why a command fails.

use std::io;

use mainstay::admin::client::ClientError;
use mainstay::config::Faults;

/// Why the process ends with 1.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The config has faults.
    #[error(transparent)]
    Config(#[from] Faults),
    /// The balancer cannot run.
    #[error("mainstay: {0}")]
    Run(#[from] io::Error),
    /// The running balancer did not do it.
    #[error("mainstay: {0}")]
    Remote(#[from] ClientError),
    /// The address of the running balancer, or its token, is not known.
    #[error("mainstay: {0}")]
    NoTarget(String),
    /// What the command watched was cancelled by somebody else.
    #[error("mainstay: {0}")]
    Cancelled(String),
    /// Some of it failed, and each failure has been printed.
    #[error("")]
    Reported,
}

impl CliError {
    /// The error that keeps the balancer from running: the faults of a config that cannot take effect have their places.
    pub fn of_run(error: io::Error) -> Self {
        match error.downcast::<Faults>() {
            Ok(faults) => Self::Config(faults),
            Err(error) => Self::Run(error),
        }
    }
}
