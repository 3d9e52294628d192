//! A pool: an immutable set of nodes, and what is fixed about each of them.
//!
//! A set never changes; a reload builds another. What does change (whether a node is up, how many tunnels it
//! has) is not here: [`select`] is given it with each request. Everything that places a client names a node by
//! its id or its tag, never by its position, so that a node can come or go without moving anybody else.

pub mod health;
pub mod select;
pub mod retry;
pub mod rollout;
pub(crate) mod surplus;

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::affinity::cookie::NodeTag;
use crate::affinity::{NodeDirectory, hash};

/// The name of a node, unique in its pool: 1 to 64 of `A-Z a-z 0-9 _ . -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// The longest id, in bytes.
    pub(crate) const MAX: usize = 64;

    /// The id as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if text.is_empty() || text.len() > Self::MAX {
            return Err(format!("a node id has 1 to {} characters, this one has {}", Self::MAX, text.len()));
        }
        match text.chars().find(|c| !c.is_ascii() || !fits(*c as u8)) {
            Some(odd) => {
                Err(format!("{odd:?} cannot be in a node id; letters, digits, `_`, `.` and `-` can"))
            }
            None => Ok(Self(text.into())),
        }
    }
}

/// Where a node listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NodeAddress {
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

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for NodeAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return parse_unix_path(path).map(Self::Unix);
        }
        if text.contains("://") {
            return Err(format!("{text:?} is a URL; write only the address, like `127.0.0.1:3001`"));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(format!("{text:?} has no port; write it as `host:port`, like `127.0.0.1:3001`"));
        };
        let port = parse_port(port)?;
        let host = match host.strip_prefix('[') {
            Some(inside) => parse_ipv6_host(inside)?,
            None => parse_host(host, text)?,
        };
        Ok(Self::Tcp { host, port })
    }
}

/// The path behind `unix:`: absolute, and short enough for `sun_path` (108 bytes with its NUL, unix(7)).
fn parse_unix_path(path: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/') {
        return Err(format!(
            "the Unix socket path {path:?} is not absolute; write it as `unix:/run/node.sock`"
        ));
    }
    if path.len() > 107 || path.contains('\0') {
        return Err(format!(
            "a Unix socket path has at most 107 bytes and no NUL; this one has {}",
            path.len()
        ));
    }
    Ok(PathBuf::from(path))
}

fn parse_port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port; a port is a number from 1 to 65535")),
    }
}

/// The IPv6 address whose opening bracket is gone.
fn parse_ipv6_host(inside: &str) -> Result<String, String> {
    match inside.strip_suffix(']').map(str::parse::<Ipv6Addr>) {
        Some(Ok(address)) => Ok(address.to_string()),
        _ => Err(format!("\"[{inside}\" is not an IPv6 address in brackets; write it like `[::1]:3001`")),
    }
}

fn parse_host(host: &str, text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if host.is_empty() {
        return Err(format!("{text:?} names no host; write it as `host:port`, like `127.0.0.1:3001`"));
    }
    if host.contains(':') {
        return Err(format!("the IPv6 address in {text:?} needs brackets; write it like `[::1]:3001`"));
    }
    if host.len() > 253 || !host.bytes().all(fits) {
        return Err(format!("{host:?} is not a host name or an IP address"));
    }
    Ok(host.to_owned())
}

/// One node of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Name; a pin names it, never its position.
    pub id: NodeId,
    /// Where it listens.
    pub address: NodeAddress,
    /// Its share, 1 to 1000; 1 unless told.
    pub weight: u16,
    /// The most tunnels it takes; `None` is no limit.
    pub max_connections: Option<u32>,
    /// The release that it runs.
    pub release: Option<String>,
}

/// What a node is good for at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NodeState {
    /// It takes clients.
    Up,
    /// It fails its probes, or real traffic has ejected it.
    Down,
    /// It is well and asked to be left alone: what it has stays, nothing new comes.
    Draining,
    /// It is gone from the config; its last tunnels are being drained.
    Removed,
}

impl NodeState {
    /// The value of the label `state`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Removed => "removed",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The nodes of one pool, in the order of the config, with everything precomputed that a selection needs.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSet {
    /// The pool's name; seeds and tags are made from it, so two pools hash apart.
    pool: Arc<str>,
    /// The nodes; everything below is indexed like this.
    nodes: Box<[Node]>,
    /// Where each node stands in rendezvous hashing.
    rendezvous: Box<[hash::RendezvousNode]>,
    /// What else a selection reads about each node, side by side so that a pass touches few cache lines.
    limits: Box<[NodeLimits]>,
    /// Tags of the nodes, in the order of `nodes`.
    tags: Box<[NodeTag]>,
    /// `(tag, index)` by tag, for the lookup of a pin.
    by_tag: Box<[(NodeTag, usize)]>,
    /// Indexes by id, for the lookup of a pin.
    by_id: Box<[usize]>,
    /// The greatest weight, at least 1.
    max_weight: u16,
    /// Whether all weights are the same: then draws are compared as they are.
    has_equal_weights: bool,
}

/// What a node can take.
#[derive(Debug, Clone, Copy, PartialEq)]
struct NodeLimits {
    /// Its weight, at least 1.
    weight: u32,
    /// The most tunnels; `u32::MAX` is no limit.
    max: u32,
}

