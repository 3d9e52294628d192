//! A new connection to somewhere else.
//!
//! One deadline covers the name and every address behind it. Each address gets an equal share of the time that is
//! left, so that one that swallows packets cannot hide the next. A fault is the node's, and a value.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout};

use super::stream::Stream;

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
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
pub enum DialFault {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// Nobody answered within this time.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The name has no address, or the resolver failed.
    #[error("the name cannot be resolved: {0}")]
    Resolve(io::Error),
    /// Its certificate is not to be believed, or it does not speak TLS.
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
    /// Nothing says what its certificate must be for.
    #[error("no certificate can be for its address")]
    NoName,
    /// Something else: no route, no file, no descriptors left.
    #[error("no connection: {0}")]
    Other(io::Error),
}

/// Connects to `target` within `within`; the stream is tuned.
///
/// # Errors
///
/// See [`DialFault`].
pub async fn dial(target: Target<'_>, within: Duration) -> Result<Stream, DialFault> {
    let stream = match target {
        Target::Tcp { host, port } => Stream::Tcp(dial_tcp(host, port, within).await?),
        Target::Unix(path) => {
            let connected = timeout(within, UnixStream::connect(path)).await;
            Stream::Unix(connected.map_err(|_| DialFault::Timeout(within))?.map_err(fault)?)
        }
    };
    stream.tune();
    Ok(stream)
}

async fn dial_tcp(host: &str, port: u16, within: Duration) -> Result<TcpStream, DialFault> {
    let begun = Instant::now();
    let resolved = timeout(within, lookup_host((host, port))).await;
    let addresses = resolved.map_err(|_| DialFault::Timeout(within))?.map_err(DialFault::Resolve)?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    dial_each(&addresses, within, begun).await
}

/// The first of `addresses` that answers, all of them within `within` of `begun`.
async fn dial_each(
    addresses: &[SocketAddr],
    within: Duration,
    begun: Instant,
) -> Result<TcpStream, DialFault> {
    let none = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    let mut last = DialFault::Resolve(none);
    for (index, address) in addresses.iter().enumerate() {
        let shares = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = within.saturating_sub(begun.elapsed()) / shares;
        last = match timeout(share, connect(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => fault(error),
            Err(_) => DialFault::Timeout(within),
        };
    }
    Err(last)
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // Nobody listens on a port of the ephemeral range: the kernel may pick that very port for this end, and TCP's
    // simultaneous open then connects the socket to itself.
    if stream.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

fn fault(error: io::Error) -> DialFault {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => DialFault::Refused,
        _ => DialFault::Other(error),
    }
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
            let stream = dial(Target::Tcp { host, port }, SOON).await.unwrap();
            assert_eq!(stream.peer(), Some(listener.local_addr().unwrap()));
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
        let target = Target::Tcp { host: "127.0.0.1", port: address.port() };
        let fault = dial(target, SOON).await.unwrap_err();
        assert!(matches!(fault, DialFault::Refused), "{fault:?}");
        assert_eq!(fault.to_string(), "connection refused");
    }

    #[tokio::test]
    async fn a_full_queue_is_a_timeout() {
        let (_holder, address) = holder(true);
        let target = Target::Tcp { host: "127.0.0.1", port: address.port() };
        let _first = dial(target, SOON).await.unwrap();
        let within = Duration::from_millis(50);
        let fault = dial(target, within).await.unwrap_err();
        assert!(matches!(fault, DialFault::Timeout(time) if time == within), "{fault:?}");
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
        let stream = dial_each(&[refuses, hangs, good], within, Instant::now()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        let fault = dial_each(&[hangs, refuses], within, Instant::now()).await.unwrap_err();
        assert!(matches!(fault, DialFault::Refused), "the last one is told: {fault:?}");
        let fault = dial_each(&[], within, Instant::now()).await.unwrap_err();
        assert_eq!(fault.to_string(), "the name cannot be resolved: it has no address");
    }

    #[tokio::test]
    async fn a_name_that_is_none_cannot_be_resolved() {
        for host in ["", "\0", &"x".repeat(2000)] {
            let fault = dial(Target::Tcp { host, port: 1 }, SOON).await.unwrap_err();
            assert!(matches!(fault, DialFault::Resolve(_)), "{host:?}: {fault:?}");
        }
    }

    #[tokio::test]
    async fn no_time_at_all_is_a_timeout() {
        let target = Target::Tcp { host: "localhost", port: 1 };
        let fault = dial(target, Duration::ZERO).await.unwrap_err();
        assert!(matches!(fault, DialFault::Timeout(_) | DialFault::Refused), "{fault:?}");
    }

    #[tokio::test]
    async fn a_unix_socket_is_reached_refuses_or_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.sock");
        let missing = dial(Target::Unix(&path), SOON).await.unwrap_err();
        assert!(matches!(missing, DialFault::Other(_)), "{missing:?}");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(dial(Target::Unix(&path), SOON).await.unwrap().peer(), None);
        drop(listener);
        let stale = dial(Target::Unix(&path), SOON).await.unwrap_err();
        assert!(matches!(stale, DialFault::Refused), "{stale:?}");
    }
}
