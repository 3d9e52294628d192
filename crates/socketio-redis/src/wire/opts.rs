//! Rooms, options and sockets, which all formats share, and reading them with care.
//!
//! A room may be a number, which Node.js keeps apart from the text of it: it goes out as it came in. An
//! absent flag is false, an absent list is empty; a list that is something else is a fault.

use std::time::Duration;

use super::WireError;
use super::wire_part::WirePart;
use crate::operation::{BroadcastFlags, RemoteSocket, Room, Target};
use crate::value::Value;

/// Packet type EVENT, which a broadcast keeps on the wire even with bytes in it.
const EVENT: u64 = 2;

/// A room as it stands in a list of rooms.
pub(super) fn room_value(room: &Room) -> Value {
    match room.numeric {
        // What is no number after all is text.
        true => Value::from_json(&room.name).unwrap_or_else(|_| Value::from(&*room.name)),
        false => Value::from(&*room.name),
    }
}

pub(super) fn rooms_piece(rooms: &[Room]) -> WirePart<'static> {
    WirePart::Owned(Value::List(rooms.iter().map(room_value).collect()))
}

pub(super) fn room(value: &Value) -> Option<Room> {
    match value {
        Value::Text(name) => Some(Room::text(name)),
        Value::Int(_) | Value::Uint(_) | Value::Float(_) => {
            Some(Room { name: value.to_json().into(), numeric: true })
        }
        // Nothing that is in a room of another kind can be meant on this node.
        _ => None,
    }
}

/// The rooms of a list; an absent one is empty.
pub(super) fn rooms(list: Option<&Value>, field: &'static str) -> Result<Vec<Room>, WireError> {
    match list {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::List(items)) => {
            items.iter().map(|item| room(item).ok_or(WireError::Field(field))).collect()
        }
        Some(_) => Err(WireError::Field(field)),
    }
}

/// `{rooms, except}`, and `flags` where the format has them.
pub(super) fn opts_piece(target: &Target, flags: Option<&BroadcastFlags>) -> WirePart<'static> {
    let mut entries = vec![("rooms", rooms_piece(&target.rooms)), ("except", rooms_piece(&target.except))];
    if let Some(flags) = flags {
        entries.push(("flags", flags_piece(flags)));
    }
    WirePart::Map(entries)
}

fn flags_piece(flags: &BroadcastFlags) -> WirePart<'static> {
    let mut entries = Vec::new();
    if flags.volatile {
        entries.push(("volatile", WirePart::Bool(true)));
    }
    if let Some(compress) = flags.compress {
        entries.push(("compress", WirePart::Bool(compress)));
    }
    if flags.expect_single_response {
        entries.push(("expectSingleResponse", WirePart::Bool(true)));
    }
    if let Some(timeout) = flags.timeout {
        entries.push(("timeout", WirePart::Number(timeout.as_millis() as u64)));
    }
    WirePart::Map(entries)
}

pub(super) fn opts(opts: Option<&Value>) -> Result<(Target, BroadcastFlags), WireError> {
    let Some(opts) = opts else { return Err(WireError::Field("opts")) };
    let target = Target {
        rooms: rooms(opts.get("rooms"), "opts.rooms")?,
        except: rooms(opts.get("except"), "opts.except")?,
    };
    let flag = |name| opts.get("flags").and_then(|flags| flags.get(name));
    let flags = BroadcastFlags {
        volatile: flag("volatile").and_then(Value::as_bool).unwrap_or_default(),
        compress: flag("compress").and_then(Value::as_bool),
        expect_single_response: flag("expectSingleResponse").and_then(Value::as_bool).unwrap_or_default(),
        timeout: flag("timeout").and_then(Value::as_u64).map(Duration::from_millis),
    };
    Ok((target, flags))
}

/// `{type: 2, data}`, and `nsp` where the format has it.
pub(super) fn packet_piece<'a>(data: &'a [Value], nsp: Option<&'a str>) -> WirePart<'a> {
    let mut entries = vec![("type", WirePart::Number(EVENT)), ("data", WirePart::Values(data))];
    if let Some(nsp) = nsp {
        entries.push(("nsp", WirePart::Text(nsp)));
    }
    WirePart::Map(entries)
}

/// The arguments of a packet, and the namespace that it names.
pub(super) fn packet(packet: Option<Value>) -> Result<(Vec<Value>, Option<String>), WireError> {
    let mut packet = packet.ok_or(WireError::Field("packet"))?;
    let nsp = packet.get("nsp").and_then(Value::as_text).map(str::to_owned);
    match packet.take("data") {
        Some(Value::List(data)) => Ok((data, nsp)),
        _ => Err(WireError::Field("packet.data")),
    }
}

pub(super) fn sockets_piece(sockets: &[RemoteSocket]) -> WirePart<'_> {
    WirePart::List(sockets.iter().map(socket_piece).collect())
}

fn socket_piece(socket: &RemoteSocket) -> WirePart<'_> {
    WirePart::Map(vec![
        ("id", WirePart::Text(&socket.id)),
        ("handshake", WirePart::Value(&socket.handshake)),
        ("rooms", rooms_piece(&socket.rooms)),
        ("data", WirePart::Value(&socket.data)),
    ])
}

pub(super) fn sockets(list: Value) -> Result<Vec<RemoteSocket>, WireError> {
    let Value::List(items) = list else { return Err(WireError::Field("sockets")) };
    let socket = |mut item: Value| {
        Ok(RemoteSocket {
            id: item.get("id").and_then(Value::as_text).ok_or(WireError::Field("sockets.id"))?.into(),
            rooms: rooms(item.get("rooms"), "sockets.rooms")?,
            handshake: item.take("handshake").unwrap_or_default(),
            data: item.take("data").unwrap_or_default(),
        })
    };
    items.into_iter().map(socket).collect()
}

/// A field that must be text.
pub(super) fn text(map: &Value, field: &'static str) -> Result<String, WireError> {
    optional_text(map, field).ok_or(WireError::Field(field))
}

/// A field that may be text.
pub(super) fn optional_text(map: &Value, field: &'static str) -> Option<String> {
    map.get(field).and_then(Value::as_text).map(str::to_owned)
}

/// A payload that may be JSON or MessagePack, told apart by its first byte.
pub(super) fn read_json_or_msgpack(payload: &[u8]) -> Result<Value, WireError> {
    match payload.first() {
        Some(b'{') => Ok(Value::from_wire_json(payload)?),
        _ => Ok(Value::from_msgpack(payload)?),
    }
}
