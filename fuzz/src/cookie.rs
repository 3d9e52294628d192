//! The affinity cookie and the other sources: no value makes them panic, what is set holds, and what holds was set.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::time::Duration;

use http::header::{COOKIE, HeaderMap, HeaderName, HeaderValue};
use mainstay::affinity::cookie::{CookiePolicy, KeyRing, NodeTag, SameSite, SecureAttribute};
use mainstay::affinity::{
    AffinityHint, AffinityRequest, AffinitySource, ClientPrefixes, NodeDirectory, collect_hints,
};

use super::input::Input;

const POOL: &str = "chat";
const NODES: [&str; 3] = ["ws1", "ws2", "ws3"];
/// 2027-01-15.
const NOW: u64 = 1_800_000_000;
const SECRETS: &str =
    "new:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\nold:MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=\n";

static UNSIGNED: LazyLock<CookiePolicy> = LazyLock::new(|| rule(None));
static SIGNED: LazyLock<CookiePolicy> =
    LazyLock::new(|| rule(Some(KeyRing::parse(SECRETS).expect("these are keys"))));
static SOURCES: LazyLock<[AffinitySource; 6]> = LazyLock::new(|| {
    [
        AffinitySource::Cookie(UNSIGNED.clone()),
        AffinitySource::NodeCookie { name: "io".into() },
        AffinitySource::EngineIo,
        AffinitySource::Header(HeaderName::from_static("x-user-id")),
        AffinitySource::Query("user".into()),
        AffinitySource::ClientIp(ClientPrefixes::default()),
    ]
});

fn rule(keys: Option<KeyRing>) -> CookiePolicy {
    CookiePolicy {
        name: "mainstay".into(),
        keys,
        secret_file: None,
        max_age: Some(Duration::from_secs(3600)),
        same_site: SameSite::Lax,
        secure: SecureAttribute::Auto,
        partitioned: false,
        path: "/".into(),
        domain: None,
    }
}

/// One input: which way it is looked at, then the value, the secret file, or a Cookie line and a query.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => value(&UNSIGNED, input.rest()),
        1 => value(&SIGNED, input.rest()),
        2 => secrets(input.rest()),
        _ => sources(input.rest()),
    }
}

fn value(rule: &CookiePolicy, value: &[u8]) {
    let Some(reading) = rule.read(POOL, value, NOW) else { return };
    let text = reading.tag.to_string();
    assert_eq!(NodeTag::parse(text.as_bytes()), Some(reading.tag), "a tag is what it shows");
    assert!(find(value, text.as_bytes()), "a tag is written in one way only");
    let line = rule.set_cookie(POOL, reading.tag, NOW, true).expect("the rule can stand in a header");
    let set = line.to_str().expect("a cookie is text").strip_prefix("mainstay=").expect("its name is first");
    let set = set.split(';').next().unwrap_or_default();
    let again = rule.read(POOL, set.as_bytes(), NOW).expect("what was set holds");
    assert_eq!((again.tag, again.renew), (reading.tag, false));
    assert!(rule.keys.is_none() || rule.read("other", set.as_bytes(), NOW).is_none());
}

/// The error names the line and never what is secret in it.
fn secrets(text: &[u8]) {
    let Ok(text) = str::from_utf8(text) else { return };
    match KeyRing::parse(text) {
        Ok(keys) => assert!(keys.secrets().all(|secret| secret.len() >= 32)),
        Err(error) => {
            let secrets =
                text.lines().filter_map(|line| line.split_once(':').map(|(_, secret)| secret.trim()));
            assert!(
                secrets
                    .filter(|secret| secret.len() > 60 && !secret.contains(' '))
                    .all(|secret| !error.contains(secret))
            );
        }
    }
}

fn sources(text: &[u8]) {
    let mut parts = text.split(|&byte| byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (cookies, user, query) = ([part(), part()], part(), part());
    let mut headers = HeaderMap::new();
    for cookie in cookies {
        if let (false, Ok(value)) = (cookie.is_empty(), HeaderValue::from_bytes(cookie)) {
            headers.append(COOKIE, value);
        }
    }
    if let (false, Ok(value)) = (user.is_empty(), HeaderValue::from_bytes(user)) {
        headers.append("x-user-id", value);
    }
    let request = AffinityRequest {
        headers: &headers,
        query: str::from_utf8(query).ok(),
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        now: NOW,
        pool: POOL,
    };
    let said = collect_hints(&SOURCES[..], &request, &Nodes);
    assert_eq!(said, collect_hints(&SOURCES[..], &request, &Nodes));
    // The client's address always gives a key, and the wishes end at the first one.
    let keys = said.as_slice().iter().filter(|wish| matches!(wish, AffinityHint::Key { .. })).count();
    assert_eq!(keys, 1);
    assert!(matches!(said.as_slice().last(), Some(AffinityHint::Key { .. })));
    for wish in said.as_slice() {
        if let AffinityHint::Pin { node, .. } = wish {
            assert!(*node < NODES.len());
        }
    }
    assert!(said.cookies_to_set(&SOURCES[..], 0).count() <= 1);
}

struct Nodes;

impl NodeDirectory for Nodes {
    fn find_by_id(&self, id: &str) -> Option<usize> {
        NODES.iter().position(|node| *node == id)
    }

    fn find_by_tag(&self, tag: NodeTag) -> Option<usize> {
        static TAGS: LazyLock<[NodeTag; 3]> = LazyLock::new(|| NODES.map(|node| NodeTag::of(POOL, node)));
        TAGS.iter().position(|node| *node == tag)
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
