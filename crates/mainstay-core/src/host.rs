//! Host names as a config names them, and as requests do.

use std::fmt;
use std::str::FromStr;

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

pub(crate) fn is_ipv6_literal(name: &str) -> bool {
    let inside = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inside.is_some_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok())
}

/// Labels of letters, digits, `-` and `_`, 63 bytes each at most, 253 together (RFC 1123 section 2.1).
pub(crate) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(fits);
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

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
