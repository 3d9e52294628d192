//! What differs between two pools of one name.

use std::sync::Arc;
use std::time::Duration;

use super::tls::compare_pool_tls;
use super::{Change, Section, Subject, What, listed, none};
use crate::affinity::AffinitySource;
use crate::config::summary::source_text;
use crate::config::units::{show_duration, show_percent, show_size};
use crate::config::{Drain, Health, Messages, Pool, Probe, ProxyVersion, Rebalance, Timeouts};
use crate::pool::health::HealthThresholds;
use crate::pool::retry::RetryPolicy;
use crate::pool::select::BalancePolicy;
use crate::pool::{Node, NodeId};

pub(super) fn compare_pools(old: &[Pool], new: &[Pool], changes: &mut Vec<Change>) {
    let count = |pool: &Pool| match pool.nodes.len() {
        1 => "1 node".to_owned(),
        count => format!("{count} nodes"),
    };
    for pool in old.iter().filter(|pool| !new.iter().any(|other| other.name == pool.name)) {
        let subject = Subject::Pool(Arc::clone(&pool.name));
        changes.push(Change { subject, what: What::Removed(count(pool)) });
    }
    for pool in new {
        match old.iter().find(|other| other.name == pool.name) {
            Some(old) => compare_pool(old, pool, changes),
            None => {
                let subject = Subject::Pool(Arc::clone(&pool.name));
                changes.push(Change { subject, what: What::Added(count(pool)) });
            }
        }
    }
}

fn compare_pool(old: &Pool, new: &Pool, changes: &mut Vec<Change>) {
    let Pool {
        name,
        nodes,
        affinity,
        balance,
        load_bound,
        health,
        rule,
        retries: RetryPolicy { attempts, of_handshakes },
        timeouts,
        messages,
        drain,
        rebalance,
        send_proxy_protocol,
        source_addresses,
        tls,
    } = old;
    compare_nodes(name, nodes, &new.nodes, changes);
    let mut section = Section { subject: Subject::Pool(Arc::clone(name)), changes };
    compare_affinity(affinity, &new.affinity, &mut section);
    section.set("balance", balance, &new.balance, balance_text);
    let bound = |bound: &Option<f64>| bound.map_or(none(), |bound| bound.to_string());
    section.set("load_bound", load_bound, &new.load_bound, bound);
    compare_health(health, &new.health, &mut section);
    compare_rule(rule, &new.rule, &mut section);
    section.number("retries.attempts", attempts, &new.retries.attempts);
    let part = |part: &u8| show_percent(*part);
    section.set("retries.of_handshakes", of_handshakes, &new.retries.of_handshakes, part);
    let Timeouts { connect, handshake, idle, close, request } = timeouts;
    section.time("timeouts.connect", connect, &new.timeouts.connect);
    section.time("timeouts.handshake", handshake, &new.timeouts.handshake);
    section.time("timeouts.idle", idle, &new.timeouts.idle);
    section.time("timeouts.close", close, &new.timeouts.close);
    section.time("timeouts.request", request, &new.timeouts.request);
    let Messages { max_size, ping } = messages;
    section.set("messages.max_size", max_size, &new.messages.max_size, |size| size.map_or(none(), show_size));
    let time = |time: &Option<Duration>| time.as_ref().map_or(none(), show_duration);
    section.set("messages.ping", ping, &new.messages.ping, time);
    let Drain { over, code, reason } = drain;
    section.time("drain.over", over, &new.drain.over);
    section.number("drain.code", code, &new.drain.code);
    section.number("drain.reason", reason, &new.drain.reason);
    section.set("rebalance", rebalance, &new.rebalance, rebalance_text);
    let version = |version: &Option<ProxyVersion>| version.map_or(none(), |version| version.as_str().into());
    section.set("send_proxy_protocol", send_proxy_protocol, &new.send_proxy_protocol, version);
    section.set("source_addresses", source_addresses, &new.source_addresses, |list| listed(list));
    compare_pool_tls(tls.as_ref(), new.tls.as_ref(), &mut section);
    // The order of the nodes decides ties and the turn of round_robin.
    let order = |nodes: &[Node], others: &[Node]| -> Vec<NodeId> {
        let both = nodes.iter().filter(|node| others.iter().any(|other| other.id == node.id));
        both.map(|node| node.id.clone()).collect()
    };
    section
        .set("the order of nodes", &order(nodes, &new.nodes), &order(&new.nodes, nodes), |ids| listed(ids));
}

