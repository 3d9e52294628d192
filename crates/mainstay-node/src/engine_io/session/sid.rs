//! The name of a session: 15 bytes as 20 characters of base64url, as Node's `base64id` makes it.
//!
//! Twelve bytes are random, because whoever knows a sid may speak for the session; three count up, so that no two
//! sids of one process are equal whatever chance does. What others are told instead is [`Sid::public`].

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The characters of a sid.
const LENGTH: usize = 20;

/// One session's name. Twenty characters of `A-Za-z0-9-_`, no separators.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sid([u8; LENGTH]);

impl Sid {
    /// A new name, never given before.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut raw = [0; 15];
        // The library's generator is seeded from the kernel before main; it fails only where that already has.
        aws_lc_rs::rand::fill(&mut raw[..12]).expect("the kernel gives randomness");
        raw[12..].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes()[1..]);
        let mut text = [0; LENGTH];
        URL_SAFE_NO_PAD.encode_slice(raw, &mut text).expect("15 bytes are 20 characters");
        Self(text)
    }

    /// The sid that a request names; `None` when no session can have that name.
    pub fn parse(text: &str) -> Option<Self> {
        let text: [u8; LENGTH] = text.as_bytes().try_into().ok()?;
        let is_sid = text.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        is_sid.then_some(Self(text))
    }

    /// A name for others to know the session by, from which nobody finds the sid: the first fifteen bytes of its
    /// SHA-256, as twenty characters of base64url. Who has the sid can find it.
    pub fn public(&self) -> String {
        URL_SAFE_NO_PAD.encode(&digest(&SHA256, &self.0).as_ref()[..15])
    }

    /// The twenty characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a sid is made of ASCII alone")
    }
}

impl Default for Sid {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Debug for Sid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_sid_is_twenty_characters_and_reads_back() {
        let sids: HashSet<Sid> = (0..1000).map(|_| Sid::new()).collect();
        assert_eq!(sids.len(), 1000);
        for sid in sids {
            assert_eq!(Sid::parse(&sid.to_string()), Some(sid));
        }
    }

    #[test]
    fn the_public_name_looks_like_a_sid_and_is_its_hash() {
        let sid = Sid::parse("AAAAAAAAAAAAAAAAAAAA").unwrap();
        // printf AAAAAAAAAAAAAAAAAAAA | openssl sha256 -binary | head -c 15 | base64
        assert_eq!(sid.public(), "7fyqxXkCT1dK28qjwT5P");
        assert!(Sid::parse(&sid.public()).is_some());
    }

    #[test]
    fn what_is_no_sid_is_not_taken_for_one() {
        for text in
            ["", "short", "doesnotexist0000000000", "doesnotexist0000000 ", "doesnotexist0000000/", "é"]
        {
            assert_eq!(Sid::parse(text), None, "{text}");
        }
    }
}
