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
mod aead_cache;
mod codec;
mod record;

use crate::net::tls::extracted::{ExtractedTls, TlsProtocolVersion};

use alert::{AlertKind, RecordError};
use record::{CipherSpec, MAX_PLAINTEXT, RecordCipher, content_type};

/// KeyUpdates or tickets, empty records, or warnings that are put up with: the first without data between them, the
/// second in a row.
const MAX_WITHOUT_DATA: u8 = 32;
/// Warnings that are put up with in all.
const MAX_WARNINGS: u8 = 4;
/// TLS 1.2 cannot change its keys: so many records before their limit the end begins. More than one connection
/// sends between two sweeps.
const KEY_LIMIT_MARGIN: u64 = 1 << 20;

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
pub enum TlsRole {
    /// The peer is a client.
    Server,
    /// The peer is a node.
    Client,
}

/// What has been heard from the peer, last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveState {
    /// It may send more.
    Open,
    /// Its close_notify. What it sends after that is not looked at.
    CloseNotify,
    /// The end of its stream without a close_notify: what is missing is not known.
    Truncated,
    /// Something that may not be.
    Failed(RecordError),
}

/// How far our own direction is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
    Open,
    /// Close_notify, or a fatal alert, or nothing more by decision: the last word.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub struct TlsConnection {
    cipher: CipherSpec,
    role: TlsRole,
    tx: RecordCipher,
    rx: RecordCipher,
    /// The records that one key may seal.
    limit: u64,
    /// Bytes received and not opened: a record that is not whole yet.
    partial: Vec<u8>,
    /// `begun` may hold whole records, for which no socket will call.
    has_unopened: bool,
    receive_state: ReceiveState,
    send_state: SendState,
    /// The peer has asked for a KeyUpdate. One is enough for any number of such wishes (RFC 8446 section 4.6.3).
    owes_key_update: bool,
    /// TLS 1.2: one wish to renegotiate has been turned down.
    has_refused_renegotiation: bool,
    /// KeyUpdates and tickets since data came.
    messages_without_data: u8,
    /// Empty records in a row.
    empty_records: u8,
    /// Warnings so far.
    warnings: u8,
}

/// What came with a connection and goes before all else.
#[derive(Debug)]
pub struct Leftover {
    /// Records not written to the socket yet.
    pub unsent: Vec<u8>,
    /// Plaintext from the peer, not consumed.
    pub plain: Vec<u8>,
}

impl TlsConnection {
    /// Takes the connection over.
    pub fn new(departed: ExtractedTls, role: TlsRole) -> (Box<Self>, Leftover) {
        let ExtractedTls { version, suite, tx, rx, undecrypted, unsent, decrypted, has_close_notify } =
            departed;
        let mut tls = Box::new(Self::without_keys(CipherSpec { version, suite }, role));
        tls.tx.set_keys(&tx);
        tls.rx.set_keys(&rx);
        tls.has_unopened = !undecrypted.is_empty();
        tls.partial = undecrypted;
        tls.receive_state = if has_close_notify { ReceiveState::CloseNotify } else { ReceiveState::Open };
        (tls, Leftover { unsent, plain: decrypted })
    }

    /// What has been heard from the peer, last.
    #[inline]
    pub fn receive_state(&self) -> ReceiveState {
        self.receive_state
    }

    /// Bytes to put in front of those that are read next.
    #[inline]
    pub fn partial_record(&self) -> &[u8] {
        &self.partial
    }

    /// Whether [`begun`](Self::begun) is to be opened before anything is read.
    #[inline]
    pub fn has_unopened(&self) -> bool {
        self.has_unopened
    }

    /// TLS 1.2: close_notify has to be answered at once (RFC 5246 section 7.2.1). In TLS 1.3 each direction ends
    /// by itself.
    pub fn must_answer_close_notify(&self) -> bool {
        self.cipher.version == TlsProtocolVersion::Tls12
    }

    /// The keys are nearly used up, and there are no others: the connection has to end.
    pub fn is_near_key_limit(&self) -> bool {
        self.cipher.version == TlsProtocolVersion::Tls12
            && self.tx.seq() >= self.limit.saturating_sub(KEY_LIMIT_MARGIN)
    }

    /// The keys are used up: what is still to be sealed is dropped, and the peer has been told goodbye.
    pub fn is_at_key_limit(&self) -> bool {
        self.cipher.version == TlsProtocolVersion::Tls12 && self.tx.seq() >= self.limit
    }

