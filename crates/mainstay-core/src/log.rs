//! The process's own log on standard error.
//!
//! It is `tracing`'s: `RUST_LOG` chooses the level, `info` and above unless told. Faults of peers are `debug` there and a
//! metric.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::{env, panic, thread};

use tracing::{error, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// A time, a word and `key=value` pairs.
    Text,
}

/// Sends the process's own log to standard error from now on. Only the first call counts, so that a test and the
/// program it starts in its own process do not fight. A `RUST_LOG` that cannot be read is said and is as none.
pub fn init(format: Format) {
    let (filter, fault) = filter(env::var("RUST_LOG").ok().as_deref());
    let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // An error here says that a log is set up already.
    let _ = match format {
        Format::Json => builder.json().try_init(),
        Format::Text => builder.with_ansi(io::stderr().is_terminal() && !no_color).try_init(),
    };
    if let Some(fault) = fault {
        warn!(%fault, "RUST_LOG cannot be read and is as none");
    }
}

/// Says every panic of the process in its own log from now on, as one line like all others.
pub fn panics() {
    panic::set_hook(Box::new(|panic| {
        let (thread, what) = (thread::current(), panic.payload_as_str().unwrap_or_default());
        let at = panic.location().map(ToString::to_string);
        let backtrace =
            Some(Backtrace::capture()).filter(|trace| trace.status() == BacktraceStatus::Captured);
        let backtrace = backtrace.as_ref().map(tracing::field::display);
        error!(thread = thread.name(), at, backtrace, "panicked: {what}");
    }));
}

fn filter(wish: Option<&str>) -> (EnvFilter, Option<String>) {
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    match builder.parse(wish.unwrap_or_default()) {
        Ok(filter) => (filter, None),
        Err(fault) => (EnvFilter::new("info"), Some(fault.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_info_and_above_unless_told() {
        assert_eq!(filter(None).0.to_string(), "info");
        assert_eq!(filter(Some("")).0.to_string(), "info");
        assert_eq!(filter(Some("warn")).0.to_string(), "warn");
        assert_eq!(filter(Some("mainstay=debug")).0.max_level_hint(), Some(LevelFilter::DEBUG));
    }

    #[test]
    fn a_wish_that_cannot_be_read_is_as_none_and_is_said() {
        let (filter, fault) = filter(Some("mainstay=loud"));
        assert_eq!(filter.to_string(), "info");
        assert!(fault.is_some());
    }

    #[test]
    fn a_second_set_up_changes_nothing() {
        init(Format::Text);
        let level = LevelFilter::current();
        init(Format::Json);
        assert_eq!(LevelFilter::current(), level);
    }
}
