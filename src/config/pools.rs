//! The pools: their nodes and how they are used.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::uri::PathAndQuery;

use super::fault::{Position, quoted};
use super::nodes::nodes;
use super::reader::{Section, Value};
use super::rebalance::rebalance;
use super::sources;
use super::tls;
use super::units::{ANY_TIME, SOME_TIME, show_duration};
use super::{Drain, Health, Messages, Pool, Probe, ProxyVersion, RULE, Timeouts};
use crate::pool::health::HealthThresholds;
use crate::pool::retry::RetryPolicy;
use crate::pool::select::BalancePolicy;
use crate::pool::{Node, NodeAddress, NodeId};

const KEYS: &[&str] = &[
    "nodes",
    "affinity",
    "balance",
    "load_bound",
    "health",
    "passive",
    "retries",
    "slow_start",
    "timeouts",
    "messages",
    "drain",
    "rebalance",
    "source_addresses",
    "send_proxy_protocol",
    "tls",
];

/// Below this, idle connections of common clients are cut between two of their pings (Socket.IO: 25 s + 20 s).
const USUAL_QUIET: Duration = Duration::from_secs(45);

/// The pools by name. A pool with faults is among them, so that its routes are not faults, too.
pub(super) fn pools(top: &Section) -> Vec<Pool> {
    const EXAMPLE: &str = "the name of a pool, such as `chat:`, and below it its `nodes`";
    let Some(value) = top.required("pools", EXAMPLE) else { return Vec::new() };
    let named = value.named(EXAMPLE);
    named.into_iter().map(|(at, name, value)| pool(at, name, &value)).collect()
}

fn pool(at: Position, name: &str, value: &Value) -> Pool {
    // The rule of node ids: both become labels of metrics and parts of admin paths.
    if name.parse::<NodeId>().is_err() {
        let message = format!("{} is no name of a pool; write 1 to 64 of A-Z a-z 0-9 _ . -", quoted(name));
        value.reader.fault(at, message);
    }
    let section = value.section(KEYS);
    let health = section.section("health", HEALTH_KEYS);
    let timeouts = timeouts(&section);
    let source_addresses = source_addresses(&section);
    let nodes = nodes(&section);
    say_which_family_is_missing(&section, &source_addresses, &nodes);
    Pool {
        name: name.into(),
        tls: tls::pool(&section, &nodes),
        nodes,
        affinity: sources::sources(&section),
        balance: balance(&section),
        load_bound: load_bound(&section),
        health: probing(&section, &health),
        rule: rule(&section, &health),
        retries: retries(&section),
        messages: messages(&section, timeouts.idle),
        timeouts,
        drain: Drain::read(&section),
        rebalance: rebalance(&section),
        send_proxy_protocol: section.some("send_proxy_protocol").and_then(|value| value.word(PROXY_VERSIONS)),
        source_addresses,
    }
}

