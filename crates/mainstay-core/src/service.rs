//! What a service manager is told about the process (sd_notify(3)), and what it asks for.
//!
//! Without `NOTIFY_SOCKET` in the environment every call does nothing. A datagram is never waited for: a service
//! manager that does not read gets no word, and the balancer goes on. When to say what is not decided here.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

/// Start-up is over, or a reload is; `status` is what `systemctl status` shows.
pub fn notify_ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// This process has taken over from the one that the service manager knows.
pub fn notify_taken_over(status: &str) {
    let process = NotifyState::MainPid(std::process::id());
    notify(&[process, NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins; [`notify_ready`] must follow, also after one that failed.
pub fn notify_reloading() {
    // Type=notify-reload wants the time that it began: words from before it do not count (systemd.service(5)).
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no monotonic clock to tell the service manager"),
    }
}

/// The orderly end begins.
pub fn notify_stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// One line that `systemctl status` shows.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// A sign of life for the watchdog.
pub fn notify_watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// How often the service manager wants a sign of life at least (`WATCHDOG_USEC`, when it is meant for this process).
/// `None` when it wants none.
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|time| !time.is_zero())
}

/// Whether there is somebody to tell.
pub fn is_listening() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

const VARIABLE: &str = "NOTIFY_SOCKET";

fn notify(words: &[NotifyState]) {
    let Some(socket) = std::env::var_os(VARIABLE) else { return };
    if let Err(error) = send(&socket, words) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// One datagram to `socket`: a path, or a name of the abstract namespace behind an `@`.
fn send(socket: &OsStr, words: &[NotifyState]) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let lines: Vec<String> = words.iter().map(ToString::to_string).collect();
    let from = UnixDatagram::unbound()?;
    from.set_nonblocking(true)?;
    from.send_to_addr(lines.join("\n").as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(at: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let len = at.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn one_datagram_has_all_words_a_line_each() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), &[NotifyState::Ready, NotifyState::Status("3 tunnels")]).unwrap();
        assert_eq!(heard(&manager), "READY=1\nSTATUS=3 tunnels");
    }

    #[test]
    fn a_name_behind_an_at_sign_is_in_the_abstract_namespace() {
        let name = format!("mainstay-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), &[NotifyState::Watchdog]).unwrap();
        assert_eq!(heard(&manager), "WATCHDOG=1");
    }

    #[test]
    fn a_service_manager_that_is_gone_or_reads_nothing_is_an_error_and_no_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        assert!(send(path.as_os_str(), &[NotifyState::Ready]).is_err());
        let _deaf = UnixDatagram::bind(&path).unwrap();
        let full = (0..10_000).find_map(|_| send(path.as_os_str(), &[NotifyState::Watchdog]).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
