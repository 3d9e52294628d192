//! Reads the affinity sources of a request, in order.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header};
use mainstay_core::query::{self, Occurrence};

use super::cookie::{self, CookiePolicy, NodeTag};
use super::hint::{AffinityHints, PinLookup};
use super::source::{AffinitySource, hash_client};
use super::{engine_io, hash};

/// The longest value of a header or of a query parameter that is a key, in bytes.
pub(crate) const MAX_KEY_LEN: usize = 1024;

/// The parts of a request that the sources read.
#[derive(Debug, Clone, Copy)]
pub struct AffinityRequest<'a> {
    /// The header fields as they came.
    pub headers: &'a HeaderMap,
    /// The query of the request target, without its `?`.
    pub query: Option<&'a str>,
    /// The client's address, as this balancer or a trusted proxy saw it.
    pub client: IpAddr,
    /// Unix seconds.
    pub now: u64,
    /// Name of the pool.
    pub pool: &'a str,
}

/// Finds the nodes of a pool by what names them.
pub trait NodeDirectory {
    /// The index of the node with this id.
    fn find_by_id(&self, id: &str) -> Option<usize>;
    /// The index of the node with this tag.
    fn find_by_tag(&self, tag: NodeTag) -> Option<usize>;
}

/// Reads the sources in order.
pub fn collect_hints(
    sources: &[AffinitySource],
    request: &AffinityRequest<'_>,
    nodes: &dyn NodeDirectory,
) -> AffinityHints {
    let mut hints = AffinityHints::default();
    for (index, source) in sources.iter().enumerate() {
        let kind = source.hint_source();
        let pin = match source {
            AffinitySource::Cookie(policy) => {
                let (pin, renew) = read_cookie(policy, request, nodes);
                let valid_for =
                    if let PinLookup::Node(node) = pin { Some(node).filter(|_| !renew) } else { None };
                hints.record_cookie(index, valid_for);
                pin
            }
            AffinitySource::NodeCookie { name } => read_node_cookie(name, request, nodes),
            AffinitySource::EngineIo => read_sid(request, nodes),
            AffinitySource::Header(name) => match header_key(name, request) {
                Some(hash) => return hints.with_key(hash, kind),
                None => PinLookup::Absent,
            },
            AffinitySource::Query(name) => match query_key(name, request) {
                Some(hash) => return hints.with_key(hash, kind),
                None => PinLookup::Absent,
            },
            AffinitySource::ClientIp(prefixes) => {
                return hints.with_key(hash_client(request.client, *prefixes), kind);
            }
        };
        hints.record_pin(pin, kind);
    }
    hints
}

/// The pin in the balancer's cookie, and whether the cookie is to be renewed.
fn read_cookie(
    policy: &CookiePolicy,
    request: &AffinityRequest<'_>,
    nodes: &dyn NodeDirectory,
) -> (PinLookup, bool) {
    match cookie_value(request.headers, &policy.name) {
        Occurrence::Absent | Occurrence::Invalid => (PinLookup::Absent, false),
        Occurrence::Once(value) => match policy.read(request.pool, value.as_bytes(), request.now) {
            None => (PinLookup::Absent, false),
            Some(cookie) => (nodes.find_by_tag(cookie.tag).into(), cookie.renew),
        },
    }
}

fn read_node_cookie(name: &str, request: &AffinityRequest<'_>, nodes: &dyn NodeDirectory) -> PinLookup {
    match cookie_value(request.headers, name) {
        Occurrence::Absent | Occurrence::Invalid => PinLookup::Absent,
        Occurrence::Once(id) => nodes.find_by_id(id).into(),
    }
}

fn read_sid(request: &AffinityRequest<'_>, nodes: &dyn NodeDirectory) -> PinLookup {
    match request.query.and_then(engine_io::find_node_tag) {
        Some(tag) => nodes.find_by_tag(tag).into(),
        None => PinLookup::Absent,
    }
}

