//! What is kept of a client that may come back: `sio:session:<pid>`, base64 of MessagePack, as in
//! `@socket.io/redis-streams-adapter` 0.3.
//!
//! The user is `data.user`, where the bundled application and many Node.js servers keep it; where that is not the
//! socket's user, a key `user` beside the four of Node.js says it. Another one, `nsp`, names the namespace. Node.js
//! passes over both keys, and writes neither.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::WireError;
use super::opts::{rooms, rooms_piece, text};
use super::wire_part::WirePart;
use crate::operation::Session;
use crate::value::Value;

/// Writes a session.
pub fn write(session: &Session) -> String {
    let mut pieces = vec![
        ("sid", WirePart::Text(&session.sid)),
        ("pid", WirePart::Text(&session.pid)),
        ("rooms", rooms_piece(&session.rooms)),
        ("data", WirePart::Value(&session.data)),
    ];
    let user = session.user.as_deref().map_or(Value::Null, Value::from);
    if user_in(&session.data) != session.user {
        pieces.push(("user", WirePart::Value(&user)));
    }
    if let Some(namespace) = &session.namespace {
        pieces.push(("nsp", WirePart::Text(namespace)));
    }
    STANDARD.encode(WirePart::Map(pieces).to_msgpack())
}

/// Reads a session.
pub fn read(kept: &[u8]) -> Result<Session, WireError> {
    let mut map = Value::from_msgpack(&STANDARD.decode(kept)?)?;
    let data = map.take("data").unwrap_or_default();
    Ok(Session {
        sid: text(&map, "sid")?.into(),
        pid: text(&map, "pid")?.into(),
        rooms: rooms(map.get("rooms"), "rooms")?,
        user: if map.get("user").is_some() { user_in(&map) } else { user_in(&data) },
        namespace: map.get("nsp").and_then(Value::as_text).map(Box::from),
        data,
    })
}

/// The user that a map names. What is no text is nobody that a token can name, and not nobody either.
fn user_in(map: &Value) -> Option<Box<str>> {
    match map.get("user") {
        None | Some(Value::Null) => None,
        Some(Value::Text(name)) => Some((**name).into()),
        Some(other) => Some(other.to_json().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(user: Option<&str>, data: Value) -> Session {
        let (sid, pid) = ("sid".into(), "pid".into());
        Session {
            sid,
            pid,
            data,
            user: user.map(Box::from),
            namespace: Some("/".into()),
            ..Session::default()
        }
    }

    #[test]
    fn the_user_of_a_session_is_read_back_wherever_the_application_keeps_it() {
        let named = |name: &str| Value::map([("user", Value::from(name))]);
        for data in [Value::Null, named("ann"), named("bob"), Value::map([("user", Value::Null)])] {
            for user in [None, Some("ann")] {
                let left = session(user, data.clone());
                assert_eq!(read(write(&left).as_bytes()).unwrap(), left);
            }
        }
    }

    #[test]
    fn a_session_of_node_js_belongs_to_the_user_in_its_data() {
        let of = |data: Value| {
            let node_js = Session { namespace: None, ..session(user_in(&data).as_deref(), data) };
            read(write(&node_js).as_bytes()).unwrap().user
        };
        assert_eq!(of(Value::map([("user", Value::from("ann"))])).as_deref(), Some("ann"));
        assert_eq!(of(Value::map([("name", Value::from("ann"))])), None);
        let whole = Value::map([("user", Value::map([("id", Value::from(7u64))]))]);
        assert_eq!(of(whole).as_deref(), Some(r#"{"id":7}"#));
    }
}
