//! TLS in the relay: a connection that has left rustls goes on here, record by record, without I/O.
//!
//! Received bytes come in and plaintext goes out ([`Side::open`]), plaintext comes in and records go out
//! ([`Side::seal`]); what has to be said besides (alerts, KeyUpdates) is appended to the same bytes out, in order.
//! All that rustls checks after the handshake is checked here; [`alert`] has the answers. Client and server differ
//! only in who may send a ticket and who may wish to renegotiate. A fault of the peer is a value: it is told by an
//! alert, and from then on nothing is opened and nothing sealed.
//!
//! A side is about 300 bytes, and holds no AEAD context ([`contexts`]).

pub mod alert;
mod contexts;
mod record;

use crate::net::tls::departed::{Departed, Version};

use alert::{Fault, Meaning};
use record::{Cipher, Direction, MOST_PLAIN, kind};

/// KeyUpdates or tickets, empty records, or warnings that are put up with: the first without data between them, the
/// second in a row.
const PATIENCE: u8 = 32;
/// Warnings that are put up with in all.
const WARNINGS: u8 = 4;
/// TLS 1.2 cannot change its keys: so many records before their limit the end begins. More than one connection
/// sends between two sweeps.
const END_BEGINS: u64 = 1 << 20;

/// Handshake messages (RFC 8446 section 4, RFC 5246 section 7.4).
mod message {
    pub const HELLO_REQUEST: u8 = 0;
    pub const CLIENT_HELLO: u8 = 1;
    pub const TICKET: u8 = 4;
    pub const KEY_UPDATE: u8 = 24;
    /// A KeyUpdate that asks for none in return. One that does would count against the peer's patience or ours.
    pub const OWN_KEY_UPDATE: [u8; 5] = [KEY_UPDATE, 0, 0, 1, 0];
}

/// Which part the balancer has on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The peer is a client.
    Server,
    /// The peer is a node.
    Client,
}

/// What has been heard from the peer, last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It may send more.
    Open,
    /// Its close_notify. What it sends after that is not looked at.
    Goodbye,
    /// The end of its stream without a close_notify: what is missing is not known.
    Cut,
    /// Something that may not be.
    Fault(Fault),
}

/// How far our own direction is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Open,
    /// Close_notify, or a fatal alert, or nothing more by decision: the last word.
    LastWord,
}

/// See the module.
#[derive(Debug)]
pub struct Side {
    cipher: Cipher,
    role: Role,
    tx: Direction,
    rx: Direction,
    /// The records that one key may seal.
    limit: u64,
    /// Bytes received and not opened: a record that is not whole yet.
    begun: Vec<u8>,
    /// `begun` may hold whole records, for which no socket will call.
    is_behind: bool,
    heard: Heard,
    said: Said,
    /// The peer has asked for a KeyUpdate. One is enough for any number of such wishes (RFC 8446 section 4.6.3).
    owes_update: bool,
    /// TLS 1.2: one wish to renegotiate has been turned down.
    has_renegotiated: bool,
    /// KeyUpdates and tickets since data came.
    updates: u8,
    /// Empty records in a row.
    empties: u8,
    /// Warnings so far.
    warnings: u8,
}

/// What came with a connection and goes before all else.
#[derive(Debug)]
pub struct Luggage {
    /// Records not written to the socket yet.
    pub unsent: Vec<u8>,
    /// Plaintext from the peer, not consumed.
    pub plain: Vec<u8>,
}

impl Side {
    /// Takes the connection over.
    pub fn new(departed: Departed, role: Role) -> (Self, Luggage) {
        let Departed { version, suite, tx, rx, undecrypted, unsent, plain, is_closed } = departed;
        let cipher = Cipher { version, suite };
        let side = Self {
            cipher,
            role,
            tx: Direction::new(tx),
            rx: Direction::new(rx),
            limit: cipher.limit(),
            is_behind: !undecrypted.is_empty(),
            begun: undecrypted,
            heard: if is_closed { Heard::Goodbye } else { Heard::Open },
            said: Said::Open,
            owes_update: false,
            has_renegotiated: false,
            updates: 0,
            empties: 0,
            warnings: 0,
        };
        (side, Luggage { unsent, plain })
    }

