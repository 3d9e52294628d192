//! One connection, over TCP or a Unix socket, perhaps with TLS on it, as the front desk reads and writes it.
//!
//! A plain socket is in tokio's hands and nothing is buffered here, so `Stream::into_raw_parts` can take it out again
//! without losing a byte. What rustls holds of a TLS connection comes with it ([`super::tls`]).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::tls::RustlsStream;
use super::tls::extracted::ExtractedTls;

/// A peer that has been quiet this long is asked whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// From one keepalive probe to the next.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Keepalive probes without an answer before the connection is dead.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT, RFC 5482). It also bounds how long a peer may keep
/// a zero window, that is, how long it may read nothing of what it is sent.
const USER_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes that the kernel takes and cannot send yet (TCP_NOTSENT_LOWAT). Without this it takes some 4 MB for each peer
/// that reads slowly; what is in flight, and so the throughput, is not touched.
const NOTSENT_LOWAT: u32 = 128 << 10;
/// How long a peer may still send after the last answer to it.
const LINGER_TIME: Duration = Duration::from_secs(1);
/// How many bytes it may send in that time.
const LINGER_BYTES: usize = 1 << 20;
/// Bytes that one read of these may bring.
const LINGER_READ: usize = 4096;

/// A connection as the front desk reads and writes it.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
    /// TLS over one of these.
    Tls(Box<RustlsStream<Stream>>),
}

impl Stream {
    /// The address of the other side; a Unix socket has none, nor has a connection that is already broken.
    pub(crate) fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.peer_addr().ok(),
            Self::Unix(_) => None,
            Self::Tls(tls) => tls.inner().peer_addr(),
        }
    }

    /// The address of this side; a Unix socket has none.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().ok(),
            Self::Unix(_) => None,
            Self::Tls(tls) => tls.inner().local_addr(),
        }
    }

    /// The TLS of the connection.
    pub(crate) fn tls(&self) -> Option<&RustlsStream<Stream>> {
        match self {
            Self::Tls(tls) => Some(tls),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// Ready once something has come over the socket: bytes, its end or an error. It takes nothing and costs no buffer;
    /// what TLS holds is not looked at.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => poll_peek(
                cx,
                |cx| tcp.poll_read_ready(cx),
                |peek| tcp.try_io(Interest::READABLE, || peek(&SockRef::from(tcp))),
            ),
            Self::Unix(unix) => poll_peek(
                cx,
                |cx| unix.poll_read_ready(cx),
                |peek| unix.try_io(Interest::READABLE, || peek(&SockRef::from(unix))),
            ),
            Self::Tls(tls) => tls.inner().poll_readable(cx),
        }
    }

    /// The bare socket, still non-blocking, and what goes on with its TLS; tokio and rustls have forgotten it.
    ///
    /// # Errors
    ///
    /// What the poller says when it cannot give the socket up; a TLS connection that is over or cannot leave.
    pub(crate) fn into_raw_parts(self) -> io::Result<(OwnedFd, Option<ExtractedTls>)> {
        match self {
            Self::Tcp(tcp) => tcp.into_std().map(|socket| (socket.into(), None)),
            Self::Unix(unix) => unix.into_std().map(|socket| (socket.into(), None)),
            Self::Tls(tls) => {
                let (below, departed) = tls.into_raw_parts().map_err(io::Error::other)?;
                // TLS within TLS is never made.
                Ok((below.into_raw_parts()?.0, Some(departed)))
            }
        }
    }

    /// Lingering close: what the peer still sends is read and thrown away, for a moment, so that the kernel's reset does
    /// not overtake the last answer.
    pub(crate) async fn linger(mut self) {
        let drain = async {
            if self.shutdown().await.is_err() {
                return;
            }
            let (mut buffer, mut read) = (vec![0; LINGER_READ], 0);
            while let Ok(len @ 1..) = self.read(&mut buffer).await {
                read += len;
                if read > LINGER_BYTES {
                    return;
                }
            }
        };
        // Out of time is as good an end as any.
        let _ = tokio::time::timeout(LINGER_TIME, drain).await;
    }

    /// Sets what a long-lived connection needs: no delay, and an end when the peer has silently gone.
    pub(crate) fn tune(&self) {
        match self {
            Self::Tcp(tcp) => tune(&SockRef::from(tcp)),
            Self::Unix(_) => {}
            Self::Tls(tls) => tls.inner().tune(),
        }
    }
}

