//! JSON: reading with a bound on depth, writing as `JSON.stringify` does, bytes as placeholders or inline.

use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::model::{Attachments, MAX_DEPTH, MAX_WIRE_DEPTH, Value, ValueError};

impl Value {
    /// Reads what a client sent: one JSON value, at most [`MAX_DEPTH`] deep.
    pub fn from_json(text: &str) -> Result<Value, ValueError> {
        Ok(read(text.as_bytes(), MAX_DEPTH)?)
    }

    /// Reads what a server sent: one JSON value, at most [`MAX_WIRE_DEPTH`] deep.
    pub fn from_wire_json(text: &[u8]) -> Result<Value, ValueError> {
        Ok(read(text, MAX_WIRE_DEPTH)?)
    }

    /// Appends compact JSON to `out`.
    pub fn write_json(&self, out: &mut String, attachments: &mut Attachments<'_>) {
        write(self, out, attachments);
    }

    /// Compact JSON with bytes inline.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out, &mut Attachments::Inline);
        out
    }
}

/// One value, at most `depth` arrays and maps inside each other, and nothing after it but blanks.
fn read(text: &[u8], depth: usize) -> Result<Value, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = DepthLimited { left: depth }.deserialize(&mut json)?;
    json.end()?;
    Ok(value)
}

/// Reads one value.
#[derive(Clone, Copy)]
struct DepthLimited {
    /// Arrays and maps that it may still open inside each other.
    left: usize,
}

impl DepthLimited {
    fn inner<E: Error>(self) -> Result<DepthLimited, E> {
        let left = self.left.checked_sub(1).ok_or_else(|| E::custom("nested too deep"))?;
        Ok(DepthLimited { left })
    }
}

impl<'de> DeserializeSeed<'de> for DepthLimited {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DepthLimited {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Value, E> {
        Ok(Value::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Int(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut items = Vec::new();
        while let Some(item) = from.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut entries = Vec::new();
        while let Some(key) = from.next_key::<Box<str>>()? {
            entries.push((key, from.next_value_seed(inner)?));
        }
        Ok(Value::Map(entries))
    }
}

/// Writes compact JSON.
fn write(value: &Value, out: &mut String, attachments: &mut Attachments<'_>) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
        Value::Int(number) => write_display(out, number),
        Value::Uint(number) => write_display(out, number),
        Value::Float(number) => write_float(out, *number),
        Value::Text(text) => write_text(out, text),
        Value::Binary(bytes) => write_bytes(out, bytes, attachments),
        Value::List(items) => {
            out.push('[');
            for (place, item) in items.iter().enumerate() {
                separate(out, place);
                write(item, out, attachments);
            }
            out.push(']');
        }
        Value::Map(entries) => {
            out.push('{');
            for (place, (key, value)) in entries.iter().enumerate() {
                separate(out, place);
                write_text(out, key);
                out.push(':');
                write(value, out, attachments);
            }
            out.push('}');
        }
    }
}

fn separate(out: &mut String, place: usize) {
    if place > 0 {
        out.push(',');
    }
}

fn write_display(out: &mut String, number: impl fmt::Display) {
    write!(out, "{number}").expect("a String takes everything");
}

/// A whole number is written without a fraction, as JavaScript does; from 1e21 on it would use an exponent.
fn write_float(out: &mut String, number: f64) {
    if !number.is_finite() {
        out.push_str("null");
    } else if number == 0.0 {
        out.push('0');
    } else if number.fract() == 0.0 && number.abs() < 1e21 {
        write_display(out, number);
    } else {
        write!(out, "{number:?}").expect("a String takes everything");
    }
}

/// Text in quotes. Runs that need no escape, mostly all of it, are copied at once.
fn write_text(out: &mut String, text: &str) {
    out.push('"');
    let mut copied = 0;
    for (place, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[copied..place]);
        copied = place + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            0x08 => out.push_str("\\b"),
            0x0c => out.push_str("\\f"),
            _ => write!(out, "\\u{byte:04x}").expect("a String takes everything"),
        }
    }
    out.push_str(&text[copied..]);
    out.push('"');
}

fn write_bytes(out: &mut String, bytes: &bytes::Bytes, attachments: &mut Attachments<'_>) {
    match attachments {
        Attachments::Separate(apart) => {
            write!(out, "{{\"_placeholder\":true,\"num\":{}}}", apart.len())
                .expect("a String takes everything");
            apart.push(bytes.clone());
        }
        Attachments::Inline => {
            out.push_str("{\"type\":\"Buffer\",\"data\":[");
            for (place, byte) in bytes.iter().enumerate() {
                separate(out, place);
                write_display(out, byte);
            }
            out.push_str("]}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_numbers_are_written_as_javascript_writes_them() {
        let value = Value::List(vec![
            Value::from("a\"\\\n\r\t\u{8}\u{c}\u{1f}\u{7f}é\u{2028}😀"),
            Value::Float(f64::NAN),
            Value::Float(f64::NEG_INFINITY),
            Value::Float(-0.0),
            Value::Float(1.0),
            Value::Float(1.5),
            Value::Float(1e20),
            Value::Uint(u64::MAX),
            Value::Int(i64::MIN),
        ]);
        assert_eq!(
            value.to_json(),
            "[\"a\\\"\\\\\\n\\r\\t\\b\\f\\u001f\u{7f}é\u{2028}😀\",null,null,0,1,1.5,100000000000000000000,\
             18446744073709551615,-9223372036854775808]"
        );
        for number in [1e21, 1e-7, -2.5e300, 5e-324] {
            let text = Value::Float(number).to_json();
            assert_eq!(Value::from_json(&text).unwrap(), Value::Float(number), "{text}");
        }
    }

    #[test]
    fn bytes_stand_inline_or_apart_in_the_order_in_which_they_are_met() {
        let bytes = |text: &'static str| Value::Binary(text.into());
        let value = Value::List(vec![bytes("ab"), Value::map([("k", bytes("c"))])]);
        assert_eq!(
            value.to_json(),
            r#"[{"type":"Buffer","data":[97,98]},{"k":{"type":"Buffer","data":[99]}}]"#
        );
        let (mut text, mut apart) = (String::from("51-"), Vec::new());
        value.write_json(&mut text, &mut Attachments::Separate(&mut apart));
        assert_eq!(text, r#"51-[{"_placeholder":true,"num":0},{"k":{"_placeholder":true,"num":1}}]"#);
        assert_eq!(apart, ["ab", "c"]);
    }

    #[test]
    fn a_number_with_a_fraction_is_the_same_to_the_last_bit() {
        // Each is one that a quicker reader of numbers gets wrong by one bit.
        for text in ["0.6484929865513837", "0.8444218515250481", "31.245270191439438", "51.24817837550540"] {
            let exact: f64 = text.parse().unwrap();
            assert_eq!(Value::from_json(text).unwrap(), Value::Float(exact), "{text}");
        }
    }

    #[test]
    fn what_follows_a_value_is_refused_and_blanks_are_not() {
        assert!(Value::from_json("[] x").is_err());
        assert!(Value::from_json("").is_err());
        assert!(Value::from_json("{\"a\":}").is_err());
        assert_eq!(Value::from_json(" [1] ").unwrap(), Value::List(vec![Value::Int(1)]));
    }
}
