//! The affinity of a pool: the sources that a request is asked, in order.

use std::time::Duration;

use http::HeaderName;
use mainstay_core::units::{duration, show_duration};
use serde_json::{Map, Value as Json, json};

use super::change::{Comparison, What, listed};
use super::entry::{Flat, Form, Keys, derived, names, read_section, section, shown};
use super::forms::{FILE, Word, flag, number, parsed, word};
use super::key::{Key, Shape, Text};
use super::proxies;
use super::reader::{Section, Value};
use super::secret::key_ring;
use crate::affinity::cookie::{CookiePolicy, KeyRing, SameSite, SecureAttribute};
use crate::affinity::{AffinitySource, ClientPrefixes};

section! {
    for ClientPrefixes {
        /// Bits of an IPv4 address that count; nginx's ip_hash has 24.
        ipv4 ("ipv4_prefix"): u8 = number(1..=32).or(32);
        /// Bits of an IPv6 address that count.
        ipv6 ("ipv6_prefix"): u8 = number(1..=128).or(64);
    }
}

section! {
    for CookiePolicy {
        /// Its name.
        name: String = cookie_name().or("mainstay");
        keys: Option<KeyRing> = keys();
        /// Signs the cookie: lines of NAME:BASE64, 32 bytes at least; the first signs, all verify.
        secret_file: Option<String> = parsed(FILE, SECRETS, |path| Some(path.to_owned())).or_null();
        /// How long the browser keeps it: session, or whole seconds.
        max_age: Option<Duration> = age().or_word("session", AGE).or("session");
        /// none is for pages of another site, and wants `secure: always`.
        same_site: SameSite = word().or("lax");
        /// auto: Secure when the client came over https.
        secure: SecureAttribute = word().or("auto");
        /// true: a jar per embedding site (CHIPS); wants Secure, too.
        partitioned: bool = flag().or(false);
        /// Below which path the browser sends it.
        path: String = cookie_path().or("/");
        /// null: only the host itself, no sub-domain.
        domain: Option<String> = attribute(Text("a domain", r"[^;,\s]+")).or_null();
    }
}

section! {
    /// What `header` has.
    #[derive(PartialEq)]
    struct HeaderSource {
        /// Which header, such as x-user-id.
        name: HeaderName = parsed(
            Text("the name of a header", r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"),
            HEADER,
            |text| text.parse().ok(),
        )
        .required(HEADER);
    }
}

section! {
    /// What `query` has.
    #[derive(PartialEq)]
    struct QuerySource {
        /// Which parameter, such as user.
        name: String = parsed(
            Text("the name of a query parameter", r"[!-~]+"),
            "the name of a query parameter, without & = # + %",
            |text| is_parameter(text).then(|| text.to_owned()),
        )
        .required("the name of a query parameter, such as user");
    }
}

const HEADER: &str = "the name of a header, such as x-user-id";
const SECRETS: &str = "the path of a secret file, or null";
const AGE: &str = "`session` or a duration in whole seconds, such as 12h";

fn is_parameter(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() && !b"&=#+%".contains(&b))
}

impl Word for SameSite {
    const WORDS: &'static [(&'static str, Self)] =
        &[("lax", Self::Lax), ("strict", Self::Strict), ("none", Self::None)];
}

impl Word for SecureAttribute {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("always", Self::Always), ("never", Self::Never)];
}

/// Whether the node sets the cookie.
const SET_BY: &[(&str, bool)] = &[("balancer", false), ("node", true)];

/// The sources of which an item names one.
fn kinds() -> Vec<Key> {
    vec![
        Key::choice(
            "cookie",
            CookiePolicy::keys,
            "A cookie of the balancer's own, or one that the node sets and whose value is the id of the node.",
        ),
        Key::choice("engine_io", Vec::new, "Socket.IO without cookies: the session id carries the node."),
        Key::choice("header", HeaderSource::keys, "The same value of this header, the same node."),
        Key::choice("query", QuerySource::keys, "The same for a query parameter."),
        Key::choice("client_ip", ClientPrefixes::keys, "The same client address, the same node."),
    ]
}

/// The key `affinity` of a pool.
pub(super) fn sources() -> Form<Vec<AffinitySource>> {
    let show = |sources: &Vec<AffinitySource>| sources.iter().map(show).collect();
    Form::new(Shape::Choices(kinds), read, show).compared_by(|old, new, to| compare(old, new, to))
}

fn read(value: &Value) -> Option<Vec<AffinitySource>> {
    let mut sources: Vec<AffinitySource> = Vec::new();
    for item in value.items() {
        let Some(source) = source(&item) else { continue };
        if sources.iter().any(|other| asks_the_same(other, &source)) {
            item.fault("the list has asked for this already; the first answer counts, remove this one");
        }
        sources.push(source);
    }
    Some(sources)
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
    let known = names(&kinds());
    let section = item.section(known.clone());
    let mut named = known.into_iter().filter_map(|kind| Some((kind, section.value(kind)?)));
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
            value.section(Vec::new());
            Some(AffinitySource::EngineIo)
        }
        "header" => read_section(&value).map(|HeaderSource { name }| AffinitySource::Header(name)),
        "query" => read_section(&value).map(|QuerySource { name }| AffinitySource::Query(name)),
        _ => {
            proxies::warn_where_unsaid(&value);
            read_section(&value).map(AffinitySource::ClientIp)
        }
    }
}

