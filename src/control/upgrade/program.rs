//! The program that a process runs, and a new process of it.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::{Child, Command};

/// Says that the standard input is the socket of an upgrade; a socket there alone may be anything.
pub(super) const VARIABLE: &str = "MAINSTAY_HANDOVER";

/// What the kernel puts behind the path of a program whose file was replaced.
const REPLACED: &str = " (deleted)";

/// A program and its arguments.
#[derive(Debug, Clone)]
pub struct Program {
    /// Where it stands.
    path: PathBuf,
    /// Without its own name.
    arguments: Vec<OsString>,
}

impl Program {
    /// What this process was started as. Another file may stand at the path by now: that one is meant.
    ///
    /// # Errors
    ///
    /// The kernel does not say.
    pub fn own() -> io::Result<Self> {
        let path = std::env::current_exe()?;
        let path = match path.to_str().and_then(|path| path.strip_suffix(REPLACED)) {
            Some(path) => path.into(),
            None => path,
        };
        Ok(Self { path, arguments: std::env::args_os().skip(1).collect() })
    }

    /// Starts it, with the socket of an upgrade as its standard input.
    ///
    /// # Errors
    ///
    /// As in execve(2), with the path.
    pub(super) fn start(&self, socket: OwnedFd) -> io::Result<Child> {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env(VARIABLE, "1").stdin(Stdio::from(socket));
        // It names this process; the watchdog is the service's, and the new process feeds it.
        command.env_remove("WATCHDOG_PID");
        let started = command.spawn();
        started.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display())))
    }
}
