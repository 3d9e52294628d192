//! A listening socket, on TCP or on a path.
//!
//! Binding is strict where two balancers could take each other's clients: a port or a path that somebody listens on
//! is in use. It is lenient with what a dead process left behind: sockets in TIME_WAIT, a socket file nobody
//! listens on.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::stream::{self, Stream};

/// Connections that the kernel keeps until they are accepted; it cuts this to net.core.somaxconn. A fleet that comes
/// back at once fills a shorter queue.
const BACKLOG: i32 = 4096;

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a path; the file goes with the listener.
    Unix(UnixListener, Arc<SocketFile>),
}

/// The file of a Unix listener, removed at drop.
#[derive(Debug)]
pub struct SocketFile {
    /// Where it is.
    path: PathBuf,
    /// Device and inode. Another file at the path belongs to somebody else; `None`: this one does, too.
    identity: Option<(u64, u64)>,
    /// The file is kept at drop: another process listens on the socket now.
    is_kept: AtomicBool,
}

/// What the file of a Unix listener is to be. Who may write to it may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SocketPermissions {
    /// The permission bits; `None` is what the umask leaves.
    pub mode: Option<u32>,
    /// The number of its group; `None` is the process's own.
    pub group: Option<u32>,
}

/// A second descriptor of a listening socket, by which somebody else can go on with it.
#[derive(Debug)]
pub(crate) struct ListenerHandle {
    socket: OwnedFd,
    /// `None` on TCP.
    file: Option<Arc<SocketFile>>,
}

impl ListenerHandle {
    /// The socket.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// A listener on the same socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// No descriptor is left, or it cannot be polled.
    pub(crate) fn listener(&self) -> io::Result<Listener> {
        let socket = self.socket.try_clone()?;
        match &self.file {
            None => Listener::adopt_tcp(socket.into()),
            Some(file) => {
                let socket = std::os::unix::net::UnixListener::from(socket);
                socket.set_nonblocking(true)?;
                Ok(Listener::Unix(UnixListener::from_std(socket)?, Arc::clone(file)))
            }
        }
    }

    /// Changes the file of a Unix listener, where it is this process's.
    ///
    /// # Errors
    ///
    /// As in chown(2) and chmod(2).
    pub(crate) fn set_permissions(&self, wanted: &SocketPermissions) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.set_permissions(wanted))
    }

    /// Another process goes on with the socket: its file stays.
    pub(crate) fn keep_file(&self) {
        if let Some(file) = &self.file {
            file.is_kept.store(true, Relaxed);
        }
    }
}

impl Listener {
    /// Listens on `address`; port 0 is a free one. `[::]` takes IPv6 only, so that `0.0.0.0` can be bound beside it.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when somebody listens there, `AddrNotAvailable` and `PermissionDenied` as in bind(2).
    pub fn bind_tcp(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // On Linux this never lets two listeners share a port; it only passes over TIME_WAIT.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // What is accepted inherits the options, which saves five system calls for each connection.
        stream::tune(&socket);
        socket.bind(&address.into())?;
        start_listening(&socket)?;
        TcpListener::from_std(socket.into()).map(Self::Tcp)
    }

    /// Listens on `path`; a socket file that nobody listens on is replaced. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// `AddrInUse` when somebody listens there or when the file is no socket; else as in bind(2), chown(2) and chmod(2).
    pub(crate) fn bind_unix(path: &Path, wanted: &SocketPermissions) -> io::Result<Self> {
        let address = SockAddr::unix(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        match socket.bind(&address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path, &address)? => {
                std::fs::remove_file(path)?;
                socket.bind(&address)?;
            }
            result => result?,
        }
        let file = SocketFile::new(path, file_identity(path));
        // Nobody can have connected yet: the socket is bound and does not listen.
        file.set_permissions(wanted)?;
        start_listening(&socket)?;
        Ok(Self::Unix(UnixListener::from_std(socket.into())?, file))
    }

