//! A TLS connection without I/O: both directions, and what is said besides the data.

mod codec;
mod post_handshake;

use super::alert::{self, AlertKind, RecordError};
use super::record::{self, CipherSpec, MAX_PLAINTEXT, RecordCipher, content_type};
use super::state::{ReceiveState, SendState, TlsRole};
use crate::net::tls::extracted::{ExtractedTls, TlsProtocolVersion};

/// The most KeyUpdates and tickets without data between them, and the most empty records in a row.
const MAX_WITHOUT_DATA: u8 = 32;
/// The most warnings in all.
const MAX_WARNINGS: u8 = 4;
/// TLS 1.2 cannot change its keys: the close begins this many records before their limit, more than one connection
/// sends between two sweeps.
const KEY_LIMIT_MARGIN: u64 = 1 << 20;

/// A KeyUpdate that requests none in return: one that does would count against the limits above.
const OWN_KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// A TLS connection after its handshake.
#[derive(Debug)]
pub struct TlsConnection {
    cipher: CipherSpec,
    role: TlsRole,
    tx: RecordCipher,
    rx: RecordCipher,
    /// How many records one key may seal.
    limit: u64,
    /// Bytes that are received and not opened: the start of a record.
    partial: Vec<u8>,
    /// `partial` may hold whole records, for which no socket event comes.
    has_unopened: bool,
    receive_state: ReceiveState,
    send_state: SendState,
    /// The peer has asked for a KeyUpdate. One answers any number of requests (RFC 8446 section 4.6.3).
    owes_key_update: bool,
    /// TLS 1.2: one request to renegotiate has been refused.
    has_refused_renegotiation: bool,
    /// KeyUpdates and tickets since the last data.
    messages_without_data: u8,
    /// Empty records in a row.
    empty_records: u8,
    /// Warnings so far.
    warnings: u8,
}

/// Bytes that come with a connection and go before all others.
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

    /// How far the receiving direction is open.
    #[inline]
    pub fn receive_state(&self) -> ReceiveState {
        self.receive_state
    }

    /// Bytes that the caller puts in front of those that it receives next.
    #[inline]
    pub fn partial_record(&self) -> &[u8] {
        &self.partial
    }

    /// Whether [`partial_record`](Self::partial_record) is to be opened before anything is received.
    #[inline]
    pub fn has_unopened(&self) -> bool {
        self.has_unopened
    }

    /// TLS 1.2: a close_notify has to be answered at once (RFC 5246 section 7.2.1). In TLS 1.3 each direction ends by
    /// itself.
    pub(crate) fn must_answer_close_notify(&self) -> bool {
        self.cipher.version == TlsProtocolVersion::Tls12
    }

    /// The keys are nearly used up and cannot be changed: the connection has to end.
    pub(crate) fn is_near_key_limit(&self) -> bool {
        self.cipher.version == TlsProtocolVersion::Tls12
            && self.tx.seq() >= self.limit.saturating_sub(KEY_LIMIT_MARGIN)
    }

    /// The keys are used up: what is still to be sealed is dropped, and close_notify has been sent.
    pub(crate) fn is_at_key_limit(&self) -> bool {
        self.cipher.version == TlsProtocolVersion::Tls12 && self.tx.seq() >= self.limit
    }

    /// Opens the whole records in `wire`, which begins with the [`partial_record`](Self::partial_record), into `plain`,
    /// as far as there is room, and keeps the rest. Returns the number of plaintext bytes.
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

    /// Opens one record. Returns the length of its data.
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

    /// Keeps what is not opened, in a buffer of its exact size.
    #[inline]
    fn keep_partial(&mut self, wire: &[u8], used: usize) {
        let rest = if self.receive_state == ReceiveState::Open { &wire[used..] } else { &[] };
        if rest.is_empty() {
            // Frees the buffer of a record that is whole now; costs nothing when there was none.
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

    /// The peer's stream has ended, with a close_notify or without.
    pub fn end_of_stream(&mut self) {
        if self.receive_state == ReceiveState::Open {
            self.receive_state = ReceiveState::Truncated;
            self.partial = Vec::new();
        }
    }

    /// Appends the records for `plain` to `out`; nothing once the direction is closed.
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

    /// Changes the keys, because the peer has asked for it or they are used up; TLS 1.2 cannot, and closes.
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

    /// Seals a KeyUpdate with the present keys, and changes to the next ones.
    fn send_key_update(&mut self, out: &mut Vec<u8>) {
        self.owes_key_update = false;
        if self.send_state == SendState::Open {
            self.tx.seal(self.cipher, content_type::HANDSHAKE, &OWN_KEY_UPDATE, out);
            self.tx.update_keys(self.cipher.suite);
        }
    }

    /// Appends a close_notify, unless the direction is closed already.
    pub fn close(&mut self, out: &mut Vec<u8>) {
        if self.send_state == SendState::Open {
            self.tx.seal(self.cipher, content_type::ALERT, &alert::CLOSE_NOTIFY, out);
            self.send_state = SendState::Closed;
        }
    }

    /// Closes the direction without a close_notify: the stream that goes out on it was truncated.
    pub(crate) fn suppress_close_notify(&mut self) {
        self.send_state = SendState::Closed;
    }

    #[inline]
    fn can_seal(&self) -> bool {
        self.send_state == SendState::Open
    }
}

/// One more than `so_far`, which may be `most`.
fn count_up_to(so_far: u8, most: u8) -> Result<u8, RecordError> {
    if so_far < most { Ok(so_far + 1) } else { Err(RecordError::Unexpected) }
}

#[cfg(test)]
mod tests;
