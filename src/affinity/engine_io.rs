//! Socket.IO session ids: tag the sid of a polling handshake, strip the tag on the way in.
//!
//! A session of Engine.IO 4 lives on one node, and any other answers its requests with 400. Clients that keep
//! no cookies (Node, mobile) and preflights still send the sid in the query. So the sid in the answer to a
//! polling handshake becomes `SID.TAG`, and each later request names its node; the node sees the sid that it
//! gave. Nothing is stored, and every replica reads the same.
//!
//! A request or response that is not understood passes unchanged. engine.io gives sids of 20 characters of base64url, engineioxide
//! of 16, and a server can make its own; any sid of unreserved characters (RFC 3986 section 2.3) is understood,
//! since clients put those into a query as they are. A sid that happens to end like a tag is told from a tagged
//! one by the caller: strip only a tag that names a node of the pool.

use std::ops::Range;
use std::time::Duration;

use http::Method;
use serde::Deserialize;

use super::cookie::NodeTag;
use mainstay_core::query::{self, Occurrence};

use super::hash;

/// The bytes that a tag adds to a sid, and so to a response.
pub const TAG_OVERHEAD: usize = 1 + NodeTag::LEN;
/// The longest sid that is tagged, in bytes.
const MAX_SID: usize = 128;

/// Whether a request opens an Engine.IO 4 session by polling, so that its response has to be tagged. `b64`, which the
/// Node.js client sends, does not change the response; a JSONP request (`j`) is not understood.
pub fn is_polling_handshake(method: &Method, query: Option<&str>) -> bool {
    let Some(text) = query else { return false };
    let says = |name, value| query::find(text, name) == Occurrence::Once(value);
    let lacks = |name| query::find(text, name) == Occurrence::Absent;
    method == Method::GET && says("EIO", "4") && says("transport", "polling") && lacks("sid") && lacks("j")
}

/// Whether a request may open a session by polling at some node: a superset of [`is_polling_handshake`], for limits
/// that no spelling may evade. Some node understands other revisions of the protocol, JSONP, an encoded name and an empty
/// `sid`. engine.io refuses POST; other servers may not.
pub(crate) fn may_open_polling_session(method: &Method, query: Option<&str>) -> bool {
    let Some(text) = query else { return false };
    [Method::GET, Method::POST].contains(method)
        && query::all(text, "transport").any(|transport| *transport == *b"polling")
        && query::all(text, "sid").all(|sid| sid.is_empty())
}

/// The hash of the session that a query names, in any encoding.
pub(crate) fn session_in_query(query: &str) -> Option<u64> {
    let Occurrence::Once(sid) = query::find(query, "sid") else { return None };
    Some(hash::hash_key(&query::decode(sid))).filter(|_| !sid.is_empty())
}

/// The hash of the session that an open packet names, as [`session_in_query`] gives it; also of one of revision 3, whose
/// packets stand behind their lengths. `None` when it is not understood.
pub(crate) fn session_in_open_packet(payload: &[u8]) -> Option<u64> {
    let open: OpenPacket<'_> = serde_json::from_slice(open_packet(strip_v3_length(payload))?).ok()?;
    Some(hash::hash_key(open.sid.as_bytes()))
}

/// The first packet of a payload of revision 3, `LENGTH:PACKET`, or the payload of revision 4 as it is.
fn strip_v3_length(payload: &[u8]) -> &[u8] {
    let digits = payload.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let Some((length, packet)) = payload.split_at_checked(digits).filter(|(_, rest)| rest.starts_with(b":"))
    else {
        return payload;
    };
    let length = str::from_utf8(length).ok().and_then(|length| length.parse::<usize>().ok());
    length.and_then(|length| packet[1..].get(..length)).unwrap_or(payload)
}

/// Whether an upgrade request opens an Engine.IO 4 session without polling before it: then the open packet is the
/// first message of the tunnel.
pub fn is_websocket_handshake(query: Option<&str>) -> bool {
    let Some(text) = query else { return false };
    let says = |name, value| query::find(text, name) == Occurrence::Once(value);
    says("EIO", "4") && says("transport", "websocket") && query::find(text, "sid") == Occurrence::Absent
}

