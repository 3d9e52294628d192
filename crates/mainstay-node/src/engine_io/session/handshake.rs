//! What the first request of a session said, kept for as long as the session lives.
//!
//! Kept as text of its own: the parsed head of a request holds on to the whole buffer that it was read into, which
//! would cost every idle connection several KiB.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::ORIGIN;
use http::request::Parts;

use crate::engine_io::session::urlencoded;

/// Where a client is, for who knows it better than the TCP connection does: an extension of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// That of a request which came from `peer`.
    pub(crate) fn of(request: &Parts, peer: SocketAddr) -> IpAddr {
        let known = request.extensions.get::<Self>();
        known.map_or(peer.ip(), |Self(address)| *address).to_canonical()
    }
}

/// The facts of a handshake.
#[derive(Debug, Clone)]
pub struct Handshake {
    /// Path and query as the client sent them.
    url: Box<str>,
    /// The headers in order, each `name:value` with a line feed; names in lower case.
    headers: Box<str>,
    /// Who sent it: the balancer, where one stands in front.
    address: SocketAddr,
    /// The client's own address.
    client: IpAddr,
    /// When it came, in milliseconds since 1970.
    issued: u64,
    /// Whether it came from a page (it has an Origin).
    has_origin: bool,
}

impl Handshake {
    /// The facts of a request that came from `peer` now.
    pub(crate) fn from_request(request: &Parts, peer: SocketAddr) -> Self {
        let mut headers = String::new();
        for (name, value) in &request.headers {
            headers.push_str(name.as_str());
            headers.push(':');
            // A value has no line feed, so the lines can be told apart again.
            headers.push_str(&String::from_utf8_lossy(value.as_bytes()));
            headers.push('\n');
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            url: request.uri.path_and_query().map_or("/", |whole| whole.as_str()).into(),
            headers: headers.into(),
            address: peer,
            client: ClientAddress::of(request, peer),
            issued: since.as_millis() as u64,
            has_origin: request.headers.contains_key(ORIGIN),
        }
    }

    /// Path and query as the client sent them.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The query's pairs in order, decoded.
    pub fn query(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        urlencoded::pairs(self.url.split_once('?').map_or("", |(_, query)| query))
    }

    /// The headers in the order of the request; a name that came twice is there twice. Names are in lower case.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.lines().filter_map(|line| line.split_once(':'))
    }

    /// The first header of that name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(given, _)| *given == name).map(|(_, value)| value)
    }

    /// The peer of the TCP connection.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The client's own address: of the peer, unless [`ClientAddress`] said better.
    pub fn client(&self) -> IpAddr {
        self.client
    }

    /// When the request came, in milliseconds since 1970.
    pub fn issued(&self) -> u64 {
        self.issued
    }

    /// Socket.IO's `xdomain`: the request came from a page.
    pub(crate) fn has_origin(&self) -> bool {
        self.has_origin
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn the_facts_are_those_of_the_request() {
        let request = Request::get("/socket.io/?EIO=4&user=a%20b")
            .header("Origin", "https://a.example")
            .header("Cookie", "a=1: 2")
            .header("Cookie", "b=2")
            .body(())
            .unwrap();
        let facts = Handshake::from_request(&request.into_parts().0, "127.0.0.1:9".parse().unwrap());
        assert_eq!(facts.url(), "/socket.io/?EIO=4&user=a%20b");
        assert_eq!(facts.query().last().unwrap(), ("user".into(), "a b".into()));
        let headers: Vec<_> = facts.headers().collect();
        assert_eq!(headers, [("origin", "https://a.example"), ("cookie", "a=1: 2"), ("cookie", "b=2")]);
        assert_eq!(facts.header("cookie"), Some("a=1: 2"));
        assert!(facts.has_origin() && facts.issued() > 1_700_000_000_000);
    }
}
