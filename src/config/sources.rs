//! The affinity of a pool: the sources that a request is asked, in order.

use std::path::Path;
use std::time::Duration;

use http::HeaderName;
use zeroize::Zeroizing;

use super::reader::{Section, Value};
use super::units::duration;
use crate::affinity::cookie::{CookiePolicy, KeyRing, SameSite, SecureAttribute};
use crate::affinity::{AffinitySource, ClientPrefixes};

const KINDS: &[&str] = &["cookie", "engine_io", "header", "query", "client_ip"];

/// Without `affinity`: one cookie of the balancer.
pub(super) fn sources(pool: &Section) -> Vec<AffinitySource> {
    let Some(value) = pool.value("affinity") else { return vec![AffinitySource::Cookie(default_cookie())] };
    let mut sources: Vec<AffinitySource> = Vec::new();
    for item in value.items() {
        let Some(source) = source(&item) else { continue };
        if sources.iter().any(|other| asks_the_same(other, &source)) {
            item.fault("the list has asked for this already; the first answer counts, remove this one");
        }
        sources.push(source);
    }
    sources
}

/// What a cookie is when nothing is said about it.
fn default_cookie() -> CookiePolicy {
    CookiePolicy {
        name: "mainstay".into(),
        keys: None,
        secret_file: None,
        max_age: None,
        same_site: SameSite::Lax,
        secure: SecureAttribute::Auto,
        partitioned: false,
        path: "/".into(),
        domain: None,
    }
}

/// Whether the second source has nothing to add to the first.
fn asks_the_same(first: &AffinitySource, second: &AffinitySource) -> bool {
    fn cookie(source: &AffinitySource) -> Option<&str> {
        match source {
            AffinitySource::Cookie(rule) => Some(&rule.name),
            AffinitySource::NodeCookie { name } => Some(name),
            _ => None,
        }
    }
    match (first, second) {
        // The balancer can set one cookie for one pin, so a second of its own is never set.
        (AffinitySource::Cookie(_), AffinitySource::Cookie(_))
        | (AffinitySource::ClientIp(_), AffinitySource::ClientIp(_)) => true,
        _ => first == second || cookie(first).is_some_and(|name| cookie(second) == Some(name)),
    }
}

fn source(item: &Value) -> Option<AffinitySource> {
    let section = item.section(KINDS);
    let mut named = KINDS.iter().filter_map(|kind| Some((*kind, section.value(kind)?)));
    let Some((kind, value)) = named.next() else {
        if section.key_count() == Some(0) {
            item.expected("an affinity source, such as `client_ip: {}`");
        }
        return None;
    };
    if value.is_null() && section.key_count() > Some(1) {
        item.fault(format_args!("nothing belongs to `{kind}`; indent its keys deeper than `{kind}` itself"));
    }
    if let Some((other, value)) = named.next() {
        value.fault(format_args!("a second source in one item; write `- ` before `{other}`, too"));
    }
    match kind {
        "cookie" => cookie(&value),
        "engine_io" => {
            value.section(&[]);
            Some(AffinitySource::EngineIo)
        }
        "header" => header(&value),
        "query" => query(&value),
        _ => Some(client_ip(&value)),
    }
}

fn header(value: &Value) -> Option<AffinitySource> {
    let name = value.section(&["name"]).required("name", "the name of a header, such as x-user-id")?;
    name.parsed("the name of a header, such as x-user-id", |text| text.parse::<HeaderName>().ok())
        .map(AffinitySource::Header)
}

fn query(value: &Value) -> Option<AffinitySource> {
    let name = value.section(&["name"]).required("name", "the name of a query parameter, such as user")?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && !b"&=#+%".contains(&b));
    name.parsed("the name of a query parameter, without & = # + %", |text| {
        plain(text).then(|| text.to_owned())
    })
    .map(AffinitySource::Query)
}

fn client_ip(value: &Value) -> AffinitySource {
    value.warn_of_proxies();
    let section = value.section(&["ipv4_prefix", "ipv6_prefix"]);
    let default = ClientPrefixes::default();
    AffinitySource::ClientIp(ClientPrefixes {
        ipv4: section.number("ipv4_prefix", default.ipv4, 1..=32),
        ipv6: section.number("ipv6_prefix", default.ipv6, 1..=128),
    })
}

/// The keys of a cookie that the balancer sets, after the two that every cookie has.
const COOKIE_KEYS: &[&str] =
    &["name", "set_by", "secret_file", "max_age", "same_site", "secure", "partitioned", "path", "domain"];

fn cookie(value: &Value) -> Option<AffinitySource> {
    let section = value.section(COOKIE_KEYS);
    let by_node = section.word("set_by", false, &[("balancer", false), ("node", true)]);
    if by_node { node_cookie(&section) } else { Some(AffinitySource::Cookie(balancer_cookie(&section))) }
}

