//! One end of a tunnel: a socket, its readiness, and what it has not taken yet.
//!
//! A buffer exists only while the peer is slow; it holds at most one read's bytes and the balancer's own frames,
//! because the other side is not read while it exists (invariant I10). With TLS, what is read and put is plaintext,
//! and what waits is records ([`sealed`]).

mod codec;
mod tls;

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use super::tls::{TlsConnection, TlsRole};
use crate::net::tls::extracted::ExtractedTls;

/// See the module.
#[derive(Debug)]
pub struct Endpoint {
    /// Away while the tunnel is frozen: then nothing is read and nothing sent.
    socket: Option<OwnedFd>,
    /// The TLS connection on it, if it has one.
    tls: Option<Box<TlsConnection>>,
    /// Bytes that the socket has not taken yet.
    unsent: Option<Box<UnsentBytes>>,
    /// A read may give something. Cleared by a short read.
    pub readable: bool,
    /// A write may be taken. Cleared by a short write.
    writable: bool,
    /// The peer has hung up or failed: read until the end, whatever a short read says.
    hung_up: bool,
    /// Urgent data is among what is to be read: read until nothing is left, whatever a short read says.
    urgent: bool,
    /// The peer has ended its stream.
    pub ended: bool,
    /// Our end of stream has been sent.
    pub finished: bool,
    /// Writes fail: nothing reaches this peer any more.
    pub broken: bool,
    /// The last bytes are on their way, the end of stream goes behind them.
    pub finishing: bool,
    /// The TLS keys are nearly used up and cannot be renewed.
    pub worn: bool,
}

#[derive(Debug)]
struct UnsentBytes {
    bytes: Vec<u8>,
    sent: usize,
}

/// What a read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    WouldBlock,
    /// The end of the stream.
    Eof,
    /// The connection is broken.
    Failed,
    /// The peer broke TLS. Now and from now on its bytes, so many this time, are dropped.
    Discarded(usize),
}

impl Endpoint {
    /// A socket that has not been polled yet: it may be readable and writable.
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Some(socket),
            tls: None,
            unsent: None,
            readable: true,
            writable: true,
            hung_up: false,
            urgent: false,
            ended: false,
            finished: false,
            broken: false,
            finishing: false,
            worn: false,
        }
    }

    /// A socket and, if there is one, the TLS connection on it. Gives what that has decrypted already, too.
    ///
    /// Urgent data stays in its place in the stream (RFC 6093, section 5): cut out, it would leave a hole in a frame.
    pub fn adopt(socket: OwnedFd, tls: Option<ExtractedTls>, role: TlsRole) -> (Self, Vec<u8>) {
        // A socket that knows no urgent data has none.
        let _ = sockopt::set_socket_oobinline(&socket, true);
        let mut endpoint = Self::new(socket);
        let Some(departed) = tls else { return (endpoint, Vec::new()) };
        let (tls, leftover) = TlsConnection::new(departed, role);
        endpoint.tls = Some(tls);
        if !leftover.unsent.is_empty() {
            endpoint.unsent = Some(Box::new(UnsentBytes { bytes: leftover.unsent, sent: 0 }));
        }
        (endpoint, leftover.plain)
    }

    /// The socket, unless it is away.
    pub fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Notes what epoll said.
    #[inline]
    pub fn set_ready(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable | hung_up;
        self.writable |= writable;
        self.hung_up |= hung_up;
    }

    /// Notes that epoll said there is urgent data (EPOLLPRI): a read ends at its mark, with more behind it.
    #[cold]
    pub fn set_urgent(&mut self) {
        self.urgent = true;
        self.readable = true;
    }

    /// The peer has hung up, or its connection has failed; what it sent before may still be unread.
    pub fn has_hung_up(&self) -> bool {
        self.hung_up
    }

    /// Whether bytes wait for this peer to take them.
    #[inline]
    pub fn has_unsent(&self) -> bool {
        self.unsent.is_some()
    }

    /// Reads into `buffer`. A short read leaves nothing behind, unless the peer has hung up or there is urgent data.
    ///
    /// The kernel ends a read before the buffer is full only where its queue is empty (what comes later makes an
    /// event of its own), at the end of the stream or a fault (EPOLLRDHUP, EPOLLHUP, EPOLLERR) and at the urgent
    /// mark. Urgent data that comes while this runs makes an event, too, so the mark is always known of before a
    /// read that it cuts short is the last.
    #[inline]
    pub fn read(&mut self, buffer: &mut [u8]) -> ReadOutcome {
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
                    self.ended = true;
                    ReadOutcome::Eof
                }
                Ok((len, _)) => {
                    self.readable = len == buffer.len() || self.hung_up || self.urgent;
                    ReadOutcome::Bytes(len)
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {
                    (self.readable, self.urgent) = (false, false);
                    ReadOutcome::WouldBlock
                }
                Err(_) => ReadOutcome::Failed,
            };
        }
    }

    /// Sends `bytes`; what the socket does not take is kept, behind what is kept already.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) {
        if self.tls.is_some() {
            return self.write_tls(bytes);
        }
        self.write_raw(bytes);
    }

    #[inline]
    fn write_raw(&mut self, bytes: &[u8]) {
        if let Some(pending) = &mut self.unsent {
            pending.bytes.extend_from_slice(bytes);
            return;
        }
        let sent = self.send(bytes);
        if sent < bytes.len() && !self.broken {
            self.unsent = Some(Box::new(UnsentBytes { bytes: bytes[sent..].to_vec(), sent: 0 }));
        }
    }

    /// Sends what is kept, as far as the socket takes it.
    pub fn flush(&mut self) {
        if !self.writable {
            return;
        }
        let Some(mut pending) = self.unsent.take() else { return };
        pending.sent += self.send(&pending.bytes[pending.sent..]);
        if pending.sent < pending.bytes.len() && !self.broken {
            self.unsent = Some(pending);
        } else if self.tls.is_some() || self.finishing {
            self.resume_shutdown();
        }
    }

    /// Sends as much as is taken; a fault makes the end broken.
    #[inline]
    fn send(&mut self, bytes: &[u8]) -> usize {
        let Some(socket) = &self.socket else { return 0 };
        if self.broken {
            return 0;
        }
        loop {
            match send(socket, bytes, SendFlags::NOSIGNAL) {
                Ok(len) => {
                    self.writable = len == bytes.len();
                    return len;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    return 0;
                }
                Err(_) => {
                    self.broken = true;
                    return 0;
                }
            }
        }
    }

    /// Sends our end of stream, once; with TLS close_notify first, and both behind what waits.
    pub fn finish(&mut self) {
        if self.finished || !self.send_close_notify() {
            return;
        }
        self.finished = true;
        if let Some(socket) = &self.socket {
            // A peer that is gone already has nothing left to be told.
            let _ = shutdown(socket, Shutdown::Write);
        }
    }

    /// Makes the close that follows a reset instead of an orderly end.
    pub fn reset(&mut self) {
        self.suppress_close_notify();
        if let Some(socket) = &self.socket {
            // On a Unix socket or a dead connection there is nothing to reset.
            let _ = sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
        }
    }
}