fn rebalance_text(rebalance: &Option<Rebalance>) -> String {
    rebalance.map_or(none(), |Rebalance { over, tolerance, quiet_first }| {
        let first = if quiet_first { ", quiet clients first" } else { "" };
        format!("over {} from {tolerance} times the average{first}", show_duration(&over))
    })
}

fn balance_text(balance: &BalancePolicy) -> String {
    let word = match balance {
        BalancePolicy::LeastConnections => "least_connections",
        BalancePolicy::RoundRobin => "round_robin",
        BalancePolicy::RandomTwo => "random_two",
        BalancePolicy::ClientIp => "client_ip",
    };
    word.into()
}

fn compare_nodes(pool: &Arc<str>, old: &[Node], new: &[Node], changes: &mut Vec<Change>) {
    let subject = |node: &Node| Subject::Node(Arc::clone(pool), node.id.clone());
    for node in old.iter().filter(|node| !new.iter().any(|other| other.id == node.id)) {
        changes.push(Change { subject: subject(node), what: What::Removed(node.address.to_string()) });
    }
    for node in new {
        let mut section = Section { subject: subject(node), changes: &mut *changes };
        let Some(old) = old.iter().find(|other| other.id == node.id) else {
            section.push(What::Added(node.address.to_string()));
            continue;
        };
        let Node { id: _, address, weight, max_connections, release } = old;
        if *address != node.address {
            section.push(What::Moved(address.to_string(), node.address.to_string()));
        }
        section.number("weight", weight, &node.weight);
        let most = |most: &Option<u32>| most.map_or(none(), |most| most.to_string());
        section.set("max_connections", max_connections, &node.max_connections, most);
        section.set("release", release, &node.release, |release| release.clone().unwrap_or_else(none));
    }
}

fn compare_affinity(old: &[AffinitySource], new: &[AffinitySource], section: &mut Section) {
    let text = |sources: &[AffinitySource]| listed(&sources.iter().map(source_text).collect::<Vec<_>>());
    if text(old) != text(new) {
        return section.push(What::Set("affinity", text(new), text(old)));
    }
    for (old, new) in old.iter().zip(new).filter(|(old, new)| old != new) {
        match (old, new) {
            (AffinitySource::Cookie(old), AffinitySource::Cookie(new)) => {
                if old.keys != new.keys {
                    section.push(What::Replaced(format!("keys of cookie {}", new.name)));
                }
                let bare = |rule: &crate::affinity::cookie::CookiePolicy| {
                    let mut rule = rule.clone();
                    rule.keys = None;
                    rule
                };
                if bare(old) != bare(new) {
                    section.push(What::Replaced(format!("attributes of cookie {}", new.name)));
                }
            }
            _ => section.push(What::Replaced(format!("affinity source {}", source_text(new)))),
        }
    }
}

fn compare_health(old: &Health, new: &Health, section: &mut Section) {
    let Health { probe, interval, timeout } = old;
    section.set("health", probe, &new.probe, |probe| match probe {
        Probe::Http { path, status } => format!("http {path} with status {status}"),
        Probe::Auto => "auto".into(),
        Probe::Tcp => "tcp".into(),
        Probe::WebSocket { path } => format!("websocket {path}"),
        Probe::Off => none(),
    });
    section.time("health.interval", interval, &new.interval);
    section.time("health.timeout", timeout, &new.timeout);
}

fn compare_rule(old: &HealthThresholds, new: &HealthThresholds, section: &mut Section) {
    let HealthThresholds { rise, fall, failures, eject, max_ejected, slow_start } = old;
    section.number("health.rise", rise, &new.rise);
    section.number("health.fall", fall, &new.fall);
    section.number("passive.failures", failures, &new.failures);
    section.time("passive.eject", eject, &new.eject);
    section.set("passive.max_ejected", max_ejected, &new.max_ejected, |part| show_percent(*part));
    section.time("slow_start", slow_start, &new.slow_start);
}
