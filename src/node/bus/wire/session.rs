//! What is kept of a client that may come back: `sio:session:<pid>`, base64 of MessagePack (wire README, section 6).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::WireFault;
use super::opts::{rooms, rooms_piece, text};
use super::piece::Piece;
use crate::node::hub::adapter::Session;
use crate::node::value::Value;

/// Writes a session.
pub fn write(session: &Session) -> String {
    let piece = Piece::Map(vec![
        ("sid", Piece::Text(&session.sid)),
        ("pid", Piece::Text(&session.pid)),
        ("rooms", rooms_piece(&session.rooms)),
        ("data", Piece::Value(&session.data)),
    ]);
    STANDARD.encode(piece.to_msgpack())
}

/// Reads a session.
pub fn read(kept: &[u8]) -> Result<Session, WireFault> {
    let mut map = Value::from_msgpack(&STANDARD.decode(kept)?)?;
    Ok(Session {
        sid: text(&map, "sid")?.into(),
        pid: text(&map, "pid")?.into(),
        rooms: rooms(map.get("rooms"), "rooms")?,
        data: map.take("data").unwrap_or_default(),
    })
}

/// An offset as a client must give it: the id of an entry, digits, a dash, digits.
pub fn is_offset(text: &str) -> bool {
    parse_offset(text).is_some()
}

/// Milliseconds and sequence of an entry's id.
pub fn parse_offset(text: &str) -> Option<(u64, u64)> {
    let (time, sequence) = text.split_once('-')?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(time) || !digits(sequence) {
        return None;
    }
    Some((time.parse().ok()?, sequence.parse().ok()?))
}
