//! The part of the key schedule of TLS 1.3 that goes on after the handshake (RFC 8446 sections 7.1 to 7.3): from a
//! traffic secret to its key and IV, and to the next secret.

use aws_lc_rs::hkdf::{HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use zeroize::Zeroizing;

use super::extracted::{CipherSuite, TrafficKeys};

/// The longest traffic secret, in bytes; shorter ones stand at the front.
pub const MAX_SECRET_LEN: usize = 48;

/// Makes of `secret` the one after it: what a KeyUpdate goes on to (RFC 8446 section 7.2).
pub(crate) fn update_secret(suite: CipherSuite, secret: &mut [u8; MAX_SECRET_LEN]) {
    let mut next = Zeroizing::new([0; MAX_SECRET_LEN]);
    expand(suite, secret, b"traffic upd", &mut next[..suite.secret_len()]);
    secret.copy_from_slice(&next[..]);
}

/// Makes key and IV of the secret that is among `keys` (RFC 8446 section 7.3).
pub(crate) fn derive_keys(suite: CipherSuite, keys: &mut TrafficKeys) {
    let TrafficKeys { secret, key, iv, .. } = keys;
    expand(suite, secret, b"key", &mut key[..suite.key_len()]);
    expand(suite, secret, b"iv", &mut iv[..]);
}

/// The key, at the front of its 32 bytes, and the IV that belong to `secret` (RFC 8446 section 7.3).
pub fn key_and_iv(
    suite: CipherSuite,
    secret: &[u8; MAX_SECRET_LEN],
) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 12]>) {
    let (mut key, mut iv) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 12]));
    expand(suite, secret, b"key", &mut key[..suite.key_len()]);
    expand(suite, secret, b"iv", &mut iv[..]);
    (key, iv)
}

/// HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
fn expand(suite: CipherSuite, secret: &[u8; MAX_SECRET_LEN], label: &[u8], out: &mut [u8]) {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let algorithm = match suite {
        CipherSuite::Aes256Gcm => HKDF_SHA384,
        CipherSuite::Aes128Gcm | CipherSuite::Chacha20Poly1305 => HKDF_SHA256,
    };
    // All lengths are below 256: a hash has at most 48 bytes, and a label at most 11 with `tls13 ` before it.
    let info = [&[0, out.len() as u8, 6 + label.len() as u8][..], b"tls13 ", label, &[0]];
    let prk = Prk::new_less_safe(algorithm, &secret[..suite.secret_len()]);
    let filled = prk.expand(&info, Length(out.len())).and_then(|okm| okm.fill(out));
    filled.expect("HKDF gives up to 255 hashes, and this is less than two");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let text = String::from_utf8(digits).unwrap();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn key_and_iv_are_those_of_rfc_8448() {
        // Section 3, "server derives write traffic keys for application data".
        let mut secret = [0; MAX_SECRET_LEN];
        let prk =
            "a1 1a f9 f0 55 31 f8 56 ad 47 11 6b 45 a9 50 32 82 04 b4 f4 4b fb 6b 3a 4b 4f 1f 3f cb 63 16 43";
        secret[..32].copy_from_slice(&bytes(prk));
        let (key, iv) = key_and_iv(CipherSuite::Aes128Gcm, &secret);
        assert_eq!(key[..16], bytes("9f 02 28 3b 6c 9c 07 ef c2 6b b9 f2 ac 92 e3 56"));
        assert_eq!(key[16..], [0; 16]);
        assert_eq!(iv[..], bytes("cf 78 2b 88 dd 83 54 9a ad f1 e9 84"));
    }

    #[test]
    fn the_next_secret_is_another_one_of_the_same_length() {
        for suite in [CipherSuite::Aes128Gcm, CipherSuite::Aes256Gcm, CipherSuite::Chacha20Poly1305] {
            let first = [7; MAX_SECRET_LEN];
            let (mut next, mut again) = (first, first);
            update_secret(suite, &mut next);
            assert_ne!(next[..suite.secret_len()], first[..suite.secret_len()]);
            assert!(next[suite.secret_len()..].iter().all(|byte| *byte == 0));
            update_secret(suite, &mut again);
            assert_eq!(next, again);
        }
    }
}