    /// Goes on with a TCP socket that listens already. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When it cannot be polled.
    pub(crate) fn adopt_tcp(socket: std::net::TcpListener) -> io::Result<Self> {
        stream::tune(&SockRef::from(&socket));
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket).map(Self::Tcp)
    }

    /// Goes on with a Unix socket that listens on `path` already. The file goes with it where it was a process of this
    /// program that made it (`owns_file`), and stays where a service manager did. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When it cannot be polled.
    pub(crate) fn adopt_unix(
        socket: std::os::unix::net::UnixListener,
        path: &Path,
        owns_file: bool,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let file = SocketFile::new(path, file_identity(path).filter(|_| owns_file));
        Ok(Self::Unix(UnixListener::from_std(socket)?, file))
    }

    /// The next connection, tuned, and where it comes from (a Unix socket says nothing about that).
    ///
    /// # Errors
    ///
    /// As in accept(2): most are about that one connection; EMFILE and ENFILE pass when others end.
    pub(crate) async fn accept(&self) -> io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Some(peer)))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), None))
            }
        }
    }

    /// Changes the file of a Unix listener, where it is this process's.
    ///
    /// # Errors
    ///
    /// As in chown(2) and chmod(2).
    pub(crate) fn set_permissions(&self, wanted: &SocketPermissions) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Unix(_, file) => file.set_permissions(wanted),
        }
    }

    /// A second descriptor of the same socket.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub(crate) fn duplicate(&self) -> io::Result<ListenerHandle> {
        match self {
            Self::Tcp(listener) => {
                Ok(ListenerHandle { socket: listener.as_fd().try_clone_to_owned()?, file: None })
            }
            Self::Unix(listener, file) => Ok(ListenerHandle {
                socket: listener.as_fd().try_clone_to_owned()?,
                file: Some(Arc::clone(file)),
            }),
        }
    }

    /// Where it listens, as the config writes it: `127.0.0.1:8080`, `[::1]:8080`, `unix:/run/mainstay.sock`.
    pub fn local_address(&self) -> String {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.to_string(),
                Err(error) => format!("an unknown address ({error})"),
            },
            Self::Unix(_, file) => format!("unix:{}", file.path.display()),
        }
    }
}

fn start_listening(socket: &Socket) -> io::Result<()> {
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)
}

/// Whether the file at `path` is a socket that nobody listens on.
fn is_stale(path: &Path, address: &SockAddr) -> io::Result<bool> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A listener with a full queue would make a blocking connect wait.
    probe.set_nonblocking(true)?;
    Ok(probe.connect(address).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
}

