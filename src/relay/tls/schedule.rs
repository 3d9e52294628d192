//! The part of the TLS 1.3 key schedule that goes on after the handshake (RFC 8446 sections 7.1 to 7.3): from a
//! traffic secret to its key and IV, and to the secret behind it.

use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384, Prk};
use zeroize::Zeroizing;

use crate::net::tls::departed::{Keys, Suite};

/// The keys that `secret` gives, at sequence number 0. `secret` has [`Suite::secret_len`] bytes.
pub fn keys(suite: Suite, secret: &[u8]) -> Keys {
    let mut keys = Keys { secret: [0; 48], key: [0; 32], iv: [0; 12], seq: 0 };
    keys.secret[..suite.secret_len()].copy_from_slice(secret);
    expand_label(suite, secret, b"key", &mut keys.key[..suite.key_len()]);
    expand_label(suite, secret, b"iv", &mut keys.iv);
    keys
}

/// The keys behind `keys`: what a KeyUpdate switches to (RFC 8446 section 7.2).
pub fn next(suite: Suite, now: &Keys) -> Keys {
    let len = suite.secret_len();
    let mut secret = Zeroizing::new([0; 48]);
    expand_label(suite, &now.secret[..len], b"traffic upd", &mut secret[..len]);
    keys(suite, &secret[..len])
}

/// HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
fn expand_label(suite: Suite, secret: &[u8], label: &[u8], out: &mut [u8]) {
    const PREFIX: &[u8] = b"tls13 ";
    // The lengths are those of this file's labels and a suite's keys: each fits in a byte.
    let [high, low] = (out.len() as u16).to_be_bytes();
    let label_len = [(PREFIX.len() + label.len()) as u8];
    let info: [&[u8]; 5] = [&[high, low], &label_len, PREFIX, label, &[0]];
    let prk = Prk::new_less_safe(hash(suite), secret);
    let okm = prk.expand(&info, Len(out.len())).expect("a key is shorter than HKDF's limit");
    okm.fill(out).expect("the length is the one that was asked for");
}

fn hash(suite: Suite) -> hkdf::Algorithm {
    match suite {
        Suite::Aes128Gcm | Suite::Chacha20Poly1305 => HKDF_SHA256,
        Suite::Aes256Gcm => HKDF_SHA384,
    }
}

struct Len(usize);

impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}
