//! The entries of a stream of `@socket.io/redis-streams-adapter` 0.3, and which stream is a namespace's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::WireError;
use super::envelope::{ClusterMessage, Dialect, Envelope};
use crate::value::Value;

/// Which stream a namespace is written to when there are several: Node's hash over UTF-16, and its remainder, which keeps
/// the sign, so that some namespaces are written to a stream that no Node.js reads.
pub fn stream_of(name: &str, nsp: &str, streams: u32) -> String {
    if streams <= 1 {
        return name.to_owned();
    }
    let hash =
        nsp.encode_utf16().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    format!("{name}-{}", i64::from(hash) % i64::from(streams))
}

/// The streams that a node reads: those that Node.js reads and those that it only writes.
pub fn streams_to_read(name: &str, streams: u32) -> Vec<String> {
    if streams <= 1 {
        return vec![name.to_owned()];
    }
    let last = i64::from(streams) - 1;
    (-last..=last).map(|index| format!("{name}-{index}")).collect()
}

/// The fields of an entry, in the order in which Node.js writes them. With `only_plaintext` bytes are flattened.
pub fn fields(
    message: &ClusterMessage,
    uid: &str,
    nsp: &str,
    only_plaintext: bool,
) -> [(&'static str, String); 4] {
    let data = message.data_piece(Dialect::Streams);
    // Of what goes through a stream only broadcasts can hold bytes.
    let data = match data.has_binary() && !only_plaintext {
        true => STANDARD.encode(data.to_msgpack()),
        false => data.to_json(),
    };
    [("uid", uid.to_owned()), ("nsp", nsp.to_owned()), ("type", message.kind().to_string()), ("data", data)]
}

fn text<'a>(bytes: Option<&'a [u8]>, field: &'static str) -> Result<&'a str, WireError> {
    bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or(WireError::Field(field))
}

/// Reads an entry's fields, in whatever order they are; none if they say nothing (heartbeats of the generation before).
pub fn read<'a>(
    fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<Option<Envelope>, WireError> {
    let (mut uid, mut nsp, mut kind, mut data) = (None, None, None, None);
    for (field, value) in fields {
        match field {
            b"uid" => uid = Some(value),
            b"nsp" => nsp = Some(value),
            b"type" => kind = Some(value),
            b"data" => data = Some(value),
            _ => {}
        }
    }
    let kind = text(kind, "type")?.parse().map_err(|_| WireError::Field("type"))?;
    let data = match data {
        None => Value::Null,
        Some(json) if json.first() == Some(&b'{') => Value::from_wire_json(json)?,
        Some(base64) => Value::from_msgpack(&STANDARD.decode(base64)?)?,
    };
    let Some(message) = ClusterMessage::read(kind, data)? else { return Ok(None) };
    Ok(Some(Envelope { uid: text(uid, "uid")?.to_owned(), nsp: text(nsp, "nsp")?.to_owned(), message }))
}