/// The value of a cookie, without its quotes, over all `Cookie` fields (HTTP/2 may split them, RFC 9113
/// section 8.2.3). Other pairs may hold whatever they like.
fn cookie_value<'h>(headers: &'h HeaderMap, name: &str) -> Occurrence<&'h str> {
    let fields = headers.get_all(header::COOKIE).iter();
    let pairs = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let pair = pair.trim_ascii();
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (pair[..equals].trim_ascii_end(), pair[equals + 1..].trim_ascii_start());
        (key == name.as_bytes()).then_some(value)
    });
    match (values.next(), values.next()) {
        (None, _) => Occurrence::Absent,
        (Some(value), None) => {
            visible_ascii(strip_quotes(value)).map_or(Occurrence::Invalid, Occurrence::Once)
        }
        (Some(_), Some(_)) => Occurrence::Invalid,
    }
}

/// The value inside one pair of double quotes, or as it is (RFC 6265 section 4.1.1).
fn strip_quotes(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inside @ .., b'"'] => inside,
        _ => value,
    }
}

/// The value as text, when it is visible ASCII of a sound length.
fn visible_ascii(value: &[u8]) -> Option<&str> {
    let sound =
        (1..=cookie::MAX_COOKIE_VALUE).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(value).ok().filter(|_| sound)
}

fn header_key(name: &HeaderName, request: &AffinityRequest<'_>) -> Option<u64> {
    let mut values = request.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => hash_value(value.as_bytes().trim_ascii()),
        _ => None,
    }
}

fn query_key(name: &str, request: &AffinityRequest<'_>) -> Option<u64> {
    match query::find(request.query?, name) {
        // Three characters at most stand for one byte: a longer value is too long, decoded or not.
        Occurrence::Once(value) if value.len() <= 3 * MAX_KEY_LEN => hash_value(&query::decode(value)),
        _ => None,
    }
}

