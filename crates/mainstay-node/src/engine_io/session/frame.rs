//! What a connection writes: one Engine.IO packet, encoded once, in bytes that many connections share.
//!
//! A frame is held in the form that a WebSocket of protocol 4 writes, because those are nearly all; polling and
//! protocol 3 make their own form of it when they write. Server frames carry no mask (RFC 6455, section 5.1), which
//! is what makes one set of bytes right for every client.

use bytes::{BufMut, Bytes, BytesMut};

use mainstay_core::ws::frame::opcode;
use socketio_redis::packet;

/// One packet ready to be written. A clone costs a reference count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// A whole WebSocket frame.
    wire: Bytes,
    /// Length of the header at the head of `wire`, 2, 4 or 10 bytes.
    head: u8,
    /// What kind of payload it has.
    kind: FrameKind,
}

/// What a frame is to the transports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A text packet: its type's digit and its text.
    Text,
    /// A binary message: the bytes alone.
    Binary,
    /// A Ping, Pong or Close of the WebSocket itself; only its transport knows it.
    Control,
}

impl packet::PacketFrame for Frame {
    fn text(message: &str) -> Self {
        Self::text(message)
    }

    fn binary(data: &[u8]) -> Self {
        Self::binary(data)
    }
}

impl Frame {
    /// A message of text: the packet `4` and the text.
    pub fn text(message: &str) -> Self {
        Self::packet(b'4', message)
    }

    /// A message of bytes.
    pub fn binary(data: &[u8]) -> Self {
        Self::build(opcode::BINARY, FrameKind::Binary, &[data])
    }

    /// A text packet of the type `kind`, an ASCII digit.
    pub(crate) fn packet(kind: u8, text: &str) -> Self {
        Self::build(opcode::TEXT, FrameKind::Text, &[&[kind], text.as_bytes()])
    }

    /// The server's ping of protocol 4.
    pub(crate) const fn ping() -> Self {
        Self::fixed(b"\x81\x012")
    }

    /// The server's pong of protocol 3.
    pub(crate) const fn pong() -> Self {
        Self::fixed(b"\x81\x013")
    }

    /// The packet that says nothing and ends a poll.
    pub(crate) const fn noop() -> Self {
        Self::fixed(b"\x81\x016")
    }

    /// The packet that closes a polling session.
    pub(crate) const fn close() -> Self {
        Self::fixed(b"\x81\x011")
    }

    const fn fixed(wire: &'static [u8]) -> Self {
        Self { wire: Bytes::from_static(wire), head: 2, kind: FrameKind::Text }
    }

    /// A control frame that is already whole.
    pub(crate) fn control(wire: Vec<u8>) -> Self {
        Self { wire: wire.into(), head: 2, kind: FrameKind::Control }
    }

    fn build(opcode: u8, kind: FrameKind, parts: &[&[u8]]) -> Self {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut wire = BytesMut::with_capacity(10 + length);
        wire.put_u8(0x80 | opcode);
        match length {
            0..126 => wire.put_u8(length as u8),
            126..=0xffff => {
                wire.put_u8(126);
                wire.put_u16(length as u16);
            }
            _ => {
                wire.put_u8(127);
                wire.put_u64(length as u64);
            }
        }
        let head = wire.len() as u8;
        for part in parts {
            wire.put_slice(part);
        }
        Self { wire: wire.freeze(), head, kind }
    }

    /// The same packet as protocol 3 writes it: a binary message begins with its type, the byte 4.
    pub(crate) fn revision_3(self) -> Self {
        match self.kind {
            FrameKind::Binary => Self::build(opcode::BINARY, FrameKind::Binary, &[&[4], self.payload()]),
            FrameKind::Text | FrameKind::Control => self,
        }
    }

    /// The whole WebSocket frame.
    pub(crate) fn wire(&self) -> &Bytes {
        &self.wire
    }

    /// The packet without the WebSocket header.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.wire[usize::from(self.head)..]
    }

    /// Text, bytes or a control frame.
    pub(crate) fn kind(&self) -> FrameKind {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use mainstay_core::ws::frame::{DecodedHeader, decode_header};

    #[test]
    fn the_fixed_packets_are_what_they_say() {
        let built = [
            Frame::packet(b'2', ""),
            Frame::packet(b'3', ""),
            Frame::packet(b'6', ""),
            Frame::packet(b'1', ""),
        ];
        assert_eq!([Frame::ping(), Frame::pong(), Frame::noop(), Frame::close()], built);
    }

    #[test]
    fn a_binary_message_of_protocol_3_begins_with_its_type_and_a_text_is_the_same_in_both() {
        let three = Frame::binary(b"\xaa").revision_3();
        assert_eq!((three.payload(), &three.wire()[..]), (&b"\x04\xaa"[..], &b"\x82\x02\x04\xaa"[..]));
        assert_eq!(Frame::text("2[]").revision_3(), Frame::text("2[]"));
    }

    proptest! {
        #[test]
        fn a_frame_has_the_header_that_its_payload_needs(length in prop_oneof![0usize..300, 65_000usize..66_000]) {
            let data = vec![7; length];
            let frame = Frame::binary(&data);
            let DecodedHeader::Header(header) = decode_header(frame.wire()) else { panic!("no header") };
            prop_assert!(header.fin && header.mask.is_none() && header.opcode == opcode::BINARY);
            prop_assert_eq!((header.len as usize, header.size), (length, frame.head));
            prop_assert_eq!(frame.payload(), &data[..]);
        }
    }
}
