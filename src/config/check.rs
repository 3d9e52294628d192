//! The sections at the top of the config: each key, what it must be, and what it is when absent.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::fault::{nearest, quoted};
use super::limits;
use super::listeners::{admin, listeners};
use super::pools;
use super::reader::{Section, Value};
use super::units::ANY_TIME;
use super::{AccessLog, Config, LogFormat, LogPath, Places, Pool, Shutdown};
use crate::route::{Host, Origins, Route};

const KEYS: &[&str] =
    &["listeners", "admin", "trusted_proxies", "limits", "access_log", "shutdown", "pools", "routes"];

/// The whole config; of no use when the reader has heard of a fault.
pub(super) fn config(root: Value) -> Config {
    let top = root.section(KEYS);
    let mut places = Places::default();
    let trusted_proxies = trusted_proxies(&top);
    let listeners = listeners(&top, !trusted_proxies.is_empty(), &mut places);
    let admin = admin(&top, &listeners, &mut places);
    root.reader.proxies_unsaid.set(top.some("trusted_proxies").is_none());
    let pools = pools::pools(&top);
    let routes = routes(&top, &pools);
    warn_of_unused(&top, &routes);
    Config {
        listeners,
        admin,
        trusted_proxies,
        limits: limits::limits(&top),
        access_log: access_log(&top),
        shutdown: shutdown(&top),
        pools,
        routes,
        warnings: Vec::new(),
        places,
    }
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
            [only] => vec![everything_to(only)],
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
    let mut lines = HashMap::new();
    let mut routes = Vec::new();
    for item in value.some_items("- { path: /, pool: NAME }") {
        let Some(route) = route(&item, pools) else { continue };
        if let Some(first) = wider(&route).find_map(|key| lines.get(&key)) {
            item.fault(format_args!(
                "the route on line {first} takes all that this one would, so it is never reached; \
                 write the narrower route first, or remove it"
            ));
        }
        lines.entry((host_key(route.host.as_ref()), route.path.clone())).or_insert(item.at().line);
        routes.push(route);
    }
    routes
}

/// A pool that no route leads to is a slip of the pen, or about to be used.
fn warn_of_unused(top: &Section, routes: &[Route]) {
    // Without any routes there is only one pool, or a fault.
    let (Some(pools), Some(_)) = (top.value("pools"), top.value("routes")) else { return };
    for (at, name, _) in pools.named("") {
        if !routes.is_empty() && !routes.iter().any(|route| *route.pool == *name) {
            let what =
                "no route leads to this pool; write `routes: [{ .., pool: NAME }]` with it, or remove it";
            pools.reader.warn(at, format!("{name}: {what}"));
        }
    }
}

fn everything_to(pool: &Pool) -> Route {
    Route { host: None, path: None, origins: Origins::default(), pool: Arc::clone(&pool.name) }
}

/// The hosts and paths of the routes that, before this one, would take all its requests.
fn wider(route: &Route) -> impl Iterator<Item = (Option<String>, Option<String>)> {
    let path = route.path.as_deref().unwrap_or_default();
    let shorter = path.match_indices('/').map(|(slash, _)| path[..=slash].to_owned());
    // Whatever request has a path is in `/`.
    let paths = [None, Some("/".to_owned()), route.path.clone()].into_iter().chain(shorter.map(Some));
    let hosts = [None, host_key(route.host.as_ref())];
    paths.flat_map(move |path| hosts.clone().map(|host| (host, path.clone())))
}

fn host_key(host: Option<&Host>) -> Option<String> {
    host.map(|host| match host {
        Host::Exact(name) => name.clone(),
        Host::Below(name) => format!("*.{name}"),
    })
}

/// `None` after a fault.
fn route(item: &Value, pools: &[Pool]) -> Option<Route> {
    let section = item.section(&["host", "path", "origins", "pool"]);
    let origins = origins(&section);
    let host = match section.some("host") {
        Some(value) => value.typed("a host name, such as chat.example.com").map(Some),
        None => Some(None),
    };
    let path = match section.some("path") {
        Some(value) => path(&value).map(Some),
        None => Some(None),
    };
    let pool =
        section.required("pool", "`pool:` and the name of one").and_then(|value| named_pool(&value, pools));
    Some(Route { host: host?, path: path?, origins, pool: pool? })
}

fn origins(route: &Section) -> Origins {
    let items = route.value("origins").map(|value| value.items()).unwrap_or_default();
    let origin = |item: &Value| {
        if item.is_null() {
            item.fault(
                "an entry of nothing; for the opaque origin of sandboxed pages, write \"null\" in quotes",
            );
            return None;
        }
        item.typed("an origin, such as \"https://example.com\", or \"null\"")
    };
    Origins::new(items.iter().filter_map(origin).collect())
}

/// The most bytes of a route's path: each of its parts is looked for among the routes before.
const LONGEST_PATH: usize = 1024;

fn path(value: &Value) -> Option<String> {
    let path = value.parsed("a path that begins with `/`, without `?` and spaces", |text| {
        is_path(text).then(|| text.to_owned())
    })?;
    if path.len() > LONGEST_PATH {
        value.fault(format_args!("a path of {} bytes; write one of at most {LONGEST_PATH}", path.len()));
        return None;
    }
    Some(path)
}

/// The name of one of the pools.
fn named_pool(value: &Value, pools: &[Pool]) -> Option<Arc<str>> {
    let name = value.text("the name of a pool")?;
    let known = pools.iter().map(|pool| &*pool.name);
    let found = pools.iter().find(|pool| *pool.name == *name);
    // Without any pool, that is the fault.
    if found.is_none() && !pools.is_empty() {
        let right = match nearest(name, known.clone()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the pools are: {}", known.collect::<Vec<_>>().join(", ")),
        };
        value.fault(format_args!("there is no pool {}; {right}", quoted(name)));
    }
    found.map(|pool| Arc::clone(&pool.name))
}

/// Whether a request's path could begin so.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#')
}