/// The key of a value, the same from a header as from a query.
fn hash_value(value: &[u8]) -> Option<u64> {
    (1..=MAX_KEY_LEN).contains(&value.len()).then(|| hash::hash_key(value))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::cookie::{KeyRing, SameSite, SecureAttribute};
    use super::*;
    use crate::affinity::{AffinityHint, ClientPrefixes, HintSource};

    const NOW: u64 = 1_800_000_000;

    /// Nodes `ws0`, `ws1`, ... of the pool `chat`.
    struct NumberedNodes(usize);

    impl NodeDirectory for NumberedNodes {
        fn find_by_id(&self, id: &str) -> Option<usize> {
            (0..self.0).find(|node| id == format!("ws{node}"))
        }

        fn find_by_tag(&self, tag: NodeTag) -> Option<usize> {
            (0..self.0).find(|node| tag == NodeTag::of("chat", &format!("ws{node}")))
        }
    }

    fn rule(keys: Option<KeyRing>) -> CookiePolicy {
        CookiePolicy {
            name: "mainstay".into(),
            keys,
            secret_file: None,
            max_age: Some(Duration::from_secs(1000)),
            same_site: SameSite::Lax,
            secure: SecureAttribute::Auto,
            partitioned: false,
            path: "/".into(),
            domain: None,
        }
    }

    fn signing_rule() -> CookiePolicy {
        rule(Some(KeyRing::parse("a:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap()))
    }

    fn tag(node: usize) -> NodeTag {
        NodeTag::of("chat", &format!("ws{node}"))
    }

    fn headers(fields: &[(&'static str, &[u8])]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &[u8])| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())
        };
        fields.iter().map(pair).collect()
    }

    fn hints_of(
        sources: &[AffinitySource],
        fields: &[(&'static str, &[u8])],
        query: Option<&str>,
    ) -> AffinityHints {
        let headers = headers(fields);
        let client = "192.0.2.7".parse().unwrap();
        collect_hints(
            sources,
            &AffinityRequest { headers: &headers, query, client, now: NOW, pool: "chat" },
            &NumberedNodes(3),
        )
    }

    fn hints_of_cookies(sources: &[AffinitySource], cookies: &[&str]) -> AffinityHints {
        let fields: Vec<_> = cookies.iter().map(|cookie| ("cookie", cookie.as_bytes())).collect();
        hints_of(sources, &fields, None)
    }

    fn value_of(rule: &CookiePolicy, node: usize) -> String {
        let set = rule.set_cookie("chat", tag(node), NOW, false).unwrap();
        set.to_str().unwrap().split(['=', ';']).nth(1).unwrap().to_owned()
    }

    fn due(hints: &AffinityHints, sources: &[AffinitySource], node: usize) -> usize {
        hints.cookies_to_set(sources, node).count()
    }

    #[test]
    fn the_cookie_that_was_set_pins_to_its_node_and_is_not_set_again() {
        for rule in [rule(None), signing_rule()] {
            let cookie = format!("a=b; mainstay={}; c=d", value_of(&rule, 1));
            let sources = [AffinitySource::Cookie(rule)];
            let hints = hints_of_cookies(&sources, &[&cookie]);
            assert_eq!(hints.as_slice(), [AffinityHint::Pin { node: 1, source: HintSource::Cookie }]);
            assert_eq!(hints.unknown_pin(), None);
            assert_eq!(due(&hints, &sources, 1), 0);
            assert_eq!(due(&hints, &sources, 2), 1, "on another node it is set anew");
        }
    }

    #[test]
    fn a_request_without_the_cookie_is_due_one() {
        let sources = [AffinitySource::Cookie(rule(None))];
        for cookies in
            [&[][..], &["a=b"], &["mainstay"], &["Mainstay=x; xmainstay=y; mainstayx=z"], &["", ";;= ;=x"]]
        {
            let hints = hints_of_cookies(&sources, cookies);
            assert_eq!((hints.as_slice(), hints.unknown_pin()), (&[][..], None));
            assert_eq!(due(&hints, &sources, 0), 1);
        }
    }

    #[test]
    fn a_cookie_is_found_in_any_field_among_odd_pairs_and_in_quotes() {
        let value = value_of(&rule(None), 2);
        let sources = [AffinitySource::Cookie(rule(None))];
        let odd = format!("x=é; ;=;q=\"a=b\";mainstay = \"{value}\" ;y");
        for cookies in
            [&["a=b", &odd, "c=d"][..], &[&format!("mainstay={value}")], &[&format!("a=1;mainstay={value};")]]
        {
            assert_eq!(
                hints_of_cookies(&sources, cookies).as_slice(),
                [AffinityHint::Pin { node: 2, source: HintSource::Cookie }],
                "{cookies:?}"
            );
        }
    }

    #[test]
    fn a_duplicated_forged_oversized_or_non_ascii_cookie_is_as_no_cookie() {
        let rule = signing_rule();
        let value = value_of(&rule, 1);
        let sources = [AffinitySource::Cookie(rule)];
        let pair = format!("mainstay={value}");
        for cookies in [
            &[&*format!("{pair}; {pair}")][..],
            &[&pair, &pair],
            &[&format!("mainstay=v1.{}", tag(1))],
            &[&format!("mainstay={value}x")],
            &[&format!("mainstay=é{value}")],
            &[&format!("mainstay={}", "v".repeat(257))],
            &["mainstay="],
            &["mainstay=\"\""],
            &["mainstay=\""],
        ] {
            let hints = hints_of_cookies(&sources, cookies);
            assert_eq!(hints.as_slice(), [], "{cookies:?}");
            assert_eq!(hints.unknown_pin(), None, "{cookies:?}");
            assert_eq!(due(&hints, &sources, 1), 1, "{cookies:?}");
        }
    }

    #[test]
    fn an_expired_cookie_is_as_no_cookie_and_an_old_one_is_renewed() {
        let rule = signing_rule();
        let headers = headers(&[("cookie", format!("mainstay={}", value_of(&rule, 1)).as_bytes())]);
        let sources = [AffinitySource::Cookie(rule)];
        let at = |now| {
            let client = "::1".parse().unwrap();
            collect_hints(
                &sources,
                &AffinityRequest { headers: &headers, query: None, client, now, pool: "chat" },
                &NumberedNodes(3),
            )
        };
        assert_eq!((at(NOW + 1000).as_slice(), at(NOW + 1000).unknown_pin()), (&[][..], None));
        assert_eq!(at(NOW + 999).as_slice(), [AffinityHint::Pin { node: 1, source: HintSource::Cookie }]);
        assert_eq!(due(&at(NOW + 499), &sources, 1), 0);
        assert_eq!(due(&at(NOW + 999), &sources, 1), 1);
    }

    #[test]
    fn a_sound_cookie_of_a_node_that_is_gone_is_lost_and_replaced() {
        let rule = signing_rule();
        let sources = [AffinitySource::Cookie(rule.clone())];
        let hints = hints_of_cookies(&sources, &[&format!("mainstay={}", value_of(&rule, 9))]);
        assert_eq!((hints.as_slice(), hints.unknown_pin()), (&[][..], Some(HintSource::Cookie)));
        assert_eq!(due(&hints, &sources, 0), 1);
    }

    #[test]
    fn a_cookie_that_the_node_sets_names_the_node() {
        let sources = [AffinitySource::NodeCookie { name: "io".into() }];
        let pin = [AffinityHint::Pin { node: 1, source: HintSource::NodeCookie }];
        assert_eq!(hints_of_cookies(&sources, &["io=ws1"]).as_slice(), pin);
        assert_eq!(hints_of_cookies(&sources, &["io=\"ws1\""]).as_slice(), pin);
        assert_eq!(hints_of_cookies(&sources, &["io=ws7"]).unknown_pin(), Some(HintSource::NodeCookie));
        for invalid in ["io=ws1; io=ws2", "io=w s1"] {
            let hints = hints_of_cookies(&sources, &[invalid]);
            assert_eq!((hints.as_slice(), hints.unknown_pin()), (&[][..], None), "{invalid}");
        }
        assert_eq!(due(&hints_of_cookies(&sources, &[]), &sources, 0), 0, "the balancer does not set it");
    }

    #[test]
    fn a_tagged_sid_pins_and_an_untagged_one_says_nothing() {
        let ask_sid = |query: &str| hints_of(&[AffinitySource::EngineIo], &[], Some(query));
        assert_eq!(
            ask_sid(&format!("EIO=4&sid=abc.{}", tag(2))).as_slice(),
            [AffinityHint::Pin { node: 2, source: HintSource::EngineIo }]
        );
        assert_eq!(ask_sid(&format!("EIO=4&sid=abc.{}", tag(9))).unknown_pin(), Some(HintSource::EngineIo));
        assert_eq!(ask_sid("EIO=4&sid=abc"), AffinityHints::default());
        assert_eq!(hints_of(&[AffinitySource::EngineIo], &[], None), AffinityHints::default());
    }

    #[test]
    fn a_header_or_a_query_parameter_is_a_key_when_it_is_carried_once() {
        let header = [AffinitySource::Header(HeaderName::from_static("x-user-id"))];
        let query = [AffinitySource::Query("user".into())];
        let key = |hints: AffinityHints| match hints.as_slice() {
            [] => None,
            [AffinityHint::Key { hash, .. }] => Some(*hash),
            other => panic!("{other:?}"),
        };
        let long = "x".repeat(1024);
        for value in ["7", "ü b", &long] {
            let expected = Some(hash::hash_key(value.as_bytes()));
            assert_eq!(key(hints_of(&header, &[("x-user-id", value.as_bytes())], None)), expected);
            let query_text = format!("user={}", value.replace(' ', "%20").replace('ü', "%c3%BC"));
            assert_eq!(key(hints_of(&query, &[], Some(&query_text))), expected, "a header and a query agree");
        }
        let over = "x".repeat(1025);
        for values in [&[][..], &[""], &["7", "7"], &[&over]] {
            let fields: Vec<_> = values.iter().map(|value| ("x-user-id", value.as_bytes())).collect();
            assert_eq!(key(hints_of(&header, &fields, None)), None, "{values:?}");
        }
        for text in [
            "",
            "user",
            "user=",
            "user=7&user=7",
            &format!("user={over}"),
            &format!("user={}", "%41".repeat(1025)),
        ] {
            assert_eq!(key(hints_of(&query, &[], Some(text))), None, "{text:?}");
        }
    }

    #[test]
    fn a_client_address_is_cut_to_its_prefix() {
        let key =
            |address: &str, ipv4, ipv6| hash_client(address.parse().unwrap(), ClientPrefixes { ipv4, ipv6 });
        assert_eq!(key("192.0.2.1", 24, 64), key("192.0.2.255", 24, 64));
        assert_ne!(key("192.0.2.1", 32, 64), key("192.0.2.255", 32, 64));
        assert_eq!(key("::ffff:192.0.2.1", 32, 64), key("192.0.2.1", 32, 64), "IPv4-mapped counts as IPv4");
        assert_eq!(key("2001:db8::1", 32, 64), key("2001:db8::ffff:1:2:3", 32, 64));
        assert_ne!(key("2001:db8::1", 32, 64), key("2001:db8:0:1::1", 32, 64));
        assert_eq!(key("1.2.3.4", 0, 0), key("5.6.7.8", 0, 0));
        assert_eq!(key("1::", 0, 0), key("2::", 0, 0));
        assert_ne!(key("1.2.3.4", 0, 0), key("1::", 0, 0));
        assert_eq!(key("1.2.3.4", 255, 255), key("1.2.3.4", 32, 128), "more bits than there are");
        assert_eq!(key("1::2", 255, 255), key("1::2", 32, 128));
    }

    #[test]
    fn sources_are_asked_in_order_and_a_key_ends_the_list() {
        let sources = [
            AffinitySource::EngineIo,
            AffinitySource::NodeCookie { name: "io".into() },
            AffinitySource::Header(HeaderName::from_static("x-user-id")),
            AffinitySource::Cookie(rule(None)),
            AffinitySource::ClientIp(ClientPrefixes::default()),
        ];
        let sid = format!("sid=a.{}", tag(2));
        let all = hints_of(&sources, &[("cookie", b"io=ws1"), ("x-user-id", b"7")], Some(&sid));
        let pins = [
            AffinityHint::Pin { node: 2, source: HintSource::EngineIo },
            AffinityHint::Pin { node: 1, source: HintSource::NodeCookie },
        ];
        assert_eq!(
            all.as_slice(),
            [pins[0], pins[1], AffinityHint::Key { hash: hash::hash_key(b"7"), source: HintSource::Header }]
        );
        assert_eq!(due(&all, &sources, 2), 0, "the cookie comes after the key and was not asked");

        let none = hints_of(&sources, &[], None);
        let address = hash_client("192.0.2.7".parse().unwrap(), ClientPrefixes::default());
        assert_eq!(none.as_slice(), [AffinityHint::Key { hash: address, source: HintSource::ClientIp }]);
        assert_eq!(due(&none, &sources, 2), 1);
        assert_eq!(hints_of(&[], &[("cookie", b"io=ws1")], Some(&sid)), AffinityHints::default());
    }

    proptest! {
        #[test]
        fn no_header_and_no_query_makes_it_panic_or_pin(
            cookie in proptest::collection::vec(0x20_u8..=0xff, 0..200),
            query in "\\PC{0,80}",
        ) {
            let cookie: Vec<u8> = cookie.into_iter().filter(|byte| *byte != 0x7f).collect();
            let cookie = [b"mainstay=", &*cookie].concat();
            let sources = [AffinitySource::Cookie(signing_rule()), AffinitySource::EngineIo, AffinitySource::Query("user".into())];
            let hints = hints_of(&sources, &[("cookie", &cookie)], Some(&query));
            let has_pin = hints.as_slice().iter().any(|hint| matches!(hint, AffinityHint::Pin { .. }));
            prop_assert!(!has_pin);
        }
    }
}