fn node_cookie(section: &Section) -> Option<AffinitySource> {
    for key in &COOKIE_KEYS[2..] {
        if let Some(value) = section.value(key) {
            value.fault("the node sets this cookie, so its name is all there is to say; remove this key");
        }
    }
    let name = cookie_name(&section.required("name", "the name of the cookie that the node sets")?)?;
    Some(AffinitySource::NodeCookie { name })
}

/// A token of RFC 9110 section 5.6.2, which RFC 6265 section 4.1.1 wants.
fn cookie_name(value: &Value) -> Option<String> {
    value.parsed("the name of a cookie: letters, digits and any of !#$%&'*+-.^_`|~", |text| {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        (text.len() <= 128 && text.bytes().all(token)).then(|| text.to_owned())
    })
}

fn balancer_cookie(section: &Section) -> CookiePolicy {
    const SITES: &[(&str, SameSite)] =
        &[("lax", SameSite::Lax), ("strict", SameSite::Strict), ("none", SameSite::None)];
    const SECURES: &[(&str, SecureAttribute)] = &[
        ("auto", SecureAttribute::Auto),
        ("always", SecureAttribute::Always),
        ("never", SecureAttribute::Never),
    ];
    let default = default_cookie();
    let attribute = |key| {
        section.some(key).and_then(|value: Value| {
            value.parsed("text without spaces, commas and semicolons", |text| {
                let plain = text.bytes().all(|b| b.is_ascii_graphic() && b != b';' && b != b',');
                plain.then(|| text.to_owned())
            })
        })
    };
    let rule = CookiePolicy {
        name: section.value("name").and_then(|value| cookie_name(&value)).unwrap_or(default.name),
        keys: section.some("secret_file").and_then(|value| key_ring(&value)),
        secret_file: section.some("secret_file").and_then(|value| value.as_text()).map(str::to_owned),
        max_age: section.value("max_age").and_then(|value| max_age(&value)),
        same_site: section.word("same_site", default.same_site, SITES),
        secure: section.word("secure", default.secure, SECURES),
        partitioned: section.value("partitioned").and_then(|value| value.boolean()).unwrap_or(false),
        path: attribute("path").unwrap_or(default.path),
        domain: attribute("domain"),
    };
    say_what_browsers_refuse(section, &rule);
    rule
}

/// `session` is `None`. Browsers count in seconds (RFC 6265 section 5.2.2) and cut at 400 days.
fn max_age(value: &Value) -> Option<Duration> {
    let expected = "`session` or a duration in whole seconds, such as 12h";
    value.parsed(expected, |text| {
        let whole =
            |age: &Duration| age.as_secs() > 0 && age.subsec_nanos() == 0 && age.as_secs() <= 400 * 86_400;
        if text == "session" { Some(None) } else { duration(text).filter(whole).map(Some) }
    })?
}

/// The keys of a secret file; `None` after a fault.
pub(super) fn key_ring(value: &Value) -> Option<KeyRing> {
    let path = value.text("the path of a secret file, or null")?;
    let text = match (value.reader.read)(Path::new(path)) {
        Ok(bytes) => Ok(Zeroizing::new(bytes)),
        Err(error) => Err(format!("it cannot be read: {error}")),
    };
    let ring = text.and_then(|bytes| KeyRing::parse(str::from_utf8(&bytes).map_err(|_| "not text")?));
    ring.map_err(|message| value.fault(format_args!("{path}: {message}"))).ok()
}

/// A cookie that no browser keeps pins nobody.
fn say_what_browsers_refuse(section: &Section, rule: &CookiePolicy) {
    let never = rule.secure == SecureAttribute::Never;
    let host_only = rule.path == "/" && rule.domain.is_none();
    if let Some(value) = section.value("same_site").filter(|_| rule.same_site == SameSite::None) {
        match rule.secure {
            SecureAttribute::Never => {
                value.fault("browsers refuse `none` without Secure; write `secure: always`")
            }
            SecureAttribute::Auto => value.warn(
                "over plain http the cookie is not Secure and browsers refuse it; write `secure: always`",
            ),
            SecureAttribute::Always => {}
        }
    }
    if let Some(value) = section.value("partitioned").filter(|_| rule.partitioned && never) {
        value.fault("browsers refuse a partitioned cookie without Secure; write `secure: always`");
    }
    if let Some(value) = section.value("path").filter(|_| !rule.path.starts_with('/')) {
        value.fault("browsers ignore a path that does not begin with `/`; begin it so");
    }
    if let Some(value) = section.value("name") {
        let name = rule.name.to_ascii_lowercase();
        if (name.starts_with("__secure-") || name.starts_with("__host-"))
            && rule.secure != SecureAttribute::Always
        {
            value.fault("browsers refuse a name with this prefix without Secure; write `secure: always`");
        }
        if name.starts_with("__host-") && !host_only {
            value.fault(
                "browsers refuse a `__Host-` cookie with a domain or another path than /; remove them",
            );
        }
    }
}
