//! A pool: an immutable set of nodes.

pub mod health;
pub mod pick;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// The name of a node, unique in its pool: 1 to 64 of `A-Z a-z 0-9 _ . -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

/// Where a node listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A host name or an IP address (IPv6 without brackets), resolved at each dial, and a port.
    Tcp {
        /// Host name or IP address.
        host: String,
        /// Port, 1 to 65535.
        port: u16,
    },
    /// A Unix socket, written `unix:/path`.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One node of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Name; a pin names it, never its position.
    pub id: NodeId,
    /// Where it listens.
    pub address: Address,
    /// Its share, 1 to 1000; 1 unless told.
    pub weight: u16,
    /// The most tunnels it takes; `None` is no limit.
    pub max_connections: Option<u32>,
    /// The release that it runs.
    pub release: Option<String>,
}