/// Whether a request belongs to an Engine.IO session that is there already: only its node can answer it.
pub fn has_session(query: Option<&str>) -> bool {
    query.is_some_and(|text| {
        query::find(text, "EIO") != Occurrence::Absent && query::find(text, "sid") != Occurrence::Absent
    })
}

/// How often a node pings its clients, and how long it waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// `pingInterval`; 25 s unless the node says otherwise.
    pub interval: Duration,
    /// `pingTimeout`; 20 s unless the node says otherwise.
    pub timeout: Duration,
}

/// What the open packet at the head of `payload` says about pings; `None` when it is none, or not understood.
pub fn parse_heartbeat(payload: &[u8]) -> Option<Heartbeat> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Pings {
        ping_interval: u64,
        ping_timeout: u64,
    }
    let pings: Pings = serde_json::from_slice(open_packet(strip_v3_length(payload))?).ok()?;
    let [interval, timeout] = [pings.ping_interval, pings.ping_timeout].map(Duration::from_millis);
    Some(Heartbeat { interval, timeout })
}

/// The JSON of the `open` packet, type 0, which is the first of a payload; packets are separated by 0x1e (Engine.IO
/// protocol 4, "HTTP long-polling").
fn open_packet(payload: &[u8]) -> Option<&[u8]> {
    let packet = payload.split(|byte| *byte == 0x1e).next()?.strip_prefix(b"0")?;
    packet.starts_with(b"{").then_some(packet)
}

/// The answer to a polling handshake with `tag` in its sid; `None` when it is not understood, and should pass as
/// it is (an error, a compressed body, another protocol). Only the sid changes: the answer grows by [`TAG_OVERHEAD`].
pub fn tag_response(body: &[u8], tag: NodeTag) -> Option<Vec<u8>> {
    let open: OpenPacket<'_> = serde_json::from_slice(open_packet(body)?).ok()?;
    if !is_valid_sid(open.sid) {
        return None;
    }
    // The sid borrows from the packet, so that the distance of their addresses is its place in the body.
    let end = open.sid.as_ptr().addr().checked_sub(body.as_ptr().addr())? + open.sid.len();
    let (before, after) = body.split_at_checked(end)?;
    Some([before, format!(".{tag}").as_bytes(), after].concat())
}

/// The open packet. A sid written with escapes cannot be borrowed, and one written twice is an error: neither
/// is understood.
#[derive(Deserialize)]
struct OpenPacket<'a> {
    sid: &'a str,
}

/// The hash of the Engine.IO session that a request belongs to: the same for all its requests, tagged or not.
pub fn session_key(query: &str) -> Option<u64> {
    let Occurrence::Once(value) = query::find(query, "sid") else { return None };
    let is_engine_io = matches!(query::find(query, "EIO"), Occurrence::Once(_));
    let sid = split_tag(value).map_or(value, |(sid, _)| sid);
    (is_engine_io && is_valid_sid(sid)).then(|| hash::hash_key(sid.as_bytes()))
}

/// The node that the sid of a query is tagged with.
pub fn find_node_tag(query: &str) -> Option<NodeTag> {
    locate_tag(query).map(|(tag, _)| tag)
}

/// The node that the sid of a query is tagged with, and the query without the tag; every other byte stays.
pub fn strip_tag(query: &str) -> Option<(NodeTag, String)> {
    let (tag, Range { start, end }) = locate_tag(query)?;
    Some((tag, [&query[..start], &query[end..]].concat()))
}

/// The tag of the only sid in a query, and where its dot and its characters are.
fn locate_tag(query: &str) -> Option<(NodeTag, Range<usize>)> {
    let Occurrence::Once(value) = query::find(query, "sid") else { return None };
    let (_, tag) = split_tag(value)?;
    let end = value.as_ptr().addr() - query.as_ptr().addr() + value.len();
    Some((tag, end - TAG_OVERHEAD..end))
}

/// A sid and the tag behind it.
fn split_tag(value: &str) -> Option<(&str, NodeTag)> {
    let (sid, tag) = value.rsplit_once('.')?;
    if !is_valid_sid(sid) {
        return None;
    }
    Some((sid, NodeTag::parse(tag.as_bytes())?))
}

