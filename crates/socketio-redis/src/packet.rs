//! The packets of Socket.IO 5, and of 4 for clients of Engine.IO 3: text without the Engine.IO `4`, and its attachments.
//!
//! Pure data. Reading is as strict as Node's parser; [`PacketError`] is always the client's and ends its connection.
//! `[type][attachments-][/namespace,][id][payload]`; the id is digits and, as in Node, blanks.

use bytes::Bytes;
use smallvec::SmallVec;
use thiserror::Error;

use crate::value::{Attachments, Value};

/// The most attachments of a client's packet; Node's parser has the same bound.
pub const MAX_ATTACHMENTS: usize = 10;

/// Event names that the libraries keep for themselves.
const RESERVED: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// The largest id that a JavaScript client can count to, 2^53.
const LARGEST_ID: u64 = 1 << 53;

/// A message as the transport writes it.
pub trait PacketFrame {
    /// A message of text.
    fn text(text: &str) -> Self;

    /// A message of bytes.
    fn binary(bytes: &[u8]) -> Self;
}

/// A packet and its attachments, each a frame; mostly a single one.
pub type PacketFrames<F> = SmallVec<[F; 1]>;

/// What a client's text packet is.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet<'a> {
    /// The namespace, with its slash; a query is still behind it.
    pub namespace: &'a str,
    /// What it says.
    pub body: PacketBody,
    /// Binary messages that are still to come.
    pub attachments: usize,
}

/// What a packet says.
#[derive(Debug, Clone, PartialEq)]
pub enum PacketBody {
    /// Into the namespace, with what authenticates the client.
    Connect(Option<Value>),
    /// Out of it.
    Disconnect,
    /// An event; none where it has no payload, which is ignored.
    Event(Option<u64>, Option<Vec<Value>>),
    /// The answer to an event of the server.
    Ack(Option<u64>, Vec<Value>),
}

/// What is wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PacketError {
    /// A type that a client does not send.
    #[error("no packet type of a client")]
    Type,
    /// The count of attachments.
    #[error("1 to {MAX_ATTACHMENTS} attachments, and a hyphen")]
    Attachments,
    /// The id.
    #[error("an id is a whole number")]
    Id,
    /// The payload is not what the type asks for.
    #[error("no payload of this type")]
    Payload,
}

impl<'a> Packet<'a> {
    /// Reads a client's text message.
    pub fn read(text: &'a str) -> Result<Self, PacketError> {
        let kind =
            *text.as_bytes().first().filter(|kind| (b'0'..=b'6').contains(*kind)).ok_or(PacketError::Type)?;
        let mut rest = &text[1..];
        let mut attachments = 0;
        if matches!(kind, b'5' | b'6') {
            let (count, after) = rest.split_once('-').ok_or(PacketError::Attachments)?;
            attachments = count.parse().map_err(|_| PacketError::Attachments)?;
            // The parser of numbers would take a sign.
            if count.starts_with('+') || !(1..=MAX_ATTACHMENTS).contains(&attachments) {
                return Err(PacketError::Attachments);
            }
            rest = after;
        }
        let mut namespace = "/";
        if rest.starts_with('/') {
            (namespace, rest) = rest.split_once(',').unwrap_or((rest, ""));
        }
        let (id, payload) = split_id(rest)?;
        Ok(Self { namespace, body: body(kind, id, payload)?, attachments })
    }
}

/// The digits and blanks that the rest begins with are the id; blanks alone are 0, because JavaScript's `Number(" ")` is.
fn split_id(rest: &str) -> Result<(Option<u64>, &str), PacketError> {
    let end = rest.bytes().position(|byte| !matches!(byte, b'0'..=b'9' | b' ' | b'\t' | b'\n' | b'\r'));
    let (id, payload) = rest.split_at(end.unwrap_or(rest.len()));
    if id.is_empty() {
        return Ok((None, payload));
    }
    let digits = id.trim();
    let id = if digits.is_empty() { Ok(0) } else { digits.parse::<u64>() };
    id.ok().filter(|id| *id <= LARGEST_ID).map(|id| (Some(id), payload)).ok_or(PacketError::Id)
}

