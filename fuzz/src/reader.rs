//! The node's ways in: WebSocket frames against a naive decoder of the whole stream, polling bodies there and back.

use mainstay_node::engine_io::Revision;
use mainstay_node::engine_io::fuzz::{Messages, Said, body, form, last, packets, script};

use super::input::{Input, Pieces};

/// Bytes that a message may have here.
const LIMIT: u32 = 300;

/// One input: how the stream is cut, then the stream.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let seed = input.byte();
    let stream = input.rest();
    let whole = read(stream, 0);
    if seed != 0 {
        assert_eq!(read(stream, seed), whole, "in pieces it is another stream");
    }
    assert_eq!(whole, decode(stream), "{}", stream.escape_ascii());
}

/// What was said, and how it ended: a close code of the reader's, or that nothing more is wanted.
type Heard = (Vec<Said>, Result<bool, u16>);

fn read(stream: &[u8], seed: u8) -> Heard {
    let (mut messages, mut said) = (Messages::new(LIMIT), Vec::new());
    for piece in Pieces::new(seed, stream.len()) {
        match messages.feed(&mut stream[piece].to_vec(), &mut said) {
            Ok(true) => {}
            end => return (said, end),
        }
    }
    (said, Ok(true))
}

/// The reference.
fn decode(stream: &[u8]) -> Heard {
    let (mut said, mut rest) = (Vec::new(), stream);
    let mut begun: Option<(bool, Vec<u8>)> = None;
    loop {
        let Some(&first) = rest.first() else { return (said, Ok(true)) };
        if first & 0x70 != 0 {
            return (said, Err(1002));
        }
        let Some(&second) = rest.get(1) else { return (said, Ok(true)) };
        let (is_last, opcode, short) = (first & 0x80 != 0, first & 15, usize::from(second & 127));
        if opcode >= 8 && (short > 125 || !is_last) {
            return (said, Err(1002));
        }
        let extra = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(long) = rest.get(2..2 + extra) else { return (said, Ok(true)) };
        let length = match extra {
            0 => short as u64,
            _ => long.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        if length >> 63 != 0 {
            return (said, Err(1002));
        }
        let is_masked = second & 0x80 != 0;
        let mask = rest.get(2 + extra..6 + extra);
        if is_masked && mask.is_none() {
            return (said, Ok(true));
        }
        let fits = match opcode {
            0 => begun.is_some(),
            1 | 2 => begun.is_none(),
            8..=10 => true,
            _ => false,
        };
        let (true, true, Some(mask)) = (fits, is_masked, mask) else { return (said, Err(1002)) };
        let before = begun.as_ref().map_or(0, |(_, data)| data.len() as u64);
        if opcode < 8 && length.saturating_add(before) > u64::from(LIMIT) {
            return (said, Err(1009));
        }
        let Some(masked) = rest.get(6 + extra..6 + extra + length as usize) else { return (said, Ok(true)) };
        rest = &rest[6 + extra + length as usize..];
        let payload: Vec<u8> = masked.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
        match opcode {
            8 => return close(payload, said),
            9 => said.push(Said::Ping(payload)),
            10 => said.push(Said::Pong),
            _ => {
                let (is_text, mut data) = begun.take().unwrap_or((opcode == 1, Vec::new()));
                data.extend_from_slice(&payload);
                match (is_last, is_text) {
                    (false, _) => begun = Some((is_text, data)),
                    (true, false) => said.push(Said::Binary(data)),
                    (true, true) => match String::from_utf8(data) {
                        Ok(text) => said.push(Said::Text(text)),
                        Err(_) => return (said, Err(1007)),
                    },
                }
            }
        }
    }
}

fn close(payload: Vec<u8>, mut said: Vec<Said>) -> Heard {
    let code = match payload[..] {
        [] => None,
        [_] => return (said, Err(1002)),
        [high, low, ..] => Some(u16::from(high) << 8 | u16::from(low)),
    };
    if code.is_some_and(|code| !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)) {
        return (said, Err(1002));
    }
    if str::from_utf8(payload.get(2..).unwrap_or_default()).is_err() {
        return (said, Err(1007));
    }
    said.push(Said::Close(code));
    (said, Ok(false))
}

/// One input: the form, then a polling body.
pub fn payload(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let bytes = input.rest();
    let (revision, takes_binary) = match kind & 3 {
        0 | 1 => (Revision::Four, false),
        2 => (Revision::Three, false),
        _ => (Revision::Three, true),
    };
    let said = packets(bytes, revision, takes_binary, usize::MAX);
    let first = packets(bytes, revision, takes_binary, 1);
    assert_eq!(first[..], said[..first.len()], "who wants no more hears no more");
    // What is messages comes back from a body of ours; a text of protocol 4 cannot hold the separator.
    let messages: Vec<Said> =
        said.into_iter().filter(|said| matches!(said, Said::Text(_) | Said::Binary(_))).collect();
    if !messages.is_empty() {
        let written = body(&messages, revision, takes_binary);
        // Without bytes in it, a body is text for everybody.
        let is_binary = takes_binary && messages.iter().any(|said| matches!(said, Said::Binary(_)));
        assert_eq!(packets(&written, revision, is_binary, usize::MAX), messages);
        if let Ok(text) = str::from_utf8(&written) {
            scripted(text);
        }
    }
    if let Ok(text) = str::from_utf8(bytes) {
        let _ = (form(text), last(text, "sid"));
        scripted(text);
    }
}

/// What stands in a script is the payload, as a JSON parser reads it.
fn scripted(payload: &str) {
    let script = script("0", payload);
    let literal = script.strip_prefix("___eio[0](").and_then(|rest| rest.strip_suffix(");"));
    let literal = literal.expect("it is a call");
    assert_eq!(serde_json::from_str::<String>(literal).ok().as_deref(), Some(payload));
    assert!(!script.contains(['\n', '\u{2028}', '\u{2029}']));
}
