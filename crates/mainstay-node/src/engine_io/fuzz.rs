//! Ways into the private readers for the fuzz targets. They are there where debug assertions are on: in tests, and
//! in what the fuzzer runs, never in a release.

use crate::engine_io::session::frame::{Frame, FrameKind};
use crate::engine_io::session::packet::EnginePacket;
use crate::engine_io::session::packet::{Message, Revision};
use crate::engine_io::session::urlencoded;
use crate::engine_io::transport::polling::jsonp;
use crate::engine_io::transport::polling::payload::{self, Payload, PayloadFormat};
use crate::engine_io::transport::websocket::reader::{IncomingMessage, MessageReader};

/// One thing that a client said, as bytes of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named as what they stand for")]
pub enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Upgrade,
    Idle,
    Nothing,
}

/// A WebSocket's incoming half.
#[derive(Debug)]
pub struct Messages(MessageReader);

impl Messages {
    /// A reader of messages up to `limit` bytes.
    pub fn new(limit: u32) -> Self {
        Self(MessageReader::new(limit))
    }

    /// Takes a piece; gives what was said in it, and whether more is wanted, or the close code of the fault.
    pub fn feed(&mut self, piece: &mut [u8], said: &mut Vec<Said>) -> Result<bool, u16> {
        let listener = |incoming: IncomingMessage<'_>| {
            said.push(match incoming {
                IncomingMessage::Text(text) => Said::Text(text.into()),
                IncomingMessage::Binary(bytes) => Said::Binary(bytes.into()),
                IncomingMessage::Ping(bytes) => Said::Ping(bytes.into()),
                IncomingMessage::Pong => Said::Pong,
                IncomingMessage::Close(code) => Said::Close(code),
            });
            true
        };
        self.0.feed(piece, listener).map_err(|fault| fault.code())
    }
}

/// The packets of a polling body, at most `most` of them.
pub fn packets(body: &[u8], revision: Revision, takes_binary: bool, most: usize) -> Vec<Said> {
    let mut said = Vec::new();
    payload::decode(body, PayloadFormat { revision, takes_binary }, |packet| {
        said.push(packet.map_or(Said::Nothing, own));
        said.len() < most
    });
    said
}

fn own(packet: EnginePacket<'_>) -> Said {
    match packet {
        EnginePacket::Ping(word) => Said::Ping(word.into()),
        EnginePacket::Pong => Said::Pong,
        EnginePacket::Message(Message::Text(text)) => Said::Text(text.into()),
        EnginePacket::Message(Message::Binary(bytes)) => Said::Binary(bytes.into()),
        EnginePacket::Bytes(bytes) => Said::Binary(bytes),
        EnginePacket::Close => Said::Close(None),
        EnginePacket::Upgrade => Said::Upgrade,
        EnginePacket::Idle => Said::Idle,
    }
}

/// The polling body of these messages, texts and bytes.
pub fn body(said: &[Said], revision: Revision, takes_binary: bool) -> Vec<u8> {
    let frames: Vec<Frame> = said
        .iter()
        .filter_map(|said| match said {
            Said::Text(text) => Some(Frame::text(text)),
            Said::Binary(bytes) => Some(Frame::binary(bytes)),
            _ => None,
        })
        .map(|frame| if revision == Revision::Three { frame.revision_3() } else { frame })
        .collect();
    debug_assert!(frames.iter().all(|frame| frame.kind() != FrameKind::Control));
    match Payload::encode(frames.iter(), PayloadFormat { revision, takes_binary }) {
        Payload::Text(text) => text.into_bytes(),
        Payload::Binary(bytes) => bytes,
    }
}

/// The payload in a form's body.
pub fn form(body: &str) -> Option<String> {
    jsonp::form_payload(body)
}

/// The script that hands a payload over.
pub fn script(j: &str, payload: &str) -> String {
    jsonp::wrap_payload(&jsonp::script_head(j), payload)
}

/// The value of a name in a query.
pub fn last<'a>(text: &'a str, name: &str) -> Option<std::borrow::Cow<'a, str>> {
    urlencoded::last(text, name)
}
