//! A value on its way out whose parts are borrowed, so that the arguments of a broadcast are not copied to be written.

use bytes::Bytes;

use crate::value::{Attachments, Value, write_list_header, write_map_header, write_msgpack_text};

/// A part of a payload.
#[derive(Debug)]
pub(super) enum Piece<'a> {
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
    List(Vec<Piece<'a>>),
    /// A map.
    Map(Vec<(&'static str, Piece<'a>)>),
}

impl Piece<'_> {
    /// Compact JSON, bytes inline.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out);
        out
    }

    /// MessagePack.
    pub fn to_msgpack(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_msgpack(&mut out);
        out
    }

    /// JSON, or MessagePack if there are bytes in it, which JSON would flatten.
    pub fn to_either(&self) -> Bytes {
        if self.has_binary() { self.to_msgpack().into() } else { self.to_json().into() }
    }

    /// Whether there are bytes anywhere in it.
    pub fn has_binary(&self) -> bool {
        match self {
            Piece::Text(_) | Piece::Number(_) | Piece::Bool(_) => false,
            Piece::Value(value) => value.has_binary(),
            Piece::Owned(value) => value.has_binary(),
            Piece::Values(values) => values.iter().any(Value::has_binary),
            Piece::List(pieces) => pieces.iter().any(Piece::has_binary),
            Piece::Map(entries) => entries.iter().any(|(_, piece)| piece.has_binary()),
        }
    }

    fn write_json(&self, out: &mut String) {
        let inline = &mut Attachments::Inline;
        match self {
            Piece::Text(text) => Value::from(*text).write_json(out, inline),
            Piece::Number(number) => Value::from(*number).write_json(out, inline),
            Piece::Bool(truth) => Value::from(*truth).write_json(out, inline),
            Piece::Value(value) => value.write_json(out, inline),
            Piece::Owned(value) => value.write_json(out, inline),
            Piece::Values(values) => {
                out.push('[');
                for (place, value) in values.iter().enumerate() {
                    out.push_str(if place > 0 { "," } else { "" });
                    value.write_json(out, inline);
                }
                out.push(']');
            }
            Piece::List(pieces) => {
                out.push('[');
                for (place, piece) in pieces.iter().enumerate() {
                    out.push_str(if place > 0 { "," } else { "" });
                    piece.write_json(out);
                }
                out.push(']');
            }
            Piece::Map(entries) => {
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
            Piece::Text(text) => write_msgpack_text(out, text),
            Piece::Number(number) => Value::from(*number).write_msgpack(out),
            Piece::Bool(truth) => Value::from(*truth).write_msgpack(out),
            Piece::Value(value) => value.write_msgpack(out),
            Piece::Owned(value) => value.write_msgpack(out),
            Piece::Values(values) => {
                write_list_header(out, values.len());
                values.iter().for_each(|value| value.write_msgpack(out));
            }
            Piece::List(pieces) => {
                write_list_header(out, pieces.len());
                pieces.iter().for_each(|piece| piece.write_msgpack(out));
            }
            Piece::Map(entries) => {
                write_map_header(out, entries.len());
                for (key, piece) in entries {
                    write_msgpack_text(out, key);
                    piece.write_msgpack(out);
                }
            }
        }
    }
}
