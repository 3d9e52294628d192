//! TLS in the relay: a connection that has left rustls goes on here, record by record, without I/O.
//!
//! Received bytes come in and plaintext goes out ([`Side::open`]), plaintext comes in and records go out
//! ([`Side::seal`]); what has to be said besides (alerts, KeyUpdates) is appended to the same bytes out, in order.
//! All that rustls checks after the handshake is checked here; [`alert`] has the answers. Client and server differ
//! only in who may send a ticket and who may wish to renegotiate. A fault of the peer is a value: it is told by an
//! alert, and from then on nothing is opened and nothing sealed.
//!
//! A side is about 300 bytes, and holds no AEAD context (`contexts`).

pub mod alert;
mod contexts;
mod packing;
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
    pub fn new(departed: Departed, role: Role) -> (Box<Self>, Luggage) {
        let Departed { version, suite, tx, rx, undecrypted, unsent, plain, is_closed } = departed;
        let mut side = Box::new(Self::blank(Cipher { version, suite }, role));
        side.tx.take_up(&tx);
        side.rx.take_up(&rx);
        side.is_behind = !undecrypted.is_empty();
        side.begun = undecrypted;
        side.heard = if is_closed { Heard::Goodbye } else { Heard::Open };
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

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read, Write};
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
    use rustls::version::{TLS12, TLS13};
    use rustls::{
        ClientConfig, ClientConnection, Connection, ConnectionTrafficSecrets, RootCertStore, ServerConfig,
        ServerConnection, SupportedCipherSuite,
    };
    use rustls_pki_types::{PrivateKeyDer, ServerName};

    use super::*;
    use crate::net::tls::departed::{Keys, Suite};
    use crate::net::tls::schedule::key_and_iv;
    use crate::net::tls::secrets::Secrets;

    const ALL: [(Version, Suite); 6] = [
        (Version::Tls13, Suite::Aes128Gcm),
        (Version::Tls13, Suite::Aes256Gcm),
        (Version::Tls13, Suite::Chacha20Poly1305),
        (Version::Tls12, Suite::Aes128Gcm),
        (Version::Tls12, Suite::Aes256Gcm),
        (Version::Tls12, Suite::Chacha20Poly1305),
    ];
    const TLS_13: (Version, Suite) = ALL[0];
    const TLS_12: (Version, Suite) = ALL[3];

    fn keys(suite: Suite, seed: u8) -> Keys {
        let secret = [seed; 48];
        let (key, iv) = key_and_iv(suite, &secret);
        Keys { secret, key: *key, iv: *iv, seq: 7 }
    }

    fn departed((version, suite): (Version, Suite), tx: Keys, rx: Keys) -> Departed {
        let (undecrypted, unsent, plain) = Default::default();
        let (tx, rx) = (Box::new(tx), Box::new(rx));
        Departed { version, suite, tx, rx, undecrypted, unsent, plain, is_closed: false }
    }

    /// Two sides of one connection: that of a client, and ours towards it.
    fn twins(how: (Version, Suite)) -> (Side, Side) {
        let (client, server) = (|| keys(how.1, 1), || keys(how.1, 2));
        let peer = Side::new(departed(how, client(), server()), Role::Client).0;
        (*peer, *Side::new(departed(how, server(), client()), Role::Server).0)
    }

    /// What `side` makes of `wire`: plaintext, and what it answers.
    fn hear(side: &mut Side, wire: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut plain, mut out, mut room) = (Vec::new(), Vec::new(), vec![0; 64 * 1024]);
        let mut wire = [side.begun(), wire].concat();
        loop {
            let len = side.open(&wire, &mut room, &mut out);
            plain.extend_from_slice(&room[..len]);
            if !side.is_behind() {
                side.settle(&mut out);
                return (plain, out);
            }
            wire = side.begun().to_vec();
        }
    }

    fn sealed(side: &mut Side, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        side.seal(plain, &mut out);
        out
    }

    /// One record with this type and content, whatever they are.
    fn raw(side: &mut Side, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        side.tx.seal(side.cipher, kind, content, &mut out);
        out
    }

    /// The alert in `wire`, as `side` decrypts it.
    fn alert_in(side: &mut Side, wire: &[u8]) -> Vec<u8> {
        let mut room = [0; 64];
        let (kind, len) = side.rx.open(side.cipher, wire, &mut room).expect("one record that decrypts");
        assert_eq!(kind, kind::ALERT);
        room[..len].to_vec()
    }

    /// Asserts that what `wrong` makes comes to `fault`, and that the peer is told.
    fn fails(how: (Version, Suite), fault: Fault, wrong: impl FnOnce(&mut Side) -> Vec<u8>) {
        let (mut peer, mut side) = twins(how);
        let wire = [sealed(&mut peer, b"before"), wrong(&mut peer), sealed(&mut peer, b"behind")].concat();
        let (plain, out) = hear(&mut side, &wire);
        assert_eq!((&plain[..], side.heard()), (&b"before"[..], Heard::Fault(fault)), "{how:?}");
        match fault.alert() {
            Some(alert) => assert_eq!(alert_in(&mut peer, &out), alert, "{how:?}"),
            None => assert_eq!(out, b""),
        }
        assert_eq!(sealed(&mut side, b"after"), b"", "nothing goes behind a fatal alert");
        assert_eq!(hear(&mut side, &sealed(&mut peer, b"more")), (vec![], vec![]));
    }

    #[test]
    fn an_idle_side_takes_less_than_400_bytes_with_its_box() {
        assert!(size_of::<Side>() + 16 <= 400, "{}", size_of::<Side>());
    }

    #[test]
    fn nothing_that_is_printed_has_a_key_in_it() {
        let (peer, side) = twins(TLS_13);
        let text = format!("{peer:?} {side:?}");
        assert!(text.contains("tx: Direction(hidden), rx: Direction(hidden)"), "{text}");
        let key = format!("{:?}", &keys(TLS_13.1, 1).key[..3]);
        assert!(!text.contains(key.trim_matches(['[', ']'])), "{text}");
    }

    #[test]
    fn bytes_pass_in_every_size_whole_or_one_by_one() {
        for how in ALL {
            let (mut peer, mut side) = twins(how);
            for len in [1, 2, 1024, 16_383, 16_384, 16_385, 40_000] {
                let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
                let wire = sealed(&mut peer, &bytes);
                assert_eq!(hear(&mut side, &wire), (bytes.clone(), vec![]), "{how:?} {len}");
                let wire = sealed(&mut side, &bytes);
                let pieces = wire.chunks(if len > 1024 { 1000 } else { 1 });
                let read: Vec<u8> = pieces.flat_map(|piece| hear(&mut peer, piece).0).collect();
                assert_eq!(read, bytes, "{how:?} {len}");
                assert_eq!((peer.begun.capacity(), side.begun.capacity()), (0, 0));
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_found() {
        for how in ALL {
            let wire = sealed(&mut twins(how).0, b"a message");
            for bit in 0..8 * wire.len() {
                let (_, mut side) = twins(how);
                let mut wire = wire.clone();
                wire[bit / 8] ^= 1 << (bit % 8);
                let (plain, _) = hear(&mut side, &wire);
                let waits = side.heard() == Heard::Open && side.begun() == wire;
                assert!(plain.is_empty() && (waits || side.heard() != Heard::Open), "{how:?} {bit}");
            }
        }
    }

    #[test]
    fn a_replayed_a_lost_and_a_shortened_record_are_found() {
        for how in ALL {
            fails(how, Fault::BadRecord, |peer| {
                sealed(peer, b"lost");
                sealed(peer, b"next")
            });
            fails(how, Fault::BadRecord, |_| {
                vec![23, 3, 3, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
            });
            let (mut peer, mut side) = twins(how);
            let once = sealed(&mut peer, b"once");
            assert_eq!(hear(&mut side, &once).0, b"once");
            let (plain, out) = hear(&mut side, &once);
            assert_eq!((plain, side.heard()), (vec![], Heard::Fault(Fault::BadRecord)));
            assert_eq!(alert_in(&mut peer, &out), [2, 20]);
        }
    }

    #[test]
    fn what_is_no_tls_and_what_has_no_place_here_is_told_and_ends_it() {
        for how in ALL {
            fails(how, Fault::NotTls, |_| b"GET / HTTP/1.1\r\n".to_vec());
            fails(how, Fault::Unexpected, |_| vec![20, 3, 3, 0, 1, 1]);
            fails(how, Fault::TooLong, |_| vec![23, 3, 3, 0xff, 0xff]);
            fails(how, Fault::TooLong, |peer| raw(peer, kind::DATA, &[0; MOST_PLAIN + 1]));
            fails(how, Fault::Unexpected, |peer| raw(peer, kind::HANDSHAKE, &[20, 0, 0, 0]));
            fails(how, Fault::Alerted, |peer| raw(peer, kind::ALERT, &[2, 40]));
            fails(how, Fault::NotTls, |peer| raw(peer, kind::ALERT, &[1]));
            fails(how, Fault::IllegalValue, |peer| raw(peer, kind::ALERT, &[9, 9]));
        }
        fails(TLS_13, Fault::Unexpected, |_| vec![21, 3, 3, 0, 2, 1, 0]);
        fails(TLS_13, Fault::Unexpected, |peer| raw(peer, 0, &[0; 20]));
        fails(TLS_13, Fault::Unexpected, |peer| raw(peer, 24, b"heartbeat"));
        fails(TLS_13, Fault::Alerted, |peer| raw(peer, kind::ALERT, &alert::NO_RENEGOTIATION));
    }

    #[test]
    fn padding_is_taken_off() {
        let (mut peer, mut side) = twins(TLS_13);
        let padded = raw(&mut peer, 0, &[b"padded", &[kind::DATA][..], &[0; 900]].concat());
        assert_eq!(hear(&mut side, &padded), (b"padded".to_vec(), vec![]));
    }

    #[test]
    fn key_updates_are_followed_and_answered_once_under_the_old_key() {
        let (mut peer, mut side) = twins(TLS_13);
        let ask = [message::KEY_UPDATE, 0, 0, 1, 1];
        let mut wire = Vec::new();
        for _ in 0..3 {
            wire.extend(raw(&mut peer, kind::HANDSHAKE, &ask));
            peer.tx.update(peer.cipher.suite);
        }
        wire.extend(sealed(&mut peer, b"with the fourth key"));
        let (plain, answer) = hear(&mut side, &wire);
        assert_eq!((&plain[..], answer.len()), (&b"with the fourth key"[..], 5 + 5 + 1 + 16));
        let behind = sealed(&mut side, b"with the second key");
        assert_eq!(hear(&mut peer, &[answer, behind].concat()).0, b"with the second key");
        assert!(!peer.owes_update, "the answer asks for nothing");
    }

    #[test]
    fn what_is_no_sound_key_update_is_refused() {
        const KEY_UPDATE: u8 = message::KEY_UPDATE;
        fails(TLS_13, Fault::IllegalValue, |peer| raw(peer, kind::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 2]));
        fails(TLS_13, Fault::Unexpected, |peer| raw(peer, kind::HANDSHAKE, &[KEY_UPDATE, 0, 0, 0]));
        fails(TLS_13, Fault::Unexpected, |peer| {
            raw(peer, kind::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0].repeat(2))
        });
        fails(TLS_13, Fault::Unexpected, |peer| raw(peer, kind::HANDSHAKE, &[KEY_UPDATE, 0]));
        fails(TLS_12, Fault::Unexpected, |peer| raw(peer, kind::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0]));
    }

    fn update(peer: &mut Side) -> Vec<u8> {
        let mut out = Vec::new();
        peer.update(&mut out);
        out
    }

    #[test]
    fn floods_that_carry_nothing_end_it_and_data_forgives_them() {
        let (mut peer, mut side) = twins(TLS_13);
        for _ in 0..3 {
            let flood: Vec<u8> = (0..PATIENCE).flat_map(|_| update(&mut peer)).collect();
            assert_eq!(hear(&mut side, &flood), (vec![], vec![]));
            let empty: Vec<u8> = (0..PATIENCE).flat_map(|_| raw(&mut peer, kind::DATA, b"")).collect();
            assert_eq!(hear(&mut side, &empty), (vec![], vec![]));
            assert_eq!(hear(&mut side, &sealed(&mut peer, b"x")).0, b"x");
        }
        fails(TLS_13, Fault::Unexpected, |peer| (0..=PATIENCE).flat_map(|_| update(peer)).collect());
        for how in ALL {
            fails(how, Fault::Unexpected, |peer| {
                (0..=PATIENCE).flat_map(|_| raw(peer, kind::DATA, b"")).collect()
            });
            let canceled = |peer: &mut Side| raw(peer, kind::ALERT, &[1, 90]);
            fails(how, Fault::Unexpected, |peer| (0..=WARNINGS).flat_map(|_| canceled(peer)).collect());
        }
    }

    #[test]
    fn an_own_key_update_comes_before_the_keys_are_used_up() {
        for how in ALL.into_iter().filter(|how| how.0 == Version::Tls13) {
            let (mut peer, mut side) = twins(how);
            side.limit = 10;
            let first = side.tx.seq();
            for number in 0..200u8 {
                assert_eq!(hear(&mut peer, &sealed(&mut side, &[number])).0, [number]);
                assert!(side.tx.seq() <= side.limit && !side.is_worn() && !side.is_spent());
            }
            assert_ne!(side.tx.seq(), first + 200);
            assert!(!peer.owes_update);
        }
        let (_, side) = twins(TLS_13);
        assert_eq!(side.limit, 1 << 24);
    }

    #[test]
    fn tls_12_wears_out_and_says_goodbye_at_its_limit() {
        let (mut peer, mut side) = twins(TLS_12);
        for at in [&mut side.tx, &mut peer.rx] {
            let mut worn = keys(TLS_12.1, 2);
            worn.seq = (1 << 24) - END_BEGINS - 1;
            *at = Direction::new(worn);
        }
        assert!(!side.is_worn());
        assert_eq!(hear(&mut peer, &sealed(&mut side, b"x")).0, b"x");
        assert!(side.is_worn() && !side.is_spent());
        side.limit = side.tx.seq() + 1;
        let last = sealed(&mut side, &[7; 3 * MOST_PLAIN]);
        assert_eq!(hear(&mut peer, &last).0, [7; MOST_PLAIN]);
        assert_eq!(peer.heard(), Heard::Goodbye);
        assert!(side.is_spent());
        assert_eq!(sealed(&mut side, b"x"), b"");
    }

    #[test]
    fn goodbye_is_the_last_word_of_both() {
        for how in ALL {
            let (mut peer, mut side) = twins(how);
            let mut bye = Vec::new();
            peer.part(&mut bye);
            let once = bye.len();
            peer.part(&mut bye);
            assert_eq!((bye.len(), sealed(&mut peer, b"late")), (once, vec![]));
            let wire = [&bye[..], b"what is not TLS any more"].concat();
            assert_eq!(hear(&mut side, &wire), (vec![], vec![]));
            side.end();
            assert_eq!((side.heard(), side.begun()), (Heard::Goodbye, &b""[..]));
            assert_eq!(side.must_part(), how.0 == Version::Tls12);
            let answer = sealed(&mut side, b"the other direction is open");
            assert_eq!(hear(&mut peer, &answer).0, b"the other direction is open");
        }
    }

    #[test]
    fn an_end_without_goodbye_is_a_cut() {
        let (mut peer, mut side) = twins(TLS_13);
        hear(&mut side, &sealed(&mut peer, b"half of it")[..12]);
        side.end();
        assert_eq!(side.heard(), Heard::Cut);
        assert_eq!(side.begun.capacity(), 0);
    }

    #[test]
    fn renegotiation_is_turned_down_once() {
        let hello = [message::CLIENT_HELLO, 0, 0, 1, 0];
        let (mut peer, mut side) = twins(TLS_12);
        let (_, out) = hear(&mut side, &raw(&mut peer, kind::HANDSHAKE, &hello));
        assert_eq!(alert_in(&mut peer, &out), alert::NO_RENEGOTIATION);
        assert_eq!(hear(&mut side, &sealed(&mut peer, b"goes on")).0, b"goes on");
        hear(&mut side, &raw(&mut peer, kind::HANDSHAKE, &hello));
        assert_eq!(side.heard(), Heard::Fault(Fault::Unexpected));
        // From a node it is a HelloRequest.
        let (mut node_side, mut node) = twins(TLS_12);
        let (_, out) = hear(&mut node_side, &raw(&mut node, kind::HANDSHAKE, &[0, 0, 0, 0]));
        assert_eq!(alert_in(&mut node, &out), alert::NO_RENEGOTIATION);
    }

    #[test]
    fn tickets_are_taken_from_nodes_only() {
        let ticket = [message::TICKET, 0, 0, 3, 1, 2, 3];
        fails(TLS_13, Fault::Unexpected, |peer| raw(peer, kind::HANDSHAKE, &ticket));
        let (mut side, mut node) = twins(TLS_13);
        let wire = [
            raw(&mut node, kind::HANDSHAKE, &ticket),
            raw(&mut node, kind::HANDSHAKE, &ticket.repeat(2)),
            sealed(&mut node, b"data"),
        ];
        assert_eq!(hear(&mut side, &wire.concat()), (b"data".to_vec(), vec![]));
        hear(&mut side, &raw(&mut node, kind::HANDSHAKE, &[&ticket[..], &[4, 0, 0, 9, 1]].concat()));
        assert_eq!(side.heard(), Heard::Fault(Fault::Unexpected));
    }

    #[test]
    fn what_came_with_the_connection_is_opened_without_the_socket() {
        let (mut peer, _) = twins(TLS_13);
        let records: Vec<u8> = (0..9).flat_map(|_| sealed(&mut peer, &[5; 10_000])).collect();
        let mut came = departed(TLS_13, keys(TLS_13.1, 2), keys(TLS_13.1, 1));
        came.undecrypted = records[..records.len() - 1].to_vec();
        (came.unsent, came.plain) = (b"unsent".to_vec(), b"plain".to_vec());
        let (mut side, luggage) = Side::new(came, Role::Server);
        assert_eq!((&luggage.unsent[..], &luggage.plain[..]), (&b"unsent"[..], &b"plain"[..]));
        assert!(side.is_behind());
        let mut room = vec![0; 25_000];
        let wire = side.begun().to_vec();
        assert_eq!(side.open(&wire, &mut room, &mut Vec::new()), 20_000, "as much as there is room for");
        assert!(side.is_behind());
        assert_eq!(hear(&mut side, b"").0.len(), 60_000);
        assert!(!side.is_behind());
        assert_eq!(hear(&mut side, &records[records.len() - 1..]).0.len(), 10_000);
        let mut came = departed(TLS_13, keys(TLS_13.1, 2), keys(TLS_13.1, 1));
        came.is_closed = true;
        assert_eq!(Side::new(came, Role::Server).0.heard(), Heard::Goodbye);
    }

    /// rustls as the peer, and a side that has left it.
    struct Rig {
        peer: Connection,
        side: Side,
    }

    pub(in crate::relay) fn suites() -> Vec<SupportedCipherSuite> {
        let mut suites = provider::default_provider().cipher_suites;
        // The certificate here has an ECDSA key.
        suites.retain(|suite| !format!("{suite:?}").contains("RSA_"));
        suites
    }

    fn configs(suite: SupportedCipherSuite) -> (ServerConfig, ClientConfig) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let versions = if suite.tls13().is_some() { [&TLS13] } else { [&TLS12] };
        let provider = CryptoProvider { cipher_suites: vec![suite], ..provider::default_provider() };
        let provider = Arc::new(provider);
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let server = server.with_protocol_versions(&versions).unwrap().with_no_client_auth();
        let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions).unwrap();
        let server = server.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        (server, client.with_root_certificates(roots).with_no_client_auth())
    }

    fn carry(from: &mut Connection, to: &mut Connection) {
        while from.wants_write() {
            let mut wire = Vec::new();
            from.write_tls(&mut wire).unwrap();
            let mut wire = &wire[..];
            while !wire.is_empty() {
                to.read_tls(&mut wire).unwrap();
                to.process_new_packets().unwrap();
            }
        }
    }

    fn keys_of(traffic: (u64, ConnectionTrafficSecrets), secret: Option<&[u8; 48]>) -> (Suite, Keys) {
        use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
        let (suite, from, salt) = match &traffic.1 {
            Aes128Gcm { key, iv } => (Suite::Aes128Gcm, key, iv),
            Aes256Gcm { key, iv } => (Suite::Aes256Gcm, key, iv),
            Chacha20Poly1305 { key, iv } => (Suite::Chacha20Poly1305, key, iv),
            _ => panic!("an unknown suite"),
        };
        let (mut key, mut iv) = ([0; 32], [0; 12]);
        key[..suite.key_len()].copy_from_slice(from.as_ref());
        iv.copy_from_slice(salt.as_ref());
        (suite, Keys { secret: *secret.unwrap_or(&[0; 48]), key, iv, seq: traffic.0 })
    }

    /// A connection after its handshake: rustls as the peer, and what has left it, whose part is `role`.
    pub(in crate::relay) fn meet(suite: SupportedCipherSuite, role: Role) -> (Connection, Departed) {
        let (mut server, mut client) = configs(suite);
        let secrets = Arc::new(Secrets::default());
        match role {
            Role::Server => (server.key_log, server.enable_secret_extraction) = (secrets.clone(), true),
            Role::Client => (client.key_log, client.enable_secret_extraction) = (secrets.clone(), true),
        }
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = Connection::from(ClientConnection::new(Arc::new(client), name).unwrap());
        let mut server = Connection::from(ServerConnection::new(Arc::new(server)).unwrap());
        while client.is_handshaking()
            || server.is_handshaking()
            || client.wants_write()
            || server.wants_write()
        {
            carry(&mut client, &mut server);
            carry(&mut server, &mut client);
        }
        let (own, mut peer) = if role == Role::Server { (server, client) } else { (client, server) };
        peer.set_buffer_limit(None);
        let traffic = own.dangerous_extract_secrets().unwrap();
        let caught = secrets.take().map(|(c, s)| if role == Role::Server { (s, c) } else { (c, s) });
        let version = if suite.tls13().is_some() { Version::Tls13 } else { Version::Tls12 };
        let (suite, tx) = keys_of(traffic.tx, caught.as_ref().map(|(tx, _)| &***tx));
        let (_, rx) = keys_of(traffic.rx, caught.as_ref().map(|(_, rx)| &***rx));
        (peer, departed((version, suite), tx, rx))
    }

    impl Rig {
        fn new(suite: SupportedCipherSuite, role: Role) -> Self {
            let (peer, departed) = meet(suite, role);
            Self { peer, side: *Side::new(departed, role).0 }
        }

        fn peer_sends(&mut self) -> Vec<u8> {
            let mut wire = Vec::new();
            while self.peer.wants_write() {
                self.peer.write_tls(&mut wire).unwrap();
            }
            wire
        }

        fn peer_reads(&mut self, mut wire: &[u8]) -> (Vec<u8>, Result<(), rustls::Error>) {
            let (mut read, mut end) = (Vec::new(), Ok(()));
            while !wire.is_empty() && end.is_ok() {
                self.peer.read_tls(&mut wire).unwrap();
                end = self.peer.process_new_packets().map(|_| ());
                // No data now is an error of this reader, and none here.
                let _ = self.peer.reader().read_to_end(&mut read);
            }
            (read, end)
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        PeerSays(usize),
        WeSay(usize),
        PeerUpdates,
        WeUpdate,
    }

    fn act() -> impl Strategy<Value = Act> {
        let size = prop_oneof![1usize..200, 16_380usize..16_400, 1usize..70_000];
        prop_oneof![
            4 => size.clone().prop_map(Act::PeerSays),
            4 => size.prop_map(Act::WeSay),
            1 => Just(Act::PeerUpdates),
            1 => Just(Act::WeUpdate),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn rustls_and_a_side_understand_each_other(
            suite in 0..6usize,
            is_server: bool,
            acts in prop::collection::vec(act(), 1..12),
            cut in 1usize..40_000,
            bit in 0usize..400,
            politely: bool,
        ) {
            let suite = suites()[suite];
            let mut rig = Rig::new(suite, if is_server { Role::Server } else { Role::Client });
            for (number, act) in acts.iter().enumerate() {
                let bytes = |len: usize| vec![number as u8; len];
                match *act {
                    Act::PeerSays(len) => {
                        rig.peer.writer().write_all(&bytes(len)).unwrap();
                        let wire = rig.peer_sends();
                        let heard = wire.chunks(cut).map(|piece| hear(&mut rig.side, piece)).collect::<Vec<_>>();
                        let plain = heard.iter().flat_map(|(plain, _)| plain.clone()).collect::<Vec<_>>();
                        prop_assert_eq!(plain, bytes(len));
                        for (_, answer) in heard {
                            prop_assert_eq!(rig.peer_reads(&answer), (vec![], Ok(())));
                        }
                    }
                    Act::WeSay(len) => {
                        let wire = sealed(&mut rig.side, &bytes(len));
                        prop_assert_eq!(rig.peer_reads(&wire), (bytes(len), Ok(())));
                    }
                    Act::PeerUpdates if suite.tls13().is_some() => rig.peer.refresh_traffic_keys().unwrap(),
                    Act::WeUpdate if suite.tls13().is_some() => {
                        let wire = update(&mut rig.side);
                        prop_assert_eq!(rig.peer_reads(&wire), (vec![], Ok(())));
                    }
                    _ => {}
                }
            }
            let rest = rig.peer_sends();
            let (_, answer) = hear(&mut rig.side, &rest);
            prop_assert_eq!(rig.peer_reads(&answer).1, Ok(()));
            if politely {
                rig.peer.send_close_notify();
                let wire = rig.peer_sends();
                prop_assert_eq!(hear(&mut rig.side, &wire), (vec![], vec![]));
                prop_assert_eq!(rig.side.heard(), Heard::Goodbye);
                let mut bye = Vec::new();
                rig.side.part(&mut bye);
                prop_assert_eq!(rig.peer_reads(&bye), (vec![], Ok(())));
                prop_assert_eq!(rig.peer.reader().read(&mut [0; 1]).ok(), Some(0));
            } else {
                rig.peer.writer().write_all(&[7; 60]).unwrap();
                let mut wire = rig.peer_sends();
                // In what is protected, so that a whole record is there and wrong.
                let at = 40 + bit % (8 * (wire.len() - 5));
                wire[at / 8] ^= 1 << (at % 8);
                let (plain, alert) = hear(&mut rig.side, &wire);
                prop_assert_eq!((plain, rig.side.heard()), (vec![], Heard::Fault(Fault::BadRecord)));
                let told = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
                prop_assert_eq!(rig.peer_reads(&alert), (vec![], Err(told)));
            }
        }
    }
}
