//! A WebSocket's incoming half, without the socket: bytes go in, whole messages come out.
//!
//! A frame that lies whole in what was just read is unmasked and delivered where it lies; only the beginning of a
//! frame that is still on its way, or the fragments of a message, are kept, and given back as soon as the message is
//! whole. So a connection that says nothing has no buffer at all.
//!
//! Rules (RFC 6455): a client's frames are masked; nothing was negotiated, so reserved bits and opcodes are faults; a
//! message over the limit is refused by its header, before a byte of it is kept; text is UTF-8.

use mainstay_core::ws::frame::{self, DecodedHeader, FrameHeader, opcode};

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IncomingMessage<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// To be answered with a Pong that carries the same bytes.
    Ping(&'a [u8]),
    /// The answer to a Ping, asked for or not.
    Pong,
    /// The client leaves; its code, if it gave one.
    Close(Option<u16>),
}

/// Why the conversation cannot go on: always the client's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    /// The framing is broken.
    #[error("the frames break RFC 6455")]
    Protocol,
    /// A text that is not UTF-8.
    #[error("a text message is not UTF-8")]
    NotUtf8,
    /// A message over the limit.
    #[error("a message is longer than allowed")]
    TooBig,
}

impl FramingError {
    /// The close code that names it (section 7.4.1).
    pub(crate) fn code(self) -> u16 {
        match self {
            Self::Protocol => 1002,
            Self::NotUtf8 => 1007,
            Self::TooBig => 1009,
        }
    }
}

/// Whether the listener wants more of what was read.
pub(crate) type WantsMore = bool;

/// The state between two reads.
#[derive(Debug)]
pub(crate) struct MessageReader {
    /// The beginning of a frame whose rest has not come yet; without allocation while there is none.
    tail: Vec<u8>,
    /// The message whose last fragment has not come yet.
    fragments: Option<Box<FragmentedMessage>>,
    /// Bytes that one message may have.
    limit: u32,
}

/// A fragmented message.
#[derive(Debug)]
struct FragmentedMessage {
    /// Its first fragment said text.
    is_text: bool,
    /// The fragments so far.
    data: Vec<u8>,
}

impl MessageReader {
    /// A reader of messages up to `limit` bytes.
    pub(crate) fn new(limit: u32) -> Self {
        Self { tail: Vec::new(), fragments: None, limit }
    }

