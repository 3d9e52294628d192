//! The config as it is in effect: every key of it, with the defaults filled in.
//!
//! Its keys and values are those of the config file, so what it says is a config again: [`super::resolve`] makes the
//! same of it. Of secrets it has the path of their file and never what is in there. Each struct is taken apart
//! without `..`, so that a key that is forgotten here does not compile.

use std::fmt::Display;
use std::time::Duration;

use serde_json::{Value, json};

use super::units::{show_duration, show_percent, show_size};
use super::{
    AccessLog, Admin, Config, Drain, FileAccess, Health, Limits, Listener, LogFormat, LogPath, Messages, Pool,
};
use super::{Identity, ListenerTls, PoolTls};
use super::{Probe, ProxyVersion, Rebalance, Shutdown, Timeouts};
use crate::affinity::cookie::{CookiePolicy, SameSite, SecureAttribute};
use crate::affinity::{AffinitySource, ClientPrefixes};
use crate::pool::Node;
use crate::pool::health::HealthThresholds;
use crate::pool::retry::RetryPolicy;
use crate::pool::select::BalancePolicy;
use crate::route::Route;

/// All of `config`, as a tree with the keys of the config file.
pub fn effective(config: &Config) -> Value {
    let Config {
        listeners,
        admin,
        trusted_proxies,
        limits,
        access_log,
        shutdown: Shutdown { drain },
        pools,
        routes,
        warnings: _,
        places: _,
    } = config;
    let pools = pools.iter().map(|shown| (shown.name.to_string(), pool(shown)));
    escaped(json!({
        "listeners": listeners.iter().map(listener).collect::<Value>(),
        "admin": admin.as_ref().map(admin_section),
        "trusted_proxies": trusted_proxies.iter().map(text).collect::<Value>(),
        "limits": limits_section(limits),
        "access_log": access_log_section(access_log),
        "shutdown": { "drain": time(drain) },
        "pools": pools.collect::<Value>(),
        "routes": routes.iter().map(route).collect::<Value>(),
    }))
}

/// In a config file `${` begins a variable; the sign itself is written `$${`.
fn escaped(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace("${", "$${")),
        Value::Array(items) => items.into_iter().map(escaped).collect(),
        Value::Object(entries) => entries.into_iter().map(|(key, value)| (key, escaped(value))).collect(),
        plain => plain,
    }
}

fn text(shown: impl Display) -> Value {
    shown.to_string().into()
}

fn time(duration: &Duration) -> Value {
    show_duration(duration).into()
}

fn listener(listener: &Listener) -> Value {
    let Listener { address, access: FileAccess { mode, group }, proxy_protocol, tls } = listener;
    json!({
        "address": text(address),
        "mode": mode.map(octal),
        "group": group,
        "proxy_protocol": proxy_protocol,
        "tls": tls.as_ref().map(listener_tls),
    })
}

fn octal(mode: u32) -> Value {
    format!("{mode:04o}").into()
}

fn listener_tls(tls: &ListenerTls) -> Value {
    let ListenerTls { certificates, client_ca, min_version, ticket_secret_file, tickets: _ } = tls;
    let certificate =
        |one: &Identity| json!({ "cert": text(one.cert.display()), "key": text(one.key.display()) });
    json!({
        "certificates": certificates.iter().map(certificate).collect::<Value>(),
        "client_ca": client_ca.as_ref().map(|ca| text(ca.file.display())),
        "min_version": min_version.as_str(),
        "ticket_secret_file": ticket_secret_file.as_ref().map(|path| text(path.display())),
    })
}

fn pool_tls(tls: &PoolTls) -> Value {
    let PoolTls { ca, server_name, identity } = tls;
    json!({
        "ca": text(ca.file.display()),
        "server_name": server_name.as_ref().map(|name| text(name.to_str())),
        "cert": identity.as_ref().map(|one| text(one.cert.display())),
        "key": identity.as_ref().map(|one| text(one.key.display())),
    })
}

fn admin_section(admin: &Admin) -> Value {
    let Admin { address, access: FileAccess { mode, group }, token_file, tokens: _ } = admin;
    json!({
        "address": text(address),
        "mode": mode.map(octal),
        "group": group,
        "token_file": token_file.as_ref().map(|path| text(path.display())),
    })
}

fn limits_section(limits: &Limits) -> Value {
    let Limits {
        connections,
        connections_per_client,
        handshakes_per_second,
        request_head,
        head_time,
        keep_alive,
    } = limits;
    json!({
        "connections": connections.map_or("auto".into(), Value::from),
        "connections_per_client": connections_per_client,
        "handshakes_per_second": handshakes_per_second,
        "request_head": show_size(*request_head as u64),
        "head_time": time(head_time),
        "keep_alive": time(keep_alive),
    })
}

fn access_log_section(log: &AccessLog) -> Value {
    let AccessLog { format, path } = log;
    let format = match format {
        LogFormat::Json => "json",
        LogFormat::Text => "text",
        LogFormat::Off => "off",
    };
    let path = match path {
        LogPath::Stdout => "stdout".into(),
        LogPath::File(path) => text(path.display()),
    };
    json!({ "format": format, "path": path })
}