    /// Opens the whole records in `wire`, which begins with what [`begun`](Self::begun) gave, into `plain`, as far
    /// as it has room; keeps the rest. Gives the bytes of plaintext.
    #[inline]
    pub fn open(&mut self, wire: &[u8], plain: &mut [u8], out: &mut Vec<u8>) -> usize {
        let (mut used, mut len) = (0, 0);
        self.has_unopened = false;
        while self.receive_state == ReceiveState::Open {
            match record::record_length(self.cipher, &wire[used..]) {
                Ok(Some(record)) if record <= wire.len() - used => {
                    if record > plain.len() - len {
                        self.has_unopened = true;
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
        self.keep_partial(wire, used);
        len
    }

    /// Opens one record; gives the length of its data.
    #[inline]
    fn open_one(&mut self, record: &[u8], plain: &mut [u8], out: &mut Vec<u8>) -> Result<usize, RecordError> {
        let (kind, len) = self.rx.open(self.cipher, record, plain)?;
        if len > 0 {
            self.empty_records = 0;
        } else {
            self.empty_records = count_up_to(self.empty_records, MAX_WITHOUT_DATA)?;
        }
        match kind {
            content_type::DATA => {
                if len > 0 {
                    self.messages_without_data = 0;
                }
                return Ok(len);
            }
            content_type::ALERT => match alert::parse(self.cipher.version, &plain[..len])? {
                AlertKind::CloseNotify => self.receive_state = ReceiveState::CloseNotify,
                AlertKind::Warning => self.warnings = count_up_to(self.warnings, MAX_WARNINGS)?,
            },
            content_type::HANDSHAKE if self.cipher.version == TlsProtocolVersion::Tls13 => {
                self.receive_handshake_13(&plain[..len])?
            }
            content_type::HANDSHAKE => self.receive_handshake_12(&plain[..len], out)?,
            _ => return Err(RecordError::Unexpected),
        }
        Ok(0)
    }

    /// A handshake message of TLS 1.3: a KeyUpdate or, from a server, tickets, which are of no use here.
    #[cold]
    fn receive_handshake_13(&mut self, messages: &[u8]) -> Result<(), RecordError> {
        match *messages {
            [message::KEY_UPDATE, 0, 0, 1, wish] => {
                if wish > 1 {
                    return Err(RecordError::IllegalValue);
                }
                self.messages_without_data = count_up_to(self.messages_without_data, MAX_WITHOUT_DATA)?;
                self.owes_key_update |= wish == 1;
                self.rx.update_keys(self.cipher.suite);
                Ok(())
            }
            [message::TICKET, ..] if self.role == TlsRole::Client && are_tickets(messages) => {
                self.messages_without_data = count_up_to(self.messages_without_data, MAX_WITHOUT_DATA)?;
                Ok(())
            }
            _ => Err(RecordError::Unexpected),
        }
    }

    /// A handshake message of TLS 1.2: the wish to renegotiate is turned down once.
    #[cold]
    fn receive_handshake_12(&mut self, messages: &[u8], out: &mut Vec<u8>) -> Result<(), RecordError> {
        let wish = match self.role {
            TlsRole::Server => message::CLIENT_HELLO,
            TlsRole::Client => message::HELLO_REQUEST,
        };
        if messages.first() != Some(&wish) || self.has_refused_renegotiation {
            return Err(RecordError::Unexpected);
        }
        self.has_refused_renegotiation = true;
        if self.can_seal() {
            self.tx.seal(self.cipher, content_type::ALERT, &alert::NO_RENEGOTIATION, out);
        }
        Ok(())
    }

    /// Keeps what is not opened, exactly as much as there is.
    #[inline]
    fn keep_partial(&mut self, wire: &[u8], used: usize) {
        let rest = if self.receive_state == ReceiveState::Open { &wire[used..] } else { &[] };
        if rest.is_empty() {
            // Frees what a record that is whole now has taken; nothing when there was none.
            self.partial = Vec::new();
        } else if used == 0 {
            let fresh = &rest[self.partial.len()..];
            self.partial.reserve_exact(fresh.len());
            self.partial.extend_from_slice(fresh);
        } else {
            self.partial = rest.to_vec();
        }
    }

    #[cold]
    fn fail(&mut self, fault: RecordError, out: &mut Vec<u8>) {
        self.receive_state = ReceiveState::Failed(fault);
        if let Some(alert) = fault.alert()
            && self.can_seal()
        {
            self.tx.seal(self.cipher, content_type::ALERT, &alert, out);
        }
        self.send_state = SendState::Closed;
    }

    /// The peer's stream has ended.
    pub fn end_of_stream(&mut self) {
        if self.receive_state == ReceiveState::Open {
            self.receive_state = ReceiveState::Truncated;
            self.partial = Vec::new();
        }
    }

    /// Appends the records for `plain` to `out`; nothing once the last word is said.
    #[inline]
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        for piece in plain.chunks(MAX_PLAINTEXT) {
            if self.owes_key_update || self.tx.seq() >= self.limit {
                self.renew_keys(out);
            }
            if !self.can_seal() {
                return;
            }
            self.tx.seal(self.cipher, content_type::DATA, piece, out);
        }
    }

    /// New keys for what comes next, if they are owed or the present ones are used up; TLS 1.2 has none, and parts.
    #[cold]
    fn renew_keys(&mut self, out: &mut Vec<u8>) {
        if self.cipher.version == TlsProtocolVersion::Tls12 {
            return self.close(out);
        }
        self.send_key_update(out);
    }

    /// Sends the KeyUpdate that the peer has asked for.
    pub fn send_owed_key_update(&mut self, out: &mut Vec<u8>) {
        if self.owes_key_update {
            self.send_key_update(out);
        }
    }

    /// A KeyUpdate under the present keys, then the next ones.
    fn send_key_update(&mut self, out: &mut Vec<u8>) {
        self.owes_key_update = false;
        if self.send_state == SendState::Open {
            self.tx.seal(self.cipher, content_type::HANDSHAKE, &message::OWN_KEY_UPDATE, out);
            self.tx.update_keys(self.cipher.suite);
        }
    }

    /// Appends close_notify, once, unless something else was the last word.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if self.send_state == SendState::Open {
            self.tx.seal(self.cipher, content_type::ALERT, &alert::CLOSE_NOTIFY, out);
            self.send_state = SendState::Closed;
        }
    }

    /// Says nothing more, not even goodbye: the stream that this side passes on was cut.
    pub fn suppress_close_notify(&mut self) {
        self.send_state = SendState::Closed;
    }

    #[inline]
    fn can_seal(&self) -> bool {
        self.send_state == SendState::Open
    }
}

/// One more, up to `most`.
fn count_up_to(so_far: u8, most: u8) -> Result<u8, RecordError> {
    if so_far < most { Ok(so_far + 1) } else { Err(RecordError::Unexpected) }
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
    use crate::net::tls::extracted::{CipherSuite, TrafficKeys};
    use crate::net::tls::key_schedule::key_and_iv;
    use crate::net::tls::secret_log::TrafficSecretLog;

    const ALL: [(TlsProtocolVersion, CipherSuite); 6] = [
        (TlsProtocolVersion::Tls13, CipherSuite::Aes128Gcm),
        (TlsProtocolVersion::Tls13, CipherSuite::Aes256Gcm),
        (TlsProtocolVersion::Tls13, CipherSuite::Chacha20Poly1305),
        (TlsProtocolVersion::Tls12, CipherSuite::Aes128Gcm),
        (TlsProtocolVersion::Tls12, CipherSuite::Aes256Gcm),
        (TlsProtocolVersion::Tls12, CipherSuite::Chacha20Poly1305),
    ];
    const TLS_13: (TlsProtocolVersion, CipherSuite) = ALL[0];
    const TLS_12: (TlsProtocolVersion, CipherSuite) = ALL[3];

    fn keys(suite: CipherSuite, seed: u8) -> TrafficKeys {
        let secret = [seed; 48];
        let (key, iv) = key_and_iv(suite, &secret);
        TrafficKeys { secret, key: *key, iv: *iv, seq: 7 }
    }

    fn departed(
        (version, suite): (TlsProtocolVersion, CipherSuite),
        tx: TrafficKeys,
        rx: TrafficKeys,
    ) -> ExtractedTls {
        let (undecrypted, unsent, plain) = Default::default();
        let (tx, rx) = (Box::new(tx), Box::new(rx));
        ExtractedTls {
            version,
            suite,
            tx,
            rx,
            undecrypted,
            unsent,
            decrypted: plain,
            has_close_notify: false,
        }
    }

    /// Two sides of one connection: that of a client, and ours towards it.
    fn twins(how: (TlsProtocolVersion, CipherSuite)) -> (TlsConnection, TlsConnection) {
        let (client, server) = (|| keys(how.1, 1), || keys(how.1, 2));
        let peer = TlsConnection::new(departed(how, client(), server()), TlsRole::Client).0;
        (*peer, *TlsConnection::new(departed(how, server(), client()), TlsRole::Server).0)
    }

    /// What `side` makes of `wire`: plaintext, and what it answers.
    fn hear(tls: &mut TlsConnection, wire: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut plain, mut out, mut room) = (Vec::new(), Vec::new(), vec![0; 64 * 1024]);
        let mut wire = [tls.partial_record(), wire].concat();
        loop {
            let len = tls.open(&wire, &mut room, &mut out);
            plain.extend_from_slice(&room[..len]);
            if !tls.has_unopened() {
                tls.send_owed_key_update(&mut out);
                return (plain, out);
            }
            wire = tls.partial_record().to_vec();
        }
    }

