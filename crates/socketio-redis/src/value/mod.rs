//! What an argument of an event is, whichever way it came: JSON text from a client, MessagePack or JSON from a peer.
//!
//! Pure data: no I/O. Map entries keep their order, because classic adapters are compared byte by byte. Depth is bounded
//! on the way in, so that everything that is a `Value` can be walked, written and dropped by recursion; size is bounded by
//! whoever read the bytes.
//!
//! Rules taken from JavaScript, because the peers are: NaN and infinities are null in JSON; a MessagePack timestamp is
//! the text that `Date.prototype.toISOString` gives; of two equal keys the last one counts.

use bytes::Bytes;
use thiserror::Error;

mod date;
mod json;
mod msgpack;

pub use msgpack::{write_list_header, write_map_header, write_text as write_msgpack_text};

/// Arrays and maps inside each other that a client may send. Eight levels less than [`MOST_WIRE_DEPTH`], which leaves
/// room for the envelopes that adapters put around it.
pub const MAX_DEPTH: usize = 119;

/// Arrays and maps inside each other that a peer may send; serde_json's own limit is the same.
pub const MAX_WIRE_DEPTH: usize = 127;

/// One argument of an event, or a part of one.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    /// `null`, and `undefined` inside an array.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer that fits into 64 bits with a sign; every integer that does is kept this way.
    Int(i64),
    /// An integer from 2^63 to 2^64 − 1.
    Uint(u64),
    /// Every other number.
    Float(f64),
    /// Text.
    Text(Box<str>),
    /// Bytes: `Buffer`, `Uint8Array` and their like.
    Binary(Bytes),
    /// An array.
    List(Vec<Value>),
    /// An object, in the order in which its keys came.
    Map(Vec<(Box<str>, Value)>),
}

/// Why bytes or text are no value. It is the fault of whoever sent them.
#[derive(Debug, Error)]
pub enum ValueError {
    /// Not JSON, or JSON that is nested too deep.
    #[error("not a JSON value: {0}")]
    Json(#[from] serde_json::Error),
    /// Not MessagePack, cut short, or nested too deep.
    #[error("not a MessagePack value: {0}")]
    MessagePack(#[from] rmpv::decode::Error),
    /// MessagePack was followed by something else.
    #[error("{0} bytes after the MessagePack value")]
    Trailing(usize),
    /// A map's key that is neither text nor a number.
    #[error("a map's key is neither text nor a number")]
    Key,
    /// A placeholder names an attachment that is not there, or that another placeholder has taken.
    #[error("a placeholder names no attachment of its own")]
    Attachment,
}

/// Where bytes go when a value becomes JSON.
#[derive(Debug)]
pub enum Attachments<'a> {
    /// As Socket.IO packets of the types 5 and 6 have it: `{"_placeholder":true,"num":n}`, with the bytes pushed here.
    Separate(&'a mut Vec<Bytes>),
    /// As `JSON.stringify` has a Node.js `Buffer`: `{"type":"Buffer","data":[..]}`.
    Inline,
}

impl Value {
    /// What a client sent: one JSON value, at most [`MOST_DEPTH`] deep.
    pub fn from_json(text: &str) -> Result<Value, ValueError> {
        Ok(json::read(text.as_bytes(), MAX_DEPTH)?)
    }

    /// What a peer sent: one JSON value, at most [`MOST_WIRE_DEPTH`] deep.
    pub fn from_wire_json(text: &[u8]) -> Result<Value, ValueError> {
        Ok(json::read(text, MAX_WIRE_DEPTH)?)
    }

    /// What a peer sent: one MessagePack value and nothing after it, at most [`MOST_WIRE_DEPTH`] deep.
    pub fn from_msgpack(bytes: &[u8]) -> Result<Value, ValueError> {
        msgpack::read(bytes)
    }

    /// Writes compact JSON behind what `out` has already.
    pub fn write_json(&self, out: &mut String, attachments: &mut Attachments<'_>) {
        json::write(self, out, attachments);
    }

    /// Compact JSON with bytes inline.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out, &mut Attachments::Inline);
        out
    }

    /// Writes MessagePack behind what `out` has already: bytes as bin, text as str, integers as small as they go.
    pub fn write_msgpack(&self, out: &mut Vec<u8>) {
        msgpack::write(self, out);
    }

    /// The same as bytes of its own.
    pub fn to_msgpack(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_msgpack(&mut out);
        out
    }

    /// Whether there are bytes anywhere in it, which decides the packet's type or the payload's encoding.
    pub fn has_binary(&self) -> bool {
        match self {
            Value::Binary(_) => true,
            Value::List(items) => items.iter().any(Value::has_binary),
            Value::Map(entries) => entries.iter().any(|(_, value)| value.has_binary()),
            _ => false,
        }
    }

    /// Puts the attachments of a binary packet where its placeholders are. Node lets two placeholders share an
    /// attachment; no client library does that, and a small packet would become a large one, so it is a fault here.
    pub fn fill_placeholders(values: &mut [Value], attachments: &[Bytes]) -> Result<(), ValueError> {
        let mut left: Vec<Option<Bytes>> = attachments.iter().cloned().map(Some).collect();
        values.iter_mut().try_for_each(|value| value.fill_from(&mut left))
    }

    fn fill_from(&mut self, left: &mut [Option<Bytes>]) -> Result<(), ValueError> {
        if self.get("_placeholder") == Some(&Value::Bool(true)) {
            let number =
                self.get("num").and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
            let bytes = number.and_then(|number| left.get_mut(number)?.take());
            *self = Value::Binary(bytes.ok_or(ValueError::Attachment)?);
            return Ok(());
        }
        match self {
            Value::List(items) => items.iter_mut().try_for_each(|item| item.fill_from(left)),
            Value::Map(entries) => entries.iter_mut().try_for_each(|(_, value)| value.fill_from(left)),
            _ => Ok(()),
        }
    }

    /// The value under `key` if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let entries = self.as_map()?;
        entries.iter().rev().find(|(name, _)| **name == *key).map(|(_, value)| value)
    }

