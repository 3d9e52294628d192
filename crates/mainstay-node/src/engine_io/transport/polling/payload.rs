//! Several packets in one HTTP body, as polling sends them.
//!
//! Protocol 4 puts U+001E between the packets, and bytes in base64. Protocol 3 puts the length before each, in UTF-16
//! units; when a client that takes binary is sent some, the whole body is binary: a byte for the kind, the length in
//! decimal digits of one byte each, 255, the packet.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::engine_io::session::frame::{Frame, FrameKind};
use crate::engine_io::session::packet::EnginePacket;
use crate::engine_io::session::packet::Revision;
use crate::engine_io::transport::websocket::reader::WantsMore;

/// Between two packets of protocol 4.
const SEPARATOR: char = '\u{1e}';

/// Ends a length of protocol 3's binary form.
const LENGTH_END: u8 = 255;

/// A body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Payload {
    /// Text.
    Text(String),
    /// Protocol 3's binary form.
    Binary(Vec<u8>),
}

impl Payload {
    /// The body that carries `frames`.
    pub(crate) fn encode<'a>(frames: impl Iterator<Item = &'a Frame> + Clone, form: PayloadFormat) -> Self {
        let has_binary = frames.clone().any(|frame| frame.kind() == FrameKind::Binary);
        match form.revision {
            Revision::Four => Self::Text(encode_revision_4(frames)),
            Revision::Three if has_binary && form.takes_binary => {
                Self::Binary(encode_binary_revision_3(frames))
            }
            Revision::Three => Self::Text(encode_text_revision_3(frames)),
        }
    }
}

/// Which form a client's bodies have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PayloadFormat {
    /// The protocol.
    pub(crate) revision: Revision,
    /// Protocol 3: the client did not ask for base64.
    pub(crate) takes_binary: bool,
}

fn encode_revision_4<'a>(frames: impl Iterator<Item = &'a Frame>) -> String {
    let mut body = String::new();
    for (index, frame) in frames.enumerate() {
        if index > 0 {
            body.push(SEPARATOR);
        }
        match frame.kind() {
            FrameKind::Binary => {
                body.push('b');
                STANDARD.encode_string(frame.payload(), &mut body);
            }
            FrameKind::Text | FrameKind::Control => body.push_str(&text(frame)),
        }
    }
    body
}

fn encode_text_revision_3<'a>(frames: impl Iterator<Item = &'a Frame>) -> String {
    let mut body = String::new();
    for frame in frames {
        let packet = match frame.kind() {
            // The type is a byte of the frame, and a digit here.
            FrameKind::Binary => Cow::Owned(format!("b4{}", STANDARD.encode(&frame.payload()[1..]))),
            FrameKind::Text | FrameKind::Control => text(frame),
        };
        body.push_str(&packet.encode_utf16().count().to_string());
        body.push(':');
        body.push_str(&packet);
    }
    body
}

fn encode_binary_revision_3<'a>(frames: impl Iterator<Item = &'a Frame>) -> Vec<u8> {
    let mut body = Vec::new();
    for frame in frames {
        let packet = frame.payload();
        body.push(u8::from(frame.kind() == FrameKind::Binary));
        body.extend(packet.len().to_string().bytes().map(|digit| digit - b'0'));
        body.push(LENGTH_END);
        body.extend_from_slice(packet);
    }
    body
}

/// A text frame's packet; it was made of text.
fn text(frame: &Frame) -> Cow<'_, str> {
    String::from_utf8_lossy(frame.payload())
}

