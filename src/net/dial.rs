//! A new connection to somewhere else.
//!
//! One deadline covers the name and every address behind it. Each address gets an equal share of the time that is
//! left, so that one that swallows packets cannot hide the next. A fault is a value: the node's, or the balancer's own
//! when it has no port or no file left (`DialError::is_local`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout};

use super::proxy_protocol::{self, ProxyAddresses, ProxyProtocolVersion};
use super::stream::Stream;
use mainstay_core::open_files;

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DialTarget<'a> {
    /// A name or an IP address (IPv6 without brackets), resolved now, and a port.
    Tcp {
        /// Host name or IP address.
        host: &'a str,
        /// Port.
        port: u16,
    },
    /// A Unix socket.
    Unix(&'a Path),
}

/// Why there is no connection; of several addresses, what the last one said.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// Nobody answered within this time.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The name has no address, or the resolver failed.
    #[error("the name cannot be resolved: {0}")]
    Resolve(io::Error),
    /// Ours: every source port toward this address is taken (EADDRNOTAVAIL).
    #[error("no source port is left toward {0}; add addresses to source_addresses")]
    NoPort(SocketAddr),
    /// Ours: no source address of the family of this address, or this one is not of this machine.
    #[error("no connection from source_addresses to {0}: {1}")]
    NoSource(SocketAddr, io::Error),
    /// Ours: the file limit is reached.
    #[error("no file descriptor is left: {0}")]
    NoFile(io::Error),
    /// Its certificate is not to be believed, or it does not speak TLS.
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
    /// Nothing says what its certificate must be for.
    #[error("no certificate can be for its address")]
    NoName,
    /// Something else: no route, no file.
    #[error("no connection: {0}")]
    Other(io::Error),
}

impl DialError {
    /// The balancer's own, so no node is to blame.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::NoPort(_) | Self::NoSource(..) | Self::NoFile(_))
    }
}

/// How nodes are dialled: where from, and what is said first.
#[derive(Debug, Default)]
pub(crate) struct Dialer {
    /// Source addresses; empty leaves it to the system.
    sources: Vec<IpAddr>,
    /// Connections so far, to give each source its turn.
    next_source: AtomicUsize,
    /// The PROXY header that each connection begins with.
    proxy_protocol: Option<ProxyProtocolVersion>,
}

impl Dialer {
    /// From `sources`, if there are any, each connection begun with a PROXY header, if there is a version of it.
    pub(crate) fn new(sources: Vec<IpAddr>, proxy_protocol: Option<ProxyProtocolVersion>) -> Self {
        Self { sources, next_source: AtomicUsize::new(0), proxy_protocol }
    }

    /// Each connection belongs to one client, because its PROXY header says so.
    pub(crate) fn is_per_client(&self) -> bool {
        self.proxy_protocol.is_some()
    }

    /// How many connections to one address there are ports for.
    pub(crate) fn available_ports(&self, address: Option<IpAddr>) -> u64 {
        let fits = |source: &&IpAddr| address.is_none_or(|address| address.is_ipv4() == source.is_ipv4());
        let sources = self.sources.iter().filter(fits).count();
        port_range() * sources.max(1) as u64
    }

    /// Connects to `target` within `within`, for a client whose `ends` are given or for the balancer itself; the
    /// stream is tuned.
    ///
    /// # Errors
    ///
    /// See [`DialError`].
    pub(crate) async fn dial(
        &self,
        target: DialTarget<'_>,
        ends: Option<ProxyAddresses>,
        within: Duration,
    ) -> Result<Stream, DialError> {
        let dialled = async {
            let mut stream = match target {
                DialTarget::Tcp { host, port } => Stream::Tcp(self.dial_tcp(host, port, within).await?),
                DialTarget::Unix(path) => Stream::Unix(UnixStream::connect(path).await.map_err(classify)?),
            };
            stream.tune();
            if let Some(version) = self.proxy_protocol {
                stream.write_all(&proxy_protocol::encode_header(version, ends)).await.map_err(classify)?;
            }
            Ok(stream)
        };
        timeout(within, dialled).await.unwrap_or(Err(DialError::Timeout(within)))
    }

