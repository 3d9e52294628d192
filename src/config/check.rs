//! The sections at the top of the config: each key, what it must be, and what it is when absent.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::fault::{nearest, quoted};
use super::pools;
use super::reader::{Section, Value};
use super::units::{ANY_TIME, SOME_TIME};
use super::{AccessLog, Admin, Config, Limits, ListenAddress, Listener, LogFormat, LogPath, Pool, Shutdown};
use crate::route::Route;

const KEYS: &[&str] =
    &["listeners", "admin", "trusted_proxies", "limits", "access_log", "shutdown", "pools", "routes"];

/// The whole config; of no use when the reader has heard of a fault.
pub(super) fn config(root: Value) -> Config {
    let top = root.section(KEYS);
    let listeners = listeners(&top);
    let admin = admin(&top, &listeners);
    let pools = pools::pools(&top);
    let routes = routes(&top, &pools);
    Config {
        listeners,
        admin,
        trusted_proxies: trusted_proxies(&top),
        limits: limits(&top),
        access_log: access_log(&top),
        shutdown: shutdown(&top),
        pools,
        routes,
        warnings: Vec::new(),
    }
}

fn listeners(top: &Section) -> Vec<Listener> {
    let Some(value) = top.value("listeners") else {
        return vec![Listener { address: ListenAddress::Tcp(([0, 0, 0, 0], 8080).into()) }];
    };
    let items = value.items();
    if items.is_empty() {
        value.expected("at least one listener, such as `- address: \"0.0.0.0:8080\"`");
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for item in items {
        let section = item.section(&["address", "proxy_protocol", "tls"]);
        section.unavailable("proxy_protocol", "false");
        section.unavailable("tls", "null");
        let example = "`address: \"0.0.0.0:8080\"`, for instance";
        let Some(value) = section.required("address", example) else { continue };
        let Some(address) = listen_address(&value) else { continue };
        if listeners.iter().any(|other| clash(&other.address, &address)) {
            value.fault(format_args!("another listener has {address} already"));
        }
        listeners.push(Listener { address });
    }
    listeners
}

fn listen_address(value: &Value) -> Option<ListenAddress> {
    value.from_text("an address to listen on, such as \"0.0.0.0:8080\", \"[::]:8080\" or \"unix:/path\"")
}

/// Whether two listeners cannot both have what they ask for.
fn clash(one: &ListenAddress, other: &ListenAddress) -> bool {
    let chosen_by_the_system = matches!(one, ListenAddress::Tcp(address) if address.port() == 0);
    one == other && !chosen_by_the_system
}

fn admin(top: &Section, listeners: &[Listener]) -> Option<Admin> {
    if top.value("admin").is_some_and(|admin| admin.is_null()) {
        return None;
    }
    let section = top.section("admin", &["address", "token_file"]);
    section.unavailable("token_file", "null");
    let Some(value) = section.value("address") else { return Some(Admin::default()) };
    let address = listen_address(&value)?;
    if let ListenAddress::Tcp(tcp) = &address
        && !tcp.ip().is_loopback()
    {
        value.fault(format_args!(
            "{tcp} is open to others, which needs a token, and tokens are not available in this version; \
             write 127.0.0.1:{}, [::1]:{} or unix:/path",
            tcp.port(),
            tcp.port()
        ));
    }
    if listeners.iter().any(|listener| clash(&listener.address, &address)) {
        value.fault(format_args!("a listener has {address} already"));
    }
    Some(Admin { address })
}

fn trusted_proxies(top: &Section) -> Vec<IpNet> {
    let items = top.value("trusted_proxies").map(|value| value.items()).unwrap_or_default();
    items.iter().filter_map(trusted_proxy).collect()
}

/// `10.0.0.0/8`, or one address.
fn trusted_proxy(value: &Value) -> Option<IpNet> {
    let net = value.parsed("a network, such as 10.0.0.0/8, or one address", |text| {
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
    })?;
    if net != net.trunc() {
        value.fault(format_args!("{net} has bits beyond its prefix; write {}", net.trunc()));
    }
    Some(net)
}

fn limits(top: &Section) -> Limits {
    // A buffer below 8 KiB is refused by the HTTP library; 1 MiB is far over any browser's cookies.
    const HEADS: std::ops::RangeInclusive<u64> = 8 << 10..=1 << 20;
    const KEYS: &[&str] = &[
        "connections",
        "connections_per_client",
        "handshakes_per_second",
        "request_head",
        "head_time",
        "keep_alive",
    ];
    let section = top.section("limits", KEYS);
    section.unavailable("connections", "auto");
    section.unavailable("connections_per_client", "0");
    section.unavailable("handshakes_per_second", "0");
    let default = Limits::default();
    let head = section.value("request_head").and_then(|value| value.size(HEADS));
    Limits {
        request_head: head.and_then(|bytes| bytes.try_into().ok()).unwrap_or(default.request_head),
        head_time: section.duration("head_time", default.head_time, SOME_TIME),
        keep_alive: section.duration("keep_alive", default.keep_alive, SOME_TIME),
    }
}

fn access_log(top: &Section) -> AccessLog {
    const FORMATS: &[(&str, LogFormat)] =
        &[("json", LogFormat::Json), ("text", LogFormat::Text), ("off", LogFormat::Off)];
    let section = top.section("access_log", &["format", "path"]);
    let path = section.value("path").and_then(|value| value.text("`stdout` or the path of a file"));
    AccessLog {
        format: section.word("format", LogFormat::default(), FORMATS),
        path: match path {
            None | Some("stdout") => LogPath::Stdout,
            Some(path) => LogPath::File(PathBuf::from(path)),
        },
    }
}

fn shutdown(top: &Section) -> Shutdown {
    let section = top.section("shutdown", &["drain"]);
    Shutdown { drain: section.duration("drain", Shutdown::default().drain, ANY_TIME) }
}

fn routes(top: &Section, pools: &[Pool]) -> Vec<Route> {
    let Some(value) = top.value("routes") else {
        return match pools {
            [only] => vec![Route { host: None, path: None, pool: Arc::clone(&only.name) }],
            [] => Vec::new(),
            _ => {
                top.whole().fault(format_args!(
                    "`routes` is missing, and there are {} pools; write which host or path goes to which",
                    pools.len()
                ));
                Vec::new()
            }
        };
    };
    let items = value.items();
    if items.is_empty() {
        value.expected("at least one route, such as `- { path: /, pool: NAME }`");
    }
    let mut lines = HashMap::new();
    let mut routes = Vec::new();
    for item in items {
        let Some(route) = route(&item, pools) else { continue };
        let line = item.at().line;
        let key = (route.host.as_ref().map(|host| format!("{host:?}")), route.path.clone());
        if let Some(first) = lines.insert(key, line) {
            item.fault(format_args!(
                "the route on line {first} has the same host and path, so this one is never reached"
            ));
        }
        routes.push(route);
    }
    routes
}

fn route(item: &Value, pools: &[Pool]) -> Option<Route> {
    let section = item.section(&["host", "path", "origins", "pool"]);
    section.unavailable("origins", "[]");
    let host = section.some("host").map(|value| value.from_text("a host name, such as chat.example.com"));
    let path = section.some("path").map(|value| {
        value.parsed("a path that begins with `/`, without `?` and spaces", |text| {
            is_path(text).then(|| text.to_owned())
        })
    });
    let pool = section.required("pool", "the name of a pool")?;
    let name = pool.text("the name of a pool")?;
    let known = pools.iter().map(|pool| &*pool.name);
    let Some(found) = pools.iter().find(|pool| *pool.name == *name) else {
        let right = match nearest(name, known.clone()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the pools are {}", known.collect::<Vec<_>>().join(", ")),
        };
        pool.fault(format_args!("there is no pool {}; {right}", quoted(name)));
        return None;
    };
    // A host or path that is wrong has been said; the route stands so that others are compared with it.
    Some(Route { host: host.flatten(), path: path.flatten(), pool: Arc::clone(&found.name) })
}

/// Whether a request's path could begin so.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#')
}
