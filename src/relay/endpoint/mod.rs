//! An endpoint of a tunnel: a socket, the states of its two directions, and the bytes that it has not taken yet.
//!
//! A buffer exists only while the peer is slow. It holds at most the bytes of one read and the balancer's own frames,
//! because the other side is not read while it exists (invariant I10). With TLS, plaintext is read and written here,
//! and the buffer holds records (`tls`).

mod codec;
mod state;
mod tls;

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use super::tls::{TlsConnection, TlsRole};
use crate::net::tls::extracted::ExtractedTls;
use state::{ReadSide, WriteSide};

/// One side of a tunnel, the client's or the node's.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// `None` while the tunnel is frozen: nothing is read and nothing is sent then.
    socket: Option<OwnedFd>,
    /// The TLS connection on the socket, if it has one.
    tls: Option<Box<TlsConnection>>,
    /// Bytes that the socket has not taken yet.
    unsent: Option<Box<UnsentBytes>>,
    read: ReadSide,
    write: WriteSide,
    /// The TLS keys are nearly used up and cannot be renewed.
    has_used_up_keys: bool,
}

#[derive(Debug)]
struct UnsentBytes {
    bytes: Vec<u8>,
    sent: usize,
}

impl UnsentBytes {
    /// A buffer for these bytes; `None` when there are none.
    fn of(bytes: Vec<u8>) -> Option<Box<Self>> {
        (!bytes.is_empty()).then(|| Box::new(Self { bytes, sent: 0 }))
    }
}

/// The result of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// That many bytes.
    Bytes(usize),
    /// Nothing now.
    WouldBlock,
    /// The end of the stream.
    Eof,
    /// The connection has failed.
    Failed,
    /// The peer broke TLS. Its bytes, that many this time, are dropped from now on.
    Discarded(usize),
}

/// What epoll reports of a socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct SocketEvents {
    /// EPOLLIN.
    pub is_readable: bool,
    /// EPOLLOUT.
    pub is_writable: bool,
    /// EPOLLRDHUP, EPOLLHUP or EPOLLERR.
    pub has_hung_up: bool,
}

