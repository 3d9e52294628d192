//! The envelope of `createShardedAdapter` (`@socket.io/redis-adapter` 8.3) and of the messenger messages of
//! `@socket.io/redis-streams-adapter` 0.3:
//! `{"type": t, "data": {..}, "uid": "..", "nsp": "/"}`.
//!
//! The two differ in the encoding: the sharded adapter sends JSON unless there are bytes in it, the streams adapter always
//! MessagePack; and in an answer without a value, which the one leaves out and the other sends as nil.

use bytes::Bytes;

use super::WireError;
use super::opts::{
    opts, opts_piece, packet, packet_piece, read_json_or_msgpack, rooms, rooms_piece, sockets, sockets_piece,
    text,
};
use super::wire_part::WirePart;
use crate::operation::{BroadcastFlags, RemoteSocket, Room, Target};
use crate::value::Value;

/// Which of the two adapters' ways of writing is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// JSON unless there are bytes.
    Sharded,
    /// Always MessagePack.
    Streams,
}

/// A message with its sender.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// Which instance of an adapter sent it.
    pub uid: String,
    /// In which namespace.
    pub nsp: String,
    /// What it says.
    pub message: ClusterMessage,
}

/// What nodes say to each other.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "fields bear the names that they have on the wire")]
pub enum ClusterMessage {
    /// 3; with a request id its clients answer.
    Broadcast { data: Vec<Value>, request: Option<String>, target: Target, flags: BroadcastFlags },
    /// 4: whoever is selected joins these rooms.
    Join { target: Target, rooms: Vec<Room> },
    /// 5: and leaves them.
    Leave { target: Target, rooms: Vec<Room> },
    /// 6: and is disconnected.
    Disconnect { target: Target, close: bool },
    /// 7: who is selected, with everything about them.
    Fetch { target: Target, flags: BroadcastFlags, request: String },
    /// 8, to 7.
    Sockets { request: String, sockets: Vec<RemoteSocket> },
    /// 9: an event for the servers themselves; with a request id an answer is wanted.
    ServerSideEmit { request: Option<String>, data: Vec<Value> },
    /// 10, to 9.
    ServerSideAnswer { request: String, packet: Value },
    /// 11, to 3: how many clients were asked.
    Count { request: String, count: u64 },
    /// 12, to 3: the answer of one client; none if it sent no value.
    Ack { request: String, packet: Option<Value> },
}

/// The channels of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvelopeChannels {
    /// `prefix#nsp#`; its subscribers are the nodes.
    pub main: String,
}

impl EnvelopeChannels {
    /// Those of a namespace under a prefix (`socket.io` unless it is set).
    pub fn new(prefix: &str, nsp: &str) -> EnvelopeChannels {
        EnvelopeChannels { main: format!("{prefix}#{nsp}#") }
    }

    /// The channel of a room, or the private one of a node.
    pub fn of(&self, room_or_uid: &str) -> String {
        format!("{}{room_or_uid}#", self.main)
    }
}

impl ClusterMessage {
    /// The number that it has on the wire.
    pub fn kind(&self) -> u64 {
        match self {
            ClusterMessage::Broadcast { .. } => 3,
            ClusterMessage::Join { .. } => 4,
            ClusterMessage::Leave { .. } => 5,
            ClusterMessage::Disconnect { .. } => 6,
            ClusterMessage::Fetch { .. } => 7,
            ClusterMessage::Sockets { .. } => 8,
            ClusterMessage::ServerSideEmit { .. } => 9,
            ClusterMessage::ServerSideAnswer { .. } => 10,
            ClusterMessage::Count { .. } => 11,
            ClusterMessage::Ack { .. } => 12,
        }
    }

    /// Whether it answers a request, which goes to a node's private channel.
    pub fn is_answer(&self) -> bool {
        matches!(self.kind(), 8 | 10..=12)
    }

