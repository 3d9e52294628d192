//! Listening sockets that a service manager opened before the process began (sd_listen_fds(3)).
//!
//! A configured address is looked for among them before it is bound, and equality is exact: `0.0.0.0:8080` is not
//! `[::]:8080`. What nothing in the config asks for is closed with a warning. The variables are read once, before any
//! other thread runs, and taken out of the environment.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use socket2::SockRef;

use super::listener::Listener;

/// The first inherited descriptor (SD_LISTEN_FDS_START).
const FIRST_DESCRIPTOR: usize = 3;

/// More than this is no socket unit's doing.
const MAX_SOCKETS: usize = 1024;

/// The sockets that are not taken yet.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    tcp: Vec<std::net::TcpListener>,
    unix: Vec<UnixListener>,
    /// Those of another process of this program, by the name that both give them.
    handed_over: Vec<(String, OwnedFd)>,
    /// Descriptors that are something else.
    unusable: Vec<usize>,
}

impl InheritedSockets {
    /// Those that `LISTEN_FDS` counts, from descriptor 3 on, when `LISTEN_PID` is this process. To be called once,
    /// before any thread is started.
    pub(crate) fn from_env() -> Self {
        let count = std::env::var("LISTEN_FDS").ok();
        let count = count.and_then(|count| count.parse::<usize>().ok()).unwrap_or(0);
        if count == 0 || count > MAX_SOCKETS {
            return Self::default();
        }
        let mut inherited = Self::default();
        let mut sockets = ListenFd::from_env();
        for index in 0..sockets.len() {
            inherited.sort_in(&mut sockets, index);
        }
        inherited
    }

    /// Those that another process of this program hands over, which listen all.
    pub(crate) fn from_handover(sockets: Vec<(String, OwnedFd)>) -> Self {
        Self { handed_over: sockets, ..Self::default() }
    }

    /// The one of that name among those that another process hands over; `path` is where it listens, if it is a Unix
    /// socket: its file is this process's from now on. Must be called within a tokio runtime.
    pub(crate) fn take_named(&mut self, name: &str, path: Option<&Path>) -> Option<Listener> {
        let index = self.handed_over.iter().position(|(known, _)| known == name)?;
        let socket = self.handed_over.remove(index).1;
        match path {
            Some(path) => Listener::adopt_unix(socket.into(), path, true).ok(),
            None => Listener::adopt_tcp(socket.into()).ok(),
        }
    }

    fn sort_in(&mut self, sockets: &mut ListenFd, index: usize) {
        match (sockets.take_tcp_listener(index), sockets.take_unix_listener(index)) {
            (Ok(Some(socket)), _) if is_listening(&SockRef::from(&socket)) => self.tcp.push(socket),
            (_, Ok(Some(socket))) if is_listening(&SockRef::from(&socket)) => self.unix.push(socket),
            _ => self.unusable.push(FIRST_DESCRIPTOR + index),
        }
    }

    /// The one that listens on `address`, tuned like one that was bound here. Must be called within a tokio runtime.
    pub(crate) fn take_tcp(&mut self, address: SocketAddr) -> Option<Listener> {
        let index = self.tcp.iter().position(|socket| socket.local_addr().ok() == Some(address))?;
        Listener::adopt_tcp(self.tcp.swap_remove(index)).ok()
    }

    /// The one that listens on `path`; its file stays when the listener goes, it belongs to the service manager. Must
    /// be called within a tokio runtime.
    pub(crate) fn take_unix(&mut self, path: &Path) -> Option<Listener> {
        let is_there = |socket: &UnixListener| {
            socket.local_addr().is_ok_and(|address| address.as_pathname() == Some(path))
        };
        let index = self.unix.iter().position(is_there)?;
        Listener::adopt_unix(self.unix.swap_remove(index), path, false).ok()
    }

    /// Closes what nobody took, with a warning for each.
    pub(crate) fn close_unused(self) {
        for descriptor in self.unusable {
            tracing::warn!(descriptor, "an inherited descriptor is no stream socket that listens");
        }
        for (listener, _) in &self.handed_over {
            tracing::info!(%listener, "listening no more");
        }
        let tcp = self.tcp.iter().map(|socket| socket.local_addr().map(|address| address.to_string()));
        let unix = self.unix.iter().map(|socket| {
            let address = socket.local_addr()?;
            Ok(address.as_pathname().map_or("unix:".into(), |path| format!("unix:{}", path.display())))
        });
        for address in tcp.chain(unix) {
            let address = address.unwrap_or_else(|error| error.to_string());
            tracing::warn!(%address, "an inherited socket matches no listener of the config, it is closed");
        }
    }
}

fn is_listening(socket: &SockRef) -> bool {
    socket.is_listener().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    #[tokio::test]
    async fn a_socket_is_taken_once_and_by_its_exact_address_only() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let mut inherited = InheritedSockets { tcp: vec![socket], ..InheritedSockets::default() };
        let other = SocketAddr::new([127, 0, 0, 2].into(), address.port());
        assert!(inherited.take_tcp(other).is_none());
        let listener = inherited.take_tcp(address).unwrap();
        assert!(inherited.take_tcp(address).is_none());
        assert_eq!(listener.local_address(), address.to_string());
        let _client = TcpStream::connect(address).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let crate::net::stream::Stream::Tcp(stream) = stream else { unreachable!() };
        assert!(SockRef::from(&stream).tcp_nodelay().unwrap(), "what is accepted is tuned");
    }

    #[tokio::test]
    async fn the_file_of_an_inherited_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let mut inherited = InheritedSockets {
            unix: vec![UnixListener::bind(&path).unwrap()],
            ..InheritedSockets::default()
        };
        assert!(inherited.take_unix(Path::new("/elsewhere")).is_none());
        let listener = inherited.take_unix(&path).unwrap();
        let _client = UnixStream::connect(&path).await.unwrap();
        assert!(listener.accept().await.is_ok());
        assert_eq!(listener.local_address(), format!("unix:{}", path.display()));
        drop(listener);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn what_nobody_took_is_closed() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        InheritedSockets { tcp: vec![socket], ..InheritedSockets::default() }.close_unused();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
