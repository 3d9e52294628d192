//! Which web pages may open a WebSocket: the `origins` of a route.
//!
//! A page of any site may open a WebSocket to any other, with the user's cookies and without CORS: cross-site
//! WebSocket hijacking. What a browser cannot be made to do is to hide where the page comes from (Origin, RFC 6454
//! and RFC 6455 section 10.2). So a list is a rule for browsers: what names an origin must name one of the list, and
//! what names none is no browser and is let through. `null`, the origin of sandboxed frames and local files that
//! anybody can make, is only let through where the list says `"null"`.

use std::fmt;
use std::str::FromStr;

use crate::host::{Host, is_ipv6_literal, is_name};

/// The origins that a route allows; without any, it allows all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origins(Vec<Origin>);

impl Origins {
    /// The origins of this list.
    pub fn new(list: Vec<Origin>) -> Self {
        Self(list)
    }

    /// Whether an upgrade request with these Origin fields is allowed. Several are never sent by a browser.
    pub fn allows<'a>(&self, mut fields: impl Iterator<Item = &'a [u8]>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        match (fields.next(), fields.next()) {
            (None, _) => true,
            (Some(field), None) => {
                let asked = std::str::from_utf8(field).ok().and_then(RequestOrigin::parse);
                asked.is_some_and(|asked| self.0.iter().any(|origin| origin.covers(&asked)))
            }
            (Some(_), Some(_)) => false,
        }
    }

    /// The list, as written.
    pub fn iter(&self) -> std::slice::Iter<'_, Origin> {
        self.0.iter()
    }
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `"null"`: what has no origin of its own.
    Opaque,
    /// `https://example.com`, `https://*.example.com`, `http://localhost:3000`, `capacitor://localhost`.
    Site {
        /// Lower case.
        scheme: String,
        /// The host, or all below one; `None` for `file://`.
        host: Option<Host>,
        /// The port, or that of the scheme; `None` where neither says one.
        port: Option<u16>,
    },
}

/// What a request's Origin says.
enum RequestOrigin {
    Opaque,
    Site { scheme: String, host: String, port: Option<u16> },
}

impl RequestOrigin {
    fn parse(text: &str) -> Option<Self> {
        if text == "null" {
            return Some(Self::Opaque);
        }
        let (scheme, rest) = text.split_once("://")?;
        let (host, port) = split_port(rest)?;
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"/?#@\\".contains(&byte);
        if !is_scheme(scheme) || !host.bytes().all(plain) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let port = port.or_else(|| usual_port(&scheme));
        Some(Self::Site { scheme, host: host.to_ascii_lowercase(), port })
    }
}

impl Origin {
    fn covers(&self, asked: &RequestOrigin) -> bool {
        match (self, asked) {
            (Self::Opaque, RequestOrigin::Opaque) => true,
            (
                Self::Site { scheme, host, port },
                RequestOrigin::Site { scheme: its_scheme, host: its_host, port: its_port },
            ) => {
                let fits = match host {
                    None => its_host.is_empty(),
                    // Not `Host::covers`: with a trailing dot, it is another origin.
                    Some(Host::Exact(name)) => name == its_host,
                    Some(Host::Below(parent)) => its_host
                        .strip_suffix(parent.as_str())
                        .is_some_and(|above| above.len() > 1 && above.ends_with('.')),
                };
                fits && scheme == its_scheme && port == its_port
            }
            (Self::Opaque, _) | (_, RequestOrigin::Opaque) => false,
        }
    }
}

fn is_scheme(scheme: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.bytes().all(rest)
}

