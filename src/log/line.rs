//! One event as one line, in JSON or in text.
//!
//! A line is one line whatever a name holds: JSON escapes by its own rules, and text quotes everything that is
//! not plain letters, digits and a few signs.

use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Format;
use super::event::{AccessEvent, AccessSession, AffinityLabels, SessionClosed, SessionOpened};

/// Appends the event and a line feed; false for an event that is no line.
pub(super) fn write_line(out: &mut Vec<u8>, format: Format, event: &AccessEvent) -> bool {
    let line = match event {
        AccessEvent::Opened(SessionOpened { at, session }) => AccessLine::new("open", *at, session, None),
        AccessEvent::Closed(close) => {
            AccessLine::new("close", close.at, &close.session, Some(CloseFields::from(close)))
        }
        AccessEvent::SwitchOutput => return false,
    };
    match format {
        // Neither a `Vec` nor these types can make the serializer fail.
        Format::Json => drop(serde_json::to_writer(&mut *out, &line)),
        Format::Text => write_text(out, &line),
    }
    out.push(b'\n');
    true
}

/// A line's fields, in the order in which they are written. The names are a contract: programs read them.
#[derive(Serialize)]
struct AccessLine<'a> {
    /// `open` or `close`.
    event: &'static str,
    /// RFC 3339 in UTC, with milliseconds.
    time: String,
    /// The session, in 16 hexadecimal digits; the same in both lines and in the admin API.
    id: String,
    /// The client's address; null behind a Unix socket.
    client: Option<IpAddr>,
    /// The route as written in the config, host and path in one; `*` takes everything.
    route: &'a str,
    pool: &'a str,
    node: &'a str,
    /// What decided the node: the labels of `mainstay_affinity_total`.
    affinity: AffinityLabels,
    /// The trace, in 32 hexadecimal digits.
    trace_id: String,
    #[serde(flatten)]
    close: Option<CloseFields>,
}

/// What only a close has.
#[derive(Serialize)]
struct CloseFields {
    /// Who ended it: `client`, `node` or `balancer`.
    side: &'static str,
    /// The close code; 1006 when there was none.
    code: u16,
    /// Why, in a word.
    why: &'static str,
    /// Seconds, to the millisecond.
    duration: f64,
    /// Bytes relayed.
    bytes: InOutCounts,
    /// Text and binary messages relayed.
    messages: InOutCounts,
}

/// `in` is from the client.
#[derive(Serialize)]
struct InOutCounts {
    r#in: u64,
    out: u64,
}

impl<'a> AccessLine<'a> {
    fn new(
        event: &'static str,
        at: SystemTime,
        session: &'a AccessSession,
        close: Option<CloseFields>,
    ) -> Self {
        Self {
            event,
            time: format_time(at),
            id: format!("{:016x}", session.id),
            client: session.client.map(|client| client.to_canonical()),
            route: &session.route,
            pool: &session.pool,
            node: &session.node,
            affinity: session.affinity,
            trace_id: format!("{:032x}", u128::from_be_bytes(session.trace)),
            close,
        }
    }
}

impl From<&SessionClosed> for CloseFields {
    fn from(close: &SessionClosed) -> Self {
        Self {
            side: close.side,
            code: close.code,
            why: close.why,
            duration: round_to_millis(close.duration),
            bytes: close.bytes.into(),
            messages: close.messages.into(),
        }
    }
}

