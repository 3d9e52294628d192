//! One record: sealed, or opened. TLS 1.3 (RFC 8446 section 5) and the AEAD suites of TLS 1.2 (RFC 5246 section
//! 6.2.3.3, RFC 5288, RFC 7905).
//!
//! No nonce is used twice with a key: the sequence number is private to [`RecordCipher`], the
//! one function that seals counts it up, and new keys begin at 0.

use std::fmt;

use aws_lc_rs::aead::{Aad, Nonce};

use super::aead_cache;
use super::alert::RecordError;
use crate::net::tls::extracted::{CipherSuite, TlsProtocolVersion, TrafficKeys};
use crate::net::tls::key_schedule::{MAX_SECRET_LEN, derive_keys, update_secret};
use crate::relay::tunnel_state::TunnelStateError;
use crate::relay::tunnel_state::field::{FieldReader, FieldWriter};

/// Length of a record's header: type, version, length.
pub(super) const HEADER: usize = 5;
/// Plaintext bytes that one record carries at most.
pub(super) const MAX_PLAINTEXT: usize = 1 << 14;
/// Length of the tag of every suite here.
const AEAD_TAG_LEN: usize = 16;

/// Content types (RFC 8446 section 5.1).
pub(super) mod content_type {
    /// Only in the handshake.
    pub(crate) const CHANGE_CIPHER_SPEC: u8 = 20;
    /// Alerts.
    pub(crate) const ALERT: u8 = 21;
    /// Handshake messages, also those after the handshake.
    pub(crate) const HANDSHAKE: u8 = 22;
    /// Application data; in TLS 1.3 the outer type of all records.
    pub(crate) const DATA: u8 = 23;
}

/// How records are protected.
#[derive(Debug, Clone, Copy)]
pub(super) struct CipherSpec {
    /// The protocol version.
    pub version: TlsProtocolVersion,
    /// The AEAD.
    pub suite: CipherSuite,
}

impl CipherSpec {
    /// Records that may be sealed with one key: 2^24 with AES-GCM (RFC 8446 section 5.5), and with ChaCha20 so many
    /// that the sequence number never comes near its end.
    pub(super) const fn limit(self) -> u64 {
        match self.suite {
            CipherSuite::Aes128Gcm | CipherSuite::Aes256Gcm => 1 << 24,
            CipherSuite::Chacha20Poly1305 => 1 << 60,
        }
    }

    /// Bytes of the nonce that stand in the record (RFC 5288 section 3).
    const fn explicit_nonce_len(self) -> usize {
        match (self.version, self.suite) {
            (TlsProtocolVersion::Tls12, CipherSuite::Aes128Gcm | CipherSuite::Aes256Gcm) => 8,
            _ => 0,
        }
    }

    /// The most that a header may give as length.
    const fn max_length(self) -> usize {
        match self.version {
            TlsProtocolVersion::Tls12 => MAX_PLAINTEXT + 2048,
            TlsProtocolVersion::Tls13 => MAX_PLAINTEXT + 256,
        }
    }
}

/// The length, with its header, of the record that `wire` begins with; `None` while the header is not whole.
#[inline]
pub(super) fn record_length(cipher: CipherSpec, wire: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(&[kind, major, _, high, low]) = wire.first_chunk() else { return Ok(None) };
    if !(content_type::CHANGE_CIPHER_SPEC..=content_type::DATA).contains(&kind) || major != 3 {
        return Err(RecordError::NotTls);
    }
    let in_clear = match cipher.version {
        TlsProtocolVersion::Tls12 => kind == content_type::CHANGE_CIPHER_SPEC,
        TlsProtocolVersion::Tls13 => kind != content_type::DATA,
    };
    if in_clear {
        return Err(RecordError::Unexpected);
    }
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > cipher.max_length() { Err(RecordError::TooLong) } else { Ok(Some(HEADER + len)) }
}

/// The fields of a direction in a tunnel state.
mod tag {
    use crate::relay::tunnel_state::field::FieldTag;

    pub(super) const SECRET: FieldTag = FieldTag(1, "secret");
    pub(super) const KEY: FieldTag = FieldTag(2, "key");
    pub(super) const IV: FieldTag = FieldTag(3, "iv");
    pub(super) const SEQ: FieldTag = FieldTag(4, "sequence number");
}

