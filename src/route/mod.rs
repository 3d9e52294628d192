//! Routes: host and path to a pool, first match wins.
//!
//! A host is compared without its port, without a trailing dot and without regard to case. A path is compared
//! byte by byte as it was sent, without its query; nothing is decoded and no `..` is resolved. Which pages may open a
//! WebSocket there is in `origins`.

mod origins;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use origins::{Origin, Origins};

/// One entry of `routes`.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The host that the request must name; `None` is any.
    pub host: Option<Host>,
    /// The path prefix that the request must have; `None` is any. One that ends in `/` is a plain prefix;
    /// any other ends at a segment: `/chat` is `/chat` and `/chat/x`, not `/chatter`.
    pub path: Option<String>,
    /// The pages that may open a WebSocket here.
    pub origins: Origins,
    /// Name of the pool.
    pub pool: Arc<str>,
}

impl Route {
    /// Whether a request for this host (as `Host` or `:authority` gives it) and path belongs here.
    pub fn covers(&self, host: &str, path: &str) -> bool {
        let host_fits = self.host.as_ref().is_none_or(|wanted| wanted.covers(host));
        host_fits && self.path.as_ref().is_none_or(|wanted| covers_path(wanted, path))
    }

    /// Whether every request that `other` covers is covered by this one, too.
    pub fn includes(&self, other: &Self) -> bool {
        let host = match (&self.host, &other.host) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wide), Some(Host::Exact(name))) => wide.covers(name),
            (Some(wide), Some(below)) => wide == below || wide.covers(&below.to_string()),
        };
        let path = match (&self.path, &other.path) {
            (None, _) => true,
            (Some(wide), path) => wide == "/" || path.as_ref().is_some_and(|path| covers_path(wide, path)),
        };
        host && path
    }

    /// Its host and path as written, `*` for one that takes everything: the word for logs.
    pub fn name(&self) -> String {
        match (&self.host, &self.path) {
            (None, None) => "*".into(),
            (host, path) => {
                let host = host.as_ref().map(ToString::to_string).unwrap_or_default();
                format!("{host}{}", path.as_deref().unwrap_or_default())
            }
        }
    }
}

/// The `routes` of the config, in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Routes {
    routes: Box<[Route]>,
}

impl Routes {
    /// These routes, in this order.
    pub fn new(routes: Vec<Route>) -> Self {
        Self { routes: routes.into() }
    }

    /// The first route for a host and a path, with its index; a query behind the path does not matter.
    pub fn find(&self, host: &str, path: &str) -> Option<(usize, &Route)> {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        self.routes.iter().enumerate().find(|(_, route)| route.covers(host, path))
    }

    /// The routes in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Route> {
        self.routes.iter()
    }
}

fn covers_path(wanted: &str, path: &str) -> bool {
    match path.strip_prefix(wanted) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || wanted.ends_with('/'),
        None => false,
    }
}

/// A host pattern, lower case, without port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// This very name.
    Exact(String),
    /// `*.example.com`: any name below this one (kept here as `example.com`), not itself.
    Below(String),
}

impl Host {
    /// Whether this host, as a request names it, is meant.
    pub fn covers(&self, host: &str) -> bool {
        let name = bare_name(host).as_bytes();
        match self {
            Self::Exact(wanted) => name.eq_ignore_ascii_case(wanted.as_bytes()),
            Self::Below(parent) => {
                let (above, tail) = name.split_at(name.len().saturating_sub(parent.len()));
                tail.eq_ignore_ascii_case(parent.as_bytes()) && above.len() > 1 && above.ends_with(b".")
            }
        }
    }
}

/// A host without its port and without a trailing dot.
fn bare_name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        // The colons of an IPv6 literal are inside its brackets.
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.contains("://") || name.contains('/') {
            return Err(format!("{text:?} is not a host; write only the name, like `chat.example.com`"));
        }
        if is_ipv6_literal(&name) {
            return Ok(Self::Exact(name));
        }
        if name.contains(':') {
            return Err(format!(
                "the host {text:?} has a port; a route names only the host, like `chat.example.com`"
            ));
        }
        let (name, below) = match name.strip_prefix("*.") {
            Some(parent) => (parent.to_owned(), true),
            None => (name, false),
        };
        if name.contains('*') {
            return Err(format!("in {text:?} the `*` stands in the wrong place; write `*.example.com`"));
        }
        if !is_name(&name) {
            return Err(format!("{text:?} is not a host name, like `chat.example.com` or `*.example.com`"));
        }
        Ok(if below { Self::Below(name) } else { Self::Exact(name) })
    }
}

fn is_ipv6_literal(name: &str) -> bool {
    let inside = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inside.is_some_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok())
}

