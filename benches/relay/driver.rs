//! The driver of the relay's benchmark: both ends of all connections, with or without TLS at the clients.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};

use mainstay::net::tls::extracted::{CipherSuite, ExtractedTls, TlsProtocolVersion, TrafficKeys};
use mainstay::relay::Relay;
use mainstay::relay::tls::{TlsConnection, TlsRole};

use super::{CONNECTIONS, SEND_BUFFER, meter, tunnel};

/// Both ends of all connections, and the frames they send.
pub struct Driver {
    epoll: OwnedFd,
    /// Client and node of each connection by turns.
    ends: Vec<TcpStream>,
    /// The clients' sides of TLS, if they speak it.
    sides: Vec<Option<TlsConnection>>,
    scratch: Vec<u8>,
    /// What is read, without its records; and records to be written.
    plain: Vec<u8>,
    records: Vec<u8>,
}

impl Driver {
    /// `carry` is given the client's and the node's socket of each connection.
    pub fn new(tls: bool, carry: impl FnOnce(Vec<[OwnedFd; 2]>) -> io::Result<()>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (mut ends, mut pairs) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS {
            let mut pair = || -> io::Result<OwnedFd> {
                let end = TcpStream::connect(listener.local_addr()?)?;
                end.set_nodelay(true)?;
                epoll::add(&epoll, &end, EventData::new_u64(ends.len() as u64), EventFlags::IN)?;
                ends.push(end);
                accept(&listener, true)
            };
            pairs.push([pair()?, pair()?]);
        }
        carry(pairs)?;
        let side = |at: usize| {
            (tls && at.is_multiple_of(2)).then(|| *TlsConnection::new(departed(1, 2), TlsRole::Client).0)
        };
        let sides = (0..ends.len()).map(side).collect();
        let (scratch, plain) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
        Ok(Self { epoll, ends, sides, scratch, plain, records: Vec::new() })
    }

    /// With tunnels of `relay` between the ends.
    pub fn relayed(relay: &Relay, tls: bool) -> io::Result<Self> {
        Self::new(tls, |pairs| {
            let meter = meter();
            for (id, [client, node]) in pairs.into_iter().enumerate() {
                assert!(relay.adopt(tunnel(id as u64, [client, node], tls, &meter)), "the relay runs");
            }
            Ok(())
        })
    }

    fn write(&mut self, at: usize, frame: &[u8]) -> io::Result<()> {
        let Some(side) = &mut self.sides[at] else { return self.ends[at].write_all(frame) };
        self.records.clear();
        side.seal(frame, &mut self.records);
        self.ends[at].write_all(&self.records)
    }

    /// Bytes of frames that have come.
    fn read(&mut self, at: usize) -> io::Result<usize> {
        let begun = self.sides[at].as_ref().map_or(&[][..], TlsConnection::partial_record);
        self.scratch[..begun.len()].copy_from_slice(begun);
        let begun = begun.len();
        let read = self.ends[at].read(&mut self.scratch[begun..])?;
        assert!(read > 0, "a connection ended");
        let Some(side) = &mut self.sides[at] else { return Ok(read) };
        Ok(side.open(&self.scratch[..begun + read], &mut self.plain, &mut Vec::new()))
    }

    /// Each client sends a frame and waits for the node's, `trips` times.
    pub fn run(&mut self, payload: usize, trips: u32) -> io::Result<()> {
        // By sender: the client masks, the node does not.
        let frames = [frame(payload, true), frame(payload, false)];
        let mut got = vec![0; self.ends.len()];
        let mut left = vec![trips; self.ends.len()];
        for client in (0..self.ends.len()).step_by(2) {
            self.write(client, &frames[0])?;
        }
        let mut running = CONNECTIONS;
        let mut events = Vec::with_capacity(2 * CONNECTIONS);
        while running > 0 {
            events.clear();
            epoll::wait(&self.epoll, spare_capacity(&mut events), None)?;
            for event in &events {
                let at = event.data.u64() as usize;
                got[at] += self.read(at)?;
                if got[at] < frames[(at + 1) % 2].len() {
                    continue;
                }
                got[at] = 0;
                left[at] -= 1;
                if at.is_multiple_of(2) && left[at] == 0 {
                    running -= 1;
                } else {
                    self.write(at, &frames[at % 2])?;
                }
            }
        }
        Ok(())
    }
}

/// A whole binary message.
pub fn frame(payload: usize, masked: bool) -> Vec<u8> {
    let mut frame = vec![0x82, if masked { 0x80 | 126 } else { 126 }];
    frame.extend((payload as u16).to_be_bytes());
    if payload < 126 {
        frame.truncate(1);
        frame.push(payload as u8 | if masked { 0x80 } else { 0 });
    }
    if masked {
        frame.extend([0x37, 0xfa, 0x21, 0x3d]);
    }
    frame.extend((0..payload).map(|at| at as u8));
    frame
}

/// A socket as the relay takes it.
pub fn accept(listener: &TcpListener, large: bool) -> io::Result<OwnedFd> {
    let (socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    if large {
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
    }
    Ok(socket.into())
}

/// A TLS connection after its handshake, with made-up keys.
pub fn departed(sends: u8, receives: u8) -> ExtractedTls {
    let keys = |seed| Box::new(TrafficKeys { secret: [seed; 48], key: [seed; 32], iv: [seed; 12], seq: 0 });
    let (undecrypted, unsent, plain) = Default::default();
    let (version, suite) = (TlsProtocolVersion::Tls13, CipherSuite::Aes128Gcm);
    ExtractedTls {
        version,
        suite,
        tx: keys(sends),
        rx: keys(receives),
        undecrypted,
        unsent,
        decrypted: plain,
        has_close_notify: false,
    }
}