/// One direction's keys and its place in the sequence.
pub(super) struct RecordCipher {
    keys: TrafficKeys,
    /// The id of the keys in the context cache.
    key_id: u64,
}

impl fmt::Debug for RecordCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordCipher(hidden)")
    }
}

impl Drop for RecordCipher {
    fn drop(&mut self) {
        aead_cache::evict(self.key_id);
    }
}

impl RecordCipher {
    /// A cipher with these keys.
    #[cfg(test)]
    pub(super) fn new(keys: TrafficKeys) -> Self {
        let mut direction = Self::blank();
        direction.set_keys(&keys);
        direction
    }

    /// A cipher without keys, to get some where it stays: keys that are moved leave a copy behind.
    pub(super) fn blank() -> Self {
        Self { keys: TrafficKeys::BLANK, key_id: aead_cache::next_key_id() }
    }

    /// Copies the keys in; their owner wipes its own.
    pub(super) fn set_keys(&mut self, keys: &TrafficKeys) {
        self.keys.secret.copy_from_slice(&keys.secret);
        self.keys.key.copy_from_slice(&keys.key);
        self.keys.iv.copy_from_slice(&keys.iv);
        self.keys.seq = keys.seq;
    }

    /// Writes the keys and the sequence number. Only one process may continue from them.
    pub(super) fn encode(&self, writer: &mut FieldWriter) {
        writer.bytes(tag::SECRET, &self.keys.secret);
        writer.bytes(tag::KEY, &self.keys.key);
        writer.bytes(tag::IV, &self.keys.iv);
        writer.number(tag::SEQ, self.keys.seq);
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub(super) fn decode_into(&mut self, mut fields: FieldReader<'_>) -> Result<(), TunnelStateError> {
        let keys = &mut self.keys;
        keys.secret.copy_from_slice(fields.array::<MAX_SECRET_LEN>(tag::SECRET)?);
        keys.key.copy_from_slice(fields.array::<32>(tag::KEY)?);
        keys.iv.copy_from_slice(fields.array::<12>(tag::IV)?);
        keys.seq = fields.count(tag::SEQ)?;
        fields.finish()
    }

    /// Records sealed or opened with these keys so far.
    pub(super) fn seq(&self) -> u64 {
        self.keys.seq
    }

    /// Switches to the next keys (RFC 8446 section 7.2), and to sequence number 0.
    pub(super) fn update_keys(&mut self, suite: CipherSuite) {
        aead_cache::evict(self.key_id);
        self.key_id = aead_cache::next_key_id();
        update_secret(suite, &mut self.keys.secret);
        derive_keys(suite, &mut self.keys);
        self.keys.seq = 0;
    }

    /// Appends one record with `plain`, at most [`MAX_PLAINTEXT`] bytes of this kind, to `out`.
    #[inline]
    pub(super) fn seal(&mut self, cipher: CipherSpec, kind: u8, plain: &[u8], out: &mut Vec<u8>) {
        let nonce = self.nonce();
        let (outer, inner): (u8, &[u8]) = match cipher.version {
            TlsProtocolVersion::Tls12 => (kind, &[]),
            TlsProtocolVersion::Tls13 => (content_type::DATA, &[kind]),
        };
        let explicit = cipher.explicit_nonce_len();
        let len = explicit + plain.len() + inner.len() + AEAD_TAG_LEN;
        let [high, low] = (len as u16).to_be_bytes();
        let header = [outer, 3, 3, high, low];
        let start = out.len();
        out.resize(start + HEADER + len, 0);
        let (front, body) = out[start..].split_at_mut(HEADER + explicit);
        front[..HEADER].copy_from_slice(&header);
        front[HEADER..].copy_from_slice(&nonce[12 - explicit..]);
        let (body, tail) = body.split_at_mut(plain.len());
        let aad = AdditionalData::of(cipher.version, self.keys.seq, header, plain.len());
        let nonce = Nonce::assume_unique_for_key(nonce);
        aead_cache::with_context(self.key_id, cipher.suite, &self.keys, |context| {
            context.seal_out_of_place_scatter(nonce, Aad::from(aad), plain, body, inner, tail)
        })
        .expect("the room is as long as the record");
        self.keys.seq += 1;
    }

    /// Opens `record`, a whole one with its header, into `plain`, which is at least as long. Returns the type and the
    /// length of the content.
    #[inline]
    pub(super) fn open(
        &mut self,
        cipher: CipherSpec,
        record: &[u8],
        plain: &mut [u8],
    ) -> Result<(u8, usize), RecordError> {
        let Some((&header, body)) = record.split_first_chunk() else { return Err(RecordError::BadRecord) };
        let explicit = cipher.explicit_nonce_len();
        if body.len() < explicit + AEAD_TAG_LEN || self.keys.seq == u64::MAX {
            return Err(RecordError::BadRecord);
        }
        let mut nonce = self.nonce();
        let (front, body) = body.split_at(explicit);
        if explicit > 0 {
            nonce[..4].copy_from_slice(&self.keys.iv[..4]);
            nonce[4..].copy_from_slice(front);
        }
        let (body, tag) = body.split_at(body.len() - AEAD_TAG_LEN);
        let plain = &mut plain[..body.len()];
        let aad = AdditionalData::of(cipher.version, self.keys.seq, header, body.len());
        let nonce = Nonce::assume_unique_for_key(nonce);
        aead_cache::with_context(self.key_id, cipher.suite, &self.keys, |context| {
            context.open_separate_gather(nonce, Aad::from(aad), body, tag, plain)
        })
        .map_err(|_| RecordError::BadRecord)?;
        self.keys.seq += 1;
        parse_content(cipher.version, header[0], plain)
    }

    /// The IV, with the sequence number laid over its end (RFC 8446 section 5.3; TLS 1.2 in the same way).
    #[inline]
    fn nonce(&self) -> [u8; 12] {
        let mut nonce = self.keys.iv;
        for (byte, seq) in nonce[4..].iter_mut().zip(self.keys.seq.to_be_bytes()) {
            *byte ^= seq;
        }
        nonce
    }
}

/// The type and the length of a record's content.
#[inline]
fn parse_content(version: TlsProtocolVersion, outer: u8, plain: &[u8]) -> Result<(u8, usize), RecordError> {
    match version {
        TlsProtocolVersion::Tls12 if plain.len() > MAX_PLAINTEXT => Err(RecordError::TooLong),
        TlsProtocolVersion::Tls12 => Ok((outer, plain.len())),
        TlsProtocolVersion::Tls13 if plain.len() > MAX_PLAINTEXT + 1 => Err(RecordError::TooLong),
        // Content, its type, then zeros (RFC 8446 section 5.4).
        TlsProtocolVersion::Tls13 if plain.is_empty() => Err(RecordError::BadRecord),
        TlsProtocolVersion::Tls13 => {
            let at = plain.iter().rposition(|&byte| byte != 0).ok_or(RecordError::Unexpected)?;
            Ok((plain[at], at))
        }
    }
}

/// What a record's tag covers besides its content.
struct AdditionalData {
    bytes: [u8; 13],
    len: usize,
}

impl AdditionalData {
    /// With the header as it was received, whatever minor version it names.
    #[inline]
    fn of(version: TlsProtocolVersion, seq: u64, header: [u8; HEADER], plain: usize) -> Self {
        let mut bytes = [0; 13];
        if version == TlsProtocolVersion::Tls13 {
            bytes[..HEADER].copy_from_slice(&header);
            return Self { bytes, len: HEADER };
        }
        bytes[..8].copy_from_slice(&seq.to_be_bytes());
        bytes[8..11].copy_from_slice(&header[..3]);
        bytes[11..].copy_from_slice(&(plain as u16).to_be_bytes());
        Self { bytes, len: 13 }
    }
}

impl AsRef<[u8]> for AdditionalData {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn first_keys(secret: &str) -> TrafficKeys {
        let mut padded = [0; MAX_SECRET_LEN];
        padded[..32].copy_from_slice(&hex(secret));
        let mut keys = TrafficKeys::BLANK;
        keys.secret = padded;
        derive_keys(CIPHER.suite, &mut keys);
        keys
    }