    async fn dial_tcp(&self, host: &str, port: u16, within: Duration) -> Result<TcpStream, DialError> {
        let begun = Instant::now();
        let addresses = lookup_host((host, port)).await.map_err(DialError::Resolve)?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        self.dial_each(&addresses, within, begun).await
    }

    /// The first of `addresses` that answers, all of them within `within` of `begun`.
    async fn dial_each(
        &self,
        addresses: &[SocketAddr],
        within: Duration,
        begun: Instant,
    ) -> Result<TcpStream, DialError> {
        let none = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        let mut last = DialError::Resolve(none);
        for (index, address) in addresses.iter().enumerate() {
            let shares = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            let share = within.saturating_sub(begun.elapsed()) / shares;
            last = match timeout(share, self.connect(*address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(fault)) => fault,
                Err(_) => DialError::Timeout(within),
            };
        }
        Err(last)
    }

    /// Connects to `address` from the source whose turn it is, or from the next one that has a port left.
    async fn connect(&self, address: SocketAddr) -> Result<TcpStream, DialError> {
        if self.sources.is_empty() {
            return check_connected(TcpStream::connect(address).await, address);
        }
        let turn = self.next_source.fetch_add(1, Relaxed) % self.sources.len();
        let (before, from) = self.sources.split_at(turn);
        let none = io::Error::new(io::ErrorKind::InvalidInput, "none is of its family");
        let mut last = DialError::NoSource(address, none);
        for source in from.iter().chain(before).filter(|source| source.is_ipv4() == address.is_ipv4()) {
            let socket = socket_from(*source, address)?;
            last = match check_connected(socket.connect(address).await, address) {
                Err(fault @ DialError::NoPort(_)) => fault,
                result => return result,
            };
        }
        Err(last)
    }
}

/// A socket bound to a source address, whose port is chosen when it connects: then two connections may share one, if
/// they go to different places (IP_BIND_ADDRESS_NO_PORT, ip(7)).
fn socket_from(source: IpAddr, address: SocketAddr) -> Result<TcpSocket, DialError> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).map_err(classify)?;
    let bound = || -> io::Result<()> {
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())
    };
    bound().map_err(|error| {
        DialError::NoSource(address, io::Error::new(error.kind(), format!("{source}: {error}")))
    })?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

fn check_connected(connected: io::Result<TcpStream>, address: SocketAddr) -> Result<TcpStream, DialError> {
    let stream = connected.map_err(|error| match error.kind() {
        io::ErrorKind::AddrNotAvailable => DialError::NoPort(address),
        _ => classify(error),
    })?;
    // Nobody listens on a port of the ephemeral range: the kernel may pick that very port for this end, and TCP's
    // simultaneous open then connects the socket to itself.
    if stream.local_addr().map_err(classify)? == address {
        return Err(DialError::Refused);
    }
    Ok(stream)
}

fn classify(error: io::Error) -> DialError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => DialError::Refused,
        _ if open_files::is_exhausted(&error) => DialError::NoFile(error),
        _ => DialError::Other(error),
    }
}

/// How many ports the kernel may choose from (ip_local_port_range, ip(7)): those of one source address toward one node.
pub(crate) fn port_range() -> u64 {
    static RANGE: OnceLock<u64> = OnceLock::new();
    *RANGE.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let mut ends = text.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
        match (ends.next(), ends.next()) {
            (Some(first), Some(last)) if first <= last => last - first + 1,
            // The kernel's default, where it does not say.
            _ => 28_232,
        }
    })
}

