//! One record: sealed, or opened. TLS 1.3 (RFC 8446 section 5) and the AEAD suites of TLS 1.2 (RFC 5246 section
//! 6.2.3.3, RFC 5288, RFC 7905).
//!
//! That a nonce is never used twice with a key is proved here: the sequence number is private to [`Direction`], the
//! one function that seals counts it up, and new keys begin at 0.

use std::fmt;

use aws_lc_rs::aead::{Aad, Nonce};

use super::alert::Fault;
use super::contexts;
use crate::net::tls::departed::{Keys, Suite, Version};
use crate::net::tls::schedule::{LONGEST_SECRET, go_on, make_keys};
use crate::relay::parcel::field::{Fault as Unreadable, Fields, Tag, Writer};

/// Length of a record's header: type, version, length.
pub const HEADER: usize = 5;
/// Plaintext bytes that one record carries at most.
pub const MOST_PLAIN: usize = 1 << 14;
/// Length of the tag of every suite here.
const TAG: usize = 16;

/// Content types (RFC 8446 section 5.1).
pub mod kind {
    /// Only in the handshake.
    pub const CHANGE_CIPHER_SPEC: u8 = 20;
    /// Alerts.
    pub const ALERT: u8 = 21;
    /// Handshake messages, also those after the handshake.
    pub const HANDSHAKE: u8 = 22;
    /// Application data; in TLS 1.3 the outer type of all records.
    pub const DATA: u8 = 23;
}

/// How records are protected.
#[derive(Debug, Clone, Copy)]
pub struct Cipher {
    /// The protocol version.
    pub version: Version,
    /// The AEAD.
    pub suite: Suite,
}

impl Cipher {
    /// Records that may be sealed with one key: 2^24 with AES-GCM (RFC 8446 section 5.5), and with ChaCha20 so many
    /// that the sequence number never comes near its end.
    pub const fn limit(self) -> u64 {
        match self.suite {
            Suite::Aes128Gcm | Suite::Aes256Gcm => 1 << 24,
            Suite::Chacha20Poly1305 => 1 << 60,
        }
    }

    /// Bytes of the nonce that stand in the record (RFC 5288 section 3).
    const fn explicit(self) -> usize {
        match (self.version, self.suite) {
            (Version::Tls12, Suite::Aes128Gcm | Suite::Aes256Gcm) => 8,
            _ => 0,
        }
    }

    /// The most that a header may give as length.
    const fn most(self) -> usize {
        match self.version {
            Version::Tls12 => MOST_PLAIN + 2048,
            Version::Tls13 => MOST_PLAIN + 256,
        }
    }
}

/// The length, with its header, of the record that `wire` begins with; `None` while the header is not whole.
#[inline]
pub fn length(cipher: Cipher, wire: &[u8]) -> Result<Option<usize>, Fault> {
    let Some(&[kind, major, _, high, low]) = wire.first_chunk() else { return Ok(None) };
    if !(kind::CHANGE_CIPHER_SPEC..=kind::DATA).contains(&kind) || major != 3 {
        return Err(Fault::NotTls);
    }
    let in_clear = match cipher.version {
        Version::Tls12 => kind == kind::CHANGE_CIPHER_SPEC,
        Version::Tls13 => kind != kind::DATA,
    };
    if in_clear {
        return Err(Fault::Unexpected);
    }
    let len = usize::from(u16::from_be_bytes([high, low]));
    if len > cipher.most() { Err(Fault::TooLong) } else { Ok(Some(HEADER + len)) }
}

/// The fields of a direction in a parcel.
mod tag {
    use super::Tag;

    pub const SECRET: Tag = Tag(1, "secret");
    pub const KEY: Tag = Tag(2, "key");
    pub const IV: Tag = Tag(3, "iv");
    pub const SEQ: Tag = Tag(4, "sequence number");
}

/// One direction's keys and its place in the sequence.
pub struct Direction {
    keys: Keys,
    /// What the thread knows the keys' context by.
    number: u64,
}

impl fmt::Debug for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Direction(hidden)")
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        contexts::forget(self.number);
    }
}

impl Direction {
    /// Goes on with `keys`.
    #[cfg(test)]
    pub fn new(keys: Keys) -> Self {
        let mut direction = Self::blank();
        direction.take_up(&keys);
        direction
    }

    /// Without keys, to be given some where it stays: keys that are moved are left behind where they were.
    pub fn blank() -> Self {
        Self { keys: Keys::BLANK, number: contexts::number() }
    }

    /// Goes on with `keys`; whoever gives them up wipes its own.
    pub fn take_up(&mut self, keys: &Keys) {
        self.keys.secret.copy_from_slice(&keys.secret);
        self.keys.key.copy_from_slice(&keys.key);
        self.keys.iv.copy_from_slice(&keys.iv);
        self.keys.seq = keys.seq;
    }

