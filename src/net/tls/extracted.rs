//! A TLS connection that was taken out of rustls: what a record layer needs to go on with it, and nothing else.
//!
//! It holds live traffic keys. It is never printed, never copied, wiped when dropped, and has one owner: two that
//! send with the same key and sequence number would break the cipher for good. The keys have a place of their own on
//! the heap: what is moved is left behind where it was, and a connection on its way is moved often.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// The protocol version of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsProtocolVersion {
    /// TLS 1.2 (RFC 5246); AEAD suites only.
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

/// The AEAD that protects its records, with the hash of its key schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CipherSuite {
    /// AES-128-GCM, SHA-256.
    Aes128Gcm,
    /// AES-256-GCM, SHA-384.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439), SHA-256.
    Chacha20Poly1305,
}

impl CipherSuite {
    /// The length of its key, in bytes.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm | Self::Chacha20Poly1305 => 32,
        }
    }

    /// The length of its traffic secrets, in bytes: that of its hash.
    pub(crate) const fn secret_len(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::Chacha20Poly1305 => 32,
            Self::Aes256Gcm => 48,
        }
    }
}

/// The keys of one direction.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TrafficKeys {
    /// The present traffic secret, the first `CipherSuite::secret_len` bytes of it (RFC 8446 section 7.1); zeros in
    /// TLS 1.2, which has no KeyUpdate.
    pub secret: [u8; 48],
    /// The AEAD key, the first `CipherSuite::key_len` bytes of it.
    pub key: [u8; 32],
    /// The static part of the nonce; for TLS 1.2 AES-GCM the salt, then the start of the explicit part.
    pub iv: [u8; 12],
    /// The number of the next record.
    pub seq: u64,
}

impl TrafficKeys {
    /// Zeros, to be filled where they stay.
    pub(crate) const BLANK: Self = Self { secret: [0; 48], key: [0; 32], iv: [0; 12], seq: 0 };
}

impl fmt::Debug for TrafficKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(hidden)")
    }
}

/// A TLS connection that was taken out of rustls.
#[derive(Debug)]
pub struct ExtractedTls {
    /// Its version.
    pub version: TlsProtocolVersion,
    /// Its AEAD.
    pub suite: CipherSuite,
    /// What we send with.
    pub tx: Box<TrafficKeys>,
    /// What we receive with.
    pub rx: Box<TrafficKeys>,
    /// Bytes received and not decrypted: at least the whole of one record that has begun, perhaps more records.
    pub undecrypted: Vec<u8>,
    /// Records made and not written to the socket yet; they go before anything else.
    pub unsent: Vec<u8>,
    /// Bytes decrypted and not consumed.
    pub decrypted: Vec<u8>,
    /// The peer has sent close_notify.
    pub has_close_notify: bool,
}
