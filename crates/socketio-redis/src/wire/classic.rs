//! `createAdapter` of `@socket.io/redis-adapter` 8.3: broadcasts as MessagePack arrays, requests and responses as JSON
//! objects with a number for a type, and of those the broadcasts with acks and the acks as MessagePack.

use bytes::Bytes;

use super::WireError;
use super::opts::{
    optional_text, opts, opts_piece, packet, packet_piece, read_json_or_msgpack, rooms, rooms_piece, sockets,
};
use super::opts::{sockets_piece, text};
use super::wire_part::WirePart;
use crate::operation::{BroadcastFlags, RemoteSocket, Room, Target};
use crate::value::Value;

/// The uid of `@socket.io/redis-emitter`, which is no node and answers nothing.
pub const EMITTER_UID: &str = "emitter";

/// The channels of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassicChannels {
    /// Broadcasts, `key#nsp#`; with a room and `#` behind it for exactly one room.
    pub broadcast: String,
    /// `key-request#nsp#`; its subscribers are the nodes.
    pub request: String,
    /// `key-response#nsp#`.
    pub response: String,
}

impl ClassicChannels {
    /// Those of a namespace under a key (`socket.io` unless it is set).
    pub fn new(key: &str, nsp: &str) -> ClassicChannels {
        ClassicChannels {
            broadcast: format!("{key}#{nsp}#"),
            request: format!("{key}-request#{nsp}#"),
            response: format!("{key}-response#{nsp}#"),
        }
    }

    /// The pattern for all broadcasts. Node.js does not escape the namespace, so that one with `[` in its name never
    /// hears its peers; this one does.
    pub fn pattern(&self) -> String {
        let mut pattern = String::with_capacity(self.broadcast.len() + 1);
        for letter in self.broadcast.chars() {
            if matches!(letter, '*' | '?' | '[' | ']' | '\\') {
                pattern.push('\\');
            }
            pattern.push(letter);
        }
        pattern + "*"
    }

    /// The channel of a broadcast: that of its room if it is exactly one.
    pub fn of_target(&self, target: &Target) -> String {
        match &*target.rooms {
            [room] => format!("{}{}#", self.broadcast, room.name),
            _ => self.broadcast.clone(),
        }
    }

    /// The room that a channel of broadcasts names; a room may have a `#` in it.
    pub fn room<'a>(&self, channel: &'a str) -> Option<&'a str> {
        channel.strip_prefix(&*self.broadcast)?.strip_suffix('#').filter(|room| !room.is_empty())
    }

    /// The channel of responses to one node.
    pub fn response_to(&self, uid: &str) -> String {
        format!("{}{uid}#", self.response)
    }
}

/// A broadcast without acks.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassicBroadcast {
    /// Who sent it.
    pub uid: String,
    /// The namespace that its packet names; `/` if it names none.
    pub nsp: String,
    /// Event and arguments.
    pub data: Vec<Value>,
    /// For whom it is.
    pub target: Target,
    /// How it is to be sent.
    pub flags: BroadcastFlags,
}

/// Writes a broadcast.
pub fn write_broadcast(
    uid: &str,
    nsp: &str,
    data: &[Value],
    target: &Target,
    flags: &BroadcastFlags,
) -> Bytes {
    let parts = vec![WirePart::Text(uid), packet_piece(data, Some(nsp)), opts_piece(target, Some(flags))];
    WirePart::List(parts).to_msgpack().into()
}

/// Whether a payload is a broadcast of this sender, told from its first bytes.
pub fn is_broadcast_of(uid: &str, payload: &[u8]) -> bool {
    // A list of three, then a text of less than 32 bytes.
    let after_list = payload.strip_prefix(&[0x93]);
    after_list
        .and_then(|rest| rest.strip_prefix(&[0xa0 | uid.len() as u8]))
        .is_some_and(|rest| uid.len() < 32 && rest.starts_with(uid.as_bytes()))
}

