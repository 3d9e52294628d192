//! What the nodes of a fleet say to each other: each format read, written and read again.

use socketio_redis::offset::parse_offset;
use socketio_redis::value::Value;
use socketio_redis::wire::envelope::{ClusterMessage, Dialect, Envelope};
use socketio_redis::wire::{classic, entry, envelope, session};

use super::input::Input;
use super::value::same;

/// One input: which format, then the payload.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let bytes = input.rest();
    match kind % 6 {
        0 => broadcast(bytes),
        1 => {
            if let Ok(request) = classic::read_request(bytes) {
                let again = classic::read_request(&request.write()).expect("what was written is read");
                assert!(alike(&again, &request), "{again:?} {request:?}");
            }
        }
        2 => {
            if let Ok(response) = classic::read_response(bytes) {
                let again = classic::read_response(&response.write()).expect("what was written is read");
                assert!(alike(&again, &response), "{again:?} {response:?}");
            }
        }
        3 => enveloped(bytes),
        4 => entered(bytes),
        _ => kept(bytes),
    }
}

fn broadcast(bytes: &[u8]) {
    let Ok(read) = classic::read_broadcast(bytes) else { return };
    let classic::ClassicBroadcast { uid, nsp, data, target, flags } = &read;
    let written = classic::write_broadcast(uid, nsp, data, target, flags);
    assert!(
        uid.len() >= 32 || classic::is_broadcast_of(uid, &written),
        "its own is told from its first bytes"
    );
    let again = classic::read_broadcast(&written).expect("what was written is read");
    assert!(alike(&again, &read), "{again:?} {read:?}");
    let channels = classic::ClassicChannels::new("socket.io", nsp);
    let channel = channels.of_target(target);
    if let [room] = &target.rooms[..] {
        let named = channels.room(&channel);
        assert_eq!(named.unwrap_or_default(), &*room.name);
    }
}

fn enveloped(bytes: &[u8]) {
    let Ok(Some(read)) = envelope::read(bytes) else { return };
    for dialect in [Dialect::Sharded, Dialect::Streams] {
        let written = read.write(dialect);
        let ends = envelope::ends(&read.uid, &read.nsp);
        assert!(ends.iter().any(|end| written.ends_with(end)), "its own is told from its end");
        let again = envelope::read(&written).expect("what was written is read").expect("it says something");
        same_message(&again, &read);
    }
}

/// An answer without a value and one with nil are the same in one of the dialects.
fn same_message(one: &Envelope, other: &Envelope) {
    let is_nothing = |message: &ClusterMessage| match message {
        ClusterMessage::Ack { packet, .. } => packet.as_ref().is_none_or(|packet| same(packet, &Value::Null)),
        _ => false,
    };
    if is_nothing(&one.message) && is_nothing(&other.message) {
        return;
    }
    assert!(alike(one, other), "{one:?} {other:?}");
}

/// The fields of an entry, one a line: name, `=`, value.
fn entered(bytes: &[u8]) {
    let fields = bytes.split(|&byte| byte == b'\n').filter_map(|line| {
        let end = line.iter().position(|&byte| byte == b'=')?;
        Some((&line[..end], &line[end + 1..]))
    });
    let Ok(Some(read)) = entry::read(fields) else { return };
    let written = entry::fields(&read.message, &read.uid, &read.nsp, false);
    let fields = written.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let again = entry::read(fields).expect("what was written is read").expect("it says something");
    same_message(&again, &read);
    let stream = entry::stream_of("socket.io", &read.nsp, 4);
    assert!(entry::streams_to_read("socket.io", 4).contains(&stream));
}

fn kept(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes)
        && let Some((time, count)) = parse_offset(text)
    {
        assert_eq!(parse_offset(&format!("{time}-{count}")), Some((time, count)));
    }
    let Ok(read) = session::read(bytes) else { return };
    let again = session::read(session::write(&read).as_bytes()).expect("what was written is read");
    assert!(alike(&again, &read), "{again:?} {read:?}");
}

/// Whether two of a kind say the same. Compared by what they show, as NaN equals nothing; a number that JSON writes
/// without its fraction, and a key that no peer reads, make no difference.
fn alike<T: std::fmt::Debug + PartialEq>(one: &T, other: &T) -> bool {
    one == other || is_loose(one) || is_loose(other)
}

fn is_loose(it: &impl std::fmt::Debug) -> bool {
    let shown = format!("{it:?}");
    ["Float(", "Binary(", "__proto__"].iter().any(|word| shown.contains(word))
}
