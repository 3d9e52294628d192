//! An Engine.IO packet as a client sends it: one character of type, then the rest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A client's message, where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A text packet without its `4`.
    Text(&'a str),
    /// Bytes.
    Binary(&'a [u8]),
}

/// The version of the protocol, the query's `EIO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// Engine.IO 3: `socket.io-client` 2.
    Three,
    /// Engine.IO 4: `socket.io-client` 3 and 4.
    Four,
}

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EnginePacket<'a> {
    /// `2`, and the word after it, which is `probe` when an upgrade is tried.
    Ping(&'a str),
    /// `3`.
    Pong,
    /// `4` and a text, or a binary frame.
    Message(Message<'a>),
    /// `b` (protocol 3: `b4`) and base64: bytes by a transport that has only text.
    Bytes(Vec<u8>),
    /// `1`: the client leaves. Only polling listens to it.
    Close,
    /// `5`: the probe's WebSocket takes over.
    Upgrade,
    /// `0` or `6`, which a client has no reason to send and which change nothing.
    Idle,
}

impl<'a> EnginePacket<'a> {
    /// The packet in `text`; `None` when it is none.
    pub(crate) fn text(text: &'a str, revision: Revision) -> Option<Self> {
        let mut characters = text.chars();
        let kind = characters.next()?;
        let rest = characters.as_str();
        match kind {
            '0' | '6' => Some(Self::Idle),
            '1' => Some(Self::Close),
            '2' => Some(Self::Ping(rest)),
            '3' => Some(Self::Pong),
            '4' => Some(Self::Message(Message::Text(rest))),
            '5' => Some(Self::Upgrade),
            'b' => {
                let encoded = match revision {
                    Revision::Four => rest,
                    Revision::Three => rest.strip_prefix('4')?,
                };
                STANDARD.decode(encoded).ok().map(Self::Bytes)
            }
            _ => None,
        }
    }

    /// The packet in a binary frame; `None` when it is none.
    pub(crate) fn binary(data: &'a [u8], revision: Revision) -> Option<Self> {
        match (revision, data) {
            (Revision::Four, data) => Some(Self::Message(Message::Binary(data))),
            (Revision::Three, [4, data @ ..]) => Some(Self::Message(Message::Binary(data))),
            (Revision::Three, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_is_told_by_its_first_character() {
        let read = |text| EnginePacket::text(text, Revision::Four);
        assert_eq!(read("4é"), Some(EnginePacket::Message(Message::Text("é"))));
        assert_eq!(read("2probe"), Some(EnginePacket::Ping("probe")));
        assert_eq!(read("bAQID"), Some(EnginePacket::Bytes(vec![1, 2, 3])));
        assert_eq!([read("0{}"), read("6")], [Some(EnginePacket::Idle), Some(EnginePacket::Idle)]);
        assert_eq!(
            [read("1"), read("3"), read("5")],
            [Some(EnginePacket::Close), Some(EnginePacket::Pong), Some(EnginePacket::Upgrade)]
        );
        for text in ["", "7", "8", "x", "é", "b!"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn protocol_3_names_the_type_of_its_binary_packets() {
        assert_eq!(EnginePacket::text("b4AQID", Revision::Three), Some(EnginePacket::Bytes(vec![1, 2, 3])));
        assert_eq!(EnginePacket::text("bAQID", Revision::Three), None);
        let message = EnginePacket::Message(Message::Binary(b"\xaa"));
        assert_eq!(EnginePacket::binary(b"\x04\xaa", Revision::Three), Some(message));
        assert_eq!(EnginePacket::binary(b"\xaa", Revision::Three), None);
        assert_eq!(EnginePacket::binary(b"", Revision::Three), None);
        assert_eq!(
            EnginePacket::binary(b"", Revision::Four),
            Some(EnginePacket::Message(Message::Binary(b"")))
        );
    }
}
