//! Where a client belongs: the sources that a request is asked, in order, and what each says.
//!
//! A source gives a *pin* (this very node) or a *key* (hash it over the nodes). Nothing here knows whether a
//! node is up; the caller walks the wishes in order and takes the first that can be met.
//!
//! What a client sends is never trusted to be sane: a value that is forged, expired, carried twice, too long or
//! not ASCII where it should be is as if it were not there, and the next source is asked.

pub mod cookie;
pub mod engine_io;
pub mod hash;
pub(crate) use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header};
use mainstay_core::query::{self, Occurrence};
use smallvec::SmallVec;

use cookie::{CookieRule, NodeTag};

/// The longest value of a header or of a query parameter that is a key, in bytes.
pub const MAX_KEY: usize = 1024;

/// One entry of a pool's `affinity` list.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A cookie that the balancer sets and reads.
    Cookie(cookie::CookieRule),
    /// A cookie that the node sets; its value is a node id.
    NodeCookie {
        /// The cookie's name, `io` for instance.
        name: String,
    },
    /// The node tag that the balancer put into a Socket.IO session id.
    EngineIo,
    /// The value of this request header is the key.
    Header(HeaderName),
    /// The value of this query parameter is the key.
    Query(String),
    /// The client's address, cut to a prefix, is the key.
    ClientIp(Prefixes),
}

/// How much of a client address counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefixes {
    /// Bits of an IPv4 address, 0 to 32.
    pub ipv4: u8,
    /// Bits of an IPv6 address, 0 to 128.
    pub ipv6: u8,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

impl Source {
    /// What kind of source it is.
    pub fn via(&self) -> Via {
        match self {
            Self::Cookie(_) => Via::Cookie,
            Self::NodeCookie { .. } => Via::NodeCookie,
            Self::EngineIo => Via::EngineIo,
            Self::Header(_) => Via::Header,
            Self::Query(_) => Via::Query,
            Self::ClientIp(_) => Via::ClientIp,
        }
    }
}

/// The kind of source that a wish came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Via {
    /// The balancer's cookie.
    Cookie,
    /// The node's cookie.
    NodeCookie,
    /// A tagged Socket.IO session id.
    EngineIo,
    /// A request header.
    Header,
    /// A query parameter.
    Query,
    /// The client's address.
    ClientIp,
}

impl Via {
    /// The value of the label `source`; where nothing was carried it is `none`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cookie => "cookie",
            Self::NodeCookie => "node_cookie",
            Self::EngineIo => "engine_io",
            Self::Header => "header",
            Self::Query => "query",
            Self::ClientIp => "client_ip",
        }
    }
}

/// What the sources are asked about.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
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

/// Where the nodes of a pool are found by what names them.
pub trait Directory {
    /// The index of the node with this id.
    fn by_id(&self, id: &str) -> Option<usize>;
    /// The index of the node with this tag.
    fn by_tag(&self, tag: NodeTag) -> Option<usize>;
}

/// What one source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The client belongs to this very node.
    Pin {
        /// Index of the node.
        node: usize,
        /// Who says so.
        via: Via,
    },
    /// The client belongs where this key falls.
    Key {
        /// Hash of the key.
        hash: u64,
        /// Where the key came from.
        via: Via,
    },
}

/// All that the sources say, in order. It ends at the first key, since a key can always be met.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Pins, and at the end perhaps a key.
    list: SmallVec<[Wish; 4]>,
    /// The first source whose pin was sound and names no node of the pool any more.
    lost: Option<Via>,
    /// The first source whose pin was carried and did not hold.
    refused: Option<Via>,
    /// For each cookie rule that was asked: its index among the sources, and the node that its cookie names
    /// and need not be told again.
    cookies: SmallVec<[(usize, Option<usize>); 1]>,
}

impl Wishes {
    /// The wishes in order.
    pub fn list(&self) -> &[Wish] {
        &self.list
    }

    /// The first source whose pin was sound and names no node of the pool: it was removed, or lives elsewhere.
    pub fn lost(&self) -> Option<Via> {
        self.lost
    }

    /// The first source whose pin was carried and did not hold: forged, expired, twice, too long, not ASCII.
    pub fn refused(&self) -> Option<Via> {
        self.refused
    }