impl From<[u64; 2]> for InOutCounts {
    fn from([r#in, out]: [u64; 2]) -> Self {
        Self { r#in, out }
    }
}

/// RFC 3339 in UTC with milliseconds. A clock that is before 1970 or after 9999 is not set; it reads as the
/// nearest of the two, which is what the format can say.
pub(crate) fn format_time(at: SystemTime) -> String {
    /// The last second of 9999.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let at = at.clamp(UNIX_EPOCH, UNIX_EPOCH + LAST);
    humantime::format_rfc3339_millis(at).to_string()
}

fn round_to_millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

fn write_text(out: &mut Vec<u8>, line: &AccessLine) {
    // Writing into a `Vec` does not fail.
    let _ = write!(out, "{} {} id={} client=", line.time, line.event, line.id);
    let _ = match line.client {
        Some(client) => write!(out, "{client}"),
        None => write!(out, "-"),
    };
    let words = [("route", line.route), ("pool", line.pool), ("node", line.node)];
    words.into_iter().for_each(|(key, value)| write_pair(out, key, value));
    write_pair(out, "affinity", line.affinity.source);
    write_pair(out, "outcome", line.affinity.outcome);
    write_pair(out, "trace_id", &line.trace_id);
    let Some(end) = &line.close else { return };
    write_pair(out, "side", end.side);
    let _ = write!(out, " code={}", end.code);
    write_pair(out, "why", end.why);
    let _ =
        write!(out, " duration={:.3} bytes_in={} bytes_out={}", end.duration, end.bytes.r#in, end.bytes.out);
    let _ = write!(out, " messages_in={} messages_out={}", end.messages.r#in, end.messages.out);
}

fn write_pair(out: &mut Vec<u8>, key: &str, value: &str) {
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

    use super::super::event::fixtures::{closed, opened};
    use super::*;

    fn written(format: Format, event: &AccessEvent) -> String {
        let mut out = Vec::new();
        write_line(&mut out, format, event);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_open_event_is_a_json_object_with_these_keys() {
        let line = written(Format::Json, &AccessEvent::Opened(opened(0xab)));
        let expected = json!({
            "event": "open", "time": "2026-11-24T10:20:30.045Z", "id": "00000000000000ab",
            "client": "203.0.113.7", "route": "chat.example.com/socket.io/", "pool": "chat", "node": "ws1",
            "affinity": { "source": "cookie", "outcome": "kept" },
            "trace_id": "30313233343536373839616263646566",
        });
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
        assert!(line.starts_with(r#"{"event":"open","time":"#), "{line}");
    }

    #[test]
    fn a_close_event_also_says_how_it_ended_and_how_much_went_through() {
        let line: Value =
            serde_json::from_str(&written(Format::Json, &AccessEvent::Closed(closed(1)))).unwrap();
        assert_eq!(line["event"], "close");
        assert_eq!([&line["side"], &line["why"]], ["client", "close frame"]);
        assert_eq!(line["code"], 1001);
        assert_eq!(line["duration"], 1.235);
        assert_eq!(line["bytes"], json!({ "in": 10, "out": 20 }));
        assert_eq!(line["messages"], json!({ "in": 1, "out": 2 }));
        assert_eq!(line["affinity"], json!({ "source": "cookie", "outcome": "kept" }));
        assert_eq!(line.as_object().unwrap().len(), 15);
    }

    #[test]
    fn text_is_a_time_a_word_and_pairs() {
        assert_eq!(
            written(Format::Text, &AccessEvent::Opened(opened(1))),
            "2026-11-24T10:20:30.045Z open id=0000000000000001 client=203.0.113.7 \
             route=chat.example.com/socket.io/ pool=chat node=ws1 affinity=cookie outcome=kept \
             trace_id=30313233343536373839616263646566\n"
        );
        assert_eq!(
            written(Format::Text, &AccessEvent::Closed(closed(1))),
            "2026-11-24T10:20:30.045Z close id=0000000000000001 client=203.0.113.7 \
             route=chat.example.com/socket.io/ pool=chat node=ws1 affinity=cookie outcome=kept \
             trace_id=30313233343536373839616263646566 side=client code=1001 why=\"close frame\" duration=1.235 bytes_in=10 bytes_out=20 messages_in=1 messages_out=2\n"
        );
    }

    #[test]
    fn an_ipv4_client_on_an_ipv6_listener_is_ipv4_and_no_address_is_said_to_be_none() {
        let from = |client: Option<&str>| {
            let mut open = opened(1);
            open.session.client = client.map(|client| client.parse().unwrap());
            AccessEvent::Opened(open)
        };
        assert!(written(Format::Text, &from(Some("::ffff:203.0.113.7"))).contains(" client=203.0.113.7 "));
        let unix = from(None);
        assert!(written(Format::Text, &unix).contains(" client=- "));
        assert!(written(Format::Json, &unix).contains(r#""client":null"#));
    }

    #[test]
    fn a_clock_that_is_not_set_ends_nothing() {
        let year = Duration::from_secs(365 * 86_400);
        assert_eq!(format_time(UNIX_EPOCH - year), "1970-01-01T00:00:00.000Z");
        assert_eq!(format_time(UNIX_EPOCH + year * 20_000), "9999-12-31T23:59:59.000Z");
        assert_eq!(round_to_millis(Duration::ZERO), 0.0);
        assert!(round_to_millis(Duration::MAX).is_finite());
    }

    proptest! {
        #[test]
        fn no_name_can_write_a_second_line_or_a_key_of_its_own(name in any::<String>()) {
            let mut open = opened(1);
            open.session.pool = name.as_str().into();
            let event = AccessEvent::Opened(open);
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