    /// Writes down the keys and the place in the sequence. Whoever goes on from there must be the only one.
    pub fn pack(&self, writer: &mut Writer) {
        writer.bytes(tag::SECRET, &self.keys.secret);
        writer.bytes(tag::KEY, &self.keys.key);
        writer.bytes(tag::IV, &self.keys.iv);
        writer.number(tag::SEQ, self.keys.seq);
    }

    /// Reads what [`pack`](Self::pack) wrote.
    pub fn fill(&mut self, mut fields: Fields<'_>) -> Result<(), Unreadable> {
        let keys = &mut self.keys;
        keys.secret.copy_from_slice(fields.exact::<LONGEST_SECRET>(tag::SECRET)?);
        keys.key.copy_from_slice(fields.exact::<32>(tag::KEY)?);
        keys.iv.copy_from_slice(fields.exact::<12>(tag::IV)?);
        keys.seq = fields.count(tag::SEQ)?;
        fields.end()
    }

    /// Records sealed or opened with these keys so far.
    pub fn seq(&self) -> u64 {
        self.keys.seq
    }

    /// Switches to the next keys (RFC 8446 section 7.2), and to sequence number 0.
    pub fn update(&mut self, suite: Suite) {
        contexts::forget(self.number);
        self.number = contexts::number();
        go_on(suite, &mut self.keys.secret);
        make_keys(suite, &mut self.keys);
        self.keys.seq = 0;
    }

    /// Appends one record with `plain`, at most [`MOST_PLAIN`] bytes of this kind, to `out`.
    #[inline]
    pub fn seal(&mut self, cipher: Cipher, kind: u8, plain: &[u8], out: &mut Vec<u8>) {
        let nonce = self.nonce();
        let (outer, inner): (u8, &[u8]) = match cipher.version {
            Version::Tls12 => (kind, &[]),
            Version::Tls13 => (kind::DATA, &[kind]),
        };
        let explicit = cipher.explicit();
        let len = explicit + plain.len() + inner.len() + TAG;
        let [high, low] = (len as u16).to_be_bytes();
        let header = [outer, 3, 3, high, low];
        let start = out.len();
        out.resize(start + HEADER + len, 0);
        let (front, body) = out[start..].split_at_mut(HEADER + explicit);
        front[..HEADER].copy_from_slice(&header);
        front[HEADER..].copy_from_slice(&nonce[12 - explicit..]);
        let (body, tail) = body.split_at_mut(plain.len());
        let aad = Authenticated::of(cipher.version, self.keys.seq, header, plain.len());
        let nonce = Nonce::assume_unique_for_key(nonce);
        contexts::with(self.number, cipher.suite, &self.keys, |context| {
            context.seal_out_of_place_scatter(nonce, Aad::from(aad), plain, body, inner, tail)
        })
        .expect("the room is as long as the record");
        self.keys.seq += 1;
    }