    /// Takes the value under `key` out of a map.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        let Value::Map(entries) = self else { return None };
        let entry = entries.iter_mut().rev().find(|(name, _)| **name == *key)?;
        Some(std::mem::take(&mut entry.1))
    }

    /// The text if it is text.
    pub fn as_text(&self) -> Option<&str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    /// The items if it is a list.
    pub fn as_list(&self) -> Option<&[Value]> {
        if let Value::List(items) = self { Some(items) } else { None }
    }

    /// The entries if it is a map.
    pub fn as_map(&self) -> Option<&[(Box<str>, Value)]> {
        if let Value::Map(entries) = self { Some(entries) } else { None }
    }

    /// The truth if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(truth) = self { Some(*truth) } else { None }
    }

    /// The number if it is a whole one of at least zero, however it was written.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::Int(number) => u64::try_from(number).ok(),
            Value::Uint(number) => Some(number),
            // 2^53 is the last whole number up to which every one has a double of its own.
            Value::Float(number)
                if number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number) =>
            {
                Some(number as u64)
            }
            _ => None,
        }
    }

    /// A map in the order of `entries`.
    pub fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
        Value::Map(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text.into())
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Value {
        Value::Bool(truth)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Int(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        i64::try_from(number).map_or(Value::Uint(number), Value::Int)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Value {
        Value::Float(number)
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Value {
        Value::Binary(bytes)
    }
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Value {
        Value::List(items)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Values that JSON and MessagePack both keep as they are. Floats have a fraction: a whole one comes back from JSON
    /// as an integer, which is the same number to JavaScript.
    pub(super) fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i32>().prop_map(|number| Value::Float(f64::from(number) + 0.5)),
            ".{0,12}".prop_map(Value::from),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Value::Binary(bytes.into())),
        ];
        leaf.prop_recursive(5, 60, 8, |inner| {
            let key = "[a-z]{1,6}".prop_map(Box::<str>::from);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::List),
                prop::collection::vec((key, inner), 0..8).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_with_its_attachments_gives_the_value_back(value in any_value()) {
            let (mut text, mut attachments) = (String::new(), Vec::new());
            value.write_json(&mut text, &mut Attachments::Separate(&mut attachments));
            let mut back = [Value::from_json(&text).unwrap()];
            prop_assert_eq!(value.has_binary(), !attachments.is_empty());
            Value::fill_placeholders(&mut back, &attachments).unwrap();
            prop_assert_eq!(&back[0], &value);
        }

        #[test]
        fn messagepack_gives_the_value_back(value in any_value()) {
            prop_assert_eq!(Value::from_msgpack(&value.to_msgpack()).unwrap(), value);
        }

        #[test]
        fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Value::from_msgpack(&bytes);
            let _ = Value::from_wire_json(&bytes);
        }
    }

    #[test]
    fn a_placeholder_without_an_attachment_of_its_own_is_refused() {
        let one = [Bytes::from_static(b"x")];
        let fill = |text: &str| Value::fill_placeholders(&mut [Value::from_json(text).unwrap()], &one);
        assert!(fill(r#"[{"_placeholder":true,"num":0}]"#).is_ok());
        assert!(fill(r#"[{"_placeholder":true,"num":1}]"#).is_err());
        assert!(fill(r#"[{"_placeholder":true,"num":-1}]"#).is_err());
        assert!(fill(r#"[{"_placeholder":true,"num":"0"}]"#).is_err());
        assert!(fill(r#"[{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]"#).is_err());
    }

    #[test]
    fn what_only_looks_like_a_placeholder_stays() {
        let mut value = [Value::from_json(r#"{"_placeholder":"true","num":0}"#).unwrap()];
        Value::fill_placeholders(&mut value, &[Bytes::new()]).unwrap();
        assert_eq!(value[0].to_json(), r#"{"_placeholder":"true","num":0}"#);
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        let mut value = Value::from_json(r#"{"a":1,"a":2}"#).unwrap();
        assert_eq!(value.get("a"), Some(&Value::Int(2)));
        assert_eq!(value.take("a"), Some(Value::Int(2)));
        assert_eq!(value.get("b"), None);
    }

    #[test]
    fn a_clients_value_leaves_room_for_the_envelope_around_it() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Value::from_json(&nested(MAX_DEPTH + 1)).is_err());
        let mut value = Value::from_json(&nested(MAX_DEPTH)).unwrap();
        for _ in MAX_DEPTH..MAX_WIRE_DEPTH {
            value = Value::List(vec![value]);
        }
        assert_eq!(Value::from_wire_json(value.to_json().as_bytes()).unwrap(), value);
        assert_eq!(Value::from_msgpack(&value.to_msgpack()).unwrap(), value);
        let deeper = Value::List(vec![value]);
        assert!(Value::from_wire_json(deeper.to_json().as_bytes()).is_err());
        assert!(Value::from_msgpack(&deeper.to_msgpack()).is_err());
    }

    #[test]
    fn a_whole_number_is_one_however_it_was_written() {
        assert_eq!(Value::Float(3.0).as_u64(), Some(3));
        assert_eq!(Value::Float(3.5).as_u64(), None);
        assert_eq!(Value::Int(-1).as_u64(), None);
        assert_eq!(Value::from(u64::MAX).as_u64(), Some(u64::MAX));
        assert_eq!(Value::from(7u64), Value::Int(7));
    }
}
