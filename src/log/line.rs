//! One event as one line, in JSON or in text.
//!
//! A line is one line whatever a name holds: JSON escapes by its own rules, and text quotes everything that is
//! not plain letters, digits and a few signs.

use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Format;
use super::access::{Close, Event, Open};

/// Appends the event and a line feed.
pub(super) fn write(out: &mut Vec<u8>, format: Format, event: &Event) {
    let line = match event {
        Event::Open(open) => Line::from(open),
        Event::Close(close) => Line::from(close),
    };
    match format {
        // Neither a `Vec` nor these types can make the serializer fail.
        Format::Json => drop(serde_json::to_writer(&mut *out, &line)),
        Format::Text => text(out, &line),
    }
    out.push(b'\n');
}

/// A line's fields, in the order in which they are written.
#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    time: String,
    id: String,
    client: Option<IpAddr>,
    route: &'a str,
    pool: &'a str,
    node: &'a str,
    affinity: Affinity,
    #[serde(flatten)]
    end: Option<End>,
}

#[derive(Serialize)]
struct Affinity {
    source: &'static str,
    outcome: &'static str,
}

/// What only a close has.
#[derive(Serialize)]
struct End {
    side: &'static str,
    code: u16,
    why: &'static str,
    /// Seconds, to the millisecond.
    duration: f64,
    bytes: Both,
    messages: Both,
}

#[derive(Serialize)]
struct Both {
    r#in: u64,
    out: u64,
}

impl<'a> From<&'a Open> for Line<'a> {
    fn from(open: &'a Open) -> Self {
        Self {
            event: "open",
            time: time(open.at),
            id: format!("{:016x}", open.id),
            client: open.client.map(|client| client.to_canonical()),
            route: &open.route,
            pool: &open.pool,
            node: &open.node,
            affinity: Affinity { source: open.affinity_source, outcome: open.affinity_outcome },
            end: None,
        }
    }
}

