//! The pools: their nodes and how they are used.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use mainstay_core::units::{ANY_TIME, SOME_TIME, show_duration};
use serde_json::json;

use super::change::{Comparison, Subject, What};
use super::drain::Drain;
use super::entry::{Form, Keys, derived, names, section, shown};
use super::fault::{Position, quoted};
use super::forms::{Word, duration, list, number, parsed, percent, section, size, word};
use super::health::{HealthCheck, PassiveHealthCheck, health};
use super::key::{Shape, Text};
use super::nodes::{compare_nodes, compare_order, nodes};
use super::reader::Value;
use super::rebalance::Rebalance;
use super::rebalance::rebalance;
use super::sources::sources;
use super::tls::{self, PoolTls};
use super::{nodes as node_list, proxies};
use crate::affinity::AffinitySource;
use crate::pool::health::HealthThresholds;
use crate::pool::retry::RetryPolicy;
use crate::pool::select::BalancePolicy;
use crate::pool::{Node, NodeAddress, NodeId};

section! {
    /// A set of nodes and how it is used.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Pool {
        /// Name: 1 to 64 of `A-Z a-z 0-9 _ . -`; routes share it.
        name: Arc<str> = derived(|pool| Some(pool.whole().key().into()));
        /// At least one node, better two.
        nodes: Vec<Node> = nodes().required(format!("a list of them, such as `{}`", node_list::EXAMPLE));
        /// Where a client belongs. The sources are asked in order, and the first that the request carries decides. The
        /// empty list asks none.
        affinity: Vec<AffinitySource> = sources().or(json!([{ "cookie": {} }]));
        /// Who gets a client that nothing above places.
        balance: BalancePolicy = word().checked(warn_of_unnamed_proxies).or("least_connections");
        /// 1.25, for instance: what is opened anew under header, query or client_ip passes a node over that has this
        /// many times the average of the tunnels. Then one key may have several nodes, which no Socket.IO session
        /// notices. null: the same key, the same node.
        load_bound: Option<f64> = number(1.0..=1000.0).checked(warn_of_tight_bound).or_null();
        /// A probe of each node: one of auto, http, tcp and websocket. null asks nothing, and nodes are judged by real
        /// traffic alone.
        health: HealthCheck = health();
        /// Real traffic judges, too: after so many failures in a row, dials or answers to different clients, a node is
        /// left out for a while.
        passive: PassiveHealthCheck = section();
        /// A handshake that a node breaks off or answers with 502, 503 or 504 is sent to another node.
        retries: RetryPolicy = section();
        /// A node that comes back has no tunnels, and would get every new one under least_connections and random_two;
        /// its share grows over this time instead. 0s: at once.
        slow_start: Duration = duration(ANY_TIME).or("30s");
        /// How long things may take.
        timeouts: Timeouts = section();
        /// What a message may be, and what is asked of quiet clients.
        messages: Messages = section();
        /// How tunnels are closed when their node is taken out.
        drain: Drain = section();
        /// Moves the surplus of full nodes to those that came later. null moves nobody.
        rebalance: Option<Rebalance> = rebalance();
        /// Outbound addresses, when one address runs out of ports: it has about 28,000 toward each node. Empty:
        /// whichever the system takes.
        source_addresses: Vec<IpAddr> = source_addresses().or(Vec::<String>::new());
        /// Each connection to a node begins with a PROXY header that names the client.
        send_proxy_protocol: Option<ProxyVersion> = word().or_null();
        /// TLS to the nodes.
        tls: Option<PoolTls> = section().or_null();
    }
}

section! {
    for RetryPolicy {
        /// The most nodes that are asked for one handshake; 1 is no retry.
        attempts: u32 = number(1..=10).or(3);
        /// The retries are at most this part of the handshakes of late.
        of_handshakes: u8 = percent().or("20%");
    }
}

section! {
    /// How long things may take.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Timeouts {
        /// To a node; then the next one is tried, and the client does not notice.
        connect: Duration = duration(SOME_TIME).or("2s");
        /// From an Upgrade to the node's answer.
        handshake: Duration = duration(SOME_TIME).or("10s");
        /// A tunnel that carries nothing for so long is closed; below 45s is asking for trouble.
        idle: Duration = duration(SOME_TIME).checked(warn_of_short_idle).or("1h");
        /// Once one side has sent a Close or ended its stream, the other has so long to do the same: 1s to 1h.
        close: Duration = duration(CLOSE).or("10s");
        /// From a plain request to the head of its answer.
        request: Duration = duration(SOME_TIME).or("60s");
    }
}

section! {
    /// What a message may be.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Messages {
        /// 1MiB, for instance: a longer message ends its tunnel with 1009.
        max_size: Option<u64> = size(1..=1 << 40).or_null();
        /// A client that has been quiet for so long is pinged, and closed when it does not answer.
        ping: Option<Duration> = duration(PING).or_null();
    }
}

/// Tunnels that are half-ended are looked at once a second; a longer time would be no bound.
const CLOSE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60 * 60);

/// Quiet clients are looked at once a second; one that may be gone for more than a day is not asked at all.
const PING: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);

/// Below this, idle connections of common clients are cut between two of their pings (Socket.IO: 25 s + 20 s).
const USUAL_QUIET: Duration = Duration::from_secs(45);

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

impl Word for ProxyVersion {
    const WORDS: &'static [(&'static str, Self)] = &[("v1", Self::V1), ("v2", Self::V2)];
}