    /// Opens `record`, a whole one with its header, into `plain`, which is as long at least. Gives the content's
    /// type and length.
    #[inline]
    pub fn open(&mut self, cipher: Cipher, record: &[u8], plain: &mut [u8]) -> Result<(u8, usize), Fault> {
        let Some((&header, body)) = record.split_first_chunk() else { return Err(Fault::BadRecord) };
        let explicit = cipher.explicit();
        if body.len() < explicit + TAG || self.keys.seq == u64::MAX {
            return Err(Fault::BadRecord);
        }
        let mut nonce = self.nonce();
        let (front, body) = body.split_at(explicit);
        if explicit > 0 {
            nonce[..4].copy_from_slice(&self.keys.iv[..4]);
            nonce[4..].copy_from_slice(front);
        }
        let (body, tag) = body.split_at(body.len() - TAG);
        let plain = &mut plain[..body.len()];
        let aad = Authenticated::of(cipher.version, self.keys.seq, header, body.len());
        let nonce = Nonce::assume_unique_for_key(nonce);
        contexts::with(self.number, cipher.suite, &self.keys, |context| {
            context.open_separate_gather(nonce, Aad::from(aad), body, tag, plain)
        })
        .map_err(|_| Fault::BadRecord)?;
        self.keys.seq += 1;
        content(cipher.version, header[0], plain)
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

/// Type and length of what a record held.
#[inline]
fn content(version: Version, outer: u8, plain: &[u8]) -> Result<(u8, usize), Fault> {
    match version {
        Version::Tls12 if plain.len() > MOST_PLAIN => Err(Fault::TooLong),
        Version::Tls12 => Ok((outer, plain.len())),
        Version::Tls13 if plain.len() > MOST_PLAIN + 1 => Err(Fault::TooLong),
        // Content, its type, then zeros (RFC 8446 section 5.4).
        Version::Tls13 if plain.is_empty() => Err(Fault::BadRecord),
        Version::Tls13 => {
            let at = plain.iter().rposition(|&byte| byte != 0).ok_or(Fault::Unexpected)?;
            Ok((plain[at], at))
        }
    }
}

/// What a record's tag covers beside its content.
struct Authenticated {
    bytes: [u8; 13],
    len: usize,
}

impl Authenticated {
    /// With the header as it was received, whatever minor version it names.
    #[inline]
    fn of(version: Version, seq: u64, header: [u8; HEADER], plain: usize) -> Self {
        let mut bytes = [0; 13];
        if version == Version::Tls13 {
            bytes[..HEADER].copy_from_slice(&header);
            return Self { bytes, len: HEADER };
        }
        bytes[..8].copy_from_slice(&seq.to_be_bytes());
        bytes[8..11].copy_from_slice(&header[..3]);
        bytes[11..].copy_from_slice(&(plain as u16).to_be_bytes());
        Self { bytes, len: 13 }
    }
}

impl AsRef<[u8]> for Authenticated {
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

    fn first_keys(secret: &str) -> Keys {
        let mut padded = [0; LONGEST_SECRET];
        padded[..32].copy_from_slice(&hex(secret));
        let mut keys = Keys::BLANK;
        keys.secret = padded;
        make_keys(CIPHER.suite, &mut keys);
        keys
    }

    const CIPHER: Cipher = Cipher { version: Version::Tls13, suite: Suite::Aes128Gcm };

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
        for (secret, key, iv, seq, record, goodbye) in [CLIENT, SERVER] {
            let keys = || {
                let mut keys = first_keys(secret);
                keys.seq = seq;
                keys
            };
            assert_eq!((&keys().key[..16], &keys().iv[..]), (&hex(key)[..], &hex(iv)[..]));
            let (mut tx, mut out) = (Direction::new(keys()), Vec::new());
            tx.seal(CIPHER, kind::DATA, &data, &mut out);
            tx.seal(CIPHER, kind::ALERT, &[1, 0], &mut out);
            assert_eq!(out, [hex(record), hex(goodbye)].concat());
            let (mut rx, mut plain) = (Direction::new(keys()), [0; 128]);
            assert_eq!(rx.open(CIPHER, &hex(record), &mut plain), Ok((kind::DATA, 50)));
            assert_eq!(plain[..50], data);
            assert_eq!(rx.open(CIPHER, &hex(goodbye), &mut plain), Ok((kind::ALERT, 2)));
            assert_eq!(rx.seq(), seq + 2);
        }
    }

    #[test]
    fn keys_are_never_printed() {
        assert_eq!(format!("{:?}", Direction::new(first_keys(CLIENT.0))), "Direction(hidden)");
    }

    #[test]
    fn the_last_sequence_number_is_not_used() {
        let keys = || Keys { secret: [0; 48], key: [1; 32], iv: [2; 12], seq: u64::MAX };
        let mut plain = [0; 64];
        assert_eq!(Direction::new(keys()).open(CIPHER, &[23; 64], &mut plain), Err(Fault::BadRecord));
    }

    #[test]
    fn what_cannot_be_a_record_is_refused_by_its_header() {
        let length = |version, header: &[u8]| length(Cipher { version, ..CIPHER }, header);
        for version in [Version::Tls12, Version::Tls13] {
            assert_eq!(length(version, &[23, 3, 3, 0]), Ok(None));
            assert_eq!(length(version, &[23, 3, 3, 0x40, 0]), Ok(Some(5 + 0x4000)));
            assert_eq!(length(version, b"GET /"), Err(Fault::NotTls));
            assert_eq!(length(version, &[19, 3, 3, 0, 1]), Err(Fault::NotTls));
            assert_eq!(length(version, &[23, 2, 3, 0, 1]), Err(Fault::NotTls));
            assert_eq!(length(version, &[20, 3, 3, 0, 1]), Err(Fault::Unexpected));
            assert_eq!(length(version, &[23, 3, 3, 0xff, 0xff]), Err(Fault::TooLong));
        }
        assert_eq!(length(Version::Tls13, &[21, 3, 3, 0, 2]), Err(Fault::Unexpected));
        assert_eq!(length(Version::Tls12, &[21, 3, 3, 0, 26]), Ok(Some(31)));
        assert_eq!(length(Version::Tls13, &[23, 3, 3, 0x41, 0]), Ok(Some(5 + 0x4100)));
        assert_eq!(length(Version::Tls13, &[23, 3, 3, 0x41, 1]), Err(Fault::TooLong));
        assert_eq!(length(Version::Tls12, &[23, 3, 3, 0x48, 0]), Ok(Some(5 + 0x4800)));
        assert_eq!(length(Version::Tls12, &[23, 3, 3, 0x48, 1]), Err(Fault::TooLong));
    }
}
