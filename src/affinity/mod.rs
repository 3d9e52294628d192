//! Where a client belongs: the sources that a request is asked, in order, and what each says.
//!
//! A source gives a *pin* (this very node) or a *key* (hash it over the nodes). Nothing here knows whether a
//! node is up; the caller walks the wishes in order and takes the first that can be met.

pub mod cookie;
pub mod engine_io;
pub mod hash;

use http::HeaderName;

/// One entry of a pool's `affinity` list.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A cookie that the balancer sets and reads.
    Cookie(cookie::CookieRule),
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
    ClientIp(Prefixes),
}

/// How much of a client address counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefixes {
    /// Bits of an IPv4 address, 0 to 32.
    pub ipv4: u8,
    /// Bits of an IPv6 address, 0 to 128.
    pub ipv6: u8,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

/// Where the nodes of a pool are found by what names them.
pub trait Directory {
    /// The index of the node with this id.
    fn by_id(&self, id: &str) -> Option<usize>;
    /// The index of the node with this tag.
    fn by_tag(&self, tag: cookie::NodeTag) -> Option<usize>;
}