fn file_identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl SocketFile {
    fn new(path: &Path, identity: Option<(u64, u64)>) -> Arc<Self> {
        Arc::new(Self { path: path.to_owned(), identity, is_kept: AtomicBool::new(false) })
    }

    /// Whether the file that is there now is this process's.
    fn is_own(&self) -> bool {
        self.identity.is_some() && file_identity(&self.path) == self.identity
    }

    fn set_permissions(&self, wanted: &SocketPermissions) -> io::Result<()> {
        if !self.is_own() {
            return Ok(());
        }
        if let Some(group) = wanted.group {
            chown(&self.path, None, Some(group))?;
        }
        if let Some(mode) = wanted.mode {
            std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if *self.is_kept.get_mut() {
            return;
        }
        if self.is_own() {
            // A file that cannot be removed is stale from now on, and the next bind replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    fn tcp(address: &str) -> io::Result<Listener> {
        Listener::bind_tcp(address.parse().unwrap())
    }

    fn unix(path: &Path) -> io::Result<Listener> {
        Listener::bind_unix(path, &SocketPermissions::default())
    }

    fn port(listener: &Listener) -> u16 {
        listener.local_address().rsplit_once(':').unwrap().1.parse().unwrap()
    }

    #[tokio::test]
    async fn a_listener_says_where_it_listens_and_accepts_there() {
        let listener = tcp("127.0.0.1:0").unwrap();
        assert_eq!(listener.local_address(), format!("127.0.0.1:{}", port(&listener)));
        let client = TcpStream::connect(listener.local_address()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, Some(client.local_addr().unwrap()));
        assert_eq!(stream.peer_addr(), peer);
    }

    #[tokio::test]
    async fn what_is_accepted_is_tuned() {
        let listener = tcp("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_address()).await.unwrap();
        let (Stream::Tcp(stream), _) = listener.accept().await.unwrap() else { unreachable!() };
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap().as_secs(), 60);
        assert_eq!(socket.tcp_keepalive_interval().unwrap().as_secs(), 10);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(socket.tcp_user_timeout().unwrap().unwrap().as_secs(), 120);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 128 << 10);
    }

    #[tokio::test]
    async fn both_families_can_listen_on_one_port() {
        // Somebody else may have the port on the other family: another one, then.
        let pair = || {
            let six = tcp("[::]:0").ok()?;
            Some((tcp(&format!("0.0.0.0:{}", port(&six))).ok()?, six))
        };
        let (four, six) = (0..20).find_map(|_| pair()).unwrap();
        assert_eq!(six.local_address(), format!("[::]:{}", port(&six)));
        TcpStream::connect(("127.0.0.1", port(&four))).await.unwrap();
        assert!(four.accept().await.unwrap().1.unwrap().is_ipv4());
        TcpStream::connect(("::1", port(&six))).await.unwrap();
        assert!(six.accept().await.unwrap().1.unwrap().is_ipv6());
    }

    #[tokio::test]
    async fn a_port_that_somebody_listens_on_is_in_use() {
        let first = tcp("127.0.0.1:0").unwrap();
        assert_eq!(tcp(&first.local_address()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_port_is_free_again_as_soon_as_its_listener_is_gone() {
        // An address of its own, so that no other test takes the port in between.
        let first = tcp("127.0.0.77:0").unwrap();
        let address = first.local_address();
        let client = TcpStream::connect(&address).await.unwrap();
        // The side that ends first keeps the port in TIME_WAIT.
        drop(first.accept().await.unwrap());
        drop((client, first));
        assert_eq!(tcp(&address).unwrap().local_address(), address);
    }

    #[tokio::test]
    async fn a_unix_listener_accepts_and_takes_its_file_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let listener = unix(&path).unwrap();
        assert_eq!(listener.local_address(), format!("unix:{}", path.display()));
        let _client = UnixStream::connect(&path).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        assert_eq!((stream.peer_addr(), peer), (None, None));
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_file_of_a_listener_has_the_wanted_mode_before_anybody_can_connect() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let wanted = |mode| SocketPermissions { mode: Some(mode), group: None };
        let listener = Listener::bind_unix(&path, &wanted(0o600)).unwrap();
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        let _client = UnixStream::connect(&path).await.unwrap();
        assert!(listener.accept().await.is_ok());
        listener.set_permissions(&wanted(0o660)).unwrap();
        assert_eq!(mode(), 0o660);
        // Of another's file nothing is changed.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        listener.set_permissions(&wanted(0o600)).unwrap();
        assert_eq!(mode(), 0o640);
    }

    #[tokio::test]
    async fn a_socket_file_that_nobody_listens_on_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = unix(&path).unwrap();
        assert_eq!(unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).await.unwrap();
        assert!(listener.accept().await.is_ok(), "the probe of a live listener does it no harm");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.txt");
        std::fs::write(&path, "keep").unwrap();
        assert_eq!(unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"keep");
    }

    #[tokio::test]
    async fn the_file_of_a_successor_outlives_the_first_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let first = unix(&path).unwrap();
        std::fs::rename(&path, directory.path().join("old.sock")).unwrap();
        let second = unix(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).await.unwrap();
        assert!(second.accept().await.is_ok());
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_bound_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(unix(&directory.path().join("no/such/a.sock")).is_err());
        assert!(unix(&directory.path().join("x".repeat(200))).is_err());
        assert!(unix(directory.path()).is_err());
    }
}
