//! What a pool's `affinity` list is made of.

use std::net::IpAddr;

use http::HeaderName;

use super::cookie::CookiePolicy;
use super::hash;

/// One entry of a pool's `affinity` list.
#[derive(Debug, Clone, PartialEq)]
pub enum AffinitySource {
    /// A cookie that the balancer sets and reads.
    Cookie(CookiePolicy),
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
    ClientIp(ClientPrefixes),
}

/// How much of a client address counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientPrefixes {
    /// Bits of an IPv4 address, 0 to 32.
    pub ipv4: u8,
    /// Bits of an IPv6 address, 0 to 128.
    pub ipv6: u8,
}

impl Default for ClientPrefixes {
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

impl AffinitySource {
    /// What kind of source it is.
    pub(crate) fn hint_source(&self) -> HintSource {
        match self {
            Self::Cookie(_) => HintSource::Cookie,
            Self::NodeCookie { .. } => HintSource::NodeCookie,
            Self::EngineIo => HintSource::EngineIo,
            Self::Header(_) => HintSource::Header,
            Self::Query(_) => HintSource::Query,
            Self::ClientIp(_) => HintSource::ClientIp,
        }
    }
}

/// The kind of source that a hint came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HintSource {
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

impl HintSource {
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

/// The key of a client's address, cut to its prefix. An IPv4-mapped IPv6 address counts as the IPv4 address.
pub(crate) fn hash_client(client: IpAddr, prefixes: ClientPrefixes) -> u64 {
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
    hash::hash_key(&bytes[..len])
}