fn usual_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// A host and its port; `None` where what stands for a port is none.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    match text.rsplit_once(':') {
        // The colons of an IPv6 literal are inside its brackets.
        Some((host, port)) if !port.contains(']') => {
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            Some((host, Some(port.parse().ok().filter(|_| digits)?)))
        }
        _ => Some((text, None)),
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("null") {
            return Ok(Self::Opaque);
        }
        if text == "*" {
            return Err("`*` allows every site, as no list does; remove `origins`, or name the sites".into());
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!(
                "{text:?} has no scheme; write it as the browser does, like `https://example.com`"
            ));
        };
        if !is_scheme(scheme) {
            return Err(format!("{scheme:?} is no scheme; write an origin, like `https://example.com`"));
        }
        let scheme = scheme.to_ascii_lowercase();
        if scheme == "ws" || scheme == "wss" {
            let right = if scheme == "ws" { "http" } else { "https" };
            return Err(format!(
                "{text:?} is where a page connects to; its origin is that of the page, like `{right}://{rest}`"
            ));
        }
        site(text, scheme, rest)
    }
}

fn site(text: &str, scheme: String, rest: &str) -> Result<Origin, String> {
    if let Some(end) = rest.find(['/', '?', '#']) {
        return Err(format!(
            "{text:?} has a path, and an origin has none; write `{scheme}://{}`",
            &rest[..end]
        ));
    }
    if rest.contains('@') {
        return Err(format!("{text:?} has a user in it, and an origin has none; remove it"));
    }
    let port =
        || format!("{text:?} has no port behind its last `:`; write it as `{scheme}://example.com:8080`");
    let (host, port) = split_port(rest).ok_or_else(port)?;
    let port = port.or_else(|| usual_port(&scheme));
    Ok(Origin::Site { host: site_host(text, &scheme, host)?, port, scheme })
}