    /// What has been heard from the peer, last.
    #[inline]
    pub fn heard(&self) -> Heard {
        self.heard
    }

    /// Bytes to put in front of those that are read next.
    #[inline]
    pub fn begun(&self) -> &[u8] {
        &self.begun
    }

    /// Whether [`begun`](Self::begun) is to be opened before anything is read.
    #[inline]
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// TLS 1.2: close_notify has to be answered at once (RFC 5246 section 7.2.1). In TLS 1.3 each direction ends
    /// by itself.
    pub fn must_part(&self) -> bool {
        self.cipher.version == Version::Tls12
    }

    /// The keys are nearly used up, and there are no others: the connection has to end.
    pub fn is_worn(&self) -> bool {
        self.cipher.version == Version::Tls12 && self.tx.seq() >= self.limit.saturating_sub(END_BEGINS)
    }

    /// The keys are used up: what is still to be sealed is dropped, and the peer has been told goodbye.
    pub fn is_spent(&self) -> bool {
        self.cipher.version == Version::Tls12 && self.tx.seq() >= self.limit
    }

    /// Opens the whole records in `wire`, which begins with what [`begun`](Self::begun) gave, into `plain`, as far
    /// as it has room; keeps the rest. Gives the bytes of plaintext.
    #[inline]
    pub fn open(&mut self, wire: &[u8], plain: &mut [u8], out: &mut Vec<u8>) -> usize {
        let (mut used, mut len) = (0, 0);
        self.is_behind = false;
        while self.heard == Heard::Open {
            match record::length(self.cipher, &wire[used..]) {
                Ok(Some(record)) if record <= wire.len() - used => {
                    if record > plain.len() - len {
                        self.is_behind = true;
                        break;
                    }
                    match self.open_one(&wire[used..][..record], &mut plain[len..], out) {
                        Ok(fresh) => len += fresh,
                        Err(fault) => self.fail(fault, out),
                    }
                    used += record;
                }
                Ok(_) => break,
                Err(fault) => self.fail(fault, out),
            }
        }
        self.keep(wire, used);
        len
    }

    /// Opens one record; gives the length of its data.
    #[inline]
    fn open_one(&mut self, record: &[u8], plain: &mut [u8], out: &mut Vec<u8>) -> Result<usize, Fault> {
        let (kind, len) = self.rx.open(self.cipher, record, plain)?;
        if len > 0 {
            self.empties = 0;
        } else {
            self.empties = bear(self.empties, PATIENCE)?;
        }
        match kind {
            kind::DATA => {
                if len > 0 {
                    self.updates = 0;
                }
                return Ok(len);
            }
            kind::ALERT => match alert::read(self.cipher.version, &plain[..len])? {
                Meaning::Goodbye => self.heard = Heard::Goodbye,
                Meaning::Warning => self.warnings = bear(self.warnings, WARNINGS)?,
            },
            kind::HANDSHAKE if self.cipher.version == Version::Tls13 => self.hear_13(&plain[..len])?,
            kind::HANDSHAKE => self.hear_12(&plain[..len], out)?,
            _ => return Err(Fault::Unexpected),
        }
        Ok(0)
    }

    /// A handshake message of TLS 1.3: a KeyUpdate or, from a server, tickets, which are of no use here.
    #[cold]
    fn hear_13(&mut self, messages: &[u8]) -> Result<(), Fault> {
        match *messages {
            [message::KEY_UPDATE, 0, 0, 1, wish] => {
                if wish > 1 {
                    return Err(Fault::IllegalValue);
                }
                self.updates = bear(self.updates, PATIENCE)?;
                self.owes_update |= wish == 1;
                self.rx.update(self.cipher.suite);
                Ok(())
            }
            [message::TICKET, ..] if self.role == Role::Client && are_tickets(messages) => {
                self.updates = bear(self.updates, PATIENCE)?;
                Ok(())
            }
            _ => Err(Fault::Unexpected),
        }
    }

