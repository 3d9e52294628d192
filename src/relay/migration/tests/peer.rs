//! A peer of a tunnel: a real socket, with rustls on it where the tunnel's end has TLS.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::net::sockopt;
use rustls::{Connection, SupportedCipherSuite};

use super::DEADLINE;
use crate::net::tls::extracted::ExtractedTls;
use crate::relay::tls::TlsRole;
use crate::relay::tls::tests::meet;

/// Small, so that they are full now and then.
const BUFFER: usize = 32 * 1024;

/// A peer of a tunnel. What it receives is kept until it is asked for.
pub(super) struct Peer {
    sender: PeerSender,
    heard: Vec<u8>,
    /// The stream has ended; true when it ended in an orderly way.
    ended: Option<bool>,
    /// Not taken by the socket yet.
    unsent: Vec<u8>,
}

/// The sending half of a peer. Only one thread at a time may send.
#[derive(Clone)]
pub(super) struct PeerSender {
    socket: Arc<TcpStream>,
    tls: Option<Arc<Mutex<Connection>>>,
}

/// A client, and the relay's end of its connection.
pub(super) fn client(suite: Option<SupportedCipherSuite>) -> (Peer, OwnedFd, Option<ExtractedTls>) {
    peer(suite, TlsRole::Server)
}

/// A node, and the relay's end of the connection to it.
pub(super) fn node(suite: Option<SupportedCipherSuite>) -> (Peer, OwnedFd, Option<ExtractedTls>) {
    peer(suite, TlsRole::Client)
}

fn peer(suite: Option<SupportedCipherSuite>, role: TlsRole) -> (Peer, OwnedFd, Option<ExtractedTls>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    for socket in [&theirs, &ours] {
        sockopt::set_socket_send_buffer_size(socket, BUFFER).unwrap();
        sockopt::set_socket_recv_buffer_size(socket, BUFFER).unwrap();
        socket.set_nodelay(true).unwrap();
    }
    theirs.set_read_timeout(Some(DEADLINE)).unwrap();
    theirs.set_write_timeout(Some(DEADLINE)).unwrap();
    ours.set_nonblocking(true).unwrap();
    let (tls, departed) = suite.map(|suite| meet(suite, role)).unzip();
    let sender = PeerSender { socket: Arc::new(theirs), tls: tls.map(|tls| Arc::new(Mutex::new(tls))) };
    (Peer { sender, heard: Vec::new(), ended: None, unsent: Vec::new() }, ours.into(), departed)
}

impl PeerSender {
    /// The bytes on the wire for these bytes, after what TLS owes.
    fn sealed(&self, bytes: &[u8]) -> Vec<u8> {
        let Some(tls) = &self.tls else { return bytes.to_vec() };
        let (mut tls, mut wire) = (tls.lock(), Vec::new());
        tls.writer().write_all(bytes).unwrap();
        while tls.wants_write() {
            tls.write_tls(&mut wire).unwrap();
        }
        wire
    }

    /// TLS 1.3: new keys from the next message on.
    pub(super) fn renew(&self) {
        if let Some(tls) = &self.tls {
            // TLS 1.2 has no such thing.
            let _ = tls.lock().refresh_traffic_keys();
        }
    }
}

impl Write for PeerSender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.socket).write_all(&self.sealed(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sender.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Peer {
    pub(super) fn has_tls(&self) -> bool {
        self.sender.tls.is_some()
    }

    /// Its sending half, for another thread.
    pub(super) fn sender(&self) -> PeerSender {
        self.sender.clone()
    }

    /// Reads once.
    fn receive(&mut self) -> io::Result<()> {
        let mut socket = &*self.sender.socket;
        let Some(tls) = &self.sender.tls else {
            let mut some = [0; 16 * 1024];
            let len = socket.read(&mut some)?;
            self.heard.extend_from_slice(&some[..len]);
            if len == 0 {
                self.ended = Some(true);
            }
            return Ok(());
        };
        // Not under the lock: the sender may be what it waits for.
        let mut wire = [0; 16 * 1024];
        let len = socket.read(&mut wire)?;
        let (mut tls, mut wire) = (tls.lock(), &wire[..len]);
        if len == 0 {
            self.ended = Some(false);
        }
        while !wire.is_empty() {
            tls.read_tls(&mut wire)?;
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            // That there is nothing more now is no fault.
            let _ = tls.reader().read_to_end(&mut self.heard);
            if state.peer_has_closed() {
                self.ended = Some(true);
                break;
            }
        }
        Ok(())
    }

    /// The next bytes, as many as that; fewer where the stream ends.
    pub(super) fn take(&mut self, len: usize) -> Vec<u8> {
        while self.heard.len() < len && self.ended.is_none() {
            self.receive().unwrap();
        }
        let len = self.heard.len().min(len);
        self.heard.drain(..len).collect()
    }

    pub(super) fn expect(&mut self, bytes: &[u8]) {
        let heard = self.take(bytes.len());
        assert!(heard == bytes, "{} bytes are not the {} that were sent", heard.len(), bytes.len());
    }

    /// Everything that still comes, and whether the stream ends in an orderly way.
    pub(super) fn rest(&mut self) -> (Vec<u8>, bool) {
        while self.ended.is_none() {
            if self.receive().is_err() {
                self.ended = Some(false);
            }
        }
        (std::mem::take(&mut self.heard), self.ended == Some(true))
    }

    /// Whether nothing has come.
    pub(super) fn has_received_nothing(&self) -> bool {
        let socket = &self.sender.socket;
        socket.set_nonblocking(true).unwrap();
        let nothing = socket.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        socket.set_nonblocking(false).unwrap();
        nothing && self.heard.is_empty()
    }

    /// Ends its stream in an orderly way.
    pub(super) fn shut(&mut self, how: Shutdown) {
        if let Some(tls) = &self.sender.tls {
            tls.lock().send_close_notify();
        }
        self.write_all(b"").unwrap();
        let close_notify = self.sender.sealed(b"");
        (&*self.sender.socket).write_all(&close_notify).unwrap();
        self.sender.socket.shutdown(how).unwrap();
    }

    /// Sends as much as the socket takes, or the rest of the last message. Returns false when that is not all.
    pub(super) fn offer(&mut self, bytes: &[u8]) -> bool {
        let mut wire = std::mem::take(&mut self.unsent);
        if wire.is_empty() {
            wire = self.sender.sealed(bytes);
        }
        let mut socket = &*self.sender.socket;
        socket.set_nonblocking(true).unwrap();
        while let Ok(len) = socket.write(&wire) {
            wire.drain(..len);
            if wire.is_empty() {
                break;
            }
        }
        socket.set_nonblocking(false).unwrap();
        self.unsent = wire;
        self.unsent.is_empty()
    }

    /// Sends what was [offered](Self::offer) and not taken.
    pub(super) fn complete(&mut self) {
        let unsent = std::mem::take(&mut self.unsent);
        (&*self.sender.socket).write_all(&unsent).unwrap();
    }
}
