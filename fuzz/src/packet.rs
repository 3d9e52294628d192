//! Socket.IO packets: what was read is written, and read again.

use bytes::Bytes;
use socketio_redis::packet::{
    MAX_ATTACHMENTS, Packet, PacketBody, PacketFrame, PacketFrames, PartialPacket, encode_ack, encode_event,
};

use super::input::Input;
use super::value::same;

/// One input: how long the attachments are, then a text packet, and its attachments behind a NUL.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let size = usize::from(input.byte() % 8);
    let bytes = input.rest();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let Ok(text) = str::from_utf8(&bytes[..end]) else { return };
    let Ok(packet) = Packet::read(text) else { return };
    assert!(packet.attachments <= MAX_ATTACHMENTS);
    assert!(packet.namespace.starts_with('/') && !packet.namespace.contains(','));
    let namespace = packet.namespace.to_owned();
    let body = if packet.attachments == 0 {
        packet.body
    } else {
        let mut partial = PartialPacket::new(packet);
        let mut rest = Input::new(&bytes[end..]);
        while !partial.push_attachment(rest.take(size)) {}
        match partial.finish() {
            Ok((_, body)) => body,
            Err(_) => return,
        }
    };
    if let Some((again, attachments)) = written(&namespace, &body) {
        let read = Packet::read(&again).unwrap_or_else(|fault| panic!("{fault}: {again}"));
        assert_eq!((read.namespace, read.attachments), (&*namespace, attachments.len()));
        // Without attachments, what only looks like a placeholder is what it is.
        let back = if attachments.is_empty() {
            read.body
        } else {
            let mut partial = PartialPacket::new(read);
            for attachment in &attachments {
                let _ = partial.push_attachment(attachment);
            }
            partial.finish().unwrap_or_else(|fault| panic!("{fault}: {again}")).1
        };
        assert!(is_same(&back, &body), "{back:?} {body:?}");
    }
}

/// What a server writes for it: the text, and the attachments.
fn written(namespace: &str, body: &PacketBody) -> Option<(String, Vec<Bytes>)> {
    let frames: PacketFrames<Message> = match body {
        PacketBody::Event(id, Some(data)) => encode_event(namespace, *id, data, None),
        PacketBody::Ack(Some(id), data) => encode_ack(namespace, *id, data),
        _ => return None,
    };
    let mut parts = frames.into_iter();
    let Some(Message::Text(text)) = parts.next() else { panic!("a packet begins with text") };
    let attachment = |part| match part {
        Message::Binary(bytes) => bytes,
        Message::Text(text) => panic!("{text} is no attachment"),
    };
    Some((text, parts.map(attachment).collect()))
}

/// What a transport would write.
enum Message {
    Text(String),
    Binary(Bytes),
}

impl PacketFrame for Message {
    fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    fn binary(bytes: &[u8]) -> Self {
        Self::Binary(Bytes::copy_from_slice(bytes))
    }
}

fn is_same(one: &PacketBody, other: &PacketBody) -> bool {
    match (one, other) {
        (PacketBody::Event(id, Some(data)), PacketBody::Event(other_id, Some(other))) => {
            id == other_id && data.len() == other.len() && data.iter().zip(other).all(|(a, b)| same(a, b))
        }
        (PacketBody::Ack(id, data), PacketBody::Ack(other_id, other)) => {
            id == other_id && data.len() == other.len() && data.iter().zip(other).all(|(a, b)| same(a, b))
        }
        _ => false,
    }
}
