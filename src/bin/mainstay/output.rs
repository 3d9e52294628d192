//! Standard output, and how times in it are written.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::error::CliError;

/// Prints to standard output. That a pipe is closed early, as `head` does, is no error.
pub fn print(text: &str) -> Result<(), CliError> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The time up to a deadline of the admin API, such as `28s`; `-` where there is none.
pub fn time_left(deadline: &Value) -> String {
    let deadline = deadline.as_str().and_then(|at| humantime::parse_rfc3339(at).ok());
    let left = deadline.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
    left.map_or("-".into(), |left| {
        humantime::format_duration(Duration::from_secs(left.as_secs())).to_string()
    })
}
