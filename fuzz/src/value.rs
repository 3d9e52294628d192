//! JSON and MessagePack values: read, written and read again, and beside `serde_json` and `rmpv`.

use socketio_redis::value::{Attachments, Value};

use super::input::Input;

/// One input: which form, then the bytes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 2 {
        0 => messagepack(input.rest()),
        _ => json(input.rest()),
    }
}

fn messagepack(bytes: &[u8]) {
    let Ok(value) = Value::from_msgpack(bytes) else { return };
    let mut rest = bytes;
    assert!(rmpv::decode::read_value(&mut rest).is_ok() && rest.is_empty(), "no other library reads it");
    let written = value.to_msgpack();
    let again = Value::from_msgpack(&written).expect("what was written is read");
    assert!(same(&again, &value), "{again:?} {value:?}");
    assert_eq!(again.to_msgpack(), written);
    in_json(&value);
}

fn json(bytes: &[u8]) {
    let Ok(value) = Value::from_wire_json(bytes) else {
        return;
    };
    let theirs: Result<serde_json::Value, _> = serde_json::from_slice(bytes);
    let theirs = theirs.expect("no other library reads it");
    let ours: serde_json::Value = serde_json::from_str(&value.to_json()).expect("what is written is JSON");
    assert_eq!(in_doubles(ours), in_doubles(theirs));
    let written = value.to_msgpack();
    let again = Value::from_msgpack(&written).expect("what was written is read");
    assert!(same(&again, &value), "{again:?} {value:?}");
    in_json(&value);
    let _ = str::from_utf8(bytes).map(Value::from_json);
}

/// With its bytes apart, a value comes back from JSON.
fn in_json(value: &Value) {
    let (mut text, mut attachments) = (String::new(), Vec::new());
    value.write_json(&mut text, &mut Attachments::Separate(&mut attachments));
    assert_eq!(value.has_binary(), !attachments.is_empty());
    let mut back = [Value::from_wire_json(text.as_bytes()).expect("what is written is read")];
    // A client may have written placeholders of its own.
    if !text.contains("_placeholder") || attachments.len() == text.matches("_placeholder").count() {
        Value::fill_placeholders(&mut back, &attachments).expect("each placeholder has its attachment");
        assert!(same(&back[0], value), "{back:?} {value:?}");
    }
}

/// All numbers as JavaScript has them.
fn in_doubles(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Number(number) => number.as_f64().map(|number| number + 0.0).into(),
        serde_json::Value::Array(items) => items.into_iter().map(in_doubles).collect(),
        serde_json::Value::Object(entries) => {
            entries.into_iter().map(|(key, value)| (key, in_doubles(value))).collect()
        }
        other => other,
    }
}

/// Whether two values are one to JavaScript: numbers by their double, NaN and infinities as null, entries whose key
/// the peers' library refuses left out.
pub fn same(one: &Value, other: &Value) -> bool {
    let number = |value: &Value| match *value {
        Value::Int(number) => Some(number as f64),
        Value::Uint(number) => Some(number as f64),
        Value::Float(number) if number.is_finite() => Some(number),
        _ => None,
    };
    let is_null = |value: &Value| match value {
        Value::Null => true,
        Value::Float(number) => !number.is_finite(),
        _ => false,
    };
    if is_null(one) || is_null(other) {
        return is_null(one) && is_null(other);
    }
    match (one, other) {
        (Value::List(one), Value::List(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Map(one), Value::Map(other)) => {
            let kept = |entries: &[(Box<str>, Value)]| -> Vec<usize> {
                (0..entries.len()).filter(|&at| &*entries[at].0 != "__proto__").collect()
            };
            let (left, right) = (kept(one), kept(other));
            left.len() == right.len()
                && left
                    .iter()
                    .zip(&right)
                    .all(|(&a, &b)| one[a].0 == other[b].0 && same(&one[a].1, &other[b].1))
        }
        _ => match (number(one), number(other)) {
            (Some(one), Some(other)) => one == other,
            (None, None) => one == other,
            _ => false,
        },
    }
}
