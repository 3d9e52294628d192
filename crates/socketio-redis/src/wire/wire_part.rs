//! A value on its way out whose parts are borrowed, so that the arguments of a broadcast are not copied to be written.

use bytes::Bytes;

use crate::value::{Attachments, Value, write_list_header, write_map_header, write_msgpack_text};

/// A part of a payload.
#[derive(Debug)]
pub(super) enum WirePart<'a> {
    /// Text.
    Text(&'a str),
    /// A number.
    Number(u64),
    /// A truth.
    Bool(bool),
    /// Something that is a value already.
    Value(&'a Value),
    /// The same, made for this payload.
    Owned(Value),
    /// A list of values.
    Values(&'a [Value]),
    /// A list of parts.
    List(Vec<WirePart<'a>>),
    /// A map.
    Map(Vec<(&'static str, WirePart<'a>)>),
}

impl WirePart<'_> {
    /// Compact JSON, bytes inline.
    pub(super) fn to_json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out);
        out
    }

    /// MessagePack.
    pub(super) fn to_msgpack(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_msgpack(&mut out);
        out
    }

    /// JSON, or MessagePack if there are bytes in it, which JSON would flatten.
    pub(super) fn to_either(&self) -> Bytes {
        if self.has_binary() { self.to_msgpack().into() } else { self.to_json().into() }
    }

    /// Whether there are bytes anywhere in it.
    pub(super) fn has_binary(&self) -> bool {
        match self {
            WirePart::Text(_) | WirePart::Number(_) | WirePart::Bool(_) => false,
            WirePart::Value(value) => value.has_binary(),
            WirePart::Owned(value) => value.has_binary(),
            WirePart::Values(values) => values.iter().any(Value::has_binary),
            WirePart::List(pieces) => pieces.iter().any(WirePart::has_binary),
            WirePart::Map(entries) => entries.iter().any(|(_, piece)| piece.has_binary()),
        }
    }

    fn write_json(&self, out: &mut String) {
        let inline = &mut Attachments::Inline;
        match self {
            WirePart::Text(text) => Value::from(*text).write_json(out, inline),
            WirePart::Number(number) => Value::from(*number).write_json(out, inline),
            WirePart::Bool(truth) => Value::from(*truth).write_json(out, inline),
            WirePart::Value(value) => value.write_json(out, inline),
            WirePart::Owned(value) => value.write_json(out, inline),
            WirePart::Values(values) => {
                out.push('[');
                for (place, value) in values.iter().enumerate() {
                    out.push_str(if place > 0 { "," } else { "" });
                    value.write_json(out, inline);
                }
                out.push(']');
            }
            WirePart::List(pieces) => {
                out.push('[');
                for (place, piece) in pieces.iter().enumerate() {
                    out.push_str(if place > 0 { "," } else { "" });
                    piece.write_json(out);
                }
                out.push(']');
            }
            WirePart::Map(entries) => {
                out.push('{');
                for (place, (key, piece)) in entries.iter().enumerate() {
                    // The keys are words of the protocols, none of which needs an escape.
                    out.push_str(if place > 0 { ",\"" } else { "\"" });
                    out.push_str(key);
                    out.push_str("\":");
                    piece.write_json(out);
                }
                out.push('}');
            }
        }
    }

    fn write_msgpack(&self, out: &mut Vec<u8>) {
        match self {
            WirePart::Text(text) => write_msgpack_text(out, text),
            WirePart::Number(number) => Value::from(*number).write_msgpack(out),
            WirePart::Bool(truth) => Value::from(*truth).write_msgpack(out),
            WirePart::Value(value) => value.write_msgpack(out),
            WirePart::Owned(value) => value.write_msgpack(out),
            WirePart::Values(values) => {
                write_list_header(out, values.len());
                values.iter().for_each(|value| value.write_msgpack(out));
            }
            WirePart::List(pieces) => {
                write_list_header(out, pieces.len());
                pieces.iter().for_each(|piece| piece.write_msgpack(out));
            }
            WirePart::Map(entries) => {
                write_map_header(out, entries.len());
                for (key, piece) in entries {
                    write_msgpack_text(out, key);
                    piece.write_msgpack(out);
                }
            }
        }
    }
}
