//! What clients may do: the part of the settings that bounds and binds them.

use std::time::Duration;

use ipnet::IpNet;

use crate::engine_io::SessionBinding;
use crate::limits::RateLimits;
use crate::socketio::PendingLimits;
use mainstay_core::origin::{Origin, Origins};

use super::flags::ClientFlags;

/// What clients may do.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// The most clients at a time.
    pub max_connections: usize,
    /// How long a Socket.IO connection may take to be admitted to a namespace.
    pub connect_timeout: Duration,
    /// How many may be about it.
    pub pending: PendingLimits,
    /// What a polling session is bound to.
    pub binding: SessionBinding,
    /// The peers that are believed about where a client is.
    pub trusted_proxies: Vec<IpNet>,
    /// The longest message, bytes.
    pub max_payload: usize,
    /// Between two questions for a sign of life.
    pub ping_interval: Duration,
    /// For the answer.
    pub ping_timeout: Duration,
    /// A connection from which nothing came for so long is closed.
    pub idle: Duration,
    /// The closes at the end are spread over this.
    pub drain: Duration,
    /// Bytes that may wait for a client that does not read.
    pub backlog: usize,
    /// The most rooms that one client may join.
    pub max_rooms: usize,
    /// What each client may say in a second.
    pub rates: RateLimits,
    /// Socket.IO namespaces, `/` among them.
    pub namespaces: Vec<String>,
    /// Whether Engine.IO 3 is spoken, too.
    pub eio3: bool,
    /// The web pages that may connect.
    pub origins: Origins,
}

/// The settings that the flags give.
pub(super) fn client_settings(flags: ClientFlags, faults: &mut Vec<String>) -> ClientSettings {
    let mut positive = |flag: &str, time: Duration| {
        if time.is_zero() {
            faults.push(format!("{flag} 0s leaves no time; write 25s, for instance"));
        }
    };
    positive("--ping-interval", flags.ping_interval);
    positive("--ping-timeout", flags.ping_timeout);
    positive("--connect-timeout", flags.connect_timeout);
    if flags.max_connections == 0 {
        faults.push("--max-connections 0 lets nobody in; write 50000, for instance".into());
    }
    if !(128..=64 << 20).contains(&flags.max_payload) {
        faults.push("--max-payload is 128B to 64MiB; write 16KiB, for instance".into());
    }
    if flags.backlog < flags.max_payload {
        faults.push("--backlog is less than one message of --max-payload; write 1MiB, for instance".into());
    }
    if flags.idle <= flags.ping_interval {
        faults.push(
            "--idle is not longer than --ping-interval, so clients that are well would be closed; write more than that"
                .into(),
        );
    }
    let most = flags.max_pending.unwrap_or((flags.max_connections / 10).max(1000));
    let per_address = flags.max_pending_per_address.unwrap_or((most / 10).max(100)).min(most);
    let pending = PendingLimits { most, per_address };
    let mut namespaces = vec!["/".to_owned()];
    namespaces.extend(flags.namespaces.into_iter().filter(|name| name != "/"));
    ClientSettings {
        max_connections: flags.max_connections,
        connect_timeout: flags.connect_timeout,
        pending,
        binding: SessionBinding { address: flags.bind_address, cookie: flags.bind_cookie },
        trusted_proxies: flags.trusted_proxies.unwrap_or_else(private_networks),
        max_payload: flags.max_payload as usize,
        ping_interval: flags.ping_interval,
        ping_timeout: flags.ping_timeout,
        idle: flags.idle,
        drain: flags.drain,
        backlog: flags.backlog as usize,
        max_rooms: flags.max_rooms as usize,
        rates: RateLimits { messages: flags.messages_per_second, bytes: flags.bytes_per_second },
        namespaces,
        eio3: flags.eio3,
        origins: origins(&flags.origin, faults),
    }
}

/// Where balancers are, and no client of the Internet: loopback, link-local and private addresses (RFC 1918, RFC 4193).
fn private_networks() -> Vec<IpNet> {
    const NETWORKS: [&str; 8] = [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    ];
    NETWORKS.iter().filter_map(|network| network.parse().ok()).collect()
}

fn origins(written: &[String], faults: &mut Vec<String>) -> Origins {
    let mut list = Vec::new();
    for text in written {
        match text.parse::<Origin>() {
            Ok(origin) => list.push(origin),
            Err(fault) => faults.push(format!("--origin {fault}")),
        }
    }
    Origins::new(list)
}
