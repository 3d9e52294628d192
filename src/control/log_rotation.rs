//! Rotation of the access log: its settings from the config, and a new file on SIGUSR1, after the old one was moved away.

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{self, LogFormat, LogPath};
use crate::log::{AccessLogSettings, Format, LogTarget};
use crate::proxy::ProxyContext;
use crate::shutdown::Phase;

/// The settings of the log; `None` is off.
pub(crate) fn log_config(config: &config::AccessLogConfig) -> Option<AccessLogSettings> {
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

/// The message for an access log that cannot be opened, with advice.
pub(crate) fn explain_open_error(config: &config::AccessLogConfig, error: &io::Error) -> String {
    match &config.path {
        LogPath::Stdout => format!("access_log: cannot be opened: {error}"),
        LogPath::File(path) => format!(
            "access_log: cannot be opened: {}: {error}; write a `path` in a directory that is there and that the \
             balancer's user may write to (LogsDirectory= of the unit)",
            path.display()
        ),
    }
}

/// Reopens the access log's file on each SIGUSR1, until everything has stopped. From this call on the signal does not end
/// the process.
///
/// # Errors
///
/// The signal cannot be listened for.
pub(crate) fn reopen_on_sigusr1(front: Arc<ProxyContext>) -> io::Result<impl Future<Output = ()>> {
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
        Err(fault) => tracing::error!(%fault, "access log cannot be reopened, the old file stays in use"),
    }
}