/// Labels of letters, digits, `-` and `_`, 63 bytes each at most, 253 together (RFC 1123 section 2.1).
fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(fits);
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: Option<&str>, path: Option<&str>, pool: &str) -> Route {
        Route {
            host: host.map(|host| host.parse().unwrap()),
            path: path.map(str::to_owned),
            origins: Origins::default(),
            pool: pool.into(),
        }
    }

    fn pool<'a>(routes: &'a Routes, host: &str, path: &str) -> Option<&'a str> {
        routes.find(host, path).map(|(_, route)| &*route.pool)
    }

    #[test]
    fn the_first_route_that_fits_wins() {
        let routes = Routes::new(vec![
            route(Some("chat.example.com"), Some("/socket.io/"), "io"),
            route(Some("*.example.com"), None, "wild"),
            route(None, Some("/chat"), "chat"),
            route(Some("chat.example.com"), None, "never"),
        ]);
        assert_eq!(pool(&routes, "chat.example.com", "/socket.io/"), Some("io"));
        assert_eq!(pool(&routes, "chat.example.com", "/socket.io/?EIO=4"), Some("io"));
        assert_eq!(pool(&routes, "chat.example.com", "/"), Some("wild"));
        assert_eq!(pool(&routes, "elsewhere.org", "/chat"), Some("chat"));
        assert_eq!(pool(&routes, "elsewhere.org", "/other"), None);
        assert_eq!(routes.find("elsewhere.org", "/chat").unwrap().0, 2);
        assert_eq!(pool(&Routes::default(), "a", "/"), None);
    }

    #[test]
    fn a_host_fits_whatever_its_case_port_or_trailing_dot() {
        let exact: Host = "Chat.Example.COM".parse().unwrap();
        for host in [
            "chat.example.com",
            "CHAT.example.com",
            "chat.example.com:8443",
            "chat.example.com.",
            "chat.example.com.:80",
        ] {
            assert!(exact.covers(host), "{host}");
        }
        for host in [
            "",
            ".",
            ":",
            "example.com",
            "xchat.example.com",
            "chat.example.com.evil.org",
            "chat.example.comé",
        ] {
            assert!(!exact.covers(host), "{host}");
        }
        let v6: Host = "[::1]".parse().unwrap();
        assert!(v6.covers("[::1]") && v6.covers("[::1]:8080") && !v6.covers("[::2]:8080"));
    }

    #[test]
    fn a_star_is_any_name_below_and_not_the_name_itself() {
        let below: Host = "*.example.com".parse().unwrap();
        for host in ["a.example.com", "a.b.Example.com:1", "a.example.com."] {
            assert!(below.covers(host), "{host}");
        }
        for host in
            ["example.com", ".example.com", "aexample.com", "a.example.org", "é.xample.com", "com", ""]
        {
            assert!(!below.covers(host), "{host}");
        }
        assert_eq!(below.to_string(), "*.example.com");
    }

    #[test]
    fn a_path_ends_at_a_segment_unless_it_is_written_with_a_slash() {
        for (wanted, path, fits) in [
            ("/chat", "/chat", true),
            ("/chat", "/chat/x", true),
            ("/chat", "/chatter", false),
            ("/chat", "/cha", false),
            ("/chat", "/Chat", false),
            ("/chat/", "/chat/", true),
            ("/chat/", "/chat/x", true),
            ("/chat/", "/chat", false),
            ("/", "/", true),
            ("/", "/anything", true),
            ("/", "*", false),
        ] {
            assert_eq!(route(None, Some(wanted), "p").covers("h", path), fits, "{wanted} and {path}");
        }
        let routes = Routes::new(vec![route(None, Some("/chat"), "p")]);
        assert_eq!(pool(&routes, "h", "/chat?x=/y"), Some("p"));
        assert_eq!(pool(&routes, "h", "/other?x=/chat"), None);
    }

    #[test]
    fn a_bad_host_says_what_would_be_right() {
        for (text, says) in [
            ("", "is not a host name"),
            (".", "is not a host name"),
            ("a..b", "is not a host name"),
            ("hé.com", "is not a host name"),
            ("a b", "is not a host name"),
            ("*", "wrong place"),
            ("*.*.com", "wrong place"),
            ("a*.example.com", "wrong place"),
            ("*.", "wrong place"),
            ("example.com:80", "has a port"),
            ("https://example.com", "write only the name"),
            ("example.com/chat", "write only the name"),
            ("[::g]", "has a port"),
        ] {
            let error = text.parse::<Host>().unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        assert_eq!("EXAMPLE.com.".parse(), Ok(Host::Exact("example.com".into())));
    }
}