    const CIPHER: CipherSpec =
        CipherSpec { version: TlsProtocolVersion::Tls13, suite: CipherSuite::Aes128Gcm };

    /// RFC 8448 section 3: secret, key, IV, the sequence number of the data record, data record, close_notify.
    const CLIENT: (&str, &str, &str, u64, &str, &str) = (
        "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
        "17422dda596ed5d9acd890e3c63f5051",
        "5b78923dee08579033e523d9",
        0,
        "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b\
         62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4",
        "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3",
    );
    /// The server has sent its ticket under number 0.
    const SERVER: (&str, &str, &str, u64, &str, &str) = (
        "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
        "9f02283b6c9c07efc26bb9f2ac92e356",
        "cf782b88dd83549aadf1e984",
        1,
        "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8\
         fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d",
        "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9",
    );

    #[test]
    fn the_records_of_rfc_8448_are_sealed_and_opened() {
        let data: Vec<u8> = (0..50).collect();
        for (secret, key, iv, seq, record, close_notify) in [CLIENT, SERVER] {
            let keys = || {
                let mut keys = first_keys(secret);
                keys.seq = seq;
                keys
            };
            assert_eq!((&keys().key[..16], &keys().iv[..]), (&hex(key)[..], &hex(iv)[..]));
            let (mut tx, mut out) = (RecordCipher::new(keys()), Vec::new());
            tx.seal(CIPHER, content_type::DATA, &data, &mut out);
            tx.seal(CIPHER, content_type::ALERT, &[1, 0], &mut out);
            assert_eq!(out, [hex(record), hex(close_notify)].concat());
            let (mut rx, mut plain) = (RecordCipher::new(keys()), [0; 128]);
            assert_eq!(rx.open(CIPHER, &hex(record), &mut plain), Ok((content_type::DATA, 50)));
            assert_eq!(plain[..50], data);
            assert_eq!(rx.open(CIPHER, &hex(close_notify), &mut plain), Ok((content_type::ALERT, 2)));
            assert_eq!(rx.seq(), seq + 2);
        }
    }

