//! The closed sets of label values: who, which way, how it ended.
//!
//! Labels come from these sets and from the config, never from a client or a node.

/// Which way bytes went, seen from the balancer's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrafficDirection {
    /// From the client to the node.
    In,
    /// From the node to the client.
    Out,
}

impl TrafficDirection {
    /// Both, in the order of their discriminants.
    pub(crate) const ALL: [Self; 2] = [Self::In, Self::Out];

    /// The label's value.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// Who ended a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseSide {
    /// The client.
    Client,
    /// The node.
    Node,
    /// The balancer itself: a limit, a timeout, a drain.
    Balancer,
}

impl CloseSide {
    /// All three, in the order of their discriminants.
    pub(crate) const ALL: [Self; 3] = [Self::Client, Self::Node, Self::Balancer];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Node => "node",
            Self::Balancer => "balancer",
        }
    }
}

/// How an upgrade request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeResult {
    /// The client was told yes.
    Upgraded,
    /// The request was wrong, or a node said no: the client's or the node's decision.
    Refused,
    /// No node could be asked, or none gave a valid answer.
    Failed,
    /// A limit of the config kept it out.
    Limited,
}

impl HandshakeResult {
    /// All four, in the order of their discriminants.
    pub(crate) const ALL: [Self; 4] = [Self::Upgraded, Self::Refused, Self::Failed, Self::Limited];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upgraded => "upgraded",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Limited => "limited",
        }
    }
}

/// The values of the label `kind`, in the order of the array that [`MeterShard::add`](super::meter_shard::MeterShard::add) takes.
pub(crate) const MESSAGE_KINDS: [&str; 5] = ["text", "binary", "ping", "pong", "close"];

/// The values of the label `state`.
pub(crate) const NODE_STATES: [&str; 4] = ["up", "down", "draining", "removed"];

/// The values of the label `status`.
pub(crate) const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The values of the label `source`.
pub(crate) const AFFINITY_SOURCES: [&str; 7] =
    ["cookie", "node_cookie", "engine_io", "header", "query", "client_ip", "none"];

/// The values of the label `outcome`.
pub(crate) const AFFINITY_OUTCOMES: [&str; 4] = ["kept", "moved", "hashed", "placed"];

/// The values of the label `code`: RFC 6455's own codes one by one, then the registered range, the private range
/// and whatever else a peer puts there.
pub(crate) const CLOSE_CODES: [&str; 19] = [
    "1000", "1001", "1002", "1003", "1004", "1005", "1006", "1007", "1008", "1009", "1010", "1011", "1012",
    "1013", "1014", "1015", "3xxx", "4xxx", "other",
];

pub(super) fn close_code_index(code: u16) -> usize {
    match code {
        1000..=1015 => usize::from(code - 1000),
        3000..=3999 => 16,
        4000..=4999 => 17,
        _ => 18,
    }
}

/// The values of the label `result` of a retry.
pub(super) const RETRY_RESULTS: [&str; 2] = ["sent", "over_budget"];

/// Why a connection was refused before HTTP began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionRefusal {
    /// There are as many as there may be (`limits.connections`).
    Connections,
    /// Its client has as many as one may (`limits.connections_per_client`).
    PerClient,
    /// Its PROXY header is none, or its peer may not send one.
    ProxyProtocol,
}

impl ConnectionRefusal {
    /// All three, in the order of their discriminants.
    pub(crate) const ALL: [Self; 3] = [Self::Connections, Self::PerClient, Self::ProxyProtocol];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::PerClient => "connections_per_client",
            Self::ProxyProtocol => "proxy_protocol",
        }
    }
}

/// Where a panic ended what was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicLocation {
    /// A client's connection or request, before there is a tunnel.
    FrontDesk,
    /// A tunnel.
    Relay,
}

impl PanicLocation {
    /// Both, in the order of their discriminants.
    pub(crate) const ALL: [Self; 2] = [Self::FrontDesk, Self::Relay];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FrontDesk => "front_desk",
            Self::Relay => "relay",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_make_labels_with_its_close_codes() {
        let codes = [0, 999, 1000, 1012, 1015, 1016, 2999, 3000, 3999, 4000, 4999, 5000, u16::MAX];
        let labels = codes.map(|code| CLOSE_CODES[close_code_index(code)]);
        let expected = [
            "other", "other", "1000", "1012", "1015", "other", "other", "3xxx", "3xxx", "4xxx", "4xxx",
            "other", "other",
        ];
        assert_eq!(labels, expected);
        assert!((0..=u16::MAX).all(|code| close_code_index(code) < CLOSE_CODES.len()));
    }
}