    /// Its fields, in the order in which Node.js has them.
    pub(super) fn data_piece(&self, dialect: Dialect) -> WirePart<'_> {
        let request_piece = |request| ("requestId", WirePart::Text(request));
        WirePart::Map(match self {
            ClusterMessage::Broadcast { data, request, target, flags } => {
                let mut entries = vec![("packet", packet_piece(data, None))];
                entries.extend(request.as_deref().map(request_piece));
                entries.push(("opts", opts_piece(target, Some(flags))));
                entries
            }
            ClusterMessage::Join { target, rooms } | ClusterMessage::Leave { target, rooms } => {
                vec![
                    ("opts", opts_piece(target, Some(&BroadcastFlags::default()))),
                    ("rooms", rooms_piece(rooms)),
                ]
            }
            ClusterMessage::Disconnect { target, close } => {
                vec![
                    ("opts", opts_piece(target, Some(&BroadcastFlags::default()))),
                    ("close", WirePart::Bool(*close)),
                ]
            }
            ClusterMessage::Fetch { target, flags, request } => {
                vec![("opts", opts_piece(target, Some(flags))), request_piece(request)]
            }
            ClusterMessage::Sockets { request, sockets } => {
                vec![request_piece(request), ("sockets", sockets_piece(sockets))]
            }
            ClusterMessage::ServerSideEmit { request, data } => {
                let mut entries: Vec<_> = request.as_deref().map(request_piece).into_iter().collect();
                entries.push(("packet", WirePart::Values(data)));
                entries
            }
            ClusterMessage::ServerSideAnswer { request, packet } => {
                vec![request_piece(request), ("packet", WirePart::Value(packet))]
            }
            ClusterMessage::Count { request, count } => {
                vec![request_piece(request), ("clientCount", WirePart::Number(*count))]
            }
            ClusterMessage::Ack { request, packet } => {
                let nothing = (dialect == Dialect::Streams).then_some(WirePart::Owned(Value::Null));
                let packet = packet.as_ref().map(WirePart::Value).or(nothing);
                let packet = packet.map(|packet| ("packet", packet));
                [request_piece(request)].into_iter().chain(packet).collect()
            }
        })
    }

    /// Reads the fields of a message of this type; none if the type is known and says nothing: heartbeats and farewells
    /// of the generations before.
    pub(super) fn read(kind: u64, mut data: Value) -> Result<Option<ClusterMessage>, WireError> {
        let request = text(&data, "requestId");
        Ok(Some(match kind {
            1 | 2 | 13 => return Ok(None),
            3 => {
                let (target, flags) = opts(data.get("opts"))?;
                let (data, _) = packet(data.take("packet"))?;
                ClusterMessage::Broadcast { data, request: request.ok(), target, flags }
            }
            4 | 5 => {
                let (target, rooms) = (opts(data.get("opts"))?.0, rooms(data.get("rooms"), "rooms")?);
                if kind == 4 {
                    ClusterMessage::Join { target, rooms }
                } else {
                    ClusterMessage::Leave { target, rooms }
                }
            }
            6 => {
                let close = data.get("close").and_then(Value::as_bool).unwrap_or_default();
                ClusterMessage::Disconnect { target: opts(data.get("opts"))?.0, close }
            }
            7 => {
                let (target, flags) = opts(data.get("opts"))?;
                ClusterMessage::Fetch { target, flags, request: request? }
            }
            8 => {
                let list = data.take("sockets").ok_or(WireError::Field("sockets"))?;
                ClusterMessage::Sockets { request: request?, sockets: sockets(list)? }
            }
            9 => match data.take("packet") {
                Some(Value::List(data)) => ClusterMessage::ServerSideEmit { request: request.ok(), data },
                _ => return Err(WireError::Field("packet")),
            },
            10 => ClusterMessage::ServerSideAnswer {
                request: request?,
                packet: data.take("packet").unwrap_or_default(),
            },
            11 => {
                let count = data.get("clientCount").and_then(Value::as_u64);
                ClusterMessage::Count {
                    request: request?,
                    count: count.ok_or(WireError::Field("clientCount"))?,
                }
            }
            12 => ClusterMessage::Ack { request: request?, packet: data.take("packet") },
            other => return Err(WireError::Type(other)),
        }))
    }
}

impl Envelope {
    /// Writes it in one of the two ways.
    pub fn write(&self, dialect: Dialect) -> Bytes {
        write(&self.message, &self.uid, &self.nsp, dialect)
    }
}

/// Writes a message with its sender.
pub fn write(message: &ClusterMessage, uid: &str, nsp: &str, dialect: Dialect) -> Bytes {
    let piece = WirePart::Map(vec![
        ("type", WirePart::Number(message.kind())),
        ("data", message.data_piece(dialect)),
        ("uid", WirePart::Text(uid)),
        ("nsp", WirePart::Text(nsp)),
    ]);
    match dialect {
        Dialect::Sharded => piece.to_either(),
        Dialect::Streams => piece.to_msgpack().into(),
    }
}

/// How every envelope of a sender ends, as JSON and as MessagePack: by this its own ones are told without being read.
pub fn ends(uid: &str, nsp: &str) -> [Vec<u8>; 2] {
    let json = format!("\"uid\":{},\"nsp\":{}}}", Value::from(uid).to_json(), Value::from(nsp).to_json());
    let words = ["uid", uid, "nsp", nsp].map(|word| Value::from(word).to_msgpack());
    [json.into_bytes(), words.concat()]
}

/// Reads an envelope; none if it says nothing (see [`ClusterMessage`]).
pub fn read(payload: &[u8]) -> Result<Option<Envelope>, WireError> {
    let mut map = read_json_or_msgpack(payload)?;
    if matches!(map, Value::List(_)) {
        return Err(WireError::OtherKind);
    }
    let kind = map.get("type").and_then(Value::as_u64).ok_or(WireError::Field("type"))?;
    let message = ClusterMessage::read(kind, map.take("data").unwrap_or_default())?;
    let Some(message) = message else { return Ok(None) };
    Ok(Some(Envelope { uid: text(&map, "uid")?, nsp: text(&map, "nsp")?, message }))
}
