//! A client's handshake as other servers are told of it.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use http::Request;
use http::header::ORIGIN;

use crate::bearer;
use socketio_redis::value::Value;

/// With Node's keys. Tokens do not travel: neither the query nor
/// the fields that can carry one.
pub(super) fn handshake_facts<B>(request: &Request<B>, peer: SocketAddr) -> Value {
    let named = ["host", "user-agent", "origin", "x-forwarded-for", "x-forwarded-proto"];
    let headers = named.iter().filter_map(|name| {
        let value = request.headers().get(*name)?.to_str().ok()?;
        Some(((*name).into(), Value::from(value)))
    });
    let user = bearer::of_query(request.uri().query().unwrap_or_default(), "user");
    let query = user.into_iter().map(|user| ("user".into(), Value::from(&*user))).collect();
    let now = SystemTime::now();
    let issued = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Value::map([
        ("headers", Value::Map(headers.collect())),
        ("time", Value::from(&*humantime::format_rfc3339_seconds(now).to_string())),
        ("address", Value::from(&*peer.ip().to_string())),
        ("xdomain", Value::Bool(request.headers().contains_key(ORIGIN))),
        ("secure", Value::Bool(false)),
        ("issued", Value::Uint(u64::try_from(issued).unwrap_or(u64::MAX))),
        ("url", Value::from(request.uri().path())),
        ("query", Value::Map(query)),
        ("auth", Value::Map(Vec::new())),
    ])
}
