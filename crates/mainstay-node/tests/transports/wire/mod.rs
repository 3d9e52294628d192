//! The recorded exchanges between clients and a real Node.js Socket.IO server, and their replay against a server of ours.
//!
//! `tests/transports/wire/client-protocol.json` is the record. A replay says the client's lines and compares what comes back:
//! status, headers and body of each HTTP answer, each WebSocket frame, each close. Sids differ from run to run and are
//! masked; everything else must be equal.

pub mod http;
mod websocket;

use std::net::SocketAddr;

use serde_json::Value;

/// The cases of the record, in its order.
pub fn cases() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transports/wire/client-protocol.json");
    let mut record: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = std::mem::take(record["cases"].as_array_mut().unwrap());
    assert_eq!(cases.len(), 83);
    cases
}

/// Replays a case of the kinds `http` and `ws`; the fault says the first difference.
pub async fn replay(case: &Value, address: SocketAddr) -> Result<(), String> {
    match case["kind"].as_str().unwrap() {
        "http" => http::replay(case, address).await,
        "ws" => websocket::replay(case, address).await,
        kind => panic!("{kind} has no replay"),
    }
}

/// What the client sends for a recorded text: the record cuts long ones and says their length.
fn whole(recorded: &str) -> String {
    let Some((head, length)) = recorded.split_once("… (") else { return recorded.to_owned() };
    let length: usize = length.trim_end_matches(" bytes)").parse().unwrap();
    let tail = if head.starts_with("42[") { "\"]" } else { "" };
    format!("{head}{}{tail}", "x".repeat(length - head.len() - tail.len()))
}

/// The text with every sid masked: those that JSON names, and the cookie's.
fn masked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    for mark in ["\"sid\":\"", "\\\"sid\\\":\\\"", "io="] {
        let from = if out.is_empty() { rest.to_owned() } else { std::mem::take(&mut out) };
        let mut parts = from.split(mark);
        out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            out.push_str(mark);
            let sid =
                part.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte)).count();
            out.push_str(if sid == 20 { "*" } else { &part[..sid] });
            out.push_str(&part[sid..]);
        }
        rest = "";
    }
    out
}

/// Fails with both sides when they differ.
fn equal(what: &str, recorded: &str, ours: &str) -> Result<(), String> {
    let (recorded, ours) = (masked(recorded), masked(ours));
    if recorded == ours { Ok(()) } else { Err(format!("{what}: recorded {recorded:?}, ours {ours:?}")) }
}

#[test]
fn sids_are_masked_and_nothing_else_is() {
    let sid = "ZvmOvg5Z8KKn8VG6AAAA";
    let text = format!("0{{\"sid\":\"{sid}\",\"a\":\"{sid}\"}} {{\\\"sid\\\":\\\"{sid}\\\"}} io={sid};");
    let expected = format!("0{{\"sid\":\"*\",\"a\":\"{sid}\"}} {{\\\"sid\\\":\\\"*\\\"}} io=*;");
    assert_eq!(masked(&text), expected);
    assert_eq!(whole("4xx… (10 bytes)"), "4xxxxxxxxx");
    assert_eq!(whole("42[\"x\",\"x… (20 bytes)").len(), 20);
}
