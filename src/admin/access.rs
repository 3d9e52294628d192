//! Who may use the admin API: the token, and two attacks by way of a browser.
//!
//! - **Token.** Where the config names a `token_file`, everything but `/healthz` and `/readyz` needs one of its tokens
//!   as `Authorization: Bearer`; `/metrics` too, since it names every pool and node. Prometheus has
//!   `authorization: { credentials_file: .. }` for it.
//! - **DNS rebinding.** Without a token, who can reach a loopback address is trusted; so is every page in a browser on
//!   this machine, whose own name can be made to resolve to 127.0.0.1 and whose requests are then same-origin. They
//!   name their host, so `/api` answers on loopback only to an IP address or localhost. With a token a page has nothing
//!   to show, and any name will do (a proxy's in front, for instance); no page reaches a Unix socket.
//! - **Cross-site requests.** A page cannot read an answer without a CORS header, but it can send a POST. Browsers say
//!   where such a request is from; where that is not this very host it is refused.

use std::net::IpAddr;

use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue, ORIGIN};
use http::{Method, Request, StatusCode};

use super::response::{self, AdminResponse};
use crate::config::Tokens;
use crate::net::listener::Listener;

/// Who sends this, as browsers say it (Fetch Metadata, section 2.4).
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Who can reach a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exposure {
    /// Processes that may open the file of the Unix socket.
    Unix,
    /// Every process on this machine.
    Loopback,
    /// Other machines.
    Network,
}

impl Exposure {
    pub(super) fn of(listener: &Listener) -> Self {
        let Listener::Tcp(tcp) = listener else { return Self::Unix };
        let is_loopback = tcp.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
        if is_loopback { Self::Loopback } else { Self::Network }
    }
}