fn is_valid_sid(sid: &str) -> bool {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    (1..=MAX_SID).contains(&sid.len()) && sid.bytes().all(is_unreserved)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SID: &str = "lv_VI97HAXpY6yYWAAAB";

    fn tag() -> NodeTag {
        NodeTag::of("chat", "ws1")
    }

    fn open_of(sid: &str) -> String {
        format!(
            r#"0{{"sid":"{sid}","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}}"#
        )
    }

    fn tagged(body: &str) -> Option<String> {
        tag_response(body.as_bytes(), tag()).map(|body| String::from_utf8(body).unwrap())
    }

    #[test]
    fn the_requests_of_a_session_have_one_key_and_those_of_none_have_none() {
        let key = |query: &str| session_key(query);
        assert!(key("EIO=4&transport=polling&sid=abc").is_some());
        assert_eq!(key("EIO=4&transport=polling&sid=abc&t=1"), key("sid=abc&transport=websocket&EIO=4"));
        assert_ne!(key("EIO=4&sid=abc"), key("EIO=4&sid=abd"));
        for query in
            ["", "sid=abc", "EIO=4&transport=polling", "EIO=4&sid=", "EIO=4&sid=a&sid=b", "EIO=4&sid=a/b"]
        {
            assert_eq!(key(query), None, "{query}");
        }
    }

    #[test]
    fn a_session_has_its_key_with_the_longest_sid_and_with_the_tag_or_without() {
        for length in [1, MAX_SID - TAG_OVERHEAD, MAX_SID - TAG_OVERHEAD + 1, MAX_SID] {
            let bare = format!("EIO=4&transport=polling&sid={}", "x".repeat(length));
            let tagged = format!("{bare}.{}", tag());
            assert!(session_key(&bare).is_some(), "{length}");
            assert_eq!(session_key(&tagged), session_key(&bare), "{length}");
        }
    }

    #[test]
    fn a_get_that_opens_a_session_by_polling_is_a_handshake() {
        let is = |method: Method, query: &str| is_polling_handshake(&method, Some(query));
        assert!(is(Method::GET, "EIO=4&transport=polling"));
        assert!(is(Method::GET, "user=7&transport=polling&EIO=4&t=abc&b64=1"));
        for query in [
            "",
            "EIO=4",
            "EIO=3&transport=polling",
            "EIO=4&transport=websocket",
            "EIO=4&transport=polling&sid=x",
            "EIO=4&transport=polling&sid=",
            "EIO=4&transport=polling&j=0",
            "EIO=4&EIO=4&transport=polling",
            "EIO=4&transport=polling&transport=websocket",
        ] {
            assert!(!is(Method::GET, query), "{query}");
        }
        assert!(!is(Method::POST, "EIO=4&transport=polling"));
        assert!(!is(Method::OPTIONS, "EIO=4&transport=polling"));
        assert!(!is_polling_handshake(&Method::GET, None));
    }

    #[test]
    fn no_spelling_hides_that_a_request_may_open_a_session() {
        let may = |method: Method, query: &str| may_open_polling_session(&method, Some(query));
        for query in [
            "EIO=4&transport=polling",
            "EIO=3&transport=polling",
            "transport=polling",
            "EIO=4&transport=polling&j=0",
            "EIO=4&transport=polling&sid=",
            "EIO=4&transport=polling&sid",
            "EIO=4&tr%61nsport=p%6flling",
            "transport=websocket&transport=polling",
        ] {
            assert!(may(Method::GET, query) && may(Method::POST, query), "{query}");
            assert!(!may(Method::OPTIONS, query), "a preflight opens nothing: {query}");
        }
        for query in
            ["", "EIO=4", "EIO=4&transport=websocket", "transport=polling&sid=x", "transport=polling&s%69d=x"]
        {
            assert!(!may(Method::GET, query), "{query}");
        }
        assert!(!may_open_polling_session(&Method::GET, None));
    }

    #[test]
    fn an_open_packet_and_the_requests_behind_it_name_the_same_session() {
        let opened = session_in_open_packet(open_of(SID).as_bytes());
        assert!(opened.is_some());
        let packet = open_of(SID);
        let revision_3 = format!("{}:{packet}2:40", packet.len());
        assert_eq!(session_in_open_packet(revision_3.as_bytes()), opened);
        assert!(parse_heartbeat(revision_3.as_bytes()).is_some());
        for query in [format!("EIO=4&sid={SID}"), format!("sid={SID}&t=1"), format!("sid=%6c{}", &SID[1..])] {
            assert_eq!(session_in_query(&query), opened, "{query}");
        }
        for query in ["", "sid=", "sid=a&sid=b"] {
            assert_eq!(session_in_query(query), None, "{query}");
        }
        for payload in ["", "ok", "5:0{", "99999999999999999999:0{}", "1:0{\"sid\":\"a\"}"] {
            assert_eq!(session_in_open_packet(payload.as_bytes()), None, "{payload}");
        }
    }

    #[test]
    fn the_sid_of_an_open_packet_is_tagged_and_nothing_else_changes() {
        for sid in [SID, "AAAAAAAAAAAAAAHs", "a", "my.own~sid-1", &"x".repeat(128)] {
            let body = open_of(sid);
            let expected = body.replacen(&format!("\"{sid}\""), &format!("\"{sid}.{}\"", tag()), 1);
            assert_eq!(tagged(&body), Some(expected.clone()));
            assert_eq!(expected.len(), body.len() + TAG_OVERHEAD);
        }
    }

    #[test]
    fn order_and_spaces_of_the_packet_and_what_follows_it_stay() {
        let t = tag();
        let odd = format!(
            "0{{ \"a\" : {{\"sid\":\"inner\"}}, \"b\":\"\\\"sid\\\":\\\"x\\\"\",\n \"sid\" : \"{SID}\" }}"
        );
        assert_eq!(tagged(&odd), Some(odd.replacen(SID, &format!("{SID}.{t}"), 1)));
        let more = format!("{}\x1e40{{\"sid\":\"other\"}}\x1ebAQID", open_of(SID));
        assert_eq!(tagged(&more), Some(more.replacen(SID, &format!("{SID}.{t}"), 1)));
        let binary = [open_of(SID).as_bytes(), b"\x1e\xff\xfe"].concat();
        assert!(tag_response(&binary, t).unwrap().ends_with(b"\x1e\xff\xfe"));
    }

    #[test]
    fn an_answer_that_is_not_understood_passes_untouched() {
        let cut = &open_of(SID)[..40];
        for body in [
            "",
            "0",
            "0{",
            "0{}",
            "ok",
            cut,
            "0[\"sid\"]",
            "1{\"sid\":\"x\"}",
            "{\"sid\":\"x\"}",
            "97:0{\"sid\":\"x\"}",
            "0 {\"sid\":\"x\"}",
            "0{\"sid\":7}",
            "0{\"sid\":null}",
            "0{\"sid\":\"\"}",
            "0{\"sid\":\"a b\"}",
            "0{\"sid\":\"a\\u0062\"}",
            "0{\"sid\":\"é\"}",
            "0{\"SID\":\"x\"}",
            "0{\"sid\":\"x\",\"sid\":\"y\"}",
            "0{\"sid\":\"x\"}trailing",
            "0{\"sid\":\"x\",}",
            "\x1e0{\"sid\":\"x\"}",
            "{\"code\":1,\"message\":\"Session ID unknown\"}",
            "___eio[0](\"0{\\\"sid\\\":\\\"x\\\"}\");",
        ] {
            assert_eq!(tagged(body), None, "{body:?}");
        }
        assert_eq!(tagged(&open_of(&"x".repeat(129))), None);
        assert_eq!(tag_response(b"0{\"sid\":\"\xff\"}", tag()), None);
        assert_eq!(tag_response(b"\x1f\x8b\x08\0", tag()), None);
    }

    #[test]
    fn the_open_packet_says_how_often_the_node_pings() {
        let usual = Heartbeat { interval: Duration::from_secs(25), timeout: Duration::from_secs(20) };
        assert_eq!(parse_heartbeat(open_of(SID).as_bytes()), Some(usual));
        assert_eq!(parse_heartbeat([open_of(SID).as_bytes(), b"\x1e40"].concat().as_slice()), Some(usual));
        for none in [
            "",
            "0{}",
            "2{\"pingInterval\":1,\"pingTimeout\":1}",
            "0{\"pingInterval\":1}",
            "0{\"pingInterval\":-1,\"pingTimeout\":1}",
            "0{\"pingInterval\":1e99,\"pingTimeout\":1}",
            "0{\"pingInterval\":\"1\",\"pingTimeout\":1}",
            "0[1,2]",
        ] {
            assert_eq!(parse_heartbeat(none.as_bytes()), None, "{none}");
        }
        let most = format!("0{{\"pingInterval\":{},\"pingTimeout\":0}}", u64::MAX);
        assert_eq!(parse_heartbeat(most.as_bytes()).unwrap().interval, Duration::from_millis(u64::MAX));
    }

    #[test]
    fn a_session_that_begins_as_a_websocket_is_told_from_one_that_goes_on_as_one() {
        assert!(is_websocket_handshake(Some("EIO=4&transport=websocket")));
        for other in
            ["EIO=4&transport=websocket&sid=x", "EIO=3&transport=websocket", "EIO=4&transport=polling", ""]
        {
            assert!(!is_websocket_handshake(Some(other)), "{other}");
        }
        assert!(!is_websocket_handshake(None));
    }

    #[test]
    fn the_tag_is_stripped_and_every_other_byte_of_the_query_stays() {
        let t = tag();
        for (before, after) in
            [("", ""), ("EIO=4&transport=polling&t=%zz+&&", "&x=%C3&=&"), ("a.b=c.d&", "&sids=x")]
        {
            let query = format!("{before}sid={SID}.{t}{after}");
            assert_eq!(strip_tag(&query), Some((t, format!("{before}sid={SID}{after}"))));
            assert_eq!(find_node_tag(&query), Some(t));
        }
    }

    #[test]
    fn two_balancers_in_a_row_each_strip_their_own_tag() {
        let (inner, outer) = (NodeTag::of("inner", "a"), NodeTag::of("outer", "b"));
        let query = format!("sid={SID}.{inner}.{outer}");
        let (tag, rest) = strip_tag(&query).unwrap();
        assert_eq!((tag, strip_tag(&rest)), (outer, Some((inner, format!("sid={SID}")))));
    }

    #[test]
    fn a_sid_without_a_sound_tag_is_left_alone() {
        let t = tag();
        for query in [
            String::new(),
            "sid".into(),
            "sid=".into(),
            format!("sid={SID}"),
            format!("sid=.{t}"),
            format!("sid={t}"),
            format!("sid={SID}.{t}A"),
            format!("sid={SID}.{}", &t.to_string()[1..]),
            format!("sid={SID}%2E{t}"),
            format!("sid=a%20b.{t}"),
            format!("sid={}.{t}", "x".repeat(129)),
            format!("sid={SID}.{t}&sid={SID}.{t}"),
            format!("sid={SID}.{t}&s%69d=x"),
            format!("Sid={SID}.{t}"),
            format!("xsid={SID}.{t}"),
        ] {
            assert_eq!(strip_tag(&query), None, "{query}");
        }
    }

    proptest! {
        #[test]
        fn what_is_tagged_is_untagged(sid in "[A-Za-z0-9._~-]{1,128}", node in "[a-z]{1,8}") {
            let tag = NodeTag::of("chat", &node);
            let body = tag_response(open_of(&sid).as_bytes(), tag).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&body[1..]).unwrap();
            let query = format!("EIO=4&transport=polling&sid={}", json["sid"].as_str().unwrap());
            prop_assert_eq!(strip_tag(&query), Some((tag, format!("EIO=4&transport=polling&sid={sid}"))));
        }

        #[test]
        fn no_body_and_no_query_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..80), query in "\\PC{0,60}") {
            prop_assert_eq!(tag_response(&body, tag()), None);
            prop_assert_eq!(strip_tag(&query), None);
        }
    }
}
