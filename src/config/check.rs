//! The sections at the top of the config: each key, what it must be, and what it is when absent.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;

use super::fault::{nearest, quoted};
use super::limits;
use super::pools;
use super::reader::{Section, Value};
use super::tls;
use super::units::ANY_TIME;
use super::{AccessLog, Admin, AdminPlace, Config, ListenAddress, Listener, LogFormat, LogPath};
use super::{Places, Pool, Shutdown, Tokens};
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

/// The listeners; `has_proxies` says whether anybody is trusted to send a PROXY header.
fn listeners(top: &Section, has_proxies: bool, places: &mut Places) -> Vec<Listener> {
    let Some(value) = top.value("listeners") else {
        let address = ListenAddress::Tcp(([0, 0, 0, 0], 8080).into());
        return vec![Listener { address, proxy_protocol: false, tls: None }];
    };
    let mut listeners: Vec<Listener> = Vec::new();
    for item in value.some_items("- address: \"0.0.0.0:8080\"") {
        let section = item.section(&["address", "proxy_protocol", "tls"]);
        let proxy_protocol = proxy_protocol(&section, has_proxies);
        let tls = tls::listener(&section);
        let example = "`address: \"0.0.0.0:8080\"`, for instance";
        let Some(value) = section.required("address", example) else { continue };
        let Some(address) = listen_address(&value) else { continue };
        if listeners.iter().any(|other| clash(&other.address, &address)) {
            value.fault(format_args!("another listener has {address} already"));
        }
        places.listeners.push(value.at());
        listeners.push(Listener { address, proxy_protocol, tls });
    }
    listeners
}

fn proxy_protocol(listener: &Section, has_proxies: bool) -> bool {
    let Some(value) = listener.value("proxy_protocol") else { return false };
    let is_on = value.boolean().unwrap_or(false);
    if is_on && !has_proxies {
        value.fault("nobody is trusted to send it, so every connection would be cut; name the proxies in `trusted_proxies`");
    }
    is_on
}

fn listen_address(value: &Value) -> Option<ListenAddress> {
    value.typed("an address to listen on, such as \"0.0.0.0:8080\", \"[::]:8080\" or \"unix:/path\"")
}

/// Whether two listeners cannot both have what they ask for.
fn clash(one: &ListenAddress, other: &ListenAddress) -> bool {
    let chosen_by_the_system = matches!(one, ListenAddress::Tcp(address) if address.port() == 0);
    one == other && !chosen_by_the_system
}

fn admin(top: &Section, listeners: &[Listener], places: &mut Places) -> Option<Admin> {
    let value = top.value("admin");
    if value.is_some_and(|admin| admin.is_null()) {
        return None;
    }
    let section = top.section("admin", ADMIN_KEYS);
    let tokens = section.some("token_file").and_then(|value| tokens(&value));
    let token_file = token_file(&section);
    let Some(value) = section.value("address") else {
        return Some(Admin { token_file, tokens, ..Admin::default() });
    };
    places.admin = Some(value.at());
    let address = listen_address(&value)?;
    if let ListenAddress::Tcp(tcp) = &address
        && !tcp.ip().is_loopback()
        && section.some("token_file").is_none()
    {
        let port = tcp.port();
        value.fault(format_args!(
            "{tcp} is open to others, which needs a token; write `token_file:` and a file with one, \
             or 127.0.0.1:{port}, [::1]:{port} or unix:/path"
        ));
    }
    if listeners.iter().any(|listener| clash(&listener.address, &address)) {
        value.fault(format_args!("a listener has {address} already"));
    }
    Some(Admin { address, token_file, tokens })
}

const ADMIN_KEYS: &[&str] = &["address", "token_file"];

/// Where the admin API is, without a look at anything else; `None` where the address cannot be read.
pub(super) fn admin_place(root: Value) -> Option<AdminPlace> {
    let default = Admin::default().address;
    let Some(value) = root.entry("admin") else {
        return Some(AdminPlace { address: Some(default), token_file: None });
    };
    if value.is_null() {
        return Some(AdminPlace { address: None, token_file: None });
    }
    let section = value.section(ADMIN_KEYS);
    let address = match section.value("address") {
        Some(value) => listen_address(&value)?,
        None => default,
    };
    Some(AdminPlace { address: Some(address), token_file: token_file(&section) })
}

fn token_file(admin: &Section) -> Option<PathBuf> {
    admin
        .some("token_file")
        .and_then(|value| value.text("the path of a token file, or null"))
        .map(PathBuf::from)
}

/// What the token file says.
fn tokens(value: &Value) -> Option<Tokens> {
    // What is no path is said by `token_file`.
    let path = value.as_text()?;
    let text = match (value.reader.read)(Path::new(path)) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| "not text".to_owned()),
        Err(error) => Err(format!("it cannot be read: {error}")),
    };
    let tokens = text.and_then(|text| Tokens::parse(&text));
    tokens.map_err(|message| value.fault(format_args!("{path}: {message}"))).ok()
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
