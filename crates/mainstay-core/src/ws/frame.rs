//! The header of a WebSocket frame (RFC 6455, section 5.2).
//!
//! Decoding is lenient where only the peers can judge (reserved bits, reserved opcodes, masks, lengths that are
//! not minimal) and strict where a wrong header means that the reader has lost its place, and at what bounds a frame:
//! no control frame, of whatever opcode, is fragmented or longer than 125 bytes (section 5.5).

/// The longest header: 2 bytes, 8 bytes of length, 4 bytes of mask.
pub const MAX_HEADER: usize = 14;

/// Opcodes that mean something here.
pub mod opcode {
    /// Goes on with the message before it.
    pub const CONTINUATION: u8 = 0x0;
    /// Begins a text message.
    pub const TEXT: u8 = 0x1;
    /// Begins a binary message.
    pub const BINARY: u8 = 0x2;
    /// Ends the conversation.
    pub const CLOSE: u8 = 0x8;
    /// Asks for a Pong.
    pub const PING: u8 = 0x9;
    /// Answers a Ping.
    pub const PONG: u8 = 0xa;
}

/// One frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Last frame of its message.
    pub fin: bool,
    /// One of [`opcode`], or a reserved one.
    pub opcode: u8,
    /// The masking key, if the frame is masked.
    pub mask: Option<[u8; 4]>,
    /// Payload length in bytes.
    pub len: u64,
    /// Length of this header in bytes, 2 to 14.
    pub size: u8,
}

/// What the first bytes of a frame say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodedHeader {
    /// More bytes are needed.
    Partial,
    /// A whole header.
    Header(FrameHeader),
    /// No frame starts like this: a length over 2^63 - 1, or a control frame, of a reserved opcode as well, that is
    /// fragmented or longer than 125 bytes.
    Invalid,
}

/// Decodes the header that starts at the head of `bytes`.
#[inline]
pub fn decode_header(bytes: &[u8]) -> DecodedHeader {
    let &[first, second, ref rest @ ..] = bytes else { return DecodedHeader::Partial };
    let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
    let (masked, short) = (second & 0x80 != 0, second & 0x7f);
    // The four bits of the opcode tell data from control, in reserved ones as well (section 5.2).
    let is_control = opcode >= opcode::CLOSE;
    if is_control && (short > 125 || !fin) {
        return DecodedHeader::Invalid;
    }
    let (len, rest, extra) = match short {
        126 => match rest {
            [a, b, rest @ ..] => (u64::from(u16::from_be_bytes([*a, *b])), rest, 2),
            _ => return DecodedHeader::Partial,
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((long, rest)) => (u64::from_be_bytes(*long), rest, 8),
            None => return DecodedHeader::Partial,
        },
        short => (u64::from(short), rest, 0),
    };
    if len > i64::MAX as u64 {
        return DecodedHeader::Invalid;
    }
    let mask = match (masked, rest.first_chunk::<4>()) {
        (false, _) => None,
        (true, Some(key)) => Some(*key),
        (true, None) => return DecodedHeader::Partial,
    };
    let size = 2 + extra + if masked { 4 } else { 0 };
    DecodedHeader::Header(FrameHeader { fin, opcode, mask, len, size })
}

/// Writes a whole control frame: `payload` is cut to the 125 bytes that a control frame may have.
///
/// Frames to a node are masked with `mask`, frames to a client carry none (section 5.3).
pub fn encode_control(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let payload = &payload[..payload.len().min(125)];
    let mut frame = Vec::with_capacity(6 + payload.len());
    frame.push(0x80 | opcode);
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    frame.push(mask_bit | payload.len() as u8);
    match mask {
        None => frame.extend_from_slice(payload),
        Some(key) => {
            frame.extend_from_slice(&key);
            frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        }
    }
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_rfc_decode() {
        let hello = [0x81, 0x05, 0x48, 0x65];
        let header = FrameHeader { fin: true, opcode: opcode::TEXT, mask: None, len: 5, size: 2 };
        assert_eq!(decode_header(&hello), DecodedHeader::Header(header));
        let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f];
        let header = FrameHeader {
            fin: true,
            opcode: opcode::TEXT,
            mask: Some([0x37, 0xfa, 0x21, 0x3d]),
            len: 5,
            size: 6,
        };
        assert_eq!(decode_header(&masked), DecodedHeader::Header(header));
        let long = [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0];
        let header = FrameHeader { fin: true, opcode: opcode::BINARY, mask: None, len: 65536, size: 10 };
        assert_eq!(decode_header(&long), DecodedHeader::Header(header));
    }

    #[test]
    fn a_length_over_the_signed_range_is_garbage() {
        assert_eq!(decode_header(&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]), DecodedHeader::Invalid);
        assert_eq!(decode_header(&[0x82, 255, 0xff, 0, 0, 0, 0, 0, 0, 0]), DecodedHeader::Invalid);
        assert!(matches!(
            decode_header(&[0x82, 127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            DecodedHeader::Header(FrameHeader { len: 0x7fff_ffff_ffff_ffff, .. })
        ));
    }

    #[test]
    fn a_control_frame_that_cannot_be_one_is_garbage() {
        for first in 0x88..=0x8f {
            assert_eq!(decode_header(&[first, 126, 0, 1]), DecodedHeader::Invalid);
            assert_eq!(decode_header(&[first & 0x7f, 0]), DecodedHeader::Invalid);
        }
    }

    #[test]
    fn reserved_opcodes_and_bits_are_for_the_peers_to_judge() {
        for first in [0xf3u8, 0x8b, 0x07, 0xc1] {
            assert!(matches!(decode_header(&[first, 0]), DecodedHeader::Header(_)), "{first:x}");
        }
    }

    proptest! {
        #[test]
        fn a_control_frame_reads_back(code in 8u8..11, payload in prop::collection::vec(any::<u8>(), 0..200), key: Option<[u8; 4]>) {
            let bytes = encode_control(code, &payload, key);
            let DecodedHeader::Header(header) = decode_header(&bytes) else { panic!("not a header") };
            prop_assert_eq!(header.opcode, code);
            prop_assert_eq!(header.len as usize, payload.len().min(125));
            prop_assert_eq!(usize::from(header.size) + header.len as usize, bytes.len());
            prop_assert_eq!(header.mask, key);
        }

        #[test]
        fn any_bytes_decode_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let DecodedHeader::Header(header) = decode_header(&bytes) {
                prop_assert!(usize::from(header.size) <= bytes.len());
            }
        }
    }
}
