//! Header fields on their way through: those of one hop, and those about the client.
//!
//! Forwarding fields are believed from trusted peers only. From all others they are replaced, and those that the
//! balancer does not set itself are dropped (`X-Forwarded-Port` and the rest of that family, `X-Original-*`,
//! `X-Rewrite-URL`), so that a node can trust what it reads there. Many nodes read `_` in a name as `-` (CGI, WSGI, Rack,
//! PHP), so such an alias of a field that the balancer sets, drops or reads is always dropped. The fields of single
//! vendors, like `CF-Connecting-IP`, pass: a node that believes one has to know that its clients come through that
//! vendor.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Request;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    COOKIE, DATE, EXPECT, Entry, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, MAX_FORWARDS, ORIGIN,
    PROXY_AUTHORIZATION, RANGE, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use mainstay_core::forwarded::{ForwardedClient, X_FORWARDED_FOR, X_FORWARDED_PROTO, list};

use super::trace::{TRACEPARENT, TRACESTATE};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_CLIENT_CERT_SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_REWRITE_URL: HeaderName = HeaderName::from_static("x-rewrite-url");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Fields of one hop (RFC 9110, section 7.6.1), and Expect, which is answered here. HTTP2-Settings belongs to
/// `Upgrade: h2c`, which is not supported.
const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
    HTTP2_SETTINGS,
];

/// Fields that a client cannot remove by naming them in Connection: routing, security and tracing depend on them.
const PROTECTED: [HeaderName; 13] = [
    HOST,
    AUTHORIZATION,
    COOKIE,
    ORIGIN,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    FORWARDED,
    X_FORWARDED_FOR,
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    X_REAL_IP,
    TRACEPARENT,
    TRACESTATE,
];

/// Removes the fields of this hop, and those that Connection names.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| HeaderName::try_from(token.trim()).ok())
        .filter(|name| !PROTECTED.contains(name) && !name.as_str().starts_with("sec-websocket-"))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Fields that say how to frame, route, authenticate or read a request, so they must not come behind its body
/// (RFC 9110, section 6.5.1).
const NO_TRAILERS: [HeaderName; 12] = [
    HOST,
    AUTHORIZATION,
    COOKIE,
    ORIGIN,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    CONTENT_RANGE,
    CACHE_CONTROL,
    MAX_FORWARDS,
    RANGE,
    SET_COOKIE,
];

/// The announced trailers of a request that may be forwarded. All others are dropped, as are trailers that were not
/// announced.
pub fn forwardable_trailers(headers: &HeaderMap) -> Option<HeaderValue> {
    let names = list(headers, &TRAILER)
        .filter_map(|name| HeaderName::try_from(name).ok())
        .filter(is_forwardable_trailer);
    let names: Vec<HeaderName> = names.collect();
    let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
    HeaderValue::try_from(names.join(", ")).ok().filter(|_| !names.is_empty())
}

fn is_forwardable_trailer(name: &HeaderName) -> bool {
    let name = &hyphenated(name).unwrap_or_else(|| name.clone());
    let families = ["if-", "sec-", "access-control-"];
    !(is_reserved(name)
        || NO_TRAILERS.contains(name)
        || families.iter().any(|family| name.as_str().starts_with(family)))
}

/// The balancer sets or drops the field, or frames, routes or traces by it.
fn is_reserved(name: &HeaderName) -> bool {
    let families = ["sec-websocket-", "x-mainstay-", "x-client-cert-", "proxy-"];
    PROTECTED.contains(name)
        || HOP_BY_HOP.contains(name)
        || is_forwarding_field(name)
        || families.iter().any(|family| name.as_str().starts_with(family))
}

/// Removes the trailers that must not be forwarded.
pub(crate) fn strip_trailers(trailers: &mut HeaderMap) {
    remove_matching(trailers, |name| !is_forwardable_trailer(name));
}

/// The name with `-` for each `_`, as many nodes read it; `None` where it has no `_`.
fn hyphenated(name: &HeaderName) -> Option<HeaderName> {
    let is_twin = name.as_str().contains('_');
    is_twin.then(|| HeaderName::try_from(name.as_str().replace('_', "-")).ok()).flatten()
}

