//! The WebSocket handshake and the header fields on their way through.

use std::net::{IpAddr, Ipv4Addr};
use std::time::UNIX_EPOCH;

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Method, Version};
use mainstay::http::headers;
use mainstay_core::ws::handshake::{accept, check_request, is_upgrade};

use super::input::Input;

/// One input: method and version, then field lines.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let fields = fields(input.rest());
    request(kind, &fields);
    on_the_way(kind, fields);
}

/// The lines that are header fields; a short name stands for a long one, so that the fuzzer need not spell it.
fn fields(text: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in text.split(|&byte| byte == b'\n') {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let name: &[u8] = match &line[..colon] {
            b"u" => b"upgrade",
            b"c" => b"connection",
            b"v" => b"sec-websocket-version",
            b"k" => b"sec-websocket-key",
            b"p" => b"sec-websocket-protocol",
            b"l" => b"content-length",
            b"t" => b"transfer-encoding",
            b"f" => b"x-forwarded-for",
            b"F" => b"forwarded",
            b"P" => b"x-forwarded-proto",
            b"H" => b"x-forwarded-host",
            b"r" => b"trailer",
            b"h" => b"host",
            other => other,
        };
        let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(&line[colon + 1..]))
        else {
            continue;
        };
        if fields.try_append(name, value).is_err() {
            break;
        }
    }
    fields
}

fn request(kind: u8, fields: &HeaderMap) {
    let method = if kind & 1 == 0 { Method::GET } else { Method::POST };
    let version = if kind & 2 == 0 { Version::HTTP_11 } else { Version::HTTP_10 };
    let Ok(offer) = check_request(&method, version, fields) else { return };
    assert!(is_upgrade(fields) && method == Method::GET && version == Version::HTTP_11);
    let values = |name: &str| fields.get_all(name).iter().collect::<Vec<_>>();
    let only = |name: &str| match values(name)[..] {
        [value] => value.to_str().expect("what is looked at is ASCII").trim(),
        _ => panic!("{name} is there once"),
    };
    let offers = values("upgrade").into_iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    assert!(offers.map(<[u8]>::trim_ascii).any(|name| name.eq_ignore_ascii_case(b"websocket")));
    assert_eq!(only("sec-websocket-version"), "13");
    assert!(
        values("transfer-encoding").is_empty()
            && values("content-length").iter().all(|length| *length == "0")
    );
    // What answers it, answers it; with anything missing, it does not.
    let key = only("sec-websocket-key");
    let mut answer = HeaderMap::new();
    answer.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
    answer.insert(CONNECTION, HeaderValue::from_static("x, Upgrade"));
    answer.insert("sec-websocket-accept", HeaderValue::try_from(accept(key)).expect("base64 is text"));
    assert_eq!(offer.check_response(&answer), Ok(()));
    for name in ["upgrade", "connection", "sec-websocket-accept"] {
        let mut part = answer.clone();
        part.remove(name);
        assert!(offer.check_response(&part).is_err());
    }
    answer.insert("sec-websocket-protocol", HeaderValue::from_static("never-offered"));
    let mut offered = values("sec-websocket-protocol")
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let is_offered = offered.any(|name| name.trim_ascii() == b"never-offered");
    assert!(is_offered || offer.check_response(&answer).is_err());
}

fn on_the_way(kind: u8, fields: HeaderMap) {
    let trusted = ["10.0.0.0/8".parse().expect("this is a net")];
    let peer = if kind & 4 == 0 { Ipv4Addr::new(10, 0, 0, 1) } else { Ipv4Addr::new(192, 0, 2, 1) };
    let peer = IpAddr::V4(peer);
    let client = mainstay_core::forwarded::forwarded_client(peer, kind & 8 == 0, &fields, &trusted);
    if kind & 4 != 0 {
        assert_eq!(client.address, peer, "nobody's word is believed but a trusted peer's");
    }
    let _ = (headers::forwardable_trailers(&fields), headers::is_shared_cacheable(&fields));
    let mut through = fields.clone();
    headers::strip_hop_by_hop(&mut through);
    for gone in ["connection", "keep-alive", "te", "transfer-encoding", "upgrade", "proxy-authorization"] {
        assert!(!through.contains_key(gone));
    }
    for kept in ["host", "cookie", "authorization", "origin", "content-length", "sec-websocket-key"] {
        assert!(through.get_all(kept).iter().eq(fields.get_all(kept).iter()), "Connection takes {kept} away");
    }
    headers::set_forwarded(&mut through, peer, &client);
    headers::set_client_subject(&mut through, None);
    headers::ensure_date(&mut through, UNIX_EPOCH);
    assert!(!through.keys().any(|name| name.as_str().replace('_', "-") == "x-client-cert-subject"));
    assert_eq!(through.get_all("x-real-ip").iter().count(), 1);
    if kind & 4 != 0 {
        let chain = through.get("x-forwarded-for").and_then(|chain| chain.to_str().ok());
        assert_eq!(chain, Some("192.0.2.1"), "what a stranger says about itself is replaced");
    }
}