const PROXY_VERSIONS: &[(&str, ProxyVersion)] = &[("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)];

fn source_addresses(pool: &Section) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for item in pool.value("source_addresses").map(|value| value.items()).unwrap_or_default() {
        let expected = "an IP address of this machine, such as 10.0.0.5";
        let Some(address) = item.parsed(expected, |text| text.parse::<IpAddr>().ok()) else { continue };
        if address.is_unspecified() || address.is_multicast() {
            item.expected(expected);
        }
        if addresses.contains(&address) {
            item.fault("the list has this address already; it has no more ports for that, remove it");
        }
        addresses.push(address);
    }
    addresses
}

/// A node at an IP address can only be dialled from one of its family.
fn say_which_family_is_missing(pool: &Section, sources: &[IpAddr], nodes: &[Node]) {
    let Some(value) = pool.value("source_addresses").filter(|_| !sources.is_empty()) else { return };
    for node in nodes {
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

const BALANCES: &[(&str, BalancePolicy)] = &[
    ("least_connections", BalancePolicy::LeastConnections),
    ("round_robin", BalancePolicy::RoundRobin),
    ("random_two", BalancePolicy::RandomTwo),
    ("client_ip", BalancePolicy::ClientIp),
];

fn balance(pool: &Section) -> BalancePolicy {
    let balance = pool.word("balance", BalancePolicy::default(), BALANCES);
    if let Some(value) = pool.value("balance").filter(|_| balance == BalancePolicy::ClientIp) {
        value.warn_of_proxies();
    }
    balance
}

fn load_bound(pool: &Section) -> Option<f64> {
    let value = pool.some("load_bound")?;
    // NaN is in no range, so what comes out is a number.
    let bound = value.number(1.0..=1000.0)?;
    if bound < 1.05 {
        value.warn("below 1.05, hashing gives up its node at the slightest unevenness; 1.25 is usual");
    }
    Some(bound)
}

const HEALTH_KEYS: &[&str] = &["auto", "http", "tcp", "websocket", "interval", "timeout", "rise", "fall"];

fn probing(pool: &Section, health: &Section) -> Health {
    let default = Health::default();
    let probe = match pool.value("health") {
        Some(value) if value.is_null() => Probe::Off,
        _ => probe(health).unwrap_or(default.probe),
    };
    let interval = health.duration("interval", default.interval, SOME_TIME);
    let timeout = health.duration("timeout", default.timeout, SOME_TIME);
    if probe != Probe::Off && timeout > interval {
        warn_of_long_probes(health, interval, timeout);
    }
    Health { probe, interval, timeout }
}

fn warn_of_long_probes(health: &Section, interval: Duration, timeout: Duration) {
    let Some(value) = health.value("timeout").or(health.value("interval")) else { return };
    let (interval, timeout) = (show_duration(&interval), show_duration(&timeout));
    value.warn(format_args!(
        "a probe may take {timeout}, which is above the interval of {interval}: a node that hangs is asked every \
         {timeout} only; write a timeout of {interval} or less, or a longer interval"
    ));
}

/// The one probe that the section names, if it names any.
fn probe(health: &Section) -> Option<Probe> {
    let mut named =
        ["auto", "http", "tcp", "websocket"].into_iter().filter_map(|kind| Some((kind, health.value(kind)?)));
    let (kind, value) = named.next()?;
    for (other, value) in named {
        value.fault(format_args!("`{kind}` is the probe already; keep one of `{kind}` and `{other}`"));
    }
    Some(match kind {
        "http" => {
            let section = value.section(&["path", "status"]);
            Probe::Http {
                path: probe_path(&section, "/health"),
                status: section.number("status", 200, 200..=599),
            }
        }
        "websocket" => Probe::WebSocket { path: probe_path(&value.section(&["path"]), "/") },
        kind => {
            value.section(&[]);
            if kind == "tcp" { Probe::Tcp } else { Probe::Auto }
        }
    })
}

fn probe_path(section: &Section, default: &str) -> String {
    let path = section.value("path").and_then(|value| {
        value.parsed("a path that begins with `/`, of visible characters without any of \" # < >", |text| {
            // The last word is the HTTP library's: what it does not take, the probe could not send.
            let visible = text.bytes().all(|b| b.is_ascii_graphic() && !b"\"#<>".contains(&b));
            let sendable = visible && text.parse::<PathAndQuery>().is_ok();
            (text.starts_with('/') && sendable).then(|| text.to_owned())
        })
    });
    path.unwrap_or_else(|| default.to_owned())
}

fn rule(pool: &Section, health: &Section) -> HealthThresholds {
    let passive = pool.section("passive", &["failures", "eject", "max_ejected"]);
    HealthThresholds {
        rise: health.number("rise", RULE.rise, 1..=1000),
        fall: health.number("fall", RULE.fall, 1..=1000),
        failures: passive.number("failures", RULE.failures, 0..=1_000_000),
        eject: passive.duration("eject", RULE.eject, SOME_TIME),
        max_ejected: passive.value("max_ejected").and_then(|part| part.percent()).unwrap_or(RULE.max_ejected),
        slow_start: pool.duration("slow_start", RULE.slow_start, ANY_TIME),
    }
}

fn retries(pool: &Section) -> RetryPolicy {
    let (section, default) =
        (pool.section("retries", &["attempts", "of_handshakes"]), RetryPolicy::default());
    let part = section.value("of_handshakes").and_then(|part| part.percent());
    RetryPolicy {
        attempts: section.number("attempts", default.attempts, 1..=10),
        of_handshakes: part.unwrap_or(default.of_handshakes),
    }
}

fn timeouts(pool: &Section) -> Timeouts {
    let section = pool.section("timeouts", &["connect", "handshake", "idle", "close", "request"]);
    let default = Timeouts::default();
    let idle = section.duration("idle", default.idle, SOME_TIME);
    if let Some(value) = section.value("idle").filter(|_| idle < USUAL_QUIET) {
        value.warn(format_args!(
            "{} is less than the {} that clients are usually quiet; write {} or more",
            show_duration(&idle),
            show_duration(&USUAL_QUIET),
            show_duration(&USUAL_QUIET)
        ));
    }
    Timeouts {
        connect: section.duration("connect", default.connect, SOME_TIME),
        handshake: section.duration("handshake", default.handshake, SOME_TIME),
        idle,
        close: section.duration("close", default.close, CLOSE),
        request: section.duration("request", default.request, SOME_TIME),
    }
}

/// Tunnels that are half-ended are looked at once a second; a longer time would be no bound.
const CLOSE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60 * 60);

/// Quiet clients are looked at once a second; one that may be gone for more than a day is not asked at all.
const PING: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);

fn messages(pool: &Section, idle: Duration) -> Messages {
    let section = pool.section("messages", &["max_size", "ping"]);
    let max_size = section.some("max_size").and_then(|value| value.size(1..=1 << 40));
    let ping = section.some("ping").and_then(|value| {
        let ping = value.duration(PING)?;
        if ping >= idle {
            value.warn(format_args!(
                "the idle timeout of {} closes a quiet tunnel before its client is asked; write less than that",
                show_duration(&idle)
            ));
        }
        Some(ping)
    });
    Messages { max_size, ping }
}