/// Connects to `target` within `within`, on nobody's behalf and from wherever the system likes; the stream is tuned.
///
/// # Errors
///
/// See [`DialError`].
pub(crate) async fn dial(target: DialTarget<'_>, within: Duration) -> Result<Stream, DialError> {
    Dialer::default().dial(target, None, within).await
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::{TcpListener, UnixListener};

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_listener_is_reached_by_address_and_by_name_and_the_stream_is_tuned() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost"] {
            let stream = dial(DialTarget::Tcp { host, port }, SOON).await.unwrap();
            assert_eq!(stream.peer_addr(), Some(listener.local_addr().unwrap()));
            let Stream::Tcp(tcp) = &stream else { unreachable!() };
            assert!(tcp.nodelay().unwrap() && SockRef::from(tcp).keepalive().unwrap());
        }
    }

    /// A socket that has a port of 127.0.0.1, so that nobody else can have it; with `queue` it listens and has room
    /// for one connection, which nobody accepts.
    fn holder(queue: bool) -> (socket2::Socket, SocketAddr) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        if queue {
            socket.listen(0).unwrap();
        }
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_on_refuses() {
        let (_holder, address) = holder(false);
        let target = DialTarget::Tcp { host: "127.0.0.1", port: address.port() };
        let fault = dial(target, SOON).await.unwrap_err();
        assert!(matches!(fault, DialError::Refused), "{fault:?}");
        assert_eq!(fault.to_string(), "connection refused");
    }

    #[tokio::test]
    async fn a_full_queue_is_a_timeout() {
        let (_holder, address) = holder(true);
        let target = DialTarget::Tcp { host: "127.0.0.1", port: address.port() };
        let _first = dial(target, SOON).await.unwrap();
        let within = Duration::from_millis(50);
        let fault = dial(target, within).await.unwrap_err();
        assert!(matches!(fault, DialError::Timeout(time) if time == within), "{fault:?}");
        assert_eq!(fault.to_string(), "no connection within 50ms");
    }

    #[tokio::test]
    async fn an_address_that_refuses_or_hangs_does_not_hide_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let (_refusing, refuses) = holder(false);
        let (_hanging, hangs) = holder(true);
        let _first = TcpStream::connect(hangs).await.unwrap();
        let within = Duration::from_millis(600);
        let stream =
            Dialer::default().dial_each(&[refuses, hangs, good], within, Instant::now()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        let fault = Dialer::default().dial_each(&[hangs, refuses], within, Instant::now()).await.unwrap_err();
        assert!(matches!(fault, DialError::Refused), "the last one is told: {fault:?}");
        let fault = Dialer::default().dial_each(&[], within, Instant::now()).await.unwrap_err();
        assert_eq!(fault.to_string(), "the name cannot be resolved: it has no address");
    }

    #[tokio::test]
    async fn each_source_address_has_its_turn_and_only_those_of_the_family_are_used() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let six = TcpListener::bind("[::1]:0").await.unwrap();
        let sources = ["127.0.0.2", "::1", "127.0.0.3"].map(|source| source.parse().unwrap());
        let way = Dialer::new(sources.to_vec(), None);
        let mut seen = Vec::new();
        for _ in 0..3 {
            let target = DialTarget::Tcp { host: "127.0.0.1", port: listener.local_addr().unwrap().port() };
            let stream = way.dial(target, None, SOON).await.unwrap();
            seen.push(stream.local_addr().unwrap().ip().to_string());
        }
        assert_eq!(seen, ["127.0.0.2", "127.0.0.3", "127.0.0.3"]);
        let target = DialTarget::Tcp { host: "::1", port: six.local_addr().unwrap().port() };
        assert!(way.dial(target, None, SOON).await.is_ok());
        assert_eq!(way.available_ports(Some([127, 0, 0, 1].into())), 2 * port_range());
        assert_eq!(way.available_ports(None), 3 * port_range());
        assert_eq!(Dialer::default().available_ports(None), port_range());
    }

    #[tokio::test]
    async fn two_connections_from_one_source_share_a_port_when_they_go_to_different_places() {
        let places = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let socket = |place: &TcpListener| {
            let to = place.local_addr().unwrap();
            (socket_from([127, 0, 0, 4].into(), to).unwrap(), to)
        };
        // Bound and not connected: without the option the port would be taken by now.
        let (first, to) = socket(&places[0]);
        assert_eq!(first.local_addr().unwrap().port(), 0);
        let first = first.connect(to).await.unwrap();
        let (second, to) = socket(&places[1]);
        let second = second.connect(to).await.unwrap();
        assert_ne!(first.peer_addr().unwrap(), second.peer_addr().unwrap());
    }

    #[tokio::test]
    async fn a_source_that_does_not_fit_is_the_balancers_own_fault_and_says_which() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = DialTarget::Tcp { host: "127.0.0.1", port: listener.local_addr().unwrap().port() };
        for (source, says) in [("192.0.2.1", "192.0.2.1: "), ("::1", "none is of its family")] {
            let way = Dialer::new(vec![source.parse().unwrap()], None);
            let fault = way.dial(target, None, SOON).await.unwrap_err();
            assert!(fault.is_local() && fault.to_string().contains(says), "{fault}");
        }
    }

    #[tokio::test]
    async fn ports_and_files_that_are_used_up_are_not_the_nodes_fault() {
        let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
        let fault = check_connected(Err(rustix::io::Errno::ADDRNOTAVAIL.into()), address).unwrap_err();
        assert!(fault.is_local() && fault.to_string().contains("source_addresses"), "{fault}");
        let fault = check_connected(Err(rustix::io::Errno::MFILE.into()), address).unwrap_err();
        assert!(fault.is_local() && matches!(fault, DialError::NoFile(_)), "{fault}");
        let fault = check_connected(Err(rustix::io::Errno::CONNREFUSED.into()), address).unwrap_err();
        assert!(!fault.is_local());
    }

    #[tokio::test]
    async fn a_connection_begins_with_the_header_of_its_client_or_of_the_balancer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = DialTarget::Tcp { host: "127.0.0.1", port: listener.local_addr().unwrap().port() };
        let ends = ProxyAddresses {
            source: "192.0.2.1:5000".parse().unwrap(),
            destination: "198.51.100.1:443".parse().unwrap(),
        };
        for version in [ProxyProtocolVersion::V1, ProxyProtocolVersion::V2] {
            let way = Dialer::new(vec![], Some(version));
            for ends in [Some(ends), None] {
                drop(way.dial(target, ends, SOON).await.unwrap());
                let (mut node, _) = listener.accept().await.unwrap();
                assert_eq!(proxy_protocol::read_header(&mut node, SOON).await.unwrap(), ends);
                assert!(way.is_per_client());
            }
        }
    }

    #[tokio::test]
    async fn a_name_that_is_none_cannot_be_resolved() {
        for host in ["", "\0", &"x".repeat(2000)] {
            let fault = dial(DialTarget::Tcp { host, port: 1 }, SOON).await.unwrap_err();
            assert!(matches!(fault, DialError::Resolve(_)), "{host:?}: {fault:?}");
        }
    }

    #[tokio::test]
    async fn no_time_at_all_is_a_timeout() {
        let target = DialTarget::Tcp { host: "localhost", port: 1 };
        let fault = dial(target, Duration::ZERO).await.unwrap_err();
        assert!(matches!(fault, DialError::Timeout(_) | DialError::Refused), "{fault:?}");
    }

    #[tokio::test]
    async fn a_unix_socket_is_reached_refuses_or_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.sock");
        let missing = dial(DialTarget::Unix(&path), SOON).await.unwrap_err();
        assert!(matches!(missing, DialError::Other(_)), "{missing:?}");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(dial(DialTarget::Unix(&path), SOON).await.unwrap().peer_addr(), None);
        drop(listener);
        let stale = dial(DialTarget::Unix(&path), SOON).await.unwrap_err();
        assert!(matches!(stale, DialError::Refused), "{stale:?}");
    }
}