fn body(kind: u8, id: Option<u64>, payload: &str) -> Result<PacketBody, PacketError> {
    let payload = match payload {
        "" => None,
        text => Some(Value::from_json(text).map_err(|_| PacketError::Payload)?),
    };
    match (kind, payload) {
        (b'0', None) => Ok(PacketBody::Connect(None)),
        (b'0', Some(auth @ Value::Map(_))) => Ok(PacketBody::Connect(Some(auth))),
        (b'1', None) => Ok(PacketBody::Disconnect),
        (b'2', None) => Ok(PacketBody::Event(id, None)),
        (b'2' | b'5', Some(Value::List(data))) if is_event(&data) => Ok(PacketBody::Event(id, Some(data))),
        (b'3', None) => Ok(PacketBody::Ack(id, Vec::new())),
        (b'3' | b'6', Some(Value::List(data))) => Ok(PacketBody::Ack(id, data)),
        (b'4', _) => Err(PacketError::Type),
        _ => Err(PacketError::Payload),
    }
}

/// Whether an event has a name: a number, or text that is not reserved.
fn is_event(data: &[Value]) -> bool {
    match data.first() {
        Some(Value::Text(name)) => !RESERVED.contains(&&**name),
        Some(Value::Int(_) | Value::Uint(_) | Value::Float(_)) => true,
        _ => false,
    }
}

/// A packet whose attachments have not all come.
#[derive(Debug)]
pub struct PartialPacket {
    /// Its namespace.
    pub namespace: Box<str>,
    /// What it says, with placeholders.
    body: PacketBody,
    /// How many there will be.
    expected: usize,
    /// Those that have come.
    attachments: Vec<Bytes>,
}

impl PartialPacket {
    /// A packet that waits.
    pub fn new(packet: Packet<'_>) -> Self {
        Self {
            namespace: packet.namespace.into(),
            body: packet.body,
            expected: packet.attachments,
            attachments: Vec::new(),
        }
    }

    /// Takes one attachment. Says whether it was the last one.
    pub fn push_attachment(&mut self, attachment: &[u8]) -> bool {
        self.attachments.push(Bytes::copy_from_slice(attachment));
        self.attachments.len() == self.expected
    }

    /// The packet, with its attachments in their places.
    pub fn finish(mut self) -> Result<(Box<str>, PacketBody), PacketError> {
        if let PacketBody::Event(_, Some(data)) | PacketBody::Ack(_, data) = &mut self.body {
            Value::fill_placeholders(data, &self.attachments).map_err(|_| PacketError::Payload)?;
        }
        Ok((self.namespace, self.body))
    }
}

/// An event: its name and arguments, then its offset where it has one.
pub fn encode_event<F: PacketFrame>(
    namespace: &str,
    id: Option<u64>,
    data: &[Value],
    offset: Option<&str>,
) -> PacketFrames<F> {
    encode(b'2', namespace, id, data, offset)
}

/// The answer to a client's event.
pub fn encode_ack<F: PacketFrame>(namespace: &str, id: u64, data: &[Value]) -> PacketFrames<F> {
    encode(b'3', namespace, Some(id), data, None)
}

/// The answer to CONNECT; without one in protocol 4 of Socket.IO.
pub fn encode_connect<F: PacketFrame>(namespace: &str, ids: Option<(&str, Option<&str>)>) -> F {
    let mut text = head('0', namespace);
    if let Some((sid, pid)) = ids {
        let pid = pid.map(|pid| ("pid", Value::from(pid)));
        object([("sid", Value::from(sid))].into_iter().chain(pid))
            .write_json(&mut text, &mut Attachments::Inline);
    }
    F::text(&text)
}

/// The refusal of a CONNECT.
pub fn encode_connect_error<F: PacketFrame>(namespace: &str, payload: &Value) -> F {
    let mut text = head('4', namespace);
    payload.write_json(&mut text, &mut Attachments::Inline);
    F::text(&text)
}

/// The server takes the client out of a namespace.
pub fn encode_disconnect<F: PacketFrame>(namespace: &str) -> F {
    F::text(&head('1', namespace))
}