    /// The rules whose cookie is to be set in the answer, now that the client is on `node`: those that were
    /// asked and whose cookie was missing, did not hold, names another node or is to be renewed.
    pub fn cookies_due<'s>(
        &self,
        sources: &'s [Source],
        node: usize,
    ) -> impl Iterator<Item = &'s CookieRule> {
        let due = self.cookies.iter().filter(move |(_, held)| *held != Some(node));
        due.filter_map(|(index, _)| match sources.get(*index) {
            Some(Source::Cookie(rule)) => Some(rule),
            _ => None,
        })
    }
}

/// Asks the sources in order.
pub fn wishes(sources: &[Source], request: &Request<'_>, nodes: &dyn Directory) -> Wishes {
    let mut wishes = Wishes::default();
    for (index, source) in sources.iter().enumerate() {
        let via = source.via();
        let pin = match source {
            Source::Cookie(rule) => {
                let (pin, renew) = ask_cookie(rule, request, nodes);
                let held = if let Pin::To(node) = pin { Some(node).filter(|_| !renew) } else { None };
                wishes.cookies.push((index, held));
                pin
            }
            Source::NodeCookie { name } => ask_node_cookie(name, request, nodes),
            Source::EngineIo => ask_sid(request, nodes),
            Source::Header(name) => match header_key(name, request) {
                Some(hash) => return wishes.ending_with(hash, via),
                None => Pin::None,
            },
            Source::Query(name) => match query_key(name, request) {
                Some(hash) => return wishes.ending_with(hash, via),
                None => Pin::None,
            },
            Source::ClientIp(prefixes) => {
                return wishes.ending_with(client_key(request.client, *prefixes), via);
            }
        };
        wishes.note(pin, via);
    }
    wishes
}

impl Wishes {
    fn ending_with(mut self, hash: u64, via: Via) -> Self {
        self.list.push(Wish::Key { hash, via });
        self
    }

    fn note(&mut self, pin: Pin, via: Via) {
        match pin {
            Pin::To(node) => self.list.push(Wish::Pin { node, via }),
            Pin::Lost => self.lost = self.lost.or(Some(via)),
            Pin::Refused => self.refused = self.refused.or(Some(via)),
            Pin::None => {}
        }
    }
}

/// What a source that pins says.
enum Pin {
    /// This node.
    To(usize),
    /// A node that is not there.
    Lost,
    /// Something that does not hold.
    Refused,
    /// Nothing.
    None,
}

impl From<Option<usize>> for Pin {
    fn from(node: Option<usize>) -> Self {
        node.map_or(Self::Lost, Self::To)
    }
}

/// The pin in the balancer's cookie, and whether the cookie is to be renewed.
fn ask_cookie(rule: &CookieRule, request: &Request<'_>, nodes: &dyn Directory) -> (Pin, bool) {
    match cookie_value(request.headers, &rule.name) {
        Occurrence::Absent => (Pin::None, false),
        Occurrence::Invalid => (Pin::Refused, false),
        Occurrence::Once(value) => match rule.read(request.pool, value.as_bytes(), request.now) {
            None => (Pin::Refused, false),
            Some(reading) => (nodes.by_tag(reading.tag).into(), reading.renew),
        },
    }
}

fn ask_node_cookie(name: &str, request: &Request<'_>, nodes: &dyn Directory) -> Pin {
    match cookie_value(request.headers, name) {
        Occurrence::Absent => Pin::None,
        Occurrence::Invalid => Pin::Refused,
        Occurrence::Once(id) => nodes.by_id(id).into(),
    }
}

fn ask_sid(request: &Request<'_>, nodes: &dyn Directory) -> Pin {
    match request.query.and_then(engine_io::tag_in) {
        Some(tag) => nodes.by_tag(tag).into(),
        None => Pin::None,
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
        (Some(value), None) => plain_text(unquoted(value)).map_or(Occurrence::Invalid, Occurrence::Once),
        (Some(_), Some(_)) => Occurrence::Invalid,
    }
}

/// The value inside one pair of double quotes, or as it is (RFC 6265 section 4.1.1).
fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inside @ .., b'"'] => inside,
        _ => value,
    }
}

/// The value as text, when it is visible ASCII of a sound length.
fn plain_text(value: &[u8]) -> Option<&str> {
    let sound = (1..=cookie::MAX_VALUE).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(value).ok().filter(|_| sound)
}

