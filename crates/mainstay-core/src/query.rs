//! The query of a request target: what a parameter says, when it says it once.
//!
//! Pairs are split at `&` and `=`, then names and values are decoded (`%XX`, and `+` for a space) as forms do
//! (WHATWG URL, section 5.1). A `%` that begins no such triple stands for itself.

use std::borrow::Cow;

/// How a request carries something that it should carry once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occurrence<T> {
    /// Not at all.
    Absent,
    /// Once.
    Once(T),
    /// More than once, or in a shape that nobody means.
    Invalid,
}

/// The value of the parameter `name`, still encoded.
pub fn find<'q>(query: &'q str, name: &str) -> Occurrence<&'q str> {
    let mut values = pairs(query).filter(|(key, _)| *decode(key) == *name.as_bytes());
    match (values.next(), values.next()) {
        (None, _) => Occurrence::Absent,
        (Some((_, value)), None) => Occurrence::Once(value),
        (Some(_), Some(_)) => Occurrence::Invalid,
    }
}

/// What each parameter of this name stands for.
pub fn all<'q>(query: &'q str, name: &str) -> impl Iterator<Item = Cow<'q, [u8]>> {
    pairs(query).filter(move |(key, _)| *decode(key) == *name.as_bytes()).map(|(_, value)| decode(value))
}

/// The pairs in order, still encoded; a pair without `=` has an empty value.
fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// The bytes that a name or a value stands for.
pub fn decode(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        let (byte, next) = match (first, after) {
            (b'%', [high, low, left @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, left),
                _ => (b'%', after),
            },
            (b'+', _) => (b' ', after),
            (other, _) => (*other, after),
        };
        out.push(byte);
        rest = next;
    }
    Cow::Owned(out)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_when_it_is_there_once() {
        for (query, carried) in [
            ("user=7", Occurrence::Once("7")),
            ("a=b&user=7&c", Occurrence::Once("7")),
            ("user", Occurrence::Once("")),
            ("user=", Occurrence::Once("")),
            ("user=a=b", Occurrence::Once("a=b")),
            ("us%65r=7", Occurrence::Once("7")),
            ("", Occurrence::Absent),
            ("&&", Occurrence::Absent),
            ("User=7", Occurrence::Absent),
            ("xuser=7&users=8", Occurrence::Absent),
            ("user=7&user=7", Occurrence::Invalid),
            ("user=7&%75ser=8", Occurrence::Invalid),
            ("user&user&user", Occurrence::Invalid),
        ] {
            assert_eq!(find(query, "user"), carried, "{query:?}");
        }
    }

    #[test]
    fn percent_and_plus_are_decoded_and_what_is_no_triple_stands_for_itself() {
        for (text, bytes) in [
            ("plain", &b"plain"[..]),
            ("a%20b+c", b"a b c"),
            ("%C3%a9", "é".as_bytes()),
            ("%ff", b"\xff"),
            ("%", b"%"),
            ("%2", b"%2"),
            ("%zz%2G%+1", b"%zz%2G% 1"),
            ("%252B", b"%2B"),
        ] {
            assert_eq!(&*decode(text), bytes, "{text:?}");
        }
    }
}