impl Word for BalancePolicy {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("least_connections", Self::LeastConnections),
        ("round_robin", Self::RoundRobin),
        ("random_two", Self::RandomTwo),
        ("client_ip", Self::ClientIp),
    ];
}

impl Pool {
    /// How probes and failures are judged.
    pub(crate) fn thresholds(&self) -> HealthThresholds {
        HealthThresholds {
            rise: self.health.rise,
            fall: self.health.fall,
            failures: self.passive.failures,
            eject: self.passive.eject,
            max_ejected: self.passive.max_ejected,
            slow_start: self.slow_start,
        }
    }
}

/// What there must be at the key `pools`.
pub(super) const EXAMPLE: &str = "the name of a pool, such as `chat:`, and below it its `nodes`";

/// The key `pools`: the pools by name, in the order of the file.
pub(super) fn pools() -> Form<Vec<Pool>> {
    let read = |value: &Value| Some(value.named(EXAMPLE).into_iter().filter_map(pool).collect());
    let show = |pools: &Vec<Pool>| pools.iter().map(|pool| (pool.name.to_string(), shown(pool))).collect();
    Form::new(Shape::Named(Pool::keys), read, show).compared_by(|old, new, to| compare_pools(old, new, to))
}

fn pool((at, name, value): (Position, &str, Value)) -> Option<Pool> {
    // The rule of node ids: both become labels of metrics and parts of admin paths.
    if name.parse::<NodeId>().is_err() {
        let message = format!("{} is no name of a pool; write 1 to 64 of A-Z a-z 0-9 _ . -", quoted(name));
        value.reader.fault(at, message);
    }
    let pool = Pool::read(&value.section(names(&Pool::keys())))?;
    say_which_family_is_missing(&value, &pool);
    warn_of_late_pings(&value, &pool);
    if let (Some(tls), Some(value)) = (&pool.tls, value.entry("tls")) {
        tls::check_names(&value, tls, &pool.nodes);
    }
    Some(pool)
}

fn source_addresses() -> Form<Vec<IpAddr>> {
    const EXPECTED: &str = "an IP address of this machine, such as 10.0.0.5";
    let text = Text("an IP address of this machine", "[0-9A-Fa-f:.]+");
    let address = parsed(text, EXPECTED, |text| text.parse::<IpAddr>().ok()).checked(|item, address| {
        if address.is_unspecified() || address.is_multicast() {
            item.expected(EXPECTED);
        }
    });
    list(address).checked(|value, _| {
        let mut seen: Vec<IpAddr> = Vec::new();
        for item in value.list() {
            let Some(address) = item.silently(|item| item.parsed("", |text| text.parse().ok())) else {
                continue;
            };
            if seen.contains(&address) {
                item.fault("the list has this address already; it has no more ports for that, remove it");
            }
            seen.push(address);
        }
    })
}

/// A node at an IP address can only be dialled from one of its family.
fn say_which_family_is_missing(value: &Value, pool: &Pool) {
    let sources = &pool.source_addresses;
    let Some(value) = value.entry("source_addresses").filter(|_| !sources.is_empty()) else { return };
    for node in &pool.nodes {
        let NodeAddress::Tcp { host, .. } = &node.address else { continue };
        let Ok(ip) = host.parse::<IpAddr>() else { continue };
        if !sources.iter().any(|source| source.is_ipv4() == ip.is_ipv4()) {
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            value.fault(format_args!(
                "none is an {family} address, and the node {} is at one; add one",
                node.id
            ));
        }
    }
}

fn warn_of_unnamed_proxies(value: &Value, balance: &BalancePolicy) {
    if *balance == BalancePolicy::ClientIp {
        proxies::warn_where_unsaid(value);
    }
}

fn warn_of_tight_bound(value: &Value, bound: &f64) {
    if *bound < 1.05 {
        value.warn("below 1.05, hashing gives up its node at the slightest unevenness; 1.25 is usual");
    }
}

fn warn_of_short_idle(value: &Value, idle: &Duration) {
    if *idle < USUAL_QUIET {
        let usual = show_duration(&USUAL_QUIET);
        value.warn(format_args!(
            "{} is less than the {usual} that clients are usually quiet; write {usual} or more",
            show_duration(idle),
        ));
    }
}

fn warn_of_late_pings(value: &Value, pool: &Pool) {
    let (idle, Some(ping)) = (pool.timeouts.idle, pool.messages.ping) else { return };
    let said = value.entry("messages").and_then(|messages| messages.entry("ping"));
    if let Some(value) = said.filter(|_| ping >= idle) {
        value.warn(format_args!(
            "the idle timeout of {} closes a quiet tunnel before its client is asked; write less than that",
            show_duration(&idle)
        ));
    }
}

fn compare_pools(old: &[Pool], new: &[Pool], to: &mut Comparison) {
    let count = |pool: &Pool| match pool.nodes.len() {
        1 => "1 node".to_owned(),
        count => format!("{count} nodes"),
    };
    let subject = |pool: &Pool| Subject::Pool(Arc::clone(&pool.name));
    for pool in old.iter().filter(|pool| !new.iter().any(|other| other.name == pool.name)) {
        to.about(subject(pool), |to| to.push(What::Removed(count(pool))));
    }
    for pool in new {
        to.about(subject(pool), |to| match old.iter().find(|other| other.name == pool.name) {
            Some(old) => {
                compare_nodes(&pool.name, &old.nodes, &pool.nodes, to);
                Pool::compare(old, pool, to);
                compare_order(&old.nodes, &pool.nodes, to);
            }
            None => to.push(What::Added(count(pool))),
        });
    }
}