/// Whether one byte, or the end, is there, once the poller says so: of a socket that has just been accepted tokio takes
/// it for granted.
fn poll_peek(
    cx: &mut Context<'_>,
    mut ready: impl FnMut(&mut Context<'_>) -> Poll<io::Result<()>>,
    look: impl Fn(fn(&socket2::Socket) -> io::Result<usize>) -> io::Result<usize>,
) -> Poll<io::Result<()>> {
    loop {
        ready!(ready(cx))?;
        match look(|socket| socket.peek(&mut [MaybeUninit::uninit()])) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            seen => return Poll::Ready(seen.map(drop)),
        }
    }
}

/// The options of [`Stream::tune`]. On a listener they hold for everything that it accepts (tcp(7)).
pub(super) fn tune(socket: &socket2::Socket) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    // They fail only on a socket that is broken, and then the next read says so.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let _ = socket.set_tcp_notsent_lowat(NOTSENT_LOWAT);
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, into),
            Self::Unix(unix) => Pin::new(unix).poll_read(cx, into),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Unix(unix) => Pin::new(unix).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Self::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, slices),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.is_write_vectored(),
            Self::Unix(unix) => unix.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Unix(unix) => Pin::new(unix).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn tcp_pair() -> (Stream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (Stream::Tcp(near), Stream::Tcp(far))
    }

    fn unix_pair() -> (Stream, Stream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Stream::Unix(near), Stream::Unix(far))
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_until_the_end_over_either_kind() {
        for (mut near, mut far) in [tcp_pair().await, unix_pair()] {
            assert!(near.is_write_vectored());
            let slices = [IoSlice::new(b"he"), IoSlice::new(b"llo")];
            assert_eq!(near.write_vectored(&slices).await.unwrap(), 5);
            near.flush().await.unwrap();
            near.shutdown().await.unwrap();
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"hello");
            far.write_all(b"world").await.unwrap();
            drop(far);
            got.clear();
            near.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"world");
        }
    }

    #[tokio::test]
    async fn a_tcp_stream_knows_its_peer_and_a_unix_stream_has_none() {
        let (near, far) = tcp_pair().await;
        let Stream::Tcp(tcp) = &far else { unreachable!() };
        assert_eq!(near.peer_addr(), Some(tcp.local_addr().unwrap()));
        assert_eq!(unix_pair().0.peer_addr(), None);
    }

    #[tokio::test]
    async fn the_bare_socket_is_non_blocking_and_keeps_unread_bytes() {
        for (mut near, far) in [tcp_pair().await, unix_pair()] {
            near.write_all(b"early").await.unwrap();
            let (fd, departed) = far.into_raw_parts().unwrap();
            assert!(departed.is_none());
            assert!(rustix::fs::fcntl_getfl(&fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
            drop(near);
            let mut got = [0; 16];
            // Over loopback what is written is there at once.
            assert_eq!(rustix::io::read(&fd, &mut got).unwrap(), 5);
            assert_eq!(rustix::io::read(&fd, &mut got).unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn a_stream_is_readable_once_a_byte_or_its_end_is_there() {
        // Of the accepted end, too.
        let (far, near) = tcp_pair().await;
        for (mut near, mut far) in [(near, far), tcp_pair().await, unix_pair()] {
            let early = std::future::poll_fn(|cx| near.poll_readable(cx));
            tokio::time::timeout(Duration::from_millis(50), early).await.expect_err("nothing has come");
            far.write_all(b"x").await.unwrap();
            std::future::poll_fn(|cx| near.poll_readable(cx)).await.unwrap();
            assert_eq!(near.read_u8().await.unwrap(), b'x');
            drop(far);
            std::future::poll_fn(|cx| near.poll_readable(cx)).await.unwrap();
            assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn a_tuned_stream_does_not_delay_and_notices_a_peer_that_has_gone() {
        let (near, _far) = tcp_pair().await;
        near.tune();
        let Stream::Tcp(tcp) = &near else { unreachable!() };
        let socket = SockRef::from(tcp);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT);
    }

    #[tokio::test]
    async fn tuning_a_unix_stream_leaves_it_working() {
        let (mut near, mut far) = unix_pair();
        near.tune();
        near.write_all(b"x").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
    }
}
