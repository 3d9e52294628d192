//! Binds an address of the config, and explains a failure: where the address is written, what process has it, and what to
//! do.

use std::io::{self, ErrorKind};
use std::path::Path;

use nix::unistd::Group;

use crate::config::{Admin, Config, Fault, FileAccess, ListenAddress, ListenerConfig, Position};
use crate::net::listener::{Listener, SocketPermissions};
use mainstay_core::listening_process::ListeningProcess;

/// An address to bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ListenSpec<'a> {
    /// Where.
    pub address: &'a ListenAddress,
    /// Who may connect to the file of a Unix socket.
    access: &'a FileAccess,
    /// Whether it is for the admin API. Its Unix socket is private by default, because who can connect needs no token.
    pub is_admin: bool,
}

/// The default mode of the admin API's Unix socket.
const ADMIN_SOCKET_MODE: u32 = 0o600;

impl<'a> ListenSpec<'a> {
    /// For clients.
    pub(crate) fn for_clients(listener: &'a ListenerConfig) -> Self {
        Self { address: &listener.address, access: &listener.access, is_admin: false }
    }

    /// For the admin API.
    pub(crate) fn for_admin(admin: &'a Admin) -> Self {
        Self { address: &admin.address, access: &admin.access, is_admin: true }
    }

    /// Listens there. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// As in bind(2), chmod(2) and chown(2), with the address and advice.
    pub(crate) fn bind(&self) -> io::Result<Listener> {
        let bound = match self.address {
            ListenAddress::Tcp(address) => Listener::bind_tcp(*address),
            ListenAddress::Unix(path) => {
                self.permissions().and_then(|wanted| Listener::bind_unix(path, &wanted))
            }
        };
        bound.map_err(|error| self.explain(&error))
    }

    /// Gives the file of a socket that was taken over its mode and its group, where the config says them: an operator
    /// may have changed it by hand.
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind).
    pub(crate) fn apply_permissions(&self, listener: &Listener) -> io::Result<()> {
        if *self.access == FileAccess::default() {
            return Ok(());
        }
        let changed = self.permissions().and_then(|wanted| listener.set_permissions(&wanted));
        changed.map_err(|error| self.explain(&error))
    }

    /// The error with the address and advice.
    pub(super) fn explain(&self, error: &io::Error) -> io::Error {
        let what = format!("cannot listen on {}: {}", self.address, reason(self.address, error));
        io::Error::new(error.kind(), what)
    }

    /// The mode and group of the file of a Unix socket.
    ///
    /// # Errors
    ///
    /// There is no such group.
    pub(super) fn permissions(&self) -> io::Result<SocketPermissions> {
        let mode = self.access.effective_mode().or(self.is_admin.then_some(ADMIN_SOCKET_MODE));
        Ok(SocketPermissions { mode, group: self.access.group.as_deref().map(group).transpose()? })
    }
}

/// The number of a group.
fn group(name: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match Group::from_name(name)? {
        Some(group) => Ok(group.gid.as_raw()),
        None => {
            let what = format!("there is no group `{name}` on this machine; make it, or write another");
            Err(io::Error::new(ErrorKind::NotFound, what))
        }
    }
}

/// Why the address cannot be bound, with advice.
fn reason(address: &ListenAddress, error: &io::Error) -> String {
    match (address, error.kind()) {
        (ListenAddress::Tcp(address), ErrorKind::AddrInUse) => match ListeningProcess::on_tcp(*address) {
            Some(found) => format!("the port is in use: {found}; {}", advise(&found, "port")),
            None => "the port is in use; stop who listens on it, or write another port".into(),
        },
        (ListenAddress::Tcp(_), ErrorKind::AddrNotAvailable) => {
            "no interface of this machine has the address; write one of `ip address`, or 0.0.0.0 or [::] for all".into()
        }
        (ListenAddress::Tcp(address), ErrorKind::PermissionDenied) => format!(
            "port {} is for root; give the process CAP_NET_BIND_SERVICE (AmbientCapabilities= of the unit), or write a \
             port from 1024 on",
            address.port()
        ),
        (ListenAddress::Unix(path), kind) => unix_reason(path, kind, error),
        _ => error.to_string(),
    }
}

fn unix_reason(path: &Path, kind: ErrorKind, error: &io::Error) -> String {
    let folder = path.parent().unwrap_or(Path::new("")).display();
    match kind {
        ErrorKind::AddrInUse => match ListeningProcess::on_unix(path) {
            Some(found) => format!("the path is in use: {found}; {}", advise(&found, "path")),
            None => "a file that is no socket is there, or somebody listens on it; remove it, or write another path".into(),
        },
        // A group that is not there has said so.
        ErrorKind::NotFound if error.raw_os_error().is_some() => {
            format!("there is no directory {folder}; make it (RuntimeDirectory= of the unit), or write another path")
        }
        ErrorKind::PermissionDenied if error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()) => {
            "the balancer's user may not give the file to this group; put it into the group (SupplementaryGroups= of the \
             unit), or write one that it is in"
                .into()
        }
        ErrorKind::PermissionDenied => format!("the balancer's user may not write to {folder}; change that, or write another path"),
        _ => error.to_string(),
    }
}

fn advise(found: &ListeningProcess, what: &str) -> String {
    match &found.process {
        Some((_, name)) if name == "mainstay" => {
            format!("`mainstay upgrade` replaces a balancer that runs; or stop it, or write another {what}")
        }
        _ => format!("stop it, or write another {what}"),
    }
}

/// A failed bind as a fault of the config, with advice where the running config itself has the address.
pub(super) fn bind_fault(
    running: Option<&Config>,
    address: &ListenAddress,
    at: Option<&Position>,
    error: &io::Error,
) -> Fault {
    let listeners = running.iter().flat_map(|config| &config.listeners).map(|listener| &listener.address);
    let mut own =
        listeners.chain(running.and_then(|config| config.admin.as_ref()).map(|admin| &admin.address));
    let message = match own.find(|own| own.excludes(address)) {
        Some(own) if error.kind() == ErrorKind::AddrInUse => format!(
            "cannot listen on {address}: the balancer itself listens on {own}: take that out, reload, and then add {address}"
        ),
        _ => error.to_string(),
    };
    match at {
        Some(at) => Fault::new(*at, message),
        None => Fault::of_file(message),
    }
}