/// Reads what came on a channel of broadcasts.
pub fn read_broadcast(payload: &[u8]) -> Result<ClassicBroadcast, WireError> {
    // A sharded adapter with the same prefix sends JSON here, one of the streams adapter a map.
    let Value::List(parts) = read_json_or_msgpack(payload)? else { return Err(WireError::OtherKind) };
    let mut parts = parts.into_iter();
    let (Some(Value::Text(uid)), packet_value, opts_value) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(WireError::Field("uid"));
    };
    let (data, nsp) = packet(packet_value)?;
    let (target, flags) = opts(opts_value.as_ref())?;
    Ok(ClassicBroadcast { uid: uid.into(), nsp: nsp.unwrap_or_else(|| "/".to_owned()), data, target, flags })
}

/// What came on the channel of requests.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "fields bear the names that they have on the wire")]
pub enum Request {
    /// 0: the ids of the sockets in these rooms; only old peers ask.
    Sockets { request: String, rooms: Vec<Room> },
    /// 1: all rooms.
    AllRooms { uid: Option<String>, request: String },
    /// 2: whoever is selected joins these rooms.
    Join { uid: Option<String>, target: Target, rooms: Vec<Room> },
    /// 3: and leaves them.
    Leave { uid: Option<String>, target: Target, rooms: Vec<Room> },
    /// 4: and is disconnected.
    Disconnect { uid: Option<String>, target: Target, close: bool },
    /// 2 of old peers: one socket joins a room, and its node says so.
    JoinOne { request: String, sid: String, room: Room },
    /// 3 of old peers.
    LeaveOne { request: String, sid: String, room: Room },
    /// 4 of old peers.
    DisconnectOne { request: String, sid: String, close: bool },
    /// 5: who is selected, with everything about them.
    Fetch { uid: Option<String>, request: String, target: Target },
    /// 6: an event for the servers themselves; with a request id an answer is wanted.
    ServerSideEmit { uid: Option<String>, request: Option<String>, data: Vec<Value> },
    /// 7: a broadcast whose clients answer.
    BroadcastWithAck {
        uid: Option<String>,
        request: String,
        nsp: String,
        data: Vec<Value>,
        target: Target,
        flags: BroadcastFlags,
    },
}

impl Request {
    /// Writes it: JSON, and MessagePack for a broadcast with acks.
    pub fn write(&self) -> Bytes {
        let (kind, uid, request) = (self.kind(), self.uid(), self.request());
        let mut entries = Vec::new();
        if let Some(uid) = uid {
            entries.push(("uid", WirePart::Text(uid)));
        }
        // Requests without a uid are those of old peers and emitters, which have the type first.
        if uid.is_none() {
            entries.push(("type", WirePart::Number(kind)));
        }
        if let Some(request) = request {
            entries.push(("requestId", WirePart::Text(request)));
        }
        if uid.is_some() {
            entries.push(("type", WirePart::Number(kind)));
        }
        let json = |mut entries: Vec<_>, more: Vec<_>| {
            entries.extend(more);
            WirePart::Map(entries).to_json().into()
        };
        match self {
            Request::AllRooms { .. } => json(entries, vec![]),
            Request::Sockets { rooms, .. } => json(entries, vec![("rooms", rooms_piece(rooms))]),
            Request::Join { target, rooms, .. } | Request::Leave { target, rooms, .. } => {
                json(entries, vec![("opts", opts_piece(target, None)), ("rooms", rooms_piece(rooms))])
            }
            Request::Disconnect { target, close, .. } => {
                json(entries, vec![("opts", opts_piece(target, None)), ("close", WirePart::Bool(*close))])
            }
            Request::JoinOne { sid, room, .. } | Request::LeaveOne { sid, room, .. } => {
                let room = WirePart::Owned(super::opts::room_value(room));
                json(entries, vec![("sid", WirePart::Text(sid)), ("room", room)])
            }
            Request::DisconnectOne { sid, close, .. } => {
                json(entries, vec![("sid", WirePart::Text(sid)), ("close", WirePart::Bool(*close))])
            }
            Request::Fetch { target, .. } => json(entries, vec![("opts", opts_piece(target, None))]),
            Request::ServerSideEmit { data, .. } => json(entries, vec![("data", WirePart::Values(data))]),
            Request::BroadcastWithAck { nsp, data, target, flags, .. } => {
                entries.push(("packet", packet_piece(data, Some(nsp))));
                entries.push(("opts", opts_piece(target, Some(flags))));
                WirePart::Map(entries).to_msgpack().into()
            }
        }
    }