fn show(source: &AffinitySource) -> Json {
    match source {
        AffinitySource::Cookie(rule) => json!({ "cookie": shown(rule) }),
        AffinitySource::NodeCookie { name } => json!({ "cookie": { "name": name, "set_by": "node" } }),
        AffinitySource::EngineIo => json!({ "engine_io": {} }),
        AffinitySource::Header(name) => json!({ "header": { "name": name.as_str() } }),
        AffinitySource::Query(name) => json!({ "query": { "name": name } }),
        AffinitySource::ClientIp(prefixes) => json!({ "client_ip": shown(prefixes) }),
    }
}

fn compare(old: &[AffinitySource], new: &[AffinitySource], to: &mut Comparison) {
    let text = |sources: &[AffinitySource]| listed(&sources.iter().map(source_text).collect::<Vec<_>>());
    if text(old) != text(new) {
        return to.set(text(new), text(old));
    }
    for (old, new) in old.iter().zip(new).filter(|(old, new)| old != new) {
        let (AffinitySource::Cookie(old), AffinitySource::Cookie(new)) = (old, new) else {
            to.push(What::Replaced(format!("affinity source {}", source_text(new))));
            continue;
        };
        if old.keys != new.keys {
            to.push(What::Replaced(format!("keys of cookie {}", new.name)));
        }
        if shown(old) != shown(new) {
            to.push(What::Replaced(format!("attributes of cookie {}", new.name)));
        }
    }
}

/// A source as one line has it.
pub(super) fn source_text(source: &AffinitySource) -> String {
    match source {
        AffinitySource::Cookie(rule) if rule.keys.is_some() => format!("cookie {} (signed)", rule.name),
        AffinitySource::Cookie(rule) => format!("cookie {}", rule.name),
        AffinitySource::NodeCookie { name } => format!("cookie {name} (set by the node)"),
        AffinitySource::EngineIo => "engine_io".into(),
        AffinitySource::Header(name) => format!("header {name}"),
        AffinitySource::Query(name) => format!("query {name}"),
        AffinitySource::ClientIp(cut) => format!("client_ip /{} /{}", cut.ipv4, cut.ipv6),
    }
}

fn cookie(value: &Value) -> Option<AffinitySource> {
    let section = value.section(names(&CookiePolicy::keys()));
    let is_set_by_node = section.value("set_by").and_then(|value| value.word(SET_BY)).unwrap_or_default();
    if is_set_by_node {
        return node_cookie(&section);
    }
    let rule = <CookiePolicy as Keys>::read(&section)?;
    say_what_browsers_refuse(&section, &rule);
    Some(AffinitySource::Cookie(rule))
}

fn node_cookie(section: &Section) -> Option<AffinitySource> {
    for key in names(&CookiePolicy::keys()).into_iter().filter(|key| !["name", "set_by"].contains(key)) {
        if let Some(value) = section.value(key) {
            value.fault("the node sets this cookie, so its name is all there is to say; remove this key");
        }
    }
    let name = section.required("name", "the name of the cookie that the node sets")?;
    (cookie_name().read)(&name).map(|name| AffinitySource::NodeCookie { name })
}

/// A token of RFC 9110 section 5.6.2, which RFC 6265 section 4.1.1 wants.
fn cookie_name() -> Form<String> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    parsed(
        Text("the name of a cookie", r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}"),
        "the name of a cookie: letters, digits and any of !#$%&'*+-.^_`|~",
        move |text| (text.len() <= 128 && text.bytes().all(is_token)).then(|| text.to_owned()),
    )
}

/// The keys of the secret file. `set_by` is no field: what the node sets is another source.
fn keys() -> Flat<Option<KeyRing>> {
    let set_by = || {
        vec![Key {
            name: "set_by",
            shape: Shape::Word(SET_BY.iter().map(|(word, _)| *word).collect()),
            says: "Of one that the node sets, the name is all there is to say.",
            default: Some("balancer".into()),
            is_required: false,
        }]
    };
    derived(|cookie| Some(cookie.some("secret_file").and_then(|file| key_ring(&file)))).with_keys(
        set_by,
        |_, into: &mut Map<String, Json>| {
            into.insert("set_by".into(), "balancer".into());
        },
    )
}

/// `session` is none. Browsers count in seconds (RFC 6265 section 5.2.2) and cut at 400 days.
fn age() -> Form<Duration> {
    let is_whole =
        |age: &Duration| age.as_secs() > 0 && age.subsec_nanos() == 0 && age.as_secs() <= 400 * 86_400;
    let read = move |value: &Value| value.parsed(AGE, |text| duration(text).filter(is_whole));
    Form::new(Shape::Duration(false), read, |age| show_duration(age).into())
}

fn attribute(text: Text) -> Form<String> {
    let is_plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b';' && b != b',');
    parsed(text, "text without spaces, commas and semicolons", move |text| {
        is_plain(text).then(|| text.to_owned())
    })
}

/// Null is the default as well.
fn cookie_path() -> Form<String> {
    let form = attribute(Text("a path", r"/[^;,\s]*"));
    let read = form.read;
    let read = move |value: &Value| if value.is_null() { Some("/".to_owned()) } else { read(value) };
    Form { read: Box::new(read), ..form }
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