    /// A handshake message of TLS 1.2: the wish to renegotiate is turned down once.
    #[cold]
    fn hear_12(&mut self, messages: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        let wish = match self.role {
            Role::Server => message::CLIENT_HELLO,
            Role::Client => message::HELLO_REQUEST,
        };
        if messages.first() != Some(&wish) || self.has_renegotiated {
            return Err(Fault::Unexpected);
        }
        self.has_renegotiated = true;
        if self.can_seal() {
            self.tx.seal(self.cipher, kind::ALERT, &alert::NO_RENEGOTIATION, out);
        }
        Ok(())
    }

    /// Keeps what is not opened, exactly as much as there is.
    #[inline]
    fn keep(&mut self, wire: &[u8], used: usize) {
        let rest = if self.heard == Heard::Open { &wire[used..] } else { &[] };
        if rest.is_empty() {
            // Frees what a record that is whole now has taken; nothing when there was none.
            self.begun = Vec::new();
        } else if used == 0 {
            let fresh = &rest[self.begun.len()..];
            self.begun.reserve_exact(fresh.len());
            self.begun.extend_from_slice(fresh);
        } else {
            self.begun = rest.to_vec();
        }
    }

    #[cold]
    fn fail(&mut self, fault: Fault, out: &mut Vec<u8>) {
        self.heard = Heard::Fault(fault);
        if let Some(alert) = fault.alert()
            && self.can_seal()
        {
            self.tx.seal(self.cipher, kind::ALERT, &alert, out);
        }
        self.said = Said::LastWord;
    }

    /// The peer's stream has ended.
    pub fn end(&mut self) {
        if self.heard == Heard::Open {
            self.heard = Heard::Cut;
            self.begun = Vec::new();
        }
    }

    /// Appends the records for `plain` to `out`; nothing once the last word is said.
    #[inline]
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        for piece in plain.chunks(MOST_PLAIN) {
            if self.owes_update || self.tx.seq() >= self.limit {
                self.renew(out);
            }
            if !self.can_seal() {
                return;
            }
            self.tx.seal(self.cipher, kind::DATA, piece, out);
        }
    }

    /// New keys for what comes next, if they are owed or the present ones are used up; TLS 1.2 has none, and parts.
    #[cold]
    fn renew(&mut self, out: &mut Vec<u8>) {
        if self.cipher.version == Version::Tls12 {
            return self.part(out);
        }
        self.update(out);
    }

    /// Sends the KeyUpdate that the peer has asked for.
    pub fn settle(&mut self, out: &mut Vec<u8>) {
        if self.owes_update {
            self.update(out);
        }
    }

    /// A KeyUpdate under the present keys, then the next ones.
    fn update(&mut self, out: &mut Vec<u8>) {
        self.owes_update = false;
        if self.said == Said::Open {
            self.tx.seal(self.cipher, kind::HANDSHAKE, &message::OWN_KEY_UPDATE, out);
            self.tx.update(self.cipher.suite);
        }
    }

    /// Appends close_notify, once, unless something else was the last word.
    pub fn part(&mut self, out: &mut Vec<u8>) {
        if self.said == Said::Open {
            self.tx.seal(self.cipher, kind::ALERT, &alert::CLOSE_NOTIFY, out);
            self.said = Said::LastWord;
        }
    }

    /// Says nothing more, not even goodbye: the stream that this side passes on was cut.
    pub fn fall_silent(&mut self) {
        self.said = Said::LastWord;
    }

    #[inline]
    fn can_seal(&self) -> bool {
        self.said == Said::Open
    }
}

/// One more, up to `most`.
fn bear(so_far: u8, most: u8) -> Result<u8, Fault> {
    if so_far < most { Ok(so_far + 1) } else { Err(Fault::Unexpected) }
}

/// Whole NewSessionTickets and nothing else.
fn are_tickets(mut messages: &[u8]) -> bool {
    while let Some((&[kind, a, b, c], rest)) = messages.split_first_chunk() {
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        match rest.get(len..) {
            Some(behind) if kind == message::TICKET => messages = behind,
            _ => return false,
        }
    }
    messages.is_empty()
}
