//! MessagePack: reading through rmpv with a bound on depth, writing in the smallest form, as the peers' libraries do.

use bytes::Bytes;
use rmpv::ValueRef;
use rmpv::decode::read_value_ref_with_max_depth;

use super::date;
use super::model::{MAX_WIRE_DEPTH, Value, ValueError};

/// The extension that the specification gives to timestamps.
const TIMESTAMP: i8 = -1;

/// The extension in which notepack sends an `ArrayBuffer`, and in which older ones sent `undefined` (one zero byte).
const NOTEPACK: i8 = 0;

/// A key that `@msgpack/msgpack` refuses with an exception, as it may only be an attack on JavaScript.
const REFUSED_KEY: &str = "__proto__";

impl Value {
    /// Reads what a server sent: one MessagePack value and nothing after it, at most [`MAX_WIRE_DEPTH`] deep.
    pub fn from_msgpack(bytes: &[u8]) -> Result<Value, ValueError> {
        read(bytes)
    }

    /// Appends MessagePack to `out`: bytes as bin, text as str, integers as small as they go.
    pub fn write_msgpack(&self, out: &mut Vec<u8>) {
        write(self, out);
    }

    /// MessagePack.
    pub fn to_msgpack(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_msgpack(&mut out);
        out
    }
}

/// One value and nothing after it.
fn read(mut bytes: &[u8]) -> Result<Value, ValueError> {
    // The exact bound is kept by `owned`; this one keeps rmpv's recursion from running away.
    let value = read_value_ref_with_max_depth(&mut bytes, RMPV_LEVELS * (MAX_WIRE_DEPTH + 1) + 1)?;
    if !bytes.is_empty() {
        return Err(ValueError::Trailing(bytes.len()));
    }
    owned(value, MAX_WIRE_DEPTH)
}

/// What rmpv takes off its depth for each value inside another: one for the value, one for its body.
const RMPV_LEVELS: usize = 2;

fn owned(value: ValueRef<'_>, left: usize) -> Result<Value, ValueError> {
    Ok(match value {
        ValueRef::Nil => Value::Null,
        ValueRef::Boolean(truth) => Value::Bool(truth),
        ValueRef::Integer(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (None, number) => Value::from(number.unwrap_or_default()),
        },
        ValueRef::F32(number) => Value::Float(f64::from(number)),
        ValueRef::F64(number) => Value::Float(number),
        // The peers' libraries replace what is no UTF-8 as well.
        ValueRef::String(text) => Value::from(&*String::from_utf8_lossy(text.as_bytes())),
        ValueRef::Binary(bytes) => Value::Binary(Bytes::copy_from_slice(bytes)),
        ValueRef::Array(items) => {
            let left = left.checked_sub(1).ok_or(rmpv::decode::Error::DepthLimitExceeded)?;
            Value::List(items.into_iter().map(|item| owned(item, left)).collect::<Result<_, _>>()?)
        }
        ValueRef::Map(entries) => {
            let left = left.checked_sub(1).ok_or(rmpv::decode::Error::DepthLimitExceeded)?;
            let entry = |(key, value)| Ok::<_, ValueError>((key_text(key)?, owned(value, left)?));
            Value::Map(entries.into_iter().map(entry).collect::<Result<_, _>>()?)
        }
        ValueRef::Ext(TIMESTAMP, body) => date::iso_text(body).map_or(Value::Null, Value::from),
        ValueRef::Ext(NOTEPACK, [0]) => Value::Null,
        ValueRef::Ext(_, body) => Value::Binary(Bytes::copy_from_slice(body)),
    })
}

/// A key as JavaScript would have it, where every key is text.
fn key_text(key: ValueRef<'_>) -> Result<Box<str>, ValueError> {
    match key {
        ValueRef::String(text) => Ok(String::from_utf8_lossy(text.as_bytes()).into()),
        ValueRef::Integer(number) => Ok(number.to_string().into()),
        _ => Err(ValueError::Key),
    }
}

/// Writes one value. A key that the peers' library refuses is left out: the exception would end its reading.
fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(0xc0),
        Value::Bool(truth) => out.push(if *truth { 0xc3 } else { 0xc2 }),
        Value::Int(number) => write_integer(out, *number),
        Value::Uint(number) => {
            out.push(0xcf);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Value::Float(number) => {
            out.push(0xcb);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Value::Text(text) => write_text(out, text),
        Value::Binary(bytes) => {
            write_length(out, bytes.len(), [None, Some(0xc4), Some(0xc5), Some(0xc6)]);
            out.extend_from_slice(bytes);
        }
        Value::List(items) => {
            write_list_header(out, items.len());
            items.iter().for_each(|item| write(item, out));
        }
        Value::Map(entries) => {
            let kept = || entries.iter().filter(|(key, _)| **key != *REFUSED_KEY);
            write_map_header(out, kept().count());
            kept().for_each(|(key, value)| {
                write_text(out, key);
                write(value, out);
            });
        }
    }
}

/// Writes the beginning of a list, which that many values must follow.
pub fn write_list_header(out: &mut Vec<u8>, items: usize) {
    write_length(out, items, [Some(0x90), None, Some(0xdc), Some(0xdd)]);
}

/// Writes the beginning of a map, which that many keys, each with its value, must follow.
pub fn write_map_header(out: &mut Vec<u8>, entries: usize) {
    write_length(out, entries, [Some(0x80), None, Some(0xde), Some(0xdf)]);
}

/// Writes text.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    write_length(out, text.len(), [Some(0xa0), Some(0xd9), Some(0xda), Some(0xdb)]);
    out.extend_from_slice(text.as_bytes());
}