fn object<'a>(entries: impl Iterator<Item = (&'a str, Value)>) -> Value {
    Value::Map(entries.map(|(key, value)| (key.into(), value)).collect())
}

/// The type and, where it is not `/`, the namespace.
fn head(kind: char, namespace: &str) -> String {
    let mut text = String::from(kind);
    write_namespace(&mut text, namespace);
    text
}

fn write_namespace(text: &mut String, namespace: &str) {
    if namespace != "/" {
        text.push_str(namespace);
        text.push(',');
    }
}

/// `kind` is that without attachments; with them it is three more.
fn encode<F: PacketFrame>(
    kind: u8,
    namespace: &str,
    id: Option<u64>,
    data: &[Value],
    offset: Option<&str>,
) -> PacketFrames<F> {
    let mut attachments = Vec::new();
    let mut payload = String::with_capacity(64);
    write_array(&mut payload, data, offset, &mut Attachments::Separate(&mut attachments));
    let mut text = String::with_capacity(payload.len() + 32);
    if attachments.is_empty() {
        text.push(char::from(kind));
    } else {
        text.push(char::from(kind + 3));
        text.push_str(&attachments.len().to_string());
        text.push('-');
    }
    write_namespace(&mut text, namespace);
    if let Some(id) = id {
        text.push_str(&id.to_string());
    }
    text.push_str(&payload);
    let binary = attachments.iter().map(|bytes| F::binary(bytes));
    std::iter::once(F::text(&text)).chain(binary).collect()
}

