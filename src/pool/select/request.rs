//! The question that a selection answers: what is known of the session, and how its pool places clients.

use std::net::IpAddr;

use crate::affinity::AffinityHints;
use crate::pool::rollout::Rollout;

/// How a pool places a client that nothing pins and no key places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BalancePolicy {
    /// The node with the fewest live tunnels for its weight.
    #[default]
    LeastConnections,
    /// Each node in turn, by weight.
    RoundRobin,
    /// The better of two drawn by weight.
    RandomTwo,
    /// The client's address is the key (whole IPv4, IPv6 /64).
    ClientIp,
}

/// What a selection is made for.
#[derive(Debug, Clone, Copy)]
pub struct SelectRequest<'a> {
    /// The hints of the pool's affinity sources.
    pub hints: &'a AffinityHints,
    /// The policy when there is no hint.
    pub balance: BalancePolicy,
    /// Hashing passes over a node that would have more than this times its part of the tunnels; at least 1, `None`: no
    /// bound. Only for a new session whose later requests will follow it, or that has none.
    pub load_bound: Option<f64>,
    /// The client's address, for [`BalancePolicy::ClientIp`].
    pub client: IpAddr,
    /// Whether the session becomes a tunnel; a plain request does not and may follow a pin to a full node.
    pub is_tunnel: bool,
    /// Whether the request opens a session, which may live on any node.
    pub opens_session: bool,
    /// Whether the request belongs to a session that lives on one node and is unknown to every other.
    pub is_in_session: bool,
    /// A draining node whose pin is still followed, because the session lives there and cannot live elsewhere.
    pub draining_pin: Option<usize>,
    /// The rollout that is under way in the pool.
    pub rollout: Option<&'a Rollout>,
    /// A random number, new for each session.
    pub random: u64,
    /// How many sessions of the pool have asked before, for [`BalancePolicy::RoundRobin`].
    pub sequence: u64,
}
