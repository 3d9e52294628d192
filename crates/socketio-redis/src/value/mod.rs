//! What an argument of an event is, whichever way it came: JSON text from a client, MessagePack or JSON from a peer.
//!
//! Pure data: no I/O. Map entries keep their order, because classic adapters are compared byte by byte. Depth is bounded
//! on the way in, so that everything that is a `Value` can be walked, written and dropped by recursion; size is bounded by
//! whoever read the bytes.
//!
//! Rules taken from JavaScript, because the peers are: NaN and infinities are null in JSON; a MessagePack timestamp is
//! the text that `Date.prototype.toISOString` gives; of two equal keys the last one counts.

mod model;
mod date;
mod json;
mod msgpack;

pub use model::{Attachments, MAX_DEPTH, MAX_WIRE_DEPTH, Value, ValueError};
pub use msgpack::{write_list_header, write_map_header, write_text as write_msgpack_text};

#[cfg(test)]
mod tests {
    use bytes::Bytes;
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