/// Reads a body and lets `listener` hear each packet, `None` for something that is none, until it wants no more.
pub(crate) fn decode(
    body: &[u8],
    form: PayloadFormat,
    mut listener: impl FnMut(Option<EnginePacket<'_>>) -> WantsMore,
) {
    match form.revision {
        Revision::Four => {
            let body = String::from_utf8_lossy(body);
            for packet in body.split(SEPARATOR) {
                if !listener(EnginePacket::text(packet, Revision::Four)) {
                    return;
                }
            }
        }
        Revision::Three if form.takes_binary => decode_binary_revision_3(body, &mut listener),
        Revision::Three => decode_text_revision_3(&String::from_utf8_lossy(body), &mut listener),
    }
}

fn decode_text_revision_3(body: &str, listener: &mut impl FnMut(Option<EnginePacket<'_>>) -> WantsMore) {
    let mut rest = body;
    if rest.is_empty() {
        listener(None);
    }
    while !rest.is_empty() {
        let Some((packet, after)) = split_text_packet(rest) else {
            listener(None);
            return;
        };
        rest = after;
        if !packet.is_empty() && !listener(EnginePacket::text(packet, Revision::Three)) {
            return;
        }
    }
}

/// The first packet and what comes behind it; `None` when its length is not right.
fn split_text_packet(body: &str) -> Option<(&str, &str)> {
    let (length, rest) = body.split_once(':')?;
    if !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let length: usize = length.parse().ok()?;
    let mut units = 0;
    for (index, character) in rest.char_indices() {
        if units == length {
            return Some(rest.split_at(index));
        }
        units += character.len_utf16();
    }
    (units == length).then_some((rest, ""))
}

fn decode_binary_revision_3(body: &[u8], listener: &mut impl FnMut(Option<EnginePacket<'_>>) -> WantsMore) {
    let mut rest = body;
    if rest.is_empty() {
        listener(None);
    }
    while !rest.is_empty() {
        let Some((is_text, packet, after)) = split_binary_packet(rest) else {
            listener(None);
            return;
        };
        rest = after;
        let more = if is_text {
            listener(EnginePacket::text(&String::from_utf8_lossy(packet), Revision::Three))
        } else {
            listener(EnginePacket::binary(packet, Revision::Three))
        };
        if !more {
            return;
        }
    }
}

/// Whether the first packet is text, the packet, and what comes behind it.
fn split_binary_packet(body: &[u8]) -> Option<(bool, &[u8], &[u8])> {
    let (kind, rest) = body.split_first()?;
    let end = rest.iter().position(|byte| *byte == LENGTH_END)?;
    let mut length: usize = 0;
    for digit in &rest[..end] {
        if *digit > 9 {
            return None;
        }
        length = length.checked_mul(10)?.checked_add(usize::from(*digit))?;
    }
    // Node takes a last packet that is shorter than it says, and so do we.
    let rest = &rest[end + 1..];
    let (packet, after) = rest.split_at(length.min(rest.len()));
    Some((*kind == 0, packet, after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine_io::session::packet::Message;

    const FOUR: PayloadFormat = PayloadFormat { revision: Revision::Four, takes_binary: false };
    const THREE: PayloadFormat = PayloadFormat { revision: Revision::Three, takes_binary: false };
    const THREE_BINARY: PayloadFormat = PayloadFormat { revision: Revision::Three, takes_binary: true };

    fn heard(body: &[u8], form: PayloadFormat) -> Vec<String> {
        let mut heard = Vec::new();
        decode(body, form, |packet| {
            let more = packet.is_some();
            heard.push(match packet {
                Some(EnginePacket::Message(Message::Text(text))) => text.to_owned(),
                Some(EnginePacket::Message(Message::Binary(data))) => format!("{data:?}"),
                Some(EnginePacket::Bytes(data)) => format!("{data:?}"),
                Some(packet) => format!("{packet:?}"),
                None => "none".into(),
            });
            more
        });
        heard
    }

    fn frames(form: PayloadFormat) -> [Frame; 3] {
        [Frame::text("hé😀"), Frame::binary(&[1, 2, 3]), Frame::ping()].map(|frame| match form.revision {
            Revision::Four => frame,
            Revision::Three => frame.revision_3(),
        })
    }

    #[test]
    fn the_three_forms_are_nodes() {
        let of = |form| Payload::encode(frames(form).iter(), form);
        assert_eq!(of(FOUR), Payload::Text("4hé😀\u{1e}bAQID\u{1e}2".into()));
        assert_eq!(of(THREE), Payload::Text("5:4hé😀6:b4AQID1:2".into()));
        let mut binary = b"\x00\x08\xff4h\xc3\xa9\xf0\x9f\x98\x80".to_vec();
        binary.extend(b"\x01\x04\xff\x04\x01\x02\x03\x00\x01\xff2");
        assert_eq!(of(THREE_BINARY), Payload::Binary(binary));
    }

    #[test]
    fn protocol_3_stays_text_while_there_is_nothing_binary() {
        let payload = Payload::encode([Frame::text("0")].iter(), THREE_BINARY);
        assert_eq!(payload, Payload::Text("2:40".into()));
    }

    #[test]
    fn a_body_is_read_up_to_what_is_no_packet() {
        assert_eq!(heard("4a\u{1e}bAQ==\u{1e}x\u{1e}4b".as_bytes(), FOUR), ["a", "[1]", "none"]);
        assert_eq!(heard(b"", FOUR), ["none"]);
        assert_eq!(heard("15:42[\"echo\",\"hé\"]0:1:3".as_bytes(), THREE), ["2[\"echo\",\"hé\"]", "Pong"]);
        for bad in ["", "abc", "3:4", ":4", "-1:4", "1:4x", "99999999999999999999:4"] {
            assert_eq!(heard(bad.as_bytes(), THREE).pop().unwrap(), "none", "{bad}");
        }
        assert_eq!(heard(b"\x00\x01\x05\xff42[\"echo\",\"x\"]", THREE_BINARY), ["2[\"echo\",\"x\"]"]);
        for bad in [&b""[..], b"\x00", b"\x00\x0a\xff4", b"\x01\x02\xff\x05", b"\x01\xff"] {
            assert_eq!(heard(bad, THREE_BINARY).pop().unwrap(), "none", "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            messages in prop::collection::vec(prop_oneof![
                "[^\u{1e}]{0,20}".prop_map(Ok),
                prop::collection::vec(any::<u8>(), 0..20).prop_map(Err),
            ], 1..6),
            form in prop_oneof![Just(FOUR), Just(THREE), Just(THREE_BINARY)],
        ) {
            let frames: Vec<Frame> = messages.iter().map(|message| {
                let frame = match message {
                    Ok(text) => Frame::text(text),
                    Err(data) => Frame::binary(data),
                };
                if form.revision == Revision::Three { frame.revision_3() } else { frame }
            }).collect();
            let expected: Vec<String> = messages.iter().map(|message| match message {
                Ok(text) => text.clone(),
                Err(data) => format!("{data:?}"),
            }).collect();
            let read_back = match Payload::encode(frames.iter(), form) {
                Payload::Text(text) => heard(text.as_bytes(), PayloadFormat { takes_binary: false, ..form }),
                Payload::Binary(data) => heard(&data, form),
            };
            prop_assert_eq!(read_back, expected);
        }

        #[test]
        fn any_body_is_read_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..60)) {
            for form in [FOUR, THREE, THREE_BINARY] {
                heard(&body, form);
            }
        }
    }
}