fn pool(pool: &Pool) -> Value {
    let Pool {
        name: _,
        nodes,
        affinity,
        balance,
        load_bound,
        health,
        rule,
        retries: RetryPolicy { attempts, of_handshakes },
        timeouts: Timeouts { connect, handshake, idle, close, request },
        messages: Messages { max_size, ping },
        drain: Drain { over, code, reason },
        rebalance,
        send_proxy_protocol,
        tls,
        source_addresses,
    } = pool;
    let HealthThresholds { rise: _, fall: _, failures, eject, max_ejected, slow_start } = rule;
    json!({
        "nodes": nodes.iter().map(node).collect::<Value>(),
        "affinity": affinity.iter().map(source).collect::<Value>(),
        "balance": balance_word(*balance),
        "load_bound": load_bound,
        "health": health_section(health, rule),
        "passive": { "failures": failures, "eject": time(eject), "max_ejected": show_percent(*max_ejected) },
        "retries": { "attempts": attempts, "of_handshakes": show_percent(*of_handshakes) },
        "slow_start": time(slow_start),
        "timeouts": {
            "connect": time(connect),
            "handshake": time(handshake),
            "idle": time(idle),
            "close": time(close),
            "request": time(request),
        },
        "messages": { "max_size": max_size.map(show_size), "ping": ping.as_ref().map(time) },
        "drain": { "over": time(over), "code": code, "reason": reason },
        "rebalance": rebalance.as_ref().map(|Rebalance { over, tolerance, quiet_first }| {
            json!({ "over": time(over), "tolerance": tolerance, "quiet_first": quiet_first })
        }),
        "send_proxy_protocol": send_proxy_protocol.map(ProxyVersion::as_str),
        "source_addresses": source_addresses.iter().map(text).collect::<Value>(),
        "tls": tls.as_ref().map(pool_tls),
    })
}

fn node(node: &Node) -> Value {
    let Node { id, address, weight, max_connections, release } = node;
    json!({
        "id": id.as_str(),
        "address": text(address),
        "weight": weight,
        "max_connections": max_connections,
        "release": release,
    })
}

fn balance_word(balance: BalancePolicy) -> &'static str {
    match balance {
        BalancePolicy::LeastConnections => "least_connections",
        BalancePolicy::RoundRobin => "round_robin",
        BalancePolicy::RandomTwo => "random_two",
        BalancePolicy::ClientIp => "client_ip",
    }
}

fn health_section(health: &Health, rule: &HealthThresholds) -> Value {
    let Health { probe, interval, timeout } = health;
    let (kind, asked) = match probe {
        Probe::Auto => ("auto", json!({})),
        Probe::Http { path, status } => ("http", json!({ "path": path, "status": status })),
        Probe::Tcp => ("tcp", json!({})),
        Probe::WebSocket { path } => ("websocket", json!({ "path": path })),
        Probe::Off => return Value::Null,
    };
    json!({
        kind: asked,
        "interval": time(interval),
        "timeout": time(timeout),
        "rise": rule.rise,
        "fall": rule.fall,
    })
}

fn source(source: &AffinitySource) -> Value {
    match source {
        AffinitySource::Cookie(rule) => json!({ "cookie": cookie(rule) }),
        AffinitySource::NodeCookie { name } => json!({ "cookie": { "name": name, "set_by": "node" } }),
        AffinitySource::EngineIo => json!({ "engine_io": {} }),
        AffinitySource::Header(name) => json!({ "header": { "name": name.as_str() } }),
        AffinitySource::Query(name) => json!({ "query": { "name": name } }),
        AffinitySource::ClientIp(ClientPrefixes { ipv4, ipv6 }) => {
            json!({ "client_ip": { "ipv4_prefix": ipv4, "ipv6_prefix": ipv6 } })
        }
    }
}

fn cookie(rule: &CookiePolicy) -> Value {
    let CookiePolicy { name, keys: _, secret_file, max_age, same_site, secure, partitioned, path, domain } =
        rule;
    let same_site = match same_site {
        SameSite::Lax => "lax",
        SameSite::Strict => "strict",
        SameSite::None => "none",
    };
    let secure = match secure {
        SecureAttribute::Auto => "auto",
        SecureAttribute::Always => "always",
        SecureAttribute::Never => "never",
    };
    json!({
        "name": name,
        "set_by": "balancer",
        "secret_file": secret_file,
        "max_age": max_age.as_ref().map_or("session".into(), time),
        "same_site": same_site,
        "secure": secure,
        "partitioned": partitioned,
        "path": path,
        "domain": domain,
    })
}

fn route(route: &Route) -> Value {
    let Route { host, path, origins, pool } = route;
    json!({
        "host": host.as_ref().map(text),
        "path": path,
        "origins": origins.iter().map(text).collect::<Value>(),
        "pool": &**pool,
    })
}
