//! A TLS connection as fields of a tunnel state: the keys of both directions, what is received and not opened, and the
//! states of both directions.

use super::TlsConnection;
use crate::net::tls::extracted::{CipherSuite, TlsProtocolVersion};
use crate::relay::tls::alert::RecordError;
use crate::relay::tls::record::{CipherSpec, RecordCipher};
use crate::relay::tls::state::{ReceiveState, SendState, TlsRole};
use crate::relay::tunnel_state::TunnelStateError;
use crate::relay::tunnel_state::field::{FieldReader, FieldTag, FieldWriter};

const VERSION: FieldTag = FieldTag(1, "version");
const SUITE: FieldTag = FieldTag(2, "suite");
const ROLE: FieldTag = FieldTag(3, "role");
const TX: FieldTag = FieldTag(4, "sending keys");
const RX: FieldTag = FieldTag(5, "receiving keys");
const PARTIAL: FieldTag = FieldTag(6, "partial record");
const HAS_UNOPENED: FieldTag = FieldTag(7, "has unopened records");
const RECEIVE_STATE: FieldTag = FieldTag(8, "receive state");
const SEND_CLOSED: FieldTag = FieldTag(9, "send closed");
const OWES_UPDATE: FieldTag = FieldTag(10, "owes a key update");
const HAS_RENEGOTIATED: FieldTag = FieldTag(11, "has refused renegotiation");
const UPDATES: FieldTag = FieldTag(12, "messages without data");
const EMPTIES: FieldTag = FieldTag(13, "empty records");
const WARNINGS: FieldTag = FieldTag(14, "warnings");

/// In the order of their numbers in a tunnel state, as the three below: the order stays, and new ones come last.
const VERSIONS: [TlsProtocolVersion; 2] = [TlsProtocolVersion::Tls12, TlsProtocolVersion::Tls13];
const SUITES: [CipherSuite; 3] =
    [CipherSuite::Aes128Gcm, CipherSuite::Aes256Gcm, CipherSuite::Chacha20Poly1305];
const ROLES: [TlsRole; 2] = [TlsRole::Server, TlsRole::Client];
const RECEIVE_STATES: [ReceiveState; 9] = [
    ReceiveState::Open,
    ReceiveState::CloseNotify,
    ReceiveState::Truncated,
    ReceiveState::Failed(RecordError::BadRecord),
    ReceiveState::Failed(RecordError::NotTls),
    ReceiveState::Failed(RecordError::Unexpected),
    ReceiveState::Failed(RecordError::TooLong),
    ReceiveState::Failed(RecordError::IllegalValue),
    ReceiveState::Failed(RecordError::AlertReceived),
];

impl TlsConnection {
    /// Writes the connection. The state holds live keys from then on: see [`tunnel_state`](crate::relay::tunnel_state).
    pub(crate) fn encode(&self, writer: &mut FieldWriter) {
        writer.number(VERSION, index_of(&VERSIONS, &self.cipher.version));
        writer.number(SUITE, index_of(&SUITES, &self.cipher.suite));
        writer.number(ROLE, index_of(&ROLES, &self.role));
        writer.section(TX, |writer| self.tx.encode(writer));
        writer.section(RX, |writer| self.rx.encode(writer));
        writer.bytes(PARTIAL, &self.partial);
        writer.flag(HAS_UNOPENED, self.has_unopened);
        writer.number(RECEIVE_STATE, index_of(&RECEIVE_STATES, &self.receive_state));
        writer.flag(SEND_CLOSED, self.send_state == SendState::Closed);
        writer.flag(OWES_UPDATE, self.owes_key_update);
        writer.flag(HAS_RENEGOTIATED, self.has_refused_renegotiation);
        writer.number(UPDATES, self.messages_without_data);
        writer.number(EMPTIES, self.empty_records);
        writer.number(WARNINGS, self.warnings);
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub(crate) fn decode(mut fields: FieldReader<'_>) -> Result<Box<Self>, TunnelStateError> {
        let version = fields.variant(VERSION, &VERSIONS)?;
        let cipher = CipherSpec { version, suite: fields.variant(SUITE, &SUITES)? };
        let mut tls = Box::new(Self::without_keys(cipher, fields.variant(ROLE, &ROLES)?));
        tls.tx.decode_into(fields.section(TX)?)?;
        tls.rx.decode_into(fields.section(RX)?)?;
        tls.partial = fields.bytes(PARTIAL)?.to_vec();
        tls.has_unopened = fields.flag(HAS_UNOPENED)?;
        tls.receive_state = fields.variant(RECEIVE_STATE, &RECEIVE_STATES)?;
        tls.send_state = if fields.flag(SEND_CLOSED)? { SendState::Closed } else { SendState::Open };
        tls.owes_key_update = fields.flag(OWES_UPDATE)?;
        tls.has_refused_renegotiation = fields.flag(HAS_RENEGOTIATED)?;
        tls.messages_without_data = fields.number(UPDATES)?;
        tls.empty_records = fields.number(EMPTIES)?;
        tls.warnings = fields.number(WARNINGS)?;
        fields.finish()?;
        Ok(tls)
    }

    /// A connection without keys, before anything has happened on it.
    pub(super) fn without_keys(cipher: CipherSpec, role: TlsRole) -> Self {
        let (tx, rx) = (RecordCipher::blank(), RecordCipher::blank());
        Self {
            cipher,
            role,
            tx,
            rx,
            limit: cipher.limit(),
            partial: Vec::new(),
            has_unopened: false,
            receive_state: ReceiveState::Open,
            send_state: SendState::Open,
            owes_key_update: false,
            has_refused_renegotiation: false,
            messages_without_data: 0,
            empty_records: 0,
            warnings: 0,
        }
    }

    /// How many bytes longer the state is than that of a connection at rest.
    pub(crate) fn extra_state_len(&self) -> usize {
        self.partial.len()
    }
}

/// The index of `it`, which is among `all`.
fn index_of<T: PartialEq>(all: &[T], it: &T) -> u64 {
    all.iter().position(|known| known == it).expect("all there are have a number") as u64
}