impl NodeSet {
    /// The set of a pool. Ids should be unique (the config checks it): of two alike the first is found.
    pub fn new(pool: &str, nodes: Vec<Node>) -> Self {
        let rendezvous = |node: &Node| hash::RendezvousNode::new(pool, node.id.as_str(), node.weight);
        let limits = |node: &Node| NodeLimits {
            weight: u32::from(node.weight.max(1)),
            max: node.max_connections.unwrap_or(u32::MAX),
        };
        let tags: Box<[_]> = nodes.iter().map(|node| NodeTag::of(pool, node.id.as_str())).collect();
        let mut by_tag: Box<[_]> = tags.iter().copied().zip(0..).collect();
        by_tag.sort_unstable();
        let mut by_id: Box<[usize]> = (0..nodes.len()).collect();
        by_id.sort_by(|a, b| nodes[*a].id.cmp(&nodes[*b].id));
        Self {
            pool: pool.into(),
            rendezvous: nodes.iter().map(rendezvous).collect(),
            limits: nodes.iter().map(limits).collect(),
            max_weight: nodes.iter().map(|node| node.weight).max().unwrap_or(1).max(1),
            has_equal_weights: nodes.windows(2).all(|pair| pair[0].weight == pair[1].weight),
            tags,
            by_tag,
            by_id,
            nodes: nodes.into(),
        }
    }

    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The tag that stands for the node at `index` in cookies and session ids.
    pub fn tag(&self, index: usize) -> Option<NodeTag> {
        self.tags.get(index).copied()
    }

    /// The nodes in the order of the config.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Node> {
        self.nodes.iter()
    }
}

impl<'a> IntoIterator for &'a NodeSet {
    type Item = &'a Node;
    type IntoIter = std::slice::Iter<'a, Node>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl NodeDirectory for NodeSet {
    fn find_by_id(&self, id: &str) -> Option<usize> {
        let at = self.by_id.partition_point(|index| self.nodes[*index].id.as_str() < id);
        self.by_id.get(at).copied().filter(|index| self.nodes[*index].id.as_str() == id)
    }

    fn find_by_tag(&self, tag: NodeTag) -> Option<usize> {
        let at = self.by_tag.partition_point(|(known, _)| *known < tag);
        self.by_tag.get(at).filter(|(known, _)| *known == tag).map(|(_, index)| *index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> Node {
        let address = "127.0.0.1:3001".parse().unwrap();
        Node { id: id.parse().unwrap(), address, weight: 1, max_connections: None, release: None }
    }

    #[test]
    fn a_node_id_is_1_to_64_plain_characters() {
        for good in ["a", "ws1", "Node_7.eu-west", &"x".repeat(64)] {
            assert_eq!(good.parse::<NodeId>().unwrap().as_str(), good);
        }
        for bad in ["", "ws 1", "wsé", "a/b", "a\0", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
        }
        assert_eq!(
            "ws 1".parse::<NodeId>().unwrap_err(),
            "' ' cannot be in a node id; letters, digits, `_`, `.` and `-` can"
        );
    }

    #[test]
    fn an_address_is_read_as_it_is_shown() {
        for text in ["127.0.0.1:3001", "ws-1.internal:80", "[::1]:65535", "unix:/run/node.sock"] {
            assert_eq!(text.parse::<NodeAddress>().unwrap().to_string(), text);
        }
        let tcp = NodeAddress::Tcp { host: "::1".into(), port: 3001 };
        assert_eq!("[::1]:3001".parse::<NodeAddress>(), Ok(tcp.clone()));
        assert_eq!("[0:0::1]:3001".parse::<NodeAddress>(), Ok(tcp));
    }

    #[test]
    fn a_bad_address_says_what_would_be_right() {
        let cases = [
            ("", "has no port"),
            ("localhost", "has no port"),
            (":3001", "names no host"),
            ("localhost:", "is not a port"),
            ("localhost:0", "from 1 to 65535"),
            ("localhost:65536", "from 1 to 65535"),
            ("localhost:+80", "is not a port"),
            ("localhost:80 ", "is not a port"),
            ("::1:3001", "needs brackets"),
            ("[::1", "in brackets"),
            ("[::1]", "is not a port"),
            ("[::g]:1", "in brackets"),
            ("[127.0.0.1]:1", "in brackets"),
            ("http://a:80", "is a URL"),
            ("a b:80", "is not a host name"),
            ("hé:80", "is not a host name"),
            ("unix:run/x", "is not absolute"),
            ("unix:", "is not absolute"),
        ];
        for (text, says) in cases {
            let error = text.parse::<NodeAddress>().unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        let long = format!("unix:/{}", "x".repeat(107));
        assert!(long.parse::<NodeAddress>().unwrap_err().contains("at most 107 bytes"));
    }

    #[test]
    fn a_node_is_found_by_its_id_and_by_its_tag() {
        let ids = ["ws10", "ws2", "b", "a", "ws1"];
        let nodes = NodeSet::new("chat", ids.map(node).to_vec());
        for (index, id) in ids.into_iter().enumerate() {
            assert_eq!(nodes.find_by_id(id), Some(index));
            assert_eq!(nodes.find_by_tag(nodes.tag(index).unwrap()), Some(index));
            assert_eq!(nodes.nodes[index].id.as_str(), id);
        }
        for stranger in ["", "ws", "ws3", "zz", "A"] {
            assert_eq!(nodes.find_by_id(stranger), None);
            assert_eq!(nodes.find_by_tag(NodeTag::of("chat", stranger)), None);
        }
        assert_eq!(nodes.find_by_tag(NodeTag::of("other", "a")), None, "the same id in another pool");
        assert_eq!(NodeSet::new("chat", Vec::new()).find_by_id("a"), None);
    }

    #[test]
    fn of_two_nodes_with_one_id_the_first_is_found() {
        let nodes = NodeSet::new("chat", ["b", "a", "a"].map(node).to_vec());
        assert_eq!(nodes.find_by_id("a"), Some(1));
        assert_eq!(nodes.find_by_tag(NodeTag::of("chat", "a")), Some(1));
    }
}
