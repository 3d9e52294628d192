//! The value itself, and what can be asked of it.

use bytes::Bytes;
use thiserror::Error;

/// Arrays and maps inside each other that a client may send. Eight levels less than [`MAX_WIRE_DEPTH`], which leaves
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