    /// Takes what was read. `listener` hears each message in order and says whether it wants the next; once it does
    /// not, the rest is dropped with the connection.
    pub(crate) fn feed(
        &mut self,
        input: &mut [u8],
        mut listener: impl FnMut(IncomingMessage<'_>) -> WantsMore,
    ) -> Result<WantsMore, FramingError> {
        if self.tail.is_empty() {
            let (used, more) = self.deliver_frames(input, &mut listener)?;
            self.keep_tail(&input[used..]);
            return Ok(more);
        }
        let mut joined = std::mem::take(&mut self.tail);
        joined.extend_from_slice(input);
        let (used, more) = self.deliver_frames(&mut joined, &mut listener)?;
        if used == 0 {
            // A long frame on its way: it stays where it is, and grows in place.
            self.tail = joined;
        } else {
            self.keep_tail(&joined[used..]);
        }
        Ok(more)
    }

    fn keep_tail(&mut self, rest: &[u8]) {
        if !rest.is_empty() {
            self.tail = rest.to_vec();
        }
    }

    /// Delivers the whole frames at the head of `input`; returns how many bytes they were.
    fn deliver_frames(
        &mut self,
        input: &mut [u8],
        listener: &mut impl FnMut(IncomingMessage<'_>) -> WantsMore,
    ) -> Result<(usize, WantsMore), FramingError> {
        let mut used = 0;
        while let Some(header) = self.header(&input[used..])? {
            let start = used + usize::from(header.size);
            // The length was checked against the limit, which is far below what a usize holds.
            let end = start + header.len as usize;
            let Some(payload) = input.get_mut(start..end) else { break };
            unmask(payload, header.mask.unwrap_or_default());
            used = end;
            if !self.deliver(&header, payload, listener)? {
                return Ok((used, false));
            }
        }
        Ok((used, true))
    }

    /// The header at the head of `bytes`, when it is whole and in order.
    fn header(&self, bytes: &[u8]) -> Result<Option<FrameHeader>, FramingError> {
        // The first byte alone can be wrong: no extension was agreed on that could use the reserved bits.
        if bytes.first().is_some_and(|first| first & 0x70 != 0) {
            return Err(FramingError::Protocol);
        }
        let header = match frame::decode_header(bytes) {
            DecodedHeader::Partial => return Ok(None),
            DecodedHeader::Invalid => return Err(FramingError::Protocol),
            DecodedHeader::Header(header) => header,
        };
        let follows = match header.opcode {
            opcode::CONTINUATION => self.fragments.is_some(),
            opcode::TEXT | opcode::BINARY => self.fragments.is_none(),
            opcode::CLOSE | opcode::PING | opcode::PONG => true,
            _ => false,
        };
        if !follows || header.mask.is_none() {
            return Err(FramingError::Protocol);
        }
        let before = self.fragments.as_ref().map_or(0, |begun| begun.data.len() as u64);
        let is_control = header.opcode & 0x8 != 0;
        if !is_control && header.len.saturating_add(before) > u64::from(self.limit) {
            return Err(FramingError::TooBig);
        }
        Ok(Some(header))
    }

    fn deliver(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        listener: &mut impl FnMut(IncomingMessage<'_>) -> WantsMore,
    ) -> Result<WantsMore, FramingError> {
        match header.opcode {
            opcode::PING => Ok(listener(IncomingMessage::Ping(payload))),
            opcode::PONG => Ok(listener(IncomingMessage::Pong)),
            opcode::CLOSE => {
                listener(IncomingMessage::Close(close_code(payload)?));
                Ok(false)
            }
            opcode::CONTINUATION => self.continue_message(header.fin, payload, listener),
            _ if header.fin => message(header.opcode == opcode::TEXT, payload, listener),
            _ => {
                let is_text = header.opcode == opcode::TEXT;
                self.fragments = Some(Box::new(FragmentedMessage { is_text, data: payload.to_vec() }));
                Ok(true)
            }
        }
    }

    fn continue_message(
        &mut self,
        is_last: bool,
        payload: &[u8],
        listener: &mut impl FnMut(IncomingMessage<'_>) -> WantsMore,
    ) -> Result<WantsMore, FramingError> {
        let Some(mut begun) = self.fragments.take() else { return Err(FramingError::Protocol) };
        begun.data.extend_from_slice(payload);
        if is_last {
            return message(begun.is_text, &begun.data, listener);
        }
        self.fragments = Some(begun);
        Ok(true)
    }
}

fn message(
    is_text: bool,
    data: &[u8],
    listener: &mut impl FnMut(IncomingMessage<'_>) -> WantsMore,
) -> Result<WantsMore, FramingError> {
    if !is_text {
        return Ok(listener(IncomingMessage::Binary(data)));
    }
    let text = std::str::from_utf8(data).map_err(|_| FramingError::NotUtf8)?;
    Ok(listener(IncomingMessage::Text(text)))
}

/// Checks a Close's payload (section 7.4): nothing, or a code that may be sent and a reason in UTF-8.
fn close_code(payload: &[u8]) -> Result<Option<u16>, FramingError> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(FramingError::Protocol),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(FramingError::Protocol);
    }
    std::str::from_utf8(reason).map_err(|_| FramingError::NotUtf8)?;
    Ok(Some(code))
}

/// Takes the mask off in place (section 5.3), eight bytes at a time.
fn unmask(payload: &mut [u8], key: [u8; 4]) {
    let wide = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the listener heard, owned.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Heard {
        Text(String),
        Binary(Vec<u8>),
        Ping(Vec<u8>),
        Pong,
        Close(Option<u16>),
    }

    fn owned(incoming: IncomingMessage<'_>) -> Heard {
        match incoming {
            IncomingMessage::Text(text) => Heard::Text(text.into()),
            IncomingMessage::Binary(data) => Heard::Binary(data.into()),
            IncomingMessage::Ping(data) => Heard::Ping(data.into()),
            IncomingMessage::Pong => Heard::Pong,
            IncomingMessage::Close(code) => Heard::Close(code),
        }
    }

    /// A client's frame.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(0x80 | length as u8),
            length @ 126..0x10000 => {
                frame.push(0xfe);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(0xff);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        let key = [0x37, 0xfa, 0x21, 0x3d];
        frame.extend(key);
        frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    fn read(bytes: &[u8], limit: u32) -> (Vec<Heard>, Result<WantsMore, FramingError>) {
        let mut heard = Vec::new();
        let result = MessageReader::new(limit).feed(&mut bytes.to_vec(), |incoming| {
            heard.push(owned(incoming));
            true
        });
        (heard, result)
    }

    fn fault(bytes: &[u8]) -> FramingError {
        read(bytes, 100).1.unwrap_err()
    }

    #[test]
    fn fragments_make_one_message_and_a_ping_may_come_between_them() {
        let bytes =
            [masked(0x01, b"he"), masked(0x89, b"?"), masked(0x00, b"l"), masked(0x80, b"lo")].concat();
        let expected = vec![Heard::Ping(b"?".to_vec()), Heard::Text("hello".into())];
        assert_eq!(read(&bytes, 5), (expected, Ok(true)));
        assert_eq!(read(&bytes, 4).1, Err(FramingError::TooBig));
    }

    #[test]
    fn a_message_at_the_limit_passes_and_one_byte_more_is_refused_by_its_header_alone() {
        assert_eq!(read(&masked(0x82, &[1; 100]), 100).0, [Heard::Binary(vec![1; 100])]);
        assert_eq!(fault(&masked(0x82, &[1; 101])[..6]), FramingError::TooBig);
        assert_eq!(
            fault(&[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4]),
            FramingError::TooBig
        );
    }

    #[test]
    fn what_breaks_the_framing_is_a_protocol_error() {
        let unmasked = [0x81, 0x01, b'x'];
        assert_eq!(fault(&unmasked), FramingError::Protocol);
        for first in [0xc1, 0xa1, 0x91, 0x83, 0x8b, 0x80, 0x00] {
            assert_eq!(fault(&masked(first, b"x")), FramingError::Protocol, "{first:x}");
        }
        let two_begun = [masked(0x01, b"a"), masked(0x81, b"b")].concat();
        assert_eq!(fault(&two_begun), FramingError::Protocol);
        assert_eq!(fault(&masked(0x89, &[0; 126])), FramingError::Protocol);
        assert_eq!(fault(&masked(0x88, &[3])), FramingError::Protocol);
        for code in [0u16, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
            assert_eq!(fault(&masked(0x88, &code.to_be_bytes())), FramingError::Protocol, "{code}");
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_named_as_such() {
        assert_eq!(fault(&masked(0x81, b"\xff")), FramingError::NotUtf8);
        assert_eq!(fault(&masked(0x88, b"\x03\xe8\xff")), FramingError::NotUtf8);
    }

    #[test]
    fn nothing_is_heard_after_a_close() {
        let bytes = [masked(0x88, &1001u16.to_be_bytes()), masked(0x81, b"late")].concat();
        assert_eq!(read(&bytes, 100), (vec![Heard::Close(Some(1001))], Ok(false)));
        assert_eq!(read(&masked(0x88, b""), 100).0, [Heard::Close(None)]);
    }

    #[test]
    fn a_reader_between_two_messages_holds_no_memory() {
        let mut reader = MessageReader::new(1000);
        for piece in masked(0x81, &[b'a'; 500]).chunks(7) {
            assert_eq!(reader.feed(&mut piece.to_vec(), |_| true), Ok(true));
        }
        assert_eq!((reader.tail.capacity(), reader.fragments.is_none()), (0, true));
    }

    proptest! {
        #[test]
        fn however_the_bytes_are_cut_the_same_messages_come_out(
            messages in prop::collection::vec((any::<bool>(), "\\PC{0,200}"), 1..6),
            cut in 1usize..64,
        ) {
            let frames = messages.iter().map(|(is_text, text)| masked(if *is_text { 0x81 } else { 0x82 }, text.as_bytes()));
            let bytes: Vec<u8> = frames.flatten().collect();
            let expected: Vec<Heard> = messages.iter().map(|(is_text, text)| match is_text {
                true => Heard::Text(text.clone()),
                false => Heard::Binary(text.as_bytes().to_vec()),
            }).collect();
            let (mut reader, mut heard) = (MessageReader::new(1 << 16), Vec::new());
            for piece in bytes.chunks(cut) {
                reader.feed(&mut piece.to_vec(), |incoming| { heard.push(owned(incoming)); true }).unwrap();
            }
            prop_assert_eq!(heard, expected);
        }

        #[test]
        fn any_bytes_end_without_a_panic_and_keep_no_more_than_the_limit(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            cut in 1usize..50,
        ) {
            let mut reader = MessageReader::new(64);
            for piece in bytes.chunks(cut) {
                if reader.feed(&mut piece.to_vec(), |_| true) != Ok(true) {
                    break;
                }
                prop_assert!(reader.tail.len() <= 14 + 125);
            }
        }
    }
}