fn header_key(name: &HeaderName, request: &Request<'_>) -> Option<u64> {
    let mut values = request.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value_key(value.as_bytes().trim_ascii()),
        _ => None,
    }
}

fn query_key(name: &str, request: &Request<'_>) -> Option<u64> {
    match query::find(request.query?, name) {
        // Three characters at most stand for one byte: a longer value is too long, decoded or not.
        Occurrence::Once(value) if value.len() <= 3 * MAX_KEY => value_key(&query::decode(value)),
        _ => None,
    }
}

/// The key of a value, the same from a header as from a query.
fn value_key(value: &[u8]) -> Option<u64> {
    (1..=MAX_KEY).contains(&value.len()).then(|| hash::key(value))
}

/// The key of a client's address, cut to its prefix. An IPv4-mapped IPv6 address counts as the IPv4 address.
pub fn client_key(client: IpAddr, prefixes: Prefixes) -> u64 {
    let mut bytes = [0; 17];
    let len = match client.to_canonical() {
        IpAddr::V4(address) => {
            let host_bits = 32 - u32::from(prefixes.ipv4.min(32));
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            bytes[0] = 4;
            bytes[1..5].copy_from_slice(&(address.to_bits() & mask).to_be_bytes());
            5
        }
        IpAddr::V6(address) => {
            let host_bits = 128 - u32::from(prefixes.ipv6.min(128));
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            bytes[0] = 6;
            bytes[1..17].copy_from_slice(&(address.to_bits() & mask).to_be_bytes());
            17
        }
    };
    hash::key(&bytes[..len])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::cookie::{KeyRing, SameSite, Secure};
    use super::*;

    const NOW: u64 = 1_800_000_000;

    /// Nodes `ws0`, `ws1`, ... of the pool `chat`.
    struct Fleet(usize);

    impl Directory for Fleet {
        fn by_id(&self, id: &str) -> Option<usize> {
            (0..self.0).find(|node| id == format!("ws{node}"))
        }

        fn by_tag(&self, tag: NodeTag) -> Option<usize> {
            (0..self.0).find(|node| tag == NodeTag::of("chat", &format!("ws{node}")))
        }
    }

    fn rule(keys: Option<KeyRing>) -> CookieRule {
        CookieRule {
            name: "mainstay".into(),
            keys,
            secret_file: None,
            max_age: Some(Duration::from_secs(1000)),
            same_site: SameSite::Lax,
            secure: Secure::Auto,
            partitioned: false,
            path: "/".into(),
            domain: None,
        }
    }

    fn signing_rule() -> CookieRule {
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

    fn ask(sources: &[Source], fields: &[(&'static str, &[u8])], query: Option<&str>) -> Wishes {
        let headers = headers(fields);
        let client = "192.0.2.7".parse().unwrap();
        wishes(sources, &Request { headers: &headers, query, client, now: NOW, pool: "chat" }, &Fleet(3))
    }

    fn ask_cookies(sources: &[Source], cookies: &[&str]) -> Wishes {
        let fields: Vec<_> = cookies.iter().map(|cookie| ("cookie", cookie.as_bytes())).collect();
        ask(sources, &fields, None)
    }

    fn value_of(rule: &CookieRule, node: usize) -> String {
        let set = rule.set_cookie("chat", tag(node), NOW, false).unwrap();
        set.to_str().unwrap().split(['=', ';']).nth(1).unwrap().to_owned()
    }

    fn due(wishes: &Wishes, sources: &[Source], node: usize) -> usize {
        wishes.cookies_due(sources, node).count()
    }

    #[test]
    fn the_cookie_that_was_set_pins_to_its_node_and_is_not_set_again() {
        for rule in [rule(None), signing_rule()] {
            let cookie = format!("a=b; mainstay={}; c=d", value_of(&rule, 1));
            let sources = [Source::Cookie(rule)];
            let wishes = ask_cookies(&sources, &[&cookie]);
            assert_eq!(wishes.list(), [Wish::Pin { node: 1, via: Via::Cookie }]);
            assert_eq!((wishes.lost(), wishes.refused()), (None, None));
            assert_eq!(due(&wishes, &sources, 1), 0);
            assert_eq!(due(&wishes, &sources, 2), 1, "on another node it is set anew");
        }
    }

    #[test]
    fn a_request_without_the_cookie_is_due_one() {
        let sources = [Source::Cookie(rule(None))];
        for cookies in
            [&[][..], &["a=b"], &["mainstay"], &["Mainstay=x; xmainstay=y; mainstayx=z"], &["", ";;= ;=x"]]
        {
            let wishes = ask_cookies(&sources, cookies);
            assert_eq!(wishes, Wishes { cookies: SmallVec::from_slice(&[(0, None)]), ..Wishes::default() });
            assert_eq!(due(&wishes, &sources, 0), 1);
        }
    }

    #[test]
    fn a_cookie_is_found_in_any_field_among_odd_pairs_and_in_quotes() {
        let value = value_of(&rule(None), 2);
        let sources = [Source::Cookie(rule(None))];
        let odd = format!("x=é; ;=;q=\"a=b\";mainstay = \"{value}\" ;y");
        for cookies in
            [&["a=b", &odd, "c=d"][..], &[&format!("mainstay={value}")], &[&format!("a=1;mainstay={value};")]]
        {
            assert_eq!(
                ask_cookies(&sources, cookies).list(),
                [Wish::Pin { node: 2, via: Via::Cookie }],
                "{cookies:?}"
            );
        }
    }

    #[test]
    fn a_duplicated_forged_oversized_or_non_ascii_cookie_is_as_no_cookie() {
        let rule = signing_rule();
        let value = value_of(&rule, 1);
        let sources = [Source::Cookie(rule)];
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
            let wishes = ask_cookies(&sources, cookies);
            assert_eq!(wishes.list(), [], "{cookies:?}");
            assert_eq!((wishes.refused(), wishes.lost()), (Some(Via::Cookie), None), "{cookies:?}");
            assert_eq!(due(&wishes, &sources, 1), 1, "{cookies:?}");
        }
    }

    #[test]
    fn an_expired_cookie_is_as_no_cookie_and_an_old_one_is_renewed() {
        let rule = signing_rule();
        let headers = headers(&[("cookie", format!("mainstay={}", value_of(&rule, 1)).as_bytes())]);
        let sources = [Source::Cookie(rule)];
        let at = |now| {
            let client = "::1".parse().unwrap();
            wishes(
                &sources,
                &Request { headers: &headers, query: None, client, now, pool: "chat" },
                &Fleet(3),
            )
        };
        assert_eq!(at(NOW + 1000).refused(), Some(Via::Cookie));
        assert_eq!(at(NOW + 999).list(), [Wish::Pin { node: 1, via: Via::Cookie }]);
        assert_eq!(due(&at(NOW + 499), &sources, 1), 0);
        assert_eq!(due(&at(NOW + 999), &sources, 1), 1);
    }

    #[test]
    fn a_sound_cookie_of_a_node_that_is_gone_is_lost_and_replaced() {
        let rule = signing_rule();
        let sources = [Source::Cookie(rule.clone())];
        let wishes = ask_cookies(&sources, &[&format!("mainstay={}", value_of(&rule, 9))]);
        assert_eq!((wishes.list(), wishes.lost(), wishes.refused()), (&[][..], Some(Via::Cookie), None));
        assert_eq!(due(&wishes, &sources, 0), 1);
    }

    #[test]
    fn a_cookie_that_the_node_sets_names_the_node() {
        let sources = [Source::NodeCookie { name: "io".into() }];
        let pin = [Wish::Pin { node: 1, via: Via::NodeCookie }];
        assert_eq!(ask_cookies(&sources, &["io=ws1"]).list(), pin);
        assert_eq!(ask_cookies(&sources, &["io=\"ws1\""]).list(), pin);
        assert_eq!(ask_cookies(&sources, &["io=ws7"]).lost(), Some(Via::NodeCookie));
        assert_eq!(ask_cookies(&sources, &["io=ws1; io=ws2"]).refused(), Some(Via::NodeCookie));
        assert_eq!(ask_cookies(&sources, &["io=w s1"]).refused(), Some(Via::NodeCookie));
        assert_eq!(due(&ask_cookies(&sources, &[]), &sources, 0), 0, "the balancer does not set it");
    }

    #[test]
    fn a_tagged_sid_pins_and_an_untagged_one_says_nothing() {
        let ask_sid = |query: &str| ask(&[Source::EngineIo], &[], Some(query));
        assert_eq!(
            ask_sid(&format!("EIO=4&sid=abc.{}", tag(2))).list(),
            [Wish::Pin { node: 2, via: Via::EngineIo }]
        );
        assert_eq!(ask_sid(&format!("EIO=4&sid=abc.{}", tag(9))).lost(), Some(Via::EngineIo));
        assert_eq!(ask_sid("EIO=4&sid=abc"), Wishes::default());
        assert_eq!(ask(&[Source::EngineIo], &[], None), Wishes::default());
    }

    #[test]
    fn a_header_or_a_query_parameter_is_a_key_when_it_is_carried_once() {
        let header = [Source::Header(HeaderName::from_static("x-user-id"))];
        let query = [Source::Query("user".into())];
        let key = |wishes: Wishes| match wishes.list() {
            [] => None,
            [Wish::Key { hash, .. }] => Some(*hash),
            other => panic!("{other:?}"),
        };
        let long = "x".repeat(1024);
        for value in ["7", "ü b", &long] {
            let expected = Some(hash::key(value.as_bytes()));
            assert_eq!(key(ask(&header, &[("x-user-id", value.as_bytes())], None)), expected);
            let query_text = format!("user={}", value.replace(' ', "%20").replace('ü', "%c3%BC"));
            assert_eq!(key(ask(&query, &[], Some(&query_text))), expected, "a header and a query agree");
        }
        let over = "x".repeat(1025);
        for values in [&[][..], &[""], &["7", "7"], &[&over]] {
            let fields: Vec<_> = values.iter().map(|value| ("x-user-id", value.as_bytes())).collect();
            assert_eq!(key(ask(&header, &fields, None)), None, "{values:?}");
        }
        for text in [
            "",
            "user",
            "user=",
            "user=7&user=7",
            &format!("user={over}"),
            &format!("user={}", "%41".repeat(1025)),
        ] {
            assert_eq!(key(ask(&query, &[], Some(text))), None, "{text:?}");
        }
    }

    #[test]
    fn a_client_address_is_cut_to_its_prefix() {
        let key = |address: &str, ipv4, ipv6| client_key(address.parse().unwrap(), Prefixes { ipv4, ipv6 });
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
            Source::EngineIo,
            Source::NodeCookie { name: "io".into() },
            Source::Header(HeaderName::from_static("x-user-id")),
            Source::Cookie(rule(None)),
            Source::ClientIp(Prefixes::default()),
        ];
        let sid = format!("sid=a.{}", tag(2));
        let all = ask(&sources, &[("cookie", b"io=ws1"), ("x-user-id", b"7")], Some(&sid));
        let pins = [Wish::Pin { node: 2, via: Via::EngineIo }, Wish::Pin { node: 1, via: Via::NodeCookie }];
        assert_eq!(all.list(), [pins[0], pins[1], Wish::Key { hash: hash::key(b"7"), via: Via::Header }]);
        assert_eq!(due(&all, &sources, 2), 0, "the cookie comes after the key and was not asked");

        let none = ask(&sources, &[], None);
        let address = client_key("192.0.2.7".parse().unwrap(), Prefixes::default());
        assert_eq!(none.list(), [Wish::Key { hash: address, via: Via::ClientIp }]);
        assert_eq!(due(&none, &sources, 2), 1);
        assert_eq!(ask(&[], &[("cookie", b"io=ws1")], Some(&sid)), Wishes::default());
    }

    proptest! {
        #[test]
        fn no_header_and_no_query_makes_it_panic_or_pin(
            cookie in proptest::collection::vec(0x20_u8..=0xff, 0..200),
            query in "\\PC{0,80}",
        ) {
            let cookie: Vec<u8> = cookie.into_iter().filter(|byte| *byte != 0x7f).collect();
            let cookie = [b"mainstay=", &*cookie].concat();
            let sources = [Source::Cookie(signing_rule()), Source::EngineIo, Source::Query("user".into())];
            let wishes = ask(&sources, &[("cookie", &cookie)], Some(&query));
            let has_pin = wishes.list().iter().any(|wish| matches!(wish, Wish::Pin { .. }));
            prop_assert!(!has_pin);
        }
    }
}
