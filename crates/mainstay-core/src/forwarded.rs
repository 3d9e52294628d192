//! The forwarding fields of a request: where it comes from, as far as the peer that sent it is trusted.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;

/// The chain of addresses through which a request came, the client first.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The scheme that the client used.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What is believed about where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardedClient {
    /// The client.
    pub address: IpAddr,
    /// The client came over https.
    pub is_https: bool,
    /// The peer's word is believed.
    pub is_peer_trusted: bool,
}

/// Reads the forwarding fields, as far as `peer` is trusted.
pub fn forwarded_client(
    peer: IpAddr,
    https: bool,
    headers: &HeaderMap,
    trusted: &[IpNet],
) -> ForwardedClient {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address.to_canonical()));
    let peer = peer.to_canonical();
    if !is_trusted(peer) {
        return ForwardedClient { address: peer, is_https: https, is_peer_trusted: false };
    }
    let mut chain = forwarded_for(headers);
    // From the right: each trusted hop vouches for the one before it; the first that is not trusted is the client.
    // Something unreadable ends what is vouched for.
    let mut client = peer;
    while let Some(Some(hop)) = chain.pop() {
        client = hop;
        if !is_trusted(hop) {
            break;
        }
    }
    let proto = headers.get(X_FORWARDED_PROTO).and_then(|value| value.to_str().ok());
    let https = proto.map_or(https, |proto| proto.trim().eq_ignore_ascii_case("https"));
    ForwardedClient { address: client, is_https: https, is_peer_trusted: true }
}

/// The chain of X-Forwarded-For, or of Forwarded where that is missing; `None` for what is no address.
fn forwarded_for(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    if headers.contains_key(X_FORWARDED_FOR) {
        return list(headers, &X_FORWARDED_FOR).map(address).collect();
    }
    let elements = list(headers, &FORWARDED);
    elements.map(|element| element.split(';').find_map(for_parameter).and_then(address)).collect()
}

fn for_parameter(pair: &str) -> Option<&str> {
    let (name, value) = pair.split_once('=')?;
    name.trim().eq_ignore_ascii_case("for").then(|| value.trim().trim_matches('"'))
}

/// The elements of all fields of this name; `?` for what is not text.
pub fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// An address, perhaps with a port, perhaps in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    parsed.ok().map(|address: IpAddr| address.to_canonical())
}
