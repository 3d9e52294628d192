//! `application/x-www-form-urlencoded`, read as Node's `URLSearchParams` reads it: a query, or a form's body.

use std::borrow::Cow;

/// The pairs of `query` in order, names and values decoded.
pub(crate) fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// The value of `name`; the last one wins, as in an object made of the pairs.
pub(crate) fn last<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    pairs(query).filter(|(given, _)| given == name).map(|(_, value)| value).last()
}

fn decode(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match (first, after) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    rest = after;
                }
                _ => bytes.push(first),
            },
            _ => bytes.push(first),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_and_what_is_none_stays() {
        let query = "a=1&b=%C3%a9+x&c&&d=%zz%4&%61=2";
        let read: Vec<_> = pairs(query).map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(read, ["a=1", "b=é x", "c=", "d=%zz%4", "a=2"]);
        assert_eq!(last(query, "a").as_deref(), Some("2"));
        assert_eq!(last(query, "e"), None);
        assert_eq!(last("x=%FF", "x").as_deref(), Some("\u{fffd}"));
    }
}