    fn sealed(tls: &mut TlsConnection, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        tls.seal(plain, &mut out);
        out
    }

    /// One record with this type and content, whatever they are.
    fn raw(tls: &mut TlsConnection, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        tls.tx.seal(tls.cipher, kind, content, &mut out);
        out
    }

    /// The alert in `wire`, as `side` decrypts it.
    fn alert_in(tls: &mut TlsConnection, wire: &[u8]) -> Vec<u8> {
        let mut room = [0; 64];
        let (kind, len) = tls.rx.open(tls.cipher, wire, &mut room).expect("one record that decrypts");
        assert_eq!(kind, content_type::ALERT);
        room[..len].to_vec()
    }

    /// Asserts that what `wrong` makes comes to `fault`, and that the peer is told.
    fn fails(
        how: (TlsProtocolVersion, CipherSuite),
        fault: RecordError,
        wrong: impl FnOnce(&mut TlsConnection) -> Vec<u8>,
    ) {
        let (mut peer, mut tls) = twins(how);
        let wire = [sealed(&mut peer, b"before"), wrong(&mut peer), sealed(&mut peer, b"behind")].concat();
        let (plain, out) = hear(&mut tls, &wire);
        assert_eq!(
            (&plain[..], tls.receive_state()),
            (&b"before"[..], ReceiveState::Failed(fault)),
            "{how:?}"
        );
        match fault.alert() {
            Some(alert) => assert_eq!(alert_in(&mut peer, &out), alert, "{how:?}"),
            None => assert_eq!(out, b""),
        }
        assert_eq!(sealed(&mut tls, b"after"), b"", "nothing goes behind a fatal alert");
        assert_eq!(hear(&mut tls, &sealed(&mut peer, b"more")), (vec![], vec![]));
    }