/// Fields in which a proxy says where a request comes from, and what it was before.
fn is_forwarding_field(name: &HeaderName) -> bool {
    let families = ["x-forwarded-", "x-original-"];
    [FORWARDED, X_REAL_IP, X_REWRITE_URL].contains(name)
        || families.iter().any(|family| name.as_str().starts_with(family))
}

/// The name is no reserved field, but a node may take it for one.
fn is_underscore_alias(name: &HeaderName) -> bool {
    hyphenated(name).is_some_and(|name| is_reserved(&name))
}

fn remove_matching(headers: &mut HeaderMap, is_unwanted: impl Fn(&HeaderName) -> bool) {
    let unwanted: Vec<HeaderName> = headers.keys().filter(|name| is_unwanted(name)).cloned().collect();
    for name in unwanted {
        headers.remove(name);
    }
}

/// Gives a request of HTTP/1.0 without Host one: that of its target, or else the address and port that its client
/// connected to, the default of the connection (RFC 9112, section 3.3). An empty Host would be allowed, but many nodes
/// build their own URL from the field and fail; the node's address would appear in its answer, where the client cannot
/// reach it. Must come before routing.
pub(crate) fn ensure_host<B>(request: &mut Request<B>, destination: SocketAddr) {
    if request.headers().contains_key(HOST) {
        return;
    }
    let default = || if destination.port() == 0 { "localhost".to_owned() } else { destination.to_string() };
    let host = request.uri().authority().map_or_else(default, ToString::to_string);
    if let Ok(host) = HeaderValue::try_from(host) {
        request.headers_mut().insert(HOST, host);
    }
}

/// Whether a shared cache may keep the response: then it must not carry the cookie of a client.
pub fn is_shared_cacheable(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|directive| {
        let directive = directive.trim().to_ascii_lowercase();
        directive == "public" || directive.starts_with("s-maxage")
    })
}

/// Adds the Date that a response must have, whether it is the balancer's or that of a node without a clock (RFC 9110,
/// section 6.6.1).
pub fn ensure_date(headers: &mut HeaderMap, now: SystemTime) {
    // The time of a clock that is not set has no such date.
    let is_set = (UNIX_EPOCH..UNIX_EPOCH + Duration::from_secs(253_402_300_800)).contains(&now);
    if let Entry::Vacant(date) = headers.entry(DATE)
        && is_set
        && let Ok(value) = HeaderValue::try_from(httpdate::fmt_http_date(now))
    {
        date.insert(value);
    }
}