fn site_host(text: &str, scheme: &str, host: &str) -> Result<Option<Host>, String> {
    let name = host.to_ascii_lowercase();
    if name.is_empty() && scheme == "file" {
        return Ok(None);
    }
    if is_ipv6_literal(&name) {
        return Ok(Some(Host::Exact(name)));
    }
    if !name.is_ascii() {
        return Err(format!(
            "{text:?} is not ASCII; browsers send such a name in its `xn--` form, write that"
        ));
    }
    let (bare, below) = match name.strip_prefix("*.") {
        Some(parent) => (parent, true),
        None => (name.as_str(), false),
    };
    if bare.contains('*') {
        return Err(format!(
            "in {text:?} the `*` stands in the wrong place; write `{scheme}://*.example.com`"
        ));
    }
    if !is_name(bare) {
        return Err(format!("{text:?} has no host name; write an origin, like `https://example.com`"));
    }
    Ok(Some(if below { Host::Below(bare.to_owned()) } else { Host::Exact(name) }))
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Site { scheme, host, port } = self else { return f.write_str("null") };
        write!(f, "{scheme}://")?;
        if let Some(host) = host {
            host.fmt(f)?;
        }
        match port {
            Some(port) if usual_port(scheme) != Some(*port) => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origins(list: &[&str]) -> Origins {
        Origins::new(list.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn allowed(list: &Origins, field: &str) -> bool {
        list.allows([field.as_bytes()].into_iter())
    }

    #[test]
    fn only_the_origins_of_the_list_are_allowed() {
        let list = origins(&["https://example.com", "http://localhost:3000", "https://[2001:db8::1]:8443"]);
        for origin in [
            "https://example.com",
            "HTTPS://Example.COM",
            "https://example.com:443",
            "http://localhost:3000",
            "https://[2001:DB8::1]:8443",
        ] {
            assert!(allowed(&list, origin), "{origin}");
        }
        for origin in [
            "",
            "null",
            "http://example.com",
            "https://example.com:80",
            "https://example.com:8443",
            "https://example.com.",
            "https://evil.example.com",
            "https://example.com.evil.org",
            "https://example.comevil.org",
            "https://evil.org/https://example.com",
            "https://evil.org#https://example.com",
            "https://user@example.com",
            "https://example.com/",
            "https://example.com https://evil.org",
            "https://example.com, https://evil.org",
            "https://example.com:",
            "https://example.com:+443",
            "https://example.com:443:443",
            "https://example.com:65979",
            "http://localhost",
            "example.com",
            "//example.com",
            "https:/example.com",
            "https://",
            "://example.com",
            "https://[2001:db8::1]",
        ] {
            assert!(!allowed(&list, origin), "{origin}");
        }
        assert!(!list.allows([&b"https://example.com\xff"[..]].into_iter()));
    }

    #[test]
    fn a_star_allows_what_is_below_a_name_and_not_the_name_itself() {
        let list = origins(&["https://*.example.com"]);
        for origin in ["https://a.example.com", "https://a.b.EXAMPLE.com:443"] {
            assert!(allowed(&list, origin), "{origin}");
        }
        for origin in [
            "https://example.com",
            "https://.example.com",
            "https://xexample.com",
            "https://a.example.com:8443",
            "http://a.example.com",
        ] {
            assert!(!allowed(&list, origin), "{origin}");
        }
    }

    #[test]
    fn what_sends_no_origin_is_no_browser_and_is_allowed() {
        assert!(origins(&["https://example.com"]).allows([].into_iter()));
    }

    #[test]
    fn two_origins_are_refused_even_when_both_are_of_the_list() {
        let list = origins(&["https://example.com"]);
        assert!(!list.allows([&b"https://example.com"[..], b"https://example.com"].into_iter()));
    }

    #[test]
    fn null_is_allowed_only_where_the_list_says_so() {
        assert!(!allowed(&origins(&["https://example.com"]), "null"));
        assert!(allowed(&origins(&["https://example.com", "null"]), "null"));
        assert!(!allowed(&origins(&["null"]), "https://null"));
    }

    #[test]
    fn without_a_list_every_site_is_allowed() {
        for origin in ["null", "https://evil.org", "nonsense"] {
            assert!(allowed(&Origins::default(), origin), "{origin}");
        }
        assert!(Origins::default().allows([&b"a"[..], b"b"].into_iter()));
    }

    #[test]
    fn the_origins_of_apps_are_origins() {
        for origin in
            ["capacitor://localhost", "chrome-extension://aapnijgdinlhnhlmodcfapnahmbfebeb", "file://"]
        {
            let list = origins(&[origin]);
            assert!(allowed(&list, origin), "{origin}");
            assert!(!allowed(&list, "https://localhost"));
        }
    }

    #[test]
    fn a_bad_origin_says_what_would_be_right() {
        for (text, says) in [
            ("", "has no scheme"),
            ("example.com", "like `https://example.com`"),
            ("*", "remove `origins`"),
            ("https://example.com/", "write `https://example.com`"),
            ("https://example.com/chat", "write `https://example.com`"),
            ("https://example.com?x", "write `https://example.com`"),
            ("wss://example.com", "`https://example.com`"),
            ("ws://localhost:8080", "`http://localhost:8080`"),
            ("https://", "has no host name"),
            ("https://*", "wrong place"),
            ("https://a.*.example.com", "wrong place"),
            ("https://bücher.example", "xn--"),
            ("https://user@example.com", "remove it"),
            ("https://example.com:", "has no port"),
            ("https://example.com:99999", "has no port"),
            ("https://a b", "has no host name"),
            ("1https://a", "is no scheme"),
        ] {
            let error = text.parse::<Origin>().unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_origin_reads_back_as_it_is_shown() {
        for text in
            ["https://example.com", "https://*.example.com:8443", "null", "file://", "http://[::1]:3000"]
        {
            let origin: Origin = text.parse().unwrap();
            assert_eq!(origin.to_string(), text);
        }
        assert_eq!("HTTPS://Example.com:443".parse::<Origin>().unwrap().to_string(), "https://example.com");
    }

    proptest! {
        #[test]
        fn no_field_is_a_panic(field in any::<Vec<u8>>(), text in ".*") {
            let list = origins(&["https://*.example.com", "null"]);
            prop_assert!(!list.allows([&field[..]].into_iter()) || field == b"null");
            let _ = text.parse::<Origin>();
        }
    }
}
