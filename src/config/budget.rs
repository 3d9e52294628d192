//! Whether a config fits into what the system gives the process: file descriptors and ports.

use super::limits::MOST;
use super::pools::Pool;
use super::top::Config;
use crate::pool::NodeAddress;

/// What the system gives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Supply {
    /// File descriptors that may be open.
    pub files: u64,
    /// Ports that one source address has toward one node.
    pub ports: u64,
}

/// What a config amounts to in file descriptors and ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Client connections at a time: what the config says, or what the file limit allows.
    pub connections: u32,
    /// What does not fit, a sentence each, with what would.
    pub warnings: Vec<String>,
}

impl Budget {
    /// Descriptors that are neither a client's nor a node's side: standard streams, log, epolls, admin connections.
    const BASE: u64 = 64;
    /// For each node: its probe and the connections that are kept for plain requests.
    const PER_NODE: u64 = 16;

    /// The budget of `config`. A client connection takes two descriptors, its own and that to its node, and a port.
    pub fn new(config: &Config, supply: Supply) -> Self {
        let files = supply.files;
        let nodes: u64 = config.pools.iter().map(|pool| pool.nodes.len() as u64).sum();
        let wanted = Self::BASE + config.listeners.len() as u64 + Self::PER_NODE * nodes;
        // Where the limit is small, at most half of it is held back.
        let reserve = wanted.min(files / 2);
        let fitting = u32::try_from((files - reserve) / 2).unwrap_or(u32::MAX).clamp(1, MOST);
        let connections = config.limits.connections.unwrap_or(fitting);
        let mut warnings = Vec::new();
        if connections > fitting {
            warnings.push(format!(
                "limits.connections: {connections} connections need {} file descriptors, the limit is {files}; \
                 raise it (LimitNOFILE= of the unit, ulimit -n), or write {fitting} or auto",
                u64::from(connections) * 2 + wanted
            ));
        }
        let taken = taken(config);
        if config.limits.connections.is_none() && taken.is_some_and(|taken| taken > u64::from(fitting)) {
            warnings.push(format!(
                "max_connections: the nodes take {} connections together, the file limit of {files} allows \
                 {fitting}; raise it (LimitNOFILE= of the unit, ulimit -n)",
                taken.unwrap_or_default()
            ));
        }
        warnings.extend(config.pools.iter().flat_map(|pool| short_of_ports(pool, supply.ports)));
        Self { connections, warnings }
    }
}

/// The nodes that take more tunnels than there are ports toward them.
fn short_of_ports(pool: &Pool, ports: u64) -> impl Iterator<Item = String> {
    let there_are = ports * pool.source_addresses.len().max(1) as u64;
    pool.nodes.iter().filter_map(move |node| {
        let most = node.max_connections.filter(|most| u64::from(*most) > there_are)?;
        let is_tcp = matches!(node.address, NodeAddress::Tcp { .. });
        is_tcp.then(|| {
            format!(
                "pool {}, node {}: max_connections of {most} needs as many source ports, there are {there_are}; \
                 add source_addresses, or widen net.ipv4.ip_local_port_range",
                pool.name, node.id
            )
        })
    })
}

/// How many tunnels the nodes take together, where each says so. A node of two pools counts twice, as it does there.
fn taken(config: &Config) -> Option<u64> {
    let nodes = config.pools.iter().flat_map(|pool| &pool.nodes);
    nodes.map(|node| node.max_connections.map(u64::from)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::resolve;
    use super::*;

    fn config(limits: &str, node: &str) -> Config {
        let text =
            format!("limits: {{{limits}}}\npools: {{p: {{nodes: [{{id: a, address: \"a:1\"{node}}}]}}}}");
        let read = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        resolve("f", text.as_bytes(), &|_| None, &read).unwrap_or_else(|faults| panic!("{faults}"))
    }

    fn files(files: u64) -> Supply {
        Supply { files, ports: 100_000 }
    }

    #[test]
    fn a_node_that_takes_more_tunnels_than_there_are_ports_is_warned_about() {
        let supply = Supply { files: 1_000_000, ports: 28_232 };
        let budget = Budget::new(&config("", ", max_connections: 50000"), supply);
        let [warning] = &budget.warnings[..] else { panic!("{budget:?}") };
        assert!(warning.contains("node a") && warning.contains("source_addresses"), "{warning}");
        let mut two = config("", ", max_connections: 50000");
        two.pools[0].source_addresses = vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        assert_eq!(Budget::new(&two, supply).warnings, [""; 0]);
    }

    #[test]
    fn auto_is_what_the_file_limit_allows_at_two_descriptors_a_connection() {
        let budget = Budget::new(&config("", ""), files(20_000));
        assert_eq!(budget, Budget { connections: (20_000 - 64 - 1 - 16) / 2, warnings: vec![] });
        assert_eq!(Budget::new(&config("connections: auto", ""), files(20_000)), budget);
        // However small the limit is, something is served.
        assert_eq!(Budget::new(&config("", ""), files(100)).connections, 25);
        assert_eq!(Budget::new(&config("", ""), files(0)).connections, 1);
        assert_eq!(Budget::new(&config("", ""), files(u64::MAX)).connections, 10_000_000);
    }

    #[test]
    fn more_than_fits_is_kept_and_warned_about_with_what_would_fit() {
        let budget = Budget::new(&config("connections: 1000", ""), files(1024));
        assert_eq!(budget.connections, 1000);
        let [warning] = &budget.warnings[..] else { panic!("{budget:?}") };
        assert!(
            warning.contains("2081 file descriptors") && warning.contains("write 471 or auto"),
            "{warning}"
        );
        assert_eq!(Budget::new(&config("connections: 471", ""), files(1024)).warnings, [""; 0]);
    }

    #[test]
    fn nodes_that_take_more_than_the_file_limit_allows_are_warned_about() {
        let budget = Budget::new(&config("", ", max_connections: 50000"), files(1024));
        let [warning] = &budget.warnings[..] else { panic!("{budget:?}") };
        assert!(warning.contains("the nodes take 50000") && warning.contains("LimitNOFILE"), "{warning}");
        assert_eq!(Budget::new(&config("", ", max_connections: 400"), files(1024)).warnings, [""; 0]);
        let chosen = config("connections: 100", ", max_connections: 50000");
        assert_eq!(Budget::new(&chosen, files(1024)).warnings, [""; 0], "fewer were asked for");
    }
}