impl Endpoint {
    /// A socket that has not been polled yet: it may be readable and writable.
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Some(socket),
            tls: None,
            unsent: None,
            read: ReadSide::NEW,
            write: WriteSide::NEW,
            has_used_up_keys: false,
        }
    }

    /// Takes over a socket and the TLS connection on it, if there is one. Returns what TLS has decrypted already, too.
    ///
    /// Urgent data stays inline (RFC 6093, section 5): taken out of the stream, it would leave a hole in a frame.
    pub(super) fn adopt(socket: OwnedFd, tls: Option<ExtractedTls>, role: TlsRole) -> (Self, Vec<u8>) {
        // A socket without support for urgent data never has any.
        let _ = sockopt::set_socket_oobinline(&socket, true);
        let endpoint = Self::new(socket);
        let Some(departed) = tls else { return (endpoint, Vec::new()) };
        let (tls, leftover) = TlsConnection::new(departed, role);
        (Self { tls: Some(tls), unsent: UnsentBytes::of(leftover.unsent), ..endpoint }, leftover.plain)
    }

    /// The socket, unless the tunnel is frozen.
    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Applies what epoll reports.
    #[inline]
    pub(super) fn apply_events(&mut self, events: SocketEvents) {
        if events.is_readable {
            self.read.set_readable();
        }
        if events.is_writable {
            self.write.set_writable();
        }
        if events.has_hung_up {
            self.read.set_hung_up();
        }
    }

    /// Epoll reports urgent data (EPOLLPRI): a read ends at its mark, with more after it.
    #[cold]
    pub(super) fn set_urgent(&mut self) {
        self.read.set_urgent();
    }

    /// The peer takes nothing any more, but what it has sent may still be read.
    pub(super) fn set_hung_up(&mut self) {
        self.read.set_hung_up();
    }

    /// Gives the peer up: what waits for it is dropped at the next flush.
    pub(super) fn set_broken(&mut self) {
        self.write.set_broken();
    }

    /// A read may give something.
    #[inline]
    pub(super) fn is_readable(&self) -> bool {
        self.read.is_readable()
    }

    /// The peer has ended its stream.
    #[inline]
    pub(super) fn has_ended(&self) -> bool {
        self.read.has_ended()
    }

    /// The peer has hung up, or its connection has failed; what it sent before may still be unread.
    pub(super) fn has_hung_up(&self) -> bool {
        self.read.has_hung_up()
    }

    /// Writes fail: nothing reaches the peer any more.
    #[inline]
    pub(super) fn is_broken(&self) -> bool {
        self.write.is_broken()
    }

    /// The last bytes to the peer are on their way, or its end of stream has been sent.
    pub(super) fn is_finishing(&self) -> bool {
        self.write.is_finishing()
    }

    /// The end of stream to the peer has been sent.
    pub(super) fn is_finished(&self) -> bool {
        self.write.is_finished()
    }

    /// Bytes wait for the peer to take them.
    #[inline]
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent.is_some()
    }

    /// The TLS keys are nearly used up and cannot be renewed.
    pub(super) fn has_used_up_keys(&self) -> bool {
        self.has_used_up_keys
    }

    /// Reads into `buffer`. A short read leaves nothing behind, unless the peer has hung up or there is urgent data.
    ///
    /// The kernel ends a read before the buffer is full only where its queue is empty (bytes that come later make an
    /// event of their own), at the end of the stream or an error (EPOLLRDHUP, EPOLLHUP, EPOLLERR), and at the urgent
    /// mark. Urgent data that comes during the read makes an event, too, so the mark is always known before the read
    /// that it cuts short is the last.
    #[inline]
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        if self.tls.is_some() {
            return self.read_tls(buffer);
        }
        self.receive(buffer)
    }

    #[inline]
    fn receive(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        let Some(socket) = &self.socket else { return ReadOutcome::WouldBlock };
        loop {
            return match recv(socket, &mut *buffer, RecvFlags::empty()) {
                Ok((0, _)) => {
                    self.read.end();
                    ReadOutcome::Eof
                }
                Ok((len, _)) => {
                    if len < buffer.len() {
                        self.read.read_short();
                    }
                    ReadOutcome::Bytes(len)
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    self.read.would_block();
                    ReadOutcome::WouldBlock
                }
                Err(_) => ReadOutcome::Failed,
            };
        }
    }

    /// Sends `bytes`. What the socket does not take is kept, after what is kept already.
    #[inline]
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.tls.is_some() {
            return self.write_tls(bytes);
        }
        self.write_raw(bytes);
    }

    #[inline]
    fn write_raw(&mut self, bytes: &[u8]) {
        if let Some(unsent) = &mut self.unsent {
            unsent.bytes.extend_from_slice(bytes);
            return;
        }
        let sent = self.send(bytes);
        if sent < bytes.len() && !self.write.is_broken() {
            self.unsent = UnsentBytes::of(bytes[sent..].to_vec());
        }
    }

    /// Sends what is kept, as far as the socket takes it.
    pub(super) fn flush(&mut self) {
        if self.write.is_blocked() {
            return;
        }
        let Some(mut unsent) = self.unsent.take() else { return };
        unsent.sent += self.send(&unsent.bytes[unsent.sent..]);
        if unsent.sent < unsent.bytes.len() && !self.write.is_broken() {
            self.unsent = Some(unsent);
        } else if self.tls.is_some() || self.write.is_finishing() {
            self.resume_shutdown();
        }
    }

    /// Sends as much as the socket takes; an error breaks the write side.
    #[inline]
    fn send(&mut self, bytes: &[u8]) -> usize {
        let Some(socket) = &self.socket else { return 0 };
        if self.write.is_broken() {
            return 0;
        }
        loop {
            match send(socket, bytes, SendFlags::NOSIGNAL) {
                Ok(len) => {
                    if len < bytes.len() {
                        self.write.set_blocked();
                    }
                    return len;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.write.set_blocked();
                    return 0;
                }
                Err(_) => {
                    self.write.set_broken();
                    return 0;
                }
            }
        }
    }

    /// Sends the end of stream, once; with TLS after a close_notify, and both after what waits.
    pub(super) fn finish(&mut self) {
        if self.write.is_finished() || !self.send_close_notify() {
            return;
        }
        self.write.finish();
        if let Some(socket) = &self.socket {
            // A peer that is gone already need not be told.
            let _ = shutdown(socket, Shutdown::Write);
        }
    }

    /// Makes the close that follows a reset instead of an orderly end.
    pub(super) fn reset(&mut self) {
        self.suppress_close_notify();
        if let Some(socket) = &self.socket {
            // A Unix socket or a dead connection has nothing to reset.
            let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_takes_32_bytes() {
        assert_eq!(size_of::<Endpoint>(), 32);
    }
}