/// Writes the forwarding fields for the node.
pub fn set_forwarded(headers: &mut HeaderMap, peer: IpAddr, client: &ForwardedClient) {
    let peer = peer.to_canonical();
    let proto = if client.is_https { "https" } else { "http" };
    remove_matching(headers, |name| {
        is_underscore_alias(name) || (!client.is_peer_trusted && is_forwarding_field(name))
    });
    let host = headers.get(HOST).cloned().unwrap_or(HeaderValue::from_static(""));
    let element = forwarded_element(peer, proto, host.to_str().unwrap_or_default());
    append_or_replace(headers, X_FORWARDED_FOR, &peer.to_string(), client.is_peer_trusted);
    append_or_replace(headers, FORWARDED, &element, client.is_peer_trusted);
    if !(client.is_peer_trusted && headers.contains_key(X_FORWARDED_HOST)) {
        headers.insert(X_FORWARDED_HOST, host);
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    if let Ok(client) = HeaderValue::try_from(client.address.to_string()) {
        headers.insert(X_REAL_IP, client);
    }
}

/// Sets the subject of the certificate that the client has shown (RFC 4514). The word of any peer about it is dropped,
/// trusted or not.
pub fn set_client_subject(headers: &mut HeaderMap, subject: Option<&HeaderValue>) {
    remove_matching(headers, |name| hyphenated(name).as_ref().unwrap_or(name) == X_CLIENT_CERT_SUBJECT);
    if let Some(subject) = subject {
        headers.insert(X_CLIENT_CERT_SUBJECT, subject.clone());
    }
}

fn forwarded_element(peer: IpAddr, proto: &str, host: &str) -> String {
    let node = match peer {
        IpAddr::V4(peer) => peer.to_string(),
        IpAddr::V6(peer) => format!("\"[{peer}]\""),
    };
    let host: String = host.chars().filter(|c| !matches!(c, '"' | '\\')).collect();
    format!("for={node};host=\"{host}\";proto={proto}")
}

fn append_or_replace(headers: &mut HeaderMap, name: HeaderName, value: &str, append: bool) {
    let before: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    let mut whole = if append { before.join(&b", "[..]) } else { Vec::new() };
    if !whole.is_empty() {
        whole.extend_from_slice(b", ");
    }
    whole.extend_from_slice(value.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&whole) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use mainstay_core::forwarded::forwarded_client;

    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        map
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn trusted() -> Vec<IpNet> {
        vec!["10.0.0.0/8".parse().unwrap()]
    }

    #[test]
    fn an_answer_without_a_date_gets_one_and_a_node_s_own_stays() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let mut headers = HeaderMap::new();
        ensure_date(&mut headers, now);
        assert_eq!(headers[DATE], "Sun, 06 Nov 1994 08:49:37 GMT", "the example of RFC 9110");
        ensure_date(&mut headers, now + Duration::from_secs(60));
        assert_eq!(headers.get_all(DATE).iter().collect::<Vec<_>>(), ["Sun, 06 Nov 1994 08:49:37 GMT"]);
        let mut headers = HeaderMap::new();
        for unset in [UNIX_EPOCH - Duration::from_secs(1), UNIX_EPOCH + Duration::from_secs(300_000_000_000)]
        {
            ensure_date(&mut headers, unset);
        }
        assert!(headers.is_empty());
    }

    #[test]
    fn what_connection_names_is_stripped_but_not_what_routing_and_security_rest_on() {
        let mut map = headers(&[
            ("connection", "close, x-secret, cookie, host, x-forwarded-for, sec-websocket-key"),
            ("x-secret", "1"),
            ("cookie", "a=b"),
            ("host", "example.com"),
            ("x-forwarded-for", "1.1.1.1"),
            ("sec-websocket-key", "k"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("keep-alive", "timeout=5"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut map);
        let mut left: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "cookie", "host", "sec-websocket-key", "x-forwarded-for"]);
    }

    #[test]
    fn trailers_that_frame_route_or_authenticate_do_not_travel() {
        let map = headers(&[
            ("trailer", "X-Checksum, Host, content-length, Transfer-Encoding"),
            (
                "trailer",
                "authorization, cookie, x-forwarded-for, if-match, no/token, server-timing, te, x-real-ip",
            ),
        ]);
        assert_eq!(forwardable_trailers(&map).unwrap(), "x-checksum, server-timing");
        let twins = [("trailer", "x_real_ip, X_Forwarded-For, content_length, my_sum, x_original_url")];
        assert_eq!(forwardable_trailers(&headers(&twins)).unwrap(), "my_sum");
        let mut trailers =
            headers(&[("x_real_ip", "1"), ("x-forwarded-for", "1"), ("host", "a"), ("my_sum", "1")]);
        strip_trailers(&mut trailers);
        assert_eq!(trailers, headers(&[("my_sum", "1")]));
        assert_eq!(forwardable_trailers(&headers(&[("trailer", "host, cookie")])), None);
        assert_eq!(forwardable_trailers(&headers(&[])), None);
    }

    #[test]
    fn a_stranger_cannot_say_who_the_client_is() {
        let mut map =
            headers(&[("host", "h"), ("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https")]);
        let seen = forwarded_client(ip("9.9.9.9"), false, &map, &trusted());
        assert_eq!((seen.address, seen.is_https), (ip("9.9.9.9"), false));
        set_forwarded(&mut map, ip("9.9.9.9"), &seen);
        assert_eq!(map["x-forwarded-for"], "9.9.9.9");
        assert_eq!(map["x-forwarded-proto"], "http");
        assert_eq!(map["x-real-ip"], "9.9.9.9");
        assert_eq!(map["forwarded"], "for=9.9.9.9;host=\"h\";proto=http");
    }

    #[test]
    fn what_a_node_may_take_for_a_field_of_the_balancers_is_dropped() {
        let twins = [
            ("x_forwarded_for", "1.1.1.1"),
            ("x-forwarded_proto", "https"),
            ("x_real_ip", "1.1.1.1"),
            ("x_forwarded_port", "443"),
            ("content_length", "5"),
            ("transfer_encoding", "chunked"),
        ];
        let family = [("x-forwarded-port", "443"), ("x-original-url", "/admin"), ("x-rewrite-url", "/admin")];
        let free = [("api_key", "k"), ("x-user-id", "7"), ("cf-connecting-ip", "1.1.1.1")];
        for (peer, passed) in [("9.9.9.9", &free[..]), ("10.0.0.1", &[&family[..], &free[..]].concat()[..])] {
            let mut map = headers(&[&[("host", "h")], &twins[..], &family[..], &free[..]].concat());
            let seen = forwarded_client(ip(peer), false, &map, &trusted());
            set_forwarded(&mut map, ip(peer), &seen);
            for set in
                ["host", "x-forwarded-for", "forwarded", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"]
            {
                assert!(map.remove(set).is_some(), "{set}");
            }
            assert_eq!(map, headers(passed), "{peer}");
        }
    }

    #[test]
    fn a_request_without_a_host_gets_that_of_its_target_or_where_it_came_to() {
        let host = |target: &str, destination: &str| {
            let mut request = Request::get(target).body(()).unwrap();
            ensure_host(&mut request, destination.parse().unwrap());
            ensure_host(&mut request, "192.0.2.9:9".parse().unwrap());
            request.headers()[HOST].to_str().unwrap().to_owned()
        };
        assert_eq!(host("http://a.example:81/x", "192.0.2.1:80"), "a.example:81");
        assert_eq!(host("/x", "192.0.2.1:80"), "192.0.2.1:80");
        assert_eq!(host("/x", "[2001:db8::1]:8080"), "[2001:db8::1]:8080");
        assert_eq!(host("/x", "127.0.0.1:0"), "localhost", "a Unix socket has no address");
    }

    #[test]
    fn a_trusted_proxy_is_believed_up_to_the_first_stranger_from_the_right() {
        let map = headers(&[("x-forwarded-for", "6.6.6.6, 2.2.2.2"), ("x-forwarded-for", "10.1.1.1")]);
        let seen = forwarded_client(ip("::ffff:10.0.0.1"), false, &map, &trusted());
        assert_eq!(seen.address, ip("2.2.2.2"));
        let map = headers(&[("x-forwarded-for", "2.2.2.2, nonsense, 10.1.1.1")]);
        assert_eq!(forwarded_client(ip("10.0.0.1"), false, &map, &trusted()).address, ip("10.1.1.1"));
        let map = headers(&[("forwarded", "for=\"[2001:db8::1]:80\";proto=https, for=10.2.2.2")]);
        assert_eq!(forwarded_client(ip("10.0.0.1"), false, &map, &trusted()).address, ip("2001:db8::1"));
    }

    #[test]
    fn a_trusted_chain_grows_by_the_peer() {
        let mut map =
            headers(&[("host", "h"), ("x-forwarded-for", "2.2.2.2"), ("x-forwarded-host", "shop.example")]);
        let seen = forwarded_client(ip("10.0.0.1"), false, &map, &trusted());
        set_forwarded(&mut map, ip("10.0.0.1"), &seen);
        assert_eq!(map["x-forwarded-for"], "2.2.2.2, 10.0.0.1");
        assert_eq!(map["x-forwarded-host"], "shop.example");
        assert_eq!(map["x-real-ip"], "2.2.2.2");
    }

    #[test]
    fn only_the_balancer_says_whose_certificate_a_client_has() {
        let said =
            [("x-client-cert-subject", "CN=admin"), ("X_Client-Cert_Subject", "CN=admin"), ("accept", "*/*")];
        let mut map = headers(&said);
        map.append("x-client-cert-subject", "CN=root".parse().unwrap());
        set_client_subject(&mut map, None);
        assert_eq!(map, headers(&said[2..]));
        let mut map = headers(&said);
        set_client_subject(&mut map, Some(&HeaderValue::from_static("CN=alice")));
        assert_eq!(map, headers(&[("x-client-cert-subject", "CN=alice"), said[2]]));
    }

    #[test]
    fn no_cookie_rides_on_what_a_shared_cache_may_keep() {
        assert!(is_shared_cacheable(&headers(&[("cache-control", "max-age=60, Public")])));
        assert!(is_shared_cacheable(&headers(&[("cache-control", "s-maxage=60")])));
        assert!(!is_shared_cacheable(&headers(&[("cache-control", "private, max-age=60")])));
    }
}
