//! The candidates for a session, in order of preference.

/// How a pool places a client that nothing pins and no key places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
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