fn write_array(out: &mut String, data: &[Value], offset: Option<&str>, attachments: &mut Attachments<'_>) {
    out.push('[');
    for (place, value) in data.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        value.write_json(out, attachments);
    }
    if let Some(offset) = offset {
        // Offsets are made of digits, letters and hyphens, so they need no escape.
        out.push_str(",\"");
        out.push_str(offset);
        out.push('"');
    }
    out.push(']');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Message {
        Text(String),
        Binary(Vec<u8>),
    }

    impl PacketFrame for Message {
        fn text(text: &str) -> Self {
            Self::Text(text.into())
        }

        fn binary(bytes: &[u8]) -> Self {
            Self::Binary(bytes.into())
        }
    }

    fn text(text: &str) -> Message {
        PacketFrame::text(text)
    }

    fn attachment(bytes: &[u8]) -> Message {
        PacketFrame::binary(bytes)
    }

    fn list(json: &str) -> Vec<Value> {
        Value::from_json(json).unwrap().as_list().unwrap().to_vec()
    }

    fn read(text: &str) -> Result<PacketBody, PacketError> {
        Packet::read(text).map(|packet| packet.body)
    }

    #[test]
    fn packets_are_read_as_nodes_parser_does() {
        let auth = Value::from_json(r#"{"a":1}"#).unwrap();
        assert_eq!(read("0"), Ok(PacketBody::Connect(None)));
        let packet = Packet::read(r#"0/admin,{"a":1}"#).unwrap();
        assert_eq!((packet.namespace, packet.body), ("/admin", PacketBody::Connect(Some(auth))));
        assert_eq!(Packet::read("0/admin?x=1").unwrap().namespace, "/admin?x=1");
        assert_eq!(read("1/a,"), Ok(PacketBody::Disconnect));
        assert_eq!(read(r#"2["a",1]"#), Ok(PacketBody::Event(None, Some(list(r#"["a",1]"#)))));
        assert_eq!(
            read(r#"2123456789["a"]"#),
            Ok(PacketBody::Event(Some(123_456_789), Some(list(r#"["a"]"#))))
        );
        assert_eq!(read(r#"2 ["a"]"#), Ok(PacketBody::Event(Some(0), Some(list(r#"["a"]"#)))));
        assert_eq!(read(r#"2[5,"numeric"]"#), Ok(PacketBody::Event(None, Some(list(r#"[5,"numeric"]"#)))));
        assert_eq!(read("2"), Ok(PacketBody::Event(None, None)));
        assert_eq!(read("37[]"), Ok(PacketBody::Ack(Some(7), vec![])));
        let binary = Packet::read(r#"52-/a,9["x"]"#).unwrap();
        assert_eq!((binary.namespace, binary.attachments), ("/a", 2));
        assert_eq!(binary.body, PacketBody::Event(Some(9), Some(list(r#"["x"]"#))));
    }

    #[test]
    fn what_nodes_parser_refuses_is_refused() {
        use PacketError::*;
        for (text, fault) in [
            ("", Type),
            ("7[\"a\"]", Type),
            ("4{\"message\":\"x\"}", Type),
            ("é", Type),
            ("0\"x\"", Payload),
            ("0[1]", Payload),
            ("0null", Payload),
            ("1{\"a\":1}", Payload),
            ("2[\"a\"", Payload),
            ("2{\"a\":1}", Payload),
            ("2[]", Payload),
            ("2[null]", Payload),
            ("2[\"connect\"]", Payload),
            ("2[\"newListener\"]", Payload),
            ("21.5[\"a\"]", Payload),
            ("21 2[\"a\"]", Id),
            ("299999999999999999[\"a\"]", Id),
            ("31{\"a\":1}", Payload),
            ("50-[\"a\"]", Attachments),
            ("51[\"a\"]", Attachments),
            ("511-[\"a\"]", Attachments),
            ("5-[\"a\"]", Attachments),
            ("5+1-[\"a\"]", Attachments),
            ("51-", Payload),
        ] {
            assert_eq!(read(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn attachments_take_their_places_and_one_without_a_place_is_refused() {
        let mut partial =
            PartialPacket::new(Packet::read(r#"51-["e",{"_placeholder":true,"num":0}]"#).unwrap());
        assert!(partial.push_attachment(b"\x01"));
        let expected = vec![Value::from("e"), Value::Binary(Bytes::from_static(b"\x01"))];
        assert_eq!(partial.finish(), Ok(("/".into(), PacketBody::Event(None, Some(expected)))));
        let mut partial =
            PartialPacket::new(Packet::read(r#"51-["e",{"_placeholder":true,"num":3}]"#).unwrap());
        partial.push_attachment(b"\x01");
        assert_eq!(partial.finish(), Err(PacketError::Payload));
    }

    #[test]
    fn packets_are_written_as_node_writes_them() {
        let data = list(r#"["news",{"a":1}]"#);
        let one = |message: &str| PacketFrames::from_iter([text(message)]);
        assert_eq!(encode_event::<Message>("/", None, &data, None), one(r#"2["news",{"a":1}]"#));
        assert_eq!(encode_event::<Message>("/a", Some(3), &data, None), one(r#"2/a,3["news",{"a":1}]"#));
        assert_eq!(
            encode_event::<Message>("/", None, &data, Some("17-0")),
            one(r#"2["news",{"a":1},"17-0"]"#)
        );
        assert_eq!(encode_ack::<Message>("/", 7, &[]), one("37[]"));
        let binary = [Value::from("bin"), Value::Binary(Bytes::from_static(&[1, 2]))];
        let expected = [text(r#"51-["bin",{"_placeholder":true,"num":0},"17-0"]"#), attachment(&[1, 2])];
        assert_eq!(encode_event::<Message>("/", None, &binary, Some("17-0"))[..], expected);
        assert_eq!(
            encode_ack::<Message>("/", 9, &binary[1..])[0],
            text(r#"61-9[{"_placeholder":true,"num":0}]"#)
        );
        assert_eq!(encode_connect::<Message>("/", Some(("S", None))), text(r#"0{"sid":"S"}"#));
        assert_eq!(
            encode_connect::<Message>("/a", Some(("S", Some("P")))),
            text(r#"0/a,{"sid":"S","pid":"P"}"#)
        );
        assert_eq!(encode_connect::<Message>("/", None), text("0"));
        assert_eq!(encode_connect_error::<Message>("/a", &Value::from("no")), text(r#"4/a,"no""#));
        assert_eq!(encode_disconnect::<Message>("/"), text("1"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[0-9]?[0-9 -]{0,4}(/[a-z]{0,3},?)?.{0,20}") {
            let _ = Packet::read(&text);
        }
    }
}
