//! A handshake as Node's `socket.handshake` shows it, which is what `fetchSockets` sends to other servers.

use std::time::{Duration, UNIX_EPOCH};

use crate::engine_io::Handshake;
use socketio_redis::value::Value;

/// With Node's keys in Node's order.
pub(super) fn of(handshake: &Handshake, auth: Option<&Value>) -> Value {
    let query = handshake.query().map(|(key, value)| (Box::from(&*key), Value::from(&*value)));
    Value::map([
        ("headers", headers(handshake)),
        ("time", Value::from(time(handshake.issued()))),
        ("address", Value::from(handshake.address().ip().to_string())),
        ("xdomain", Value::from(handshake.has_origin())),
        ("secure", Value::from(false)),
        ("issued", Value::from(handshake.issued())),
        ("url", Value::from(handshake.url())),
        ("query", Value::Map(query.collect())),
        ("auth", auth.cloned().unwrap_or_else(|| Value::Map(Vec::new()))),
    ])
}

/// A header that came more than once is one, joined as Node's HTTP server joins it.
fn headers(handshake: &Handshake) -> Value {
    let mut joined: Vec<(Box<str>, Value)> = Vec::new();
    for (name, value) in handshake.headers() {
        match joined.iter_mut().find(|(there, _)| **there == *name) {
            Some((_, Value::Text(there))) => {
                let between = if name == "cookie" { "; " } else { ", " };
                *there = format!("{there}{between}{value}").into();
            }
            _ => joined.push((name.into(), Value::from(value))),
        }
    }
    Value::Map(joined)
}

/// As `Date.prototype.toString` writes it where the clock is in UTC.
fn time(issued: u64) -> String {
    let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(issued));
    // "Tue, 24 Nov 2026 12:05:00 GMT"
    let (day, rest) = date.split_at(3);
    let (number, month, rest) = (&rest[2..4], &rest[5..8], &rest[9..22]);
    format!("{day} {month} {number} {}+0000 (Coordinated Universal Time)", rest.to_owned() + " GMT")
        .replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_written_as_javascript_does() {
        assert_eq!(time(1_700_000_000_123), "Tue Nov 14 2023 22:13:20 GMT+0000 (Coordinated Universal Time)");
    }
}