    fn kind(&self) -> u64 {
        match self {
            Request::Sockets { .. } => 0,
            Request::AllRooms { .. } => 1,
            Request::Join { .. } | Request::JoinOne { .. } => 2,
            Request::Leave { .. } | Request::LeaveOne { .. } => 3,
            Request::Disconnect { .. } | Request::DisconnectOne { .. } => 4,
            Request::Fetch { .. } => 5,
            Request::ServerSideEmit { .. } => 6,
            Request::BroadcastWithAck { .. } => 7,
        }
    }

    /// Who sent it, if it says so: an emitter and old peers do not.
    pub fn uid(&self) -> Option<&str> {
        match self {
            Request::Sockets { .. }
            | Request::JoinOne { .. }
            | Request::LeaveOne { .. }
            | Request::DisconnectOne { .. } => None,
            Request::AllRooms { uid, .. }
            | Request::Join { uid, .. }
            | Request::Leave { uid, .. }
            | Request::Disconnect { uid, .. }
            | Request::Fetch { uid, .. }
            | Request::ServerSideEmit { uid, .. }
            | Request::BroadcastWithAck { uid, .. } => uid.as_deref(),
        }
    }

    /// Under which name an answer is awaited.
    pub fn request(&self) -> Option<&str> {
        match self {
            Request::Join { .. } | Request::Leave { .. } | Request::Disconnect { .. } => None,
            Request::ServerSideEmit { request, .. } => request.as_deref(),
            Request::Sockets { request, .. }
            | Request::AllRooms { request, .. }
            | Request::JoinOne { request, .. }
            | Request::LeaveOne { request, .. }
            | Request::DisconnectOne { request, .. }
            | Request::Fetch { request, .. }
            | Request::BroadcastWithAck { request, .. } => Some(request),
        }
    }
}

/// Reads what came on the channel of requests.
pub fn read_request(payload: &[u8]) -> Result<Request, WireError> {
    let mut map = read_json_or_msgpack(payload)?;
    let kind = map.get("type").and_then(Value::as_u64).ok_or(WireError::Field("type"))?;
    let uid = optional_text(&map, "uid");
    let request = text(&map, "requestId");
    let one = |map: &Value| {
        let room = map.get("room").and_then(super::opts::room).ok_or(WireError::Field("room"));
        (text(map, "sid"), room, map.get("close").and_then(Value::as_bool).unwrap_or_default())
    };
    let many =
        |map: &Value| Ok::<_, WireError>((opts(map.get("opts"))?.0, rooms(map.get("rooms"), "rooms")?));
    let is_old = map.get("opts").is_none();
    Ok(match kind {
        0 => Request::Sockets { request: request?, rooms: rooms(map.get("rooms"), "rooms")? },
        1 => Request::AllRooms { uid, request: request? },
        2..=4 if is_old => {
            let (sid, room, close) = one(&map);
            match kind {
                2 => Request::JoinOne { request: request?, sid: sid?, room: room? },
                3 => Request::LeaveOne { request: request?, sid: sid?, room: room? },
                _ => Request::DisconnectOne { request: request?, sid: sid?, close },
            }
        }
        2 => many(&map).map(|(target, rooms)| Request::Join { uid, target, rooms })?,
        3 => many(&map).map(|(target, rooms)| Request::Leave { uid, target, rooms })?,
        4 => {
            let close = map.get("close").and_then(Value::as_bool).unwrap_or_default();
            Request::Disconnect { uid, target: opts(map.get("opts"))?.0, close }
        }
        5 => Request::Fetch { uid, request: request?, target: opts(map.get("opts"))?.0 },
        6 => match map.take("data") {
            Some(Value::List(data)) => Request::ServerSideEmit { uid, request: request.ok(), data },
            _ => return Err(WireError::Field("data")),
        },
        7 => {
            let (target, flags) = opts(map.get("opts"))?;
            let (data, nsp) = packet(map.take("packet"))?;
            let nsp = nsp.unwrap_or_else(|| "/".to_owned());
            Request::BroadcastWithAck { uid, request: request?, nsp, data, target, flags }
        }
        other => return Err(WireError::Type(other)),
    })
}

