//! The access log's pages: what the config wishes, and a new one whenever SIGUSR1 says that the file was moved away.

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{self, LogFormat, LogPath};
use crate::log::{AccessLogSettings, Format, LogTarget};
use crate::proxy::ProxyContext;
use crate::shutdown::Phase;

/// What the config says, in the log's own words; `None` is off.
pub fn log_config(config: &config::AccessLog) -> Option<AccessLogSettings> {
    let format = match config.format {
        LogFormat::Json => Format::Json,
        LogFormat::Text => Format::Text,
        LogFormat::Off => return None,
    };
    let to = match &config.path {
        LogPath::Stdout => LogTarget::Stdout,
        LogPath::File(path) => LogTarget::File(path.clone()),
    };
    Some(AccessLogSettings { format, target: to })
}

/// That the access log cannot be opened, and what would be right.
pub fn explain_open_error(config: &config::AccessLog, error: &io::Error) -> String {
    match &config.path {
        LogPath::Stdout => format!("access_log: cannot be opened: {error}"),
        LogPath::File(path) => format!(
            "access_log: cannot be opened: {}: {error}; write a `path` in a directory that is there and that the \
             balancer's user may write to (LogsDirectory= of the unit)",
            path.display()
        ),
    }
}

/// Opens the access log's file anew at each SIGUSR1, until everything has stopped. From this call on the signal ends
/// the process no more.
///
/// # Errors
///
/// The signal cannot be listened for.
pub fn reopen_on_sigusr1(front: Arc<ProxyContext>) -> io::Result<impl Future<Output = ()>> {
    let signals = signal(SignalKind::user_defined1())?;
    Ok(reopen_at_each(signals, front))
}

async fn reopen_at_each(mut signals: Signal, front: Arc<ProxyContext>) {
    loop {
        tokio::select! {
            _ = signals.recv() => reopen(&front),
            () = front.shutdown.wait_for(Phase::Stopped) => return,
        }
    }
}

fn reopen(front: &ProxyContext) {
    match front.access_log.reopen() {
        Ok(()) => tracing::info!("access log reopened"),
        Err(fault) => tracing::error!(%fault, "access log cannot be reopened, the old file is written on"),
    }
}