    #[test]
    fn keys_are_never_printed() {
        assert_eq!(format!("{:?}", RecordCipher::new(first_keys(CLIENT.0))), "RecordCipher(hidden)");
    }

    #[test]
    fn the_last_sequence_number_is_not_used() {
        let keys = || TrafficKeys { secret: [0; 48], key: [1; 32], iv: [2; 12], seq: u64::MAX };
        let mut plain = [0; 64];
        assert_eq!(
            RecordCipher::new(keys()).open(CIPHER, &[23; 64], &mut plain),
            Err(RecordError::BadRecord)
        );
    }

    #[test]
    fn what_cannot_be_a_record_is_refused_by_its_header() {
        let length_of = |version, header: &[u8]| record_length(CipherSpec { version, ..CIPHER }, header);
        for version in [TlsProtocolVersion::Tls12, TlsProtocolVersion::Tls13] {
            assert_eq!(length_of(version, &[23, 3, 3, 0]), Ok(None));
            assert_eq!(length_of(version, &[23, 3, 3, 0x40, 0]), Ok(Some(5 + 0x4000)));
            assert_eq!(length_of(version, b"GET /"), Err(RecordError::NotTls));
            assert_eq!(length_of(version, &[19, 3, 3, 0, 1]), Err(RecordError::NotTls));
            assert_eq!(length_of(version, &[23, 2, 3, 0, 1]), Err(RecordError::NotTls));
            assert_eq!(length_of(version, &[20, 3, 3, 0, 1]), Err(RecordError::Unexpected));
            assert_eq!(length_of(version, &[23, 3, 3, 0xff, 0xff]), Err(RecordError::TooLong));
        }
        assert_eq!(length_of(TlsProtocolVersion::Tls13, &[21, 3, 3, 0, 2]), Err(RecordError::Unexpected));
        assert_eq!(length_of(TlsProtocolVersion::Tls12, &[21, 3, 3, 0, 26]), Ok(Some(31)));
        assert_eq!(length_of(TlsProtocolVersion::Tls13, &[23, 3, 3, 0x41, 0]), Ok(Some(5 + 0x4100)));
        assert_eq!(length_of(TlsProtocolVersion::Tls13, &[23, 3, 3, 0x41, 1]), Err(RecordError::TooLong));
        assert_eq!(length_of(TlsProtocolVersion::Tls12, &[23, 3, 3, 0x48, 0]), Ok(Some(5 + 0x4800)));
        assert_eq!(length_of(TlsProtocolVersion::Tls12, &[23, 3, 3, 0x48, 1]), Err(RecordError::TooLong));
    }
}