    #[test]
    fn an_idle_side_takes_less_than_400_bytes_with_its_box() {
        assert!(size_of::<TlsConnection>() + 16 <= 400, "{}", size_of::<TlsConnection>());
    }

    #[test]
    fn nothing_that_is_printed_has_a_key_in_it() {
        let (peer, tls) = twins(TLS_13);
        let text = format!("{peer:?} {tls:?}");
        assert!(text.contains("tx: RecordCipher(hidden), rx: RecordCipher(hidden)"), "{text}");
        let key = format!("{:?}", &keys(TLS_13.1, 1).key[..3]);
        assert!(!text.contains(key.trim_matches(['[', ']'])), "{text}");
    }

    #[test]
    fn bytes_pass_in_every_size_whole_or_one_by_one() {
        for how in ALL {
            let (mut peer, mut tls) = twins(how);
            for len in [1, 2, 1024, 16_383, 16_384, 16_385, 40_000] {
                let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
                let wire = sealed(&mut peer, &bytes);
                assert_eq!(hear(&mut tls, &wire), (bytes.clone(), vec![]), "{how:?} {len}");
                let wire = sealed(&mut tls, &bytes);
                let pieces = wire.chunks(if len > 1024 { 1000 } else { 1 });
                let read: Vec<u8> = pieces.flat_map(|piece| hear(&mut peer, piece).0).collect();
                assert_eq!(read, bytes, "{how:?} {len}");
                assert_eq!((peer.partial.capacity(), tls.partial.capacity()), (0, 0));
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_found() {
        for how in ALL {
            let wire = sealed(&mut twins(how).0, b"a message");
            for bit in 0..8 * wire.len() {
                let (_, mut tls) = twins(how);
                let mut wire = wire.clone();
                wire[bit / 8] ^= 1 << (bit % 8);
                let (plain, _) = hear(&mut tls, &wire);
                let waits = tls.receive_state() == ReceiveState::Open && tls.partial_record() == wire;
                assert!(
                    plain.is_empty() && (waits || tls.receive_state() != ReceiveState::Open),
                    "{how:?} {bit}"
                );
            }
        }
    }

    #[test]
    fn a_replayed_a_lost_and_a_shortened_record_are_found() {
        for how in ALL {
            fails(how, RecordError::BadRecord, |peer| {
                sealed(peer, b"lost");
                sealed(peer, b"next")
            });
            fails(how, RecordError::BadRecord, |_| {
                vec![23, 3, 3, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
            });
            let (mut peer, mut tls) = twins(how);
            let once = sealed(&mut peer, b"once");
            assert_eq!(hear(&mut tls, &once).0, b"once");
            let (plain, out) = hear(&mut tls, &once);
            assert_eq!((plain, tls.receive_state()), (vec![], ReceiveState::Failed(RecordError::BadRecord)));
            assert_eq!(alert_in(&mut peer, &out), [2, 20]);
        }
    }

    #[test]
    fn what_is_no_tls_and_what_has_no_place_here_is_told_and_ends_it() {
        for how in ALL {
            fails(how, RecordError::NotTls, |_| b"GET / HTTP/1.1\r\n".to_vec());
            fails(how, RecordError::Unexpected, |_| vec![20, 3, 3, 0, 1, 1]);
            fails(how, RecordError::TooLong, |_| vec![23, 3, 3, 0xff, 0xff]);
            fails(how, RecordError::TooLong, |peer| raw(peer, content_type::DATA, &[0; MAX_PLAINTEXT + 1]));
            fails(how, RecordError::Unexpected, |peer| raw(peer, content_type::HANDSHAKE, &[20, 0, 0, 0]));
            fails(how, RecordError::AlertReceived, |peer| raw(peer, content_type::ALERT, &[2, 40]));
            fails(how, RecordError::NotTls, |peer| raw(peer, content_type::ALERT, &[1]));
            fails(how, RecordError::IllegalValue, |peer| raw(peer, content_type::ALERT, &[9, 9]));
        }
        fails(TLS_13, RecordError::Unexpected, |_| vec![21, 3, 3, 0, 2, 1, 0]);
        fails(TLS_13, RecordError::Unexpected, |peer| raw(peer, 0, &[0; 20]));
        fails(TLS_13, RecordError::Unexpected, |peer| raw(peer, 24, b"heartbeat"));
        fails(TLS_13, RecordError::AlertReceived, |peer| {
            raw(peer, content_type::ALERT, &alert::NO_RENEGOTIATION)
        });
    }

    #[test]
    fn padding_is_taken_off() {
        let (mut peer, mut tls) = twins(TLS_13);
        let padded = raw(&mut peer, 0, &[b"padded", &[content_type::DATA][..], &[0; 900]].concat());
        assert_eq!(hear(&mut tls, &padded), (b"padded".to_vec(), vec![]));
    }

    #[test]
    fn key_updates_are_followed_and_answered_once_under_the_old_key() {
        let (mut peer, mut tls) = twins(TLS_13);
        let ask = [message::KEY_UPDATE, 0, 0, 1, 1];
        let mut wire = Vec::new();
        for _ in 0..3 {
            wire.extend(raw(&mut peer, content_type::HANDSHAKE, &ask));
            peer.tx.update_keys(peer.cipher.suite);
        }
        wire.extend(sealed(&mut peer, b"with the fourth key"));
        let (plain, answer) = hear(&mut tls, &wire);
        assert_eq!((&plain[..], answer.len()), (&b"with the fourth key"[..], 5 + 5 + 1 + 16));
        let behind = sealed(&mut tls, b"with the second key");
        assert_eq!(hear(&mut peer, &[answer, behind].concat()).0, b"with the second key");
        assert!(!peer.owes_key_update, "the answer asks for nothing");
    }

    #[test]
    fn what_is_no_sound_key_update_is_refused() {
        const KEY_UPDATE: u8 = message::KEY_UPDATE;
        fails(TLS_13, RecordError::IllegalValue, |peer| {
            raw(peer, content_type::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 2])
        });
        fails(TLS_13, RecordError::Unexpected, |peer| {
            raw(peer, content_type::HANDSHAKE, &[KEY_UPDATE, 0, 0, 0])
        });
        fails(TLS_13, RecordError::Unexpected, |peer| {
            raw(peer, content_type::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0].repeat(2))
        });
        fails(TLS_13, RecordError::Unexpected, |peer| raw(peer, content_type::HANDSHAKE, &[KEY_UPDATE, 0]));
        fails(TLS_12, RecordError::Unexpected, |peer| {
            raw(peer, content_type::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0])
        });
    }

    fn update(peer: &mut TlsConnection) -> Vec<u8> {
        let mut out = Vec::new();
        peer.send_key_update(&mut out);
        out
    }

    #[test]
    fn floods_that_carry_nothing_end_it_and_data_forgives_them() {
        let (mut peer, mut tls) = twins(TLS_13);
        for _ in 0..3 {
            let flood: Vec<u8> = (0..MAX_WITHOUT_DATA).flat_map(|_| update(&mut peer)).collect();
            assert_eq!(hear(&mut tls, &flood), (vec![], vec![]));
            let empty: Vec<u8> =
                (0..MAX_WITHOUT_DATA).flat_map(|_| raw(&mut peer, content_type::DATA, b"")).collect();
            assert_eq!(hear(&mut tls, &empty), (vec![], vec![]));
            assert_eq!(hear(&mut tls, &sealed(&mut peer, b"x")).0, b"x");
        }
        fails(TLS_13, RecordError::Unexpected, |peer| {
            (0..=MAX_WITHOUT_DATA).flat_map(|_| update(peer)).collect()
        });
        for how in ALL {
            fails(how, RecordError::Unexpected, |peer| {
                (0..=MAX_WITHOUT_DATA).flat_map(|_| raw(peer, content_type::DATA, b"")).collect()
            });
            let canceled = |peer: &mut TlsConnection| raw(peer, content_type::ALERT, &[1, 90]);
            fails(how, RecordError::Unexpected, |peer| {
                (0..=MAX_WARNINGS).flat_map(|_| canceled(peer)).collect()
            });
        }
    }

    #[test]
    fn an_own_key_update_comes_before_the_keys_are_used_up() {
        for how in ALL.into_iter().filter(|how| how.0 == TlsProtocolVersion::Tls13) {
            let (mut peer, mut tls) = twins(how);
            tls.limit = 10;
            let first = tls.tx.seq();
            for number in 0..200u8 {
                assert_eq!(hear(&mut peer, &sealed(&mut tls, &[number])).0, [number]);
                assert!(tls.tx.seq() <= tls.limit && !tls.is_near_key_limit() && !tls.is_at_key_limit());
            }
            assert_ne!(tls.tx.seq(), first + 200);
            assert!(!peer.owes_key_update);
        }
        let (_, tls) = twins(TLS_13);
        assert_eq!(tls.limit, 1 << 24);
    }

    #[test]
    fn tls_12_wears_out_and_says_goodbye_at_its_limit() {
        let (mut peer, mut tls) = twins(TLS_12);
        for at in [&mut tls.tx, &mut peer.rx] {
            let mut worn = keys(TLS_12.1, 2);
            worn.seq = (1 << 24) - KEY_LIMIT_MARGIN - 1;
            *at = RecordCipher::new(worn);
        }
        assert!(!tls.is_near_key_limit());
        assert_eq!(hear(&mut peer, &sealed(&mut tls, b"x")).0, b"x");
        assert!(tls.is_near_key_limit() && !tls.is_at_key_limit());
        tls.limit = tls.tx.seq() + 1;
        let last = sealed(&mut tls, &[7; 3 * MAX_PLAINTEXT]);
        assert_eq!(hear(&mut peer, &last).0, [7; MAX_PLAINTEXT]);
        assert_eq!(peer.receive_state(), ReceiveState::CloseNotify);
        assert!(tls.is_at_key_limit());
        assert_eq!(sealed(&mut tls, b"x"), b"");
    }

    #[test]
    fn goodbye_is_the_last_word_of_both() {
        for how in ALL {
            let (mut peer, mut tls) = twins(how);
            let mut bye = Vec::new();
            peer.close(&mut bye);
            let once = bye.len();
            peer.close(&mut bye);
            assert_eq!((bye.len(), sealed(&mut peer, b"late")), (once, vec![]));
            let wire = [&bye[..], b"what is not TLS any more"].concat();
            assert_eq!(hear(&mut tls, &wire), (vec![], vec![]));
            tls.end_of_stream();
            assert_eq!((tls.receive_state(), tls.partial_record()), (ReceiveState::CloseNotify, &b""[..]));
            assert_eq!(tls.must_answer_close_notify(), how.0 == TlsProtocolVersion::Tls12);
            let answer = sealed(&mut tls, b"the other direction is open");
            assert_eq!(hear(&mut peer, &answer).0, b"the other direction is open");
        }
    }

    #[test]
    fn an_end_without_goodbye_is_a_cut() {
        let (mut peer, mut tls) = twins(TLS_13);
        hear(&mut tls, &sealed(&mut peer, b"half of it")[..12]);
        tls.end_of_stream();
        assert_eq!(tls.receive_state(), ReceiveState::Truncated);
        assert_eq!(tls.partial.capacity(), 0);
    }

    #[test]
    fn renegotiation_is_turned_down_once() {
        let hello = [message::CLIENT_HELLO, 0, 0, 1, 0];
        let (mut peer, mut tls) = twins(TLS_12);
        let (_, out) = hear(&mut tls, &raw(&mut peer, content_type::HANDSHAKE, &hello));
        assert_eq!(alert_in(&mut peer, &out), alert::NO_RENEGOTIATION);
        assert_eq!(hear(&mut tls, &sealed(&mut peer, b"goes on")).0, b"goes on");
        hear(&mut tls, &raw(&mut peer, content_type::HANDSHAKE, &hello));
        assert_eq!(tls.receive_state(), ReceiveState::Failed(RecordError::Unexpected));
        // From a node it is a HelloRequest.
        let (mut node_side, mut node) = twins(TLS_12);
        let (_, out) = hear(&mut node_side, &raw(&mut node, content_type::HANDSHAKE, &[0, 0, 0, 0]));
        assert_eq!(alert_in(&mut node, &out), alert::NO_RENEGOTIATION);
    }

    #[test]
    fn tickets_are_taken_from_nodes_only() {
        let ticket = [message::TICKET, 0, 0, 3, 1, 2, 3];
        fails(TLS_13, RecordError::Unexpected, |peer| raw(peer, content_type::HANDSHAKE, &ticket));
        let (mut tls, mut node) = twins(TLS_13);
        let wire = [
            raw(&mut node, content_type::HANDSHAKE, &ticket),
            raw(&mut node, content_type::HANDSHAKE, &ticket.repeat(2)),
            sealed(&mut node, b"data"),
        ];
        assert_eq!(hear(&mut tls, &wire.concat()), (b"data".to_vec(), vec![]));
        hear(&mut tls, &raw(&mut node, content_type::HANDSHAKE, &[&ticket[..], &[4, 0, 0, 9, 1]].concat()));
        assert_eq!(tls.receive_state(), ReceiveState::Failed(RecordError::Unexpected));
    }

    #[test]
    fn what_came_with_the_connection_is_opened_without_the_socket() {
        let (mut peer, _) = twins(TLS_13);
        let records: Vec<u8> = (0..9).flat_map(|_| sealed(&mut peer, &[5; 10_000])).collect();
        let mut came = departed(TLS_13, keys(TLS_13.1, 2), keys(TLS_13.1, 1));
        came.undecrypted = records[..records.len() - 1].to_vec();
        (came.unsent, came.decrypted) = (b"unsent".to_vec(), b"plain".to_vec());
        let (mut tls, leftover) = TlsConnection::new(came, TlsRole::Server);
        assert_eq!((&leftover.unsent[..], &leftover.plain[..]), (&b"unsent"[..], &b"plain"[..]));
        assert!(tls.has_unopened());
        let mut room = vec![0; 25_000];
        let wire = tls.partial_record().to_vec();
        assert_eq!(tls.open(&wire, &mut room, &mut Vec::new()), 20_000, "as much as there is room for");
        assert!(tls.has_unopened());
        assert_eq!(hear(&mut tls, b"").0.len(), 60_000);
        assert!(!tls.has_unopened());
        assert_eq!(hear(&mut tls, &records[records.len() - 1..]).0.len(), 10_000);
        let mut came = departed(TLS_13, keys(TLS_13.1, 2), keys(TLS_13.1, 1));
        came.has_close_notify = true;
        assert_eq!(TlsConnection::new(came, TlsRole::Server).0.receive_state(), ReceiveState::CloseNotify);
    }

    /// rustls as the peer, and a side that has left it.
    struct Rig {
        peer: Connection,
        tls: TlsConnection,
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

    fn keys_of(
        traffic: (u64, ConnectionTrafficSecrets),
        secret: Option<&[u8; 48]>,
    ) -> (CipherSuite, TrafficKeys) {
        use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
        let (suite, from, salt) = match &traffic.1 {
            Aes128Gcm { key, iv } => (CipherSuite::Aes128Gcm, key, iv),
            Aes256Gcm { key, iv } => (CipherSuite::Aes256Gcm, key, iv),
            Chacha20Poly1305 { key, iv } => (CipherSuite::Chacha20Poly1305, key, iv),
            _ => panic!("an unknown suite"),
        };
        let (mut key, mut iv) = ([0; 32], [0; 12]);
        key[..suite.key_len()].copy_from_slice(from.as_ref());
        iv.copy_from_slice(salt.as_ref());
        (suite, TrafficKeys { secret: *secret.unwrap_or(&[0; 48]), key, iv, seq: traffic.0 })
    }

    /// A connection after its handshake: rustls as the peer, and what has left it, whose part is `role`.
    pub(in crate::relay) fn meet(suite: SupportedCipherSuite, role: TlsRole) -> (Connection, ExtractedTls) {
        let (mut server, mut client) = configs(suite);
        let secrets = Arc::new(TrafficSecretLog::default());
        match role {
            TlsRole::Server => (server.key_log, server.enable_secret_extraction) = (secrets.clone(), true),
            TlsRole::Client => (client.key_log, client.enable_secret_extraction) = (secrets.clone(), true),
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
        let (own, mut peer) = if role == TlsRole::Server { (server, client) } else { (client, server) };
        peer.set_buffer_limit(None);
        let traffic = own.dangerous_extract_secrets().unwrap();
        let caught = secrets.take().map(|(c, s)| if role == TlsRole::Server { (s, c) } else { (c, s) });
        let version =
            if suite.tls13().is_some() { TlsProtocolVersion::Tls13 } else { TlsProtocolVersion::Tls12 };
        let (suite, tx) = keys_of(traffic.tx, caught.as_ref().map(|(tx, _)| &***tx));
        let (_, rx) = keys_of(traffic.rx, caught.as_ref().map(|(_, rx)| &***rx));
        (peer, departed((version, suite), tx, rx))
    }

    impl Rig {
        fn new(suite: SupportedCipherSuite, role: TlsRole) -> Self {
            let (peer, departed) = meet(suite, role);
            Self { peer, tls: *TlsConnection::new(departed, role).0 }
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
            let mut rig = Rig::new(suite, if is_server { TlsRole::Server } else { TlsRole::Client });
            for (number, act) in acts.iter().enumerate() {
                let bytes = |len: usize| vec![number as u8; len];
                match *act {
                    Act::PeerSays(len) => {
                        rig.peer.writer().write_all(&bytes(len)).unwrap();
                        let wire = rig.peer_sends();
                        let heard = wire.chunks(cut).map(|piece| hear(&mut rig.tls, piece)).collect::<Vec<_>>();
                        let plain = heard.iter().flat_map(|(plain, _)| plain.clone()).collect::<Vec<_>>();
                        prop_assert_eq!(plain, bytes(len));
                        for (_, answer) in heard {
                            prop_assert_eq!(rig.peer_reads(&answer), (vec![], Ok(())));
                        }
                    }
                    Act::WeSay(len) => {
                        let wire = sealed(&mut rig.tls, &bytes(len));
                        prop_assert_eq!(rig.peer_reads(&wire), (bytes(len), Ok(())));
                    }
                    Act::PeerUpdates if suite.tls13().is_some() => rig.peer.refresh_traffic_keys().unwrap(),
                    Act::WeUpdate if suite.tls13().is_some() => {
                        let wire = update(&mut rig.tls);
                        prop_assert_eq!(rig.peer_reads(&wire), (vec![], Ok(())));
                    }
                    _ => {}
                }
            }
            let rest = rig.peer_sends();
            let (_, answer) = hear(&mut rig.tls, &rest);
            prop_assert_eq!(rig.peer_reads(&answer).1, Ok(()));
            if politely {
                rig.peer.send_close_notify();
                let wire = rig.peer_sends();
                prop_assert_eq!(hear(&mut rig.tls, &wire), (vec![], vec![]));
                prop_assert_eq!(rig.tls.receive_state(), ReceiveState::CloseNotify);
                let mut bye = Vec::new();
                rig.tls.close(&mut bye);
                prop_assert_eq!(rig.peer_reads(&bye), (vec![], Ok(())));
                prop_assert_eq!(rig.peer.reader().read(&mut [0; 1]).ok(), Some(0));
            } else {
                rig.peer.writer().write_all(&[7; 60]).unwrap();
                let mut wire = rig.peer_sends();
                // In what is protected, so that a whole record is there and wrong.
                let at = 40 + bit % (8 * (wire.len() - 5));
                wire[at / 8] ^= 1 << (at % 8);
                let (plain, alert) = hear(&mut rig.tls, &wire);
                prop_assert_eq!((plain, rig.tls.receive_state()), (vec![], ReceiveState::Failed(RecordError::BadRecord)));
                let told = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
                prop_assert_eq!(rig.peer_reads(&alert), (vec![], Err(told)));
            }
        }
    }
}
