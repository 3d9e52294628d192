//! The tokens that open the admin API to who shows one.
//!
//! A token file has one token a line, so that a new one can be taken into use before the old one goes; empty lines
//! and lines that begin with `#` do not count. Only digests are kept: a token can be compared and never shown.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

/// The tokens of one file; at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens(Box<[[u8; SHA256_OUTPUT_LEN]]>);

impl Tokens {
    /// The fewest characters of a token: 16 random ones of base64 have 96 bits.
    pub(crate) const SHORTEST: usize = 16;
    /// The most characters of a token; a request's head has to hold it.
    pub const LONGEST: usize = 1024;
    /// The most tokens of a file. Each request is compared with all of them.
    pub const MOST: usize = 100;

    /// Reads a token file.
    ///
    /// # Errors
    ///
    /// What is wrong with it, by line; a token is never part of the message.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        for (number, token) in written(text) {
            if !(Self::SHORTEST..=Self::LONGEST).contains(&token.len()) {
                let (least, most) = (Self::SHORTEST, Self::LONGEST);
                return Err(format!(
                    "line {number} has {} characters; a token has {least} to {most}, random ones \
                     (`openssl rand -base64 32`)",
                    token.len()
                ));
            }
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!(
                    "line {number} has a character that no HTTP header carries; a token has visible ASCII only"
                ));
            }
            tokens.push(hash(token.as_bytes()));
        }
        match tokens.len() {
            0 => Err("it has no token; write one a line (`openssl rand -base64 32`)".into()),
            count if count > Self::MOST => Err(format!("it has {count} tokens, {} are the most", Self::MOST)),
            _ => Ok(Self(tokens.into())),
        }
    }

    /// The token that a client shows: the first of the file's text.
    pub fn first(text: &str) -> Option<&str> {
        written(text).next().map(|(_, token)| token)
    }

    /// Whether `shown` is one of them. How long this takes tells nothing of how near a wrong one is: digests are
    /// compared, each with all, and each comparison in constant time.
    pub fn accept(&self, shown: &[u8]) -> bool {
        let shown = hash(shown);
        self.0.iter().fold(false, |found, token| verify_slices_are_equal(token, &shown).is_ok() | found)
    }
}

/// The lines that count, with their numbers.
fn written(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().map(str::trim).zip(1..).map(|(line, number)| (number, line));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

fn hash(token: &[u8]) -> [u8; SHA256_OUTPUT_LEN] {
    let mut hash = [0; SHA256_OUTPUT_LEN];
    hash.copy_from_slice(digest(&SHA256, token).as_ref());
    hash
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({} hidden)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &str = "# of the operators\nold-token-0123456789\n\n  new-token-0123456789\r\n";

    #[test]
    fn every_token_of_the_file_is_accepted_and_nothing_else() {
        let tokens = Tokens::parse(FILE).unwrap();
        assert!(tokens.accept(b"old-token-0123456789") && tokens.accept(b"new-token-0123456789"));
        for wrong in ["", "old-token-012345678", "old-token-01234567890", "# of the operators", "\u{0}"] {
            assert!(!tokens.accept(wrong.as_bytes()), "{wrong}");
        }
        assert_eq!(Tokens::first(FILE), Some("old-token-0123456789"));
    }

    #[test]
    fn a_file_without_a_sound_token_says_what_would_be_right_and_no_token() {
        for (text, said) in [
            ("", "no token"),
            ("# none\n\n", "no token"),
            ("a-fine-one-0123456789\nshort-secret\n", "line 2 has 12 characters"),
            ("secret of several words", "line 1 has a character"),
            ("secret-with-ümlauts-in-it", "line 1 has a character"),
        ] {
            let message = Tokens::parse(text).unwrap_err();
            assert!(message.contains(said) && !message.contains("secret"), "{message}");
        }
        assert!(Tokens::parse(&"x".repeat(Tokens::LONGEST + 1)).is_err());
        assert!(Tokens::parse(&format!("{}\n", "x".repeat(20)).repeat(Tokens::MOST + 1)).is_err());
    }

    #[test]
    fn tokens_are_not_shown() {
        assert_eq!(format!("{:?}", Tokens::parse(FILE).unwrap()), "Tokens(2 hidden)");
    }

    proptest! {
        #[test]
        fn whatever_is_in_a_file_is_read_or_refused(text in "(?s).{0,200}", shown in any::<Vec<u8>>()) {
            if let Ok(tokens) = Tokens::parse(&text) {
                let first = Tokens::first(&text).unwrap();
                prop_assert!(tokens.accept(first.as_bytes()));
                prop_assert!(!tokens.accept(&shown) || text.as_bytes().windows(shown.len().max(1)).any(|w| w == shown));
            }
        }
    }
}