/// The marker and the length, by the markers of the four forms: in the marker itself, in one, two or four bytes.
fn write_length(out: &mut Vec<u8>, length: usize, [fix, one, two, four]: [Option<u8>; 4]) {
    // Of the forms that have a length inside the marker, str has five bits for it and the others four.
    let most_inside = if fix == Some(0xa0) { 31 } else { 15 };
    match (fix, one, two, four) {
        (Some(fix), ..) if length <= most_inside => out.push(fix | length as u8),
        (_, Some(one), ..) if length <= 0xff => out.extend_from_slice(&[one, length as u8]),
        (_, _, Some(two), _) if length <= 0xffff => {
            out.push(two);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        (.., four) => {
            out.extend(four);
            let length = u32::try_from(length).expect("no message comes near 4 GiB");
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
}

fn write_integer(out: &mut Vec<u8>, number: i64) {
    match number {
        0..=0x7f => out.push(number as u8),
        -32..=-1 => out.push(number as i8 as u8),
        0x80..=0xff => out.extend_from_slice(&[0xcc, number as u8]),
        0x100..=0xffff => write_bytes(out, 0xcd, &(number as u16).to_be_bytes()),
        0x1_0000..=0xffff_ffff => write_bytes(out, 0xce, &(number as u32).to_be_bytes()),
        0x1_0000_0000.. => write_bytes(out, 0xcf, &number.to_be_bytes()),
        -0x80..=-33 => out.extend_from_slice(&[0xd0, number as i8 as u8]),
        -0x8000..=-0x81 => write_bytes(out, 0xd1, &(number as i16).to_be_bytes()),
        -0x8000_0000..=-0x8001 => write_bytes(out, 0xd2, &(number as i32).to_be_bytes()),
        _ => write_bytes(out, 0xd3, &number.to_be_bytes()),
    }
}

fn write_bytes(out: &mut Vec<u8>, marker: u8, bytes: &[u8]) {
    out.push(marker);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same bytes as rmpv writes them, which has the smallest form of everything but floats.
    fn by_rmpv(value: rmpv::Value) -> Vec<u8> {
        let mut out = Vec::new();
        rmpv::encode::write_value(&mut out, &value).unwrap();
        out
    }

    #[test]
    fn every_form_at_its_edges_is_the_smallest_one() {
        for edge in
            [0i64, 0x20, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0xffff_ffff, 1 << 32]
        {
            for number in [edge - 1, edge, edge + 1, -edge - 1, -edge, 1 - edge] {
                assert_eq!(Value::Int(number).to_msgpack(), by_rmpv(number.into()), "{number}");
            }
        }
        for number in [i64::MAX, i64::MIN, i64::from(i32::MIN), i64::from(i32::MIN) - 1] {
            assert_eq!(Value::Int(number).to_msgpack(), by_rmpv(number.into()), "{number}");
        }
        assert_eq!(Value::Uint(u64::MAX).to_msgpack(), by_rmpv(u64::MAX.into()));
        for length in [0, 15, 16, 31, 32, 255, 256, 65_535, 65_536] {
            let text = "x".repeat(length);
            assert_eq!(Value::from(&*text).to_msgpack(), by_rmpv(text.clone().into()), "{length}");
            let bytes = Value::Binary(text.clone().into());
            assert_eq!(bytes.to_msgpack(), by_rmpv(rmpv::Value::Binary(text.into())), "{length}");
            let list = Value::List(vec![Value::Null; length]);
            assert_eq!(list.to_msgpack(), by_rmpv(vec![rmpv::Value::Nil; length].into()), "{length}");
            let map = Value::Map(vec![("k".into(), Value::Null); length]);
            let entries = vec![("k".into(), rmpv::Value::Nil); length];
            assert_eq!(map.to_msgpack(), by_rmpv(rmpv::Value::Map(entries)), "{length}");
        }
    }

    #[test]
    fn dates_and_what_older_libraries_send_become_what_a_client_understands() {
        let read = |bytes: &[u8]| Value::from_msgpack(bytes).unwrap();
        assert_eq!(read(&[0xd6, 0xff, 0x65, 0x53, 0xf1, 0]), Value::from("2023-11-14T22:13:20.000Z"));
        assert_eq!(read(&[0xd4, 0xff, 0]), Value::Null, "no timestamp has one byte");
        assert_eq!(read(&[0xd4, 0, 0]), Value::Null, "undefined");
        assert_eq!(read(&[0xc7, 3, 0, 1, 2, 3]), Value::Binary(Bytes::from_static(&[1, 2, 3])));
        assert_eq!(read(&[0xca, 0x3f, 0xc0, 0, 0]), Value::Float(1.5));
        assert_eq!(read(&[0xa2, b'a', 0xff]), Value::from("a\u{fffd}"));
        assert_eq!(read(&[0x81, 7, 0xc0]), Value::map([("7", Value::Null)]));
    }

    #[test]
    fn what_is_cut_short_followed_by_more_or_no_key_is_refused() {
        assert!(matches!(Value::from_msgpack(&[0x92, 1]), Err(ValueError::MessagePack(_))));
        assert!(matches!(Value::from_msgpack(&[1, 2, 3]), Err(ValueError::Trailing(2))));
        assert!(matches!(Value::from_msgpack(&[0x81, 0xc0, 1]), Err(ValueError::Key)));
        assert!(
            Value::from_msgpack(&[0xdd, 0xff, 0xff, 0xff, 0xff]).is_err(),
            "a long list that is not there"
        );
        assert!(Value::from_msgpack(&[]).is_err());
    }

    #[test]
    fn a_key_that_ends_a_peers_reading_is_left_out() {
        let value = Value::map([("__proto__", Value::Null), ("a", Value::Int(1))]);
        assert_eq!(value.to_msgpack(), Value::map([("a", Value::Int(1))]).to_msgpack());
    }
}