/// The response to a request that is not allowed.
///
/// The listener may be older than `tokens`, which a reload has changed: one that others can reach needs a token in any
/// case.
pub(super) fn denial<B>(
    request: &Request<B>,
    exposure: Exposure,
    tokens: Option<&Tokens>,
) -> Option<AdminResponse> {
    let path = request.uri().path();
    if matches!(path, "/healthz" | "/readyz") {
        return None;
    }
    let is_known = match tokens {
        Some(tokens) => bearer_token(request.headers()).is_some_and(|token| tokens.accept(token)),
        None => exposure != Exposure::Network,
    };
    if !is_known {
        return Some(response::unauthorized());
    }
    if !is_api(path) {
        return None;
    }
    if tokens.is_none() && exposure == Exposure::Loopback && !names_this_machine(request.headers()) {
        let what = "the Host is a name, which a web page could have made point here; \
                    ask by IP address or as localhost, or set a `token_file`";
        return Some(response::error(StatusCode::FORBIDDEN, what));
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads && is_from_elsewhere(request.headers()) {
        return Some(response::error(StatusCode::FORBIDDEN, "a page of another origin may not ask for this"));
    }
    None
}

fn is_api(path: &str) -> bool {
    path == "/api" || path.starts_with("/api/")
}

/// The token of the one `Authorization` (RFC 6750, section 2.1; the scheme in any case, RFC 9110, section 11.1).
fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (shown.next(), shown.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Whether the Host is an IP address, localhost or below it (which no resolver may ask the DNS for: RFC 6761, section
/// 6.3). HTTP/1.0 may leave it out, and no browser does.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else { return true };
    let Some(host) = host.to_str().ok().map(without_port) else { return false };
    let address = host.strip_prefix('[').and_then(|inside| inside.strip_suffix(']')).unwrap_or(host);
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    address.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether a browser says that the request is not from a page of this very host. The scheme is not compared: a proxy in
/// front may have taken TLS off.
fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let is_cross = |site: &HeaderValue| !matches!(site.as_bytes(), b"same-origin" | b"none");
    if headers.get_all(SEC_FETCH_SITE).iter().any(is_cross) {
        return true;
    }
    let host = headers.get(HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_other = |origin: &HeaderValue| {
        let origin = origin.as_bytes();
        let authority = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        !authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
    };
    headers.get_all(ORIGIN).iter().any(is_other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "a-token-of-the-operators";

    /// A listener, and whether the config has a token.
    type Listening = (Exposure, bool);

    fn status(listening: Listening, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        let (exposure, has_token) = listening;
        let tokens = has_token.then(|| Tokens::parse(TOKEN).unwrap());
        let request = headers
            .iter()
            .fold(Request::builder().method(method).uri(path), |b, (name, value)| b.header(*name, *value));
        denial(&request.body(()).unwrap(), exposure, tokens.as_ref())
            .map_or(200, |response| response.status().as_u16())
    }

    #[test]
    fn with_a_token_everything_but_health_needs_one() {
        let open = (Exposure::Network, true);
        let good = format!("Bearer {TOKEN}");
        for path in ["/api/status", "/api/config", "/api/reload", "/metrics", "/", "/nothing"] {
            assert_eq!(status(open, "GET", path, &[("host", "a.example")]), 401, "{path}");
            assert_eq!(status(open, "GET", path, &[("host", "a.example"), ("authorization", &good)]), 200);
        }
        for path in ["/healthz", "/readyz"] {
            assert_eq!(status(open, "GET", path, &[]), 200, "{path}");
        }
    }

    #[test]
    fn a_listener_that_others_reach_stays_shut_when_a_reload_takes_the_tokens_away() {
        let headers = [("host", "127.0.0.1"), ("authorization", &*format!("Bearer {TOKEN}"))];
        assert_eq!(status((Exposure::Network, false), "GET", "/api/status", &headers), 401);
        assert_eq!(status((Exposure::Network, false), "GET", "/healthz", &headers), 200);
    }

    #[test]
    fn only_one_whole_bearer_token_opens() {
        let open = (Exposure::Loopback, true);
        let shown = |values: &[String]| {
            let headers: Vec<_> = values.iter().map(|value| ("authorization", value.as_str())).collect();
            status(open, "GET", "/metrics", &headers)
        };
        assert_eq!(shown(&[format!("bearer {TOKEN}")]), 200);
        assert_eq!(shown(&[format!("Bearer   {TOKEN} ")]), 200);
        for wrong in ["", "Bearer", "Bearer ", TOKEN, "Basic YTpi", "Bearer a-token-of-the-operator"] {
            assert_eq!(shown(&[wrong.to_owned()]), 401, "{wrong}");
        }
        assert_eq!(shown(&[format!("Basic {TOKEN}")]), 401);
        assert_eq!(shown(&[format!("Bearer {TOKEN}"), "Bearer x".into()]), 401);
    }

    #[test]
    fn on_loopback_without_a_token_a_name_that_could_be_rebound_is_refused() {
        let local = (Exposure::Loopback, false);
        for host in ["127.0.0.1:9090", "[::1]:9090", "[::1]", "localhost", "LocalHost:9090", "x.localhost."] {
            assert_eq!(status(local, "GET", "/api/status", &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "evil.example:9090", "127.0.0.1.nip.example", "localhost.example", ""] {
            assert_eq!(status(local, "GET", "/api/status", &[("host", host)]), 403, "{host}");
            assert_eq!(status(local, "GET", "/metrics", &[("host", host)]), 200, "{host}");
        }
        let name = [("host", "admin.example"), ("authorization", &format!("Bearer {TOKEN}"))];
        assert_eq!(status((Exposure::Loopback, true), "GET", "/api/status", &name), 200);
        assert_eq!(status((Exposure::Unix, false), "GET", "/api/status", &name), 200);
    }

    #[test]
    fn a_page_of_another_origin_cannot_change_anything() {
        let local = (Exposure::Loopback, false);
        let host = ("host", "127.0.0.1:9090");
        for (header, status_then) in [
            (("origin", "http://127.0.0.1:9090"), 200),
            (("origin", "http://evil.example"), 403),
            (("origin", "http://127.0.0.1:8080"), 403),
            (("origin", "null"), 403),
            (("sec-fetch-site", "cross-site"), 403),
            (("sec-fetch-site", "same-site"), 403),
            (("sec-fetch-site", "same-origin"), 200),
        ] {
            for method in ["POST", "DELETE"] {
                let status = status(local, method, "/api/reload", &[host, header]);
                assert_eq!(status, status_then, "{method} {header:?}");
            }
            assert_eq!(status(local, "GET", "/api/status", &[host, header]), 200, "{header:?}");
        }
        assert_eq!(status(local, "POST", "/api/reload", &[host]), 200, "no browser");
    }
}