/// What came on a channel of responses. Only some have a type: which one is meant is known from the request.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "fields bear the names that they have on the wire")]
pub enum Response {
    /// To 0.
    Sids { request: String, sids: Vec<String> },
    /// To 1.
    Rooms { request: String, rooms: Vec<Room> },
    /// To old 2, 3 and 4; and to everything that is answered with nothing.
    Done { request: String },
    /// To 5.
    Sockets { request: String, sockets: Vec<RemoteSocket> },
    /// To 6.
    ServerSideEmit { request: String, data: Value },
    /// 8, to 7: how many clients were asked.
    Count { request: String, count: u64 },
    /// 9, to 7: the answer of one client; none if it sent no value.
    Ack { request: String, packet: Option<Value> },
}

impl Response {
    /// Writes it: JSON, and MessagePack for an ack.
    pub fn write(&self) -> Bytes {
        let map = |entries| WirePart::Map(entries).to_json().into();
        match self {
            Response::Sids { request, sids } => {
                let sids = WirePart::List(sids.iter().map(|sid| WirePart::Text(sid)).collect());
                map(vec![("requestId", WirePart::Text(request)), ("sockets", sids)])
            }
            Response::Rooms { request, rooms } => {
                map(vec![("requestId", WirePart::Text(request)), ("rooms", rooms_piece(rooms))])
            }
            Response::Done { request } => map(vec![("requestId", WirePart::Text(request))]),
            Response::Sockets { request, sockets } => {
                map(vec![("requestId", WirePart::Text(request)), ("sockets", sockets_piece(sockets))])
            }
            Response::ServerSideEmit { request, data } => {
                let entries = vec![("type", WirePart::Number(6)), ("requestId", WirePart::Text(request))];
                map(entries.into_iter().chain([("data", WirePart::Value(data))]).collect())
            }
            Response::Count { request, count } => {
                let entries = vec![("type", WirePart::Number(8)), ("requestId", WirePart::Text(request))];
                map(entries.into_iter().chain([("clientCount", WirePart::Number(*count))]).collect())
            }
            Response::Ack { request, packet } => {
                let mut entries = vec![("type", WirePart::Number(9)), ("requestId", WirePart::Text(request))];
                entries.extend(packet.as_ref().map(|packet| ("packet", WirePart::Value(packet))));
                WirePart::Map(entries).to_msgpack().into()
            }
        }
    }

    /// To which request it is.
    pub fn request(&self) -> &str {
        match self {
            Response::Sids { request, .. }
            | Response::Rooms { request, .. }
            | Response::Done { request }
            | Response::Sockets { request, .. }
            | Response::ServerSideEmit { request, .. }
            | Response::Count { request, .. }
            | Response::Ack { request, .. } => request,
        }
    }
}

/// Reads what came on a channel of responses.
pub fn read_response(payload: &[u8]) -> Result<Response, WireError> {
    let mut map = read_json_or_msgpack(payload)?;
    let request = text(&map, "requestId")?;
    match map.get("type").and_then(Value::as_u64) {
        Some(6) => {
            return Ok(Response::ServerSideEmit { request, data: map.take("data").unwrap_or_default() });
        }
        Some(8) => {
            let count =
                map.get("clientCount").and_then(Value::as_u64).ok_or(WireError::Field("clientCount"))?;
            return Ok(Response::Count { request, count });
        }
        Some(9) => return Ok(Response::Ack { request, packet: map.take("packet") }),
        // Types 0 to 5 are not written by any version that is known.
        _ => {}
    }
    match (map.take("sockets"), map.get("rooms")) {
        (Some(Value::List(items)), _)
            if items.iter().all(|item| item.as_text().is_some()) && !items.is_empty() =>
        {
            let sids = items.iter().filter_map(Value::as_text).map(str::to_owned).collect();
            Ok(Response::Sids { request, sids })
        }
        (Some(list), _) => Ok(Response::Sockets { request, sockets: sockets(list)? }),
        (None, Some(list)) => Ok(Response::Rooms { request, rooms: rooms(Some(list), "rooms")? }),
        (None, None) => Ok(Response::Done { request }),
    }
}