impl<'a> From<&'a Close> for Line<'a> {
    fn from(close: &'a Close) -> Self {
        let end = End {
            side: close.side,
            code: close.code,
            why: close.why,
            duration: seconds(close.duration),
            bytes: Both { r#in: close.bytes_in, out: close.bytes_out },
            messages: Both { r#in: close.messages_in, out: close.messages_out },
        };
        Self {
            event: "close",
            time: time(close.at),
            id: format!("{:016x}", close.id),
            client: close.client.map(|client| client.to_canonical()),
            route: &close.route,
            pool: &close.pool,
            node: &close.node,
            affinity: Affinity { source: close.affinity_source, outcome: close.affinity_outcome },
            end: Some(end),
        }
    }
}

/// RFC 3339 in UTC with milliseconds. A clock that is before 1970 or after 9999 is not set; it reads as the
/// nearest of the two, which is what the format can say.
pub fn time(at: SystemTime) -> String {
    /// The last second of 9999.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let at = at.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST);
    humantime::format_rfc3339_millis(at).to_string()
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

fn text(out: &mut Vec<u8>, line: &Line) {
    // Writing into a `Vec` does not fail.
    let _ = write!(out, "{} {} id={} client=", line.time, line.event, line.id);
    let _ = match line.client {
        Some(client) => write!(out, "{client}"),
        None => write!(out, "-"),
    };
    let words = [("route", line.route), ("pool", line.pool), ("node", line.node)];
    words.into_iter().for_each(|(key, value)| word(out, key, value));
    word(out, "affinity", line.affinity.source);
    word(out, "outcome", line.affinity.outcome);
    let Some(end) = &line.end else { return };
    word(out, "side", end.side);
    let _ = write!(out, " code={}", end.code);
    word(out, "why", end.why);
    let _ =
        write!(out, " duration={:.3} bytes_in={} bytes_out={}", end.duration, end.bytes.r#in, end.bytes.out);
    let _ = write!(out, " messages_in={} messages_out={}", end.messages.r#in, end.messages.out);
}

fn word(out: &mut Vec<u8>, key: &str, value: &str) {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"_.:/*-".contains(&b);
    let _ = if !value.is_empty() && value.bytes().all(is_plain) {
        write!(out, " {key}={value}")
    } else {
        write!(out, " {key}={value:?}")
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::access::tests::{closed, opened};
    use super::*;

    fn written(format: Format, event: &Event) -> String {
        let mut out = Vec::new();
        write(&mut out, format, event);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_open_event_is_a_json_object_with_these_keys() {
        let line = written(Format::Json, &Event::Open(opened(0xab)));
        let expected = json!({
            "event": "open", "time": "2026-11-24T10:20:30.045Z", "id": "00000000000000ab",
            "client": "203.0.113.7", "route": "chat.example.com/socket.io/", "pool": "chat", "node": "ws1",
            "affinity": { "source": "cookie", "outcome": "pinned" },
        });
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
        assert!(line.starts_with(r#"{"event":"open","time":"#), "{line}");
    }

    #[test]
    fn a_close_event_also_says_how_it_ended_and_how_much_went_through() {
        let line: Value = serde_json::from_str(&written(Format::Json, &Event::Close(closed(1)))).unwrap();
        assert_eq!(line["event"], "close");
        assert_eq!([&line["side"], &line["why"]], ["client", "close frame"]);
        assert_eq!(line["code"], 1001);
        assert_eq!(line["duration"], 1.235);
        assert_eq!(line["bytes"], json!({ "in": 10, "out": 20 }));
        assert_eq!(line["messages"], json!({ "in": 1, "out": 2 }));
        assert_eq!(line["affinity"], json!({ "source": "cookie", "outcome": "pinned" }));
        assert_eq!(line.as_object().unwrap().len(), 14);
    }

    #[test]
    fn text_is_a_time_a_word_and_pairs() {
        assert_eq!(
            written(Format::Text, &Event::Open(opened(1))),
            "2026-11-24T10:20:30.045Z open id=0000000000000001 client=203.0.113.7 \
             route=chat.example.com/socket.io/ pool=chat node=ws1 affinity=cookie outcome=pinned\n"
        );
        assert_eq!(
            written(Format::Text, &Event::Close(closed(1))),
            "2026-11-24T10:20:30.045Z close id=0000000000000001 client=203.0.113.7 \
             route=chat.example.com/socket.io/ pool=chat node=ws1 affinity=cookie outcome=pinned side=client \
             code=1001 why=\"close frame\" duration=1.235 bytes_in=10 bytes_out=20 messages_in=1 messages_out=2\n"
        );
    }

    #[test]
    fn an_ipv4_client_on_an_ipv6_listener_is_ipv4_and_no_address_is_said_to_be_none() {
        let mapped = Open { client: Some("::ffff:203.0.113.7".parse().unwrap()), ..opened(1) };
        assert!(written(Format::Text, &Event::Open(mapped)).contains(" client=203.0.113.7 "));
        let unix = Event::Open(Open { client: None, ..opened(1) });
        assert!(written(Format::Text, &unix).contains(" client=- "));
        assert!(written(Format::Json, &unix).contains(r#""client":null"#));
    }

    #[test]
    fn a_clock_that_is_not_set_ends_nothing() {
        let year = Duration::from_secs(365 * 86_400);
        assert_eq!(time(UNIX_EPOCH - year), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(UNIX_EPOCH + year * 20_000), "9999-12-31T23:59:59.000Z");
        assert_eq!(seconds(Duration::ZERO), 0.0);
        assert!(seconds(Duration::MAX).is_finite());
    }

    proptest! {
        #[test]
        fn no_name_can_write_a_second_line_or_a_key_of_its_own(name in any::<String>()) {
            let event = Event::Open(Open { pool: name.as_str().into(), ..opened(1) });
            let json = written(Format::Json, &event);
            prop_assert_eq!(json.matches('\n').count(), 1);
            let value: Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(value["pool"].as_str(), Some(name.as_str()));
            prop_assert_eq!(value["node"].as_str(), Some("ws1"));

            let text = written(Format::Text, &event);
            prop_assert!(!text.trim_end_matches('\n').contains(|c: char| c.is_control()));
            let pool = text.split_once(" pool=").unwrap().1;
            let quotes = pool.replace("\\\\", "").replace("\\\"", "").matches('"').count();
            prop_assert!(quotes == 0 || quotes == 2, "{}", text);
        }
    }
}
