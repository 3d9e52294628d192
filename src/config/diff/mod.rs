//! What differs between two configs, one plain sentence for each change.
//!
//! Pure: it compares and says, and applies nothing. Every struct is taken apart whole, so that a new key cannot be
//! forgotten here. A sentence may show what the file says, never a secret: of keys it only says that they are others.

mod pool;
mod tls;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::summary::route_text;
use super::units::{show_duration, show_size};
use super::{AccessLog, Admin, Config, FileAccess, Limits, Listener, LogFormat, LogPath, Shutdown};
use crate::pool::NodeId;
use crate::route::{Origins, Route};

use pool::compare_pools;
use tls::compare_listener_tls;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What it is about.
    pub subject: Subject,
    /// What is different about it.
    pub what: What,
}

/// What a change is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A listener, by its address as written.
    Listener(String),
    /// A pool, by name.
    Pool(Arc<str>),
    /// A node of a pool.
    Node(Arc<str>, NodeId),
    /// A route, by its host and path as written.
    Route(String),
    /// A section at the top of the config, by its key.
    Section(&'static str),
}

/// What is different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// New; with what it is.
    Added(String),
    /// Gone; with what that means, or nothing.
    Removed(String),
    /// A node that listens elsewhere: the old place and the new one.
    Moved(String, String),
    /// This key has another value: the key, the new value, the old one.
    Set(&'static str, String, String),
    /// This part of the subject is new.
    PartAdded(String),
    /// This part of the subject is gone.
    PartRemoved(String),
    /// This part is another, and is not shown.
    Replaced(String),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Subject::Listener(address) => write!(f, "listener {address}")?,
            Subject::Pool(pool) => write!(f, "pool {pool}")?,
            Subject::Node(pool, node) => write!(f, "pool {pool}: node {node}")?,
            Subject::Route(route) => write!(f, "route {route}")?,
            Subject::Section(key) => f.write_str(key)?,
        }
        match &self.what {
            What::Added(what) => write!(f, " added ({what})"),
            What::Removed(more) if more.is_empty() => f.write_str(" removed"),
            What::Removed(more) => write!(f, " removed ({more})"),
            What::Moved(from, to) => write!(f, " moved to {to}, was at {from}"),
            What::Set(key, new, old) => write!(f, ": {key} is {new} now, was {old}"),
            What::PartAdded(what) => write!(f, ": {what} added"),
            What::PartRemoved(what) => write!(f, ": {what} removed"),
            What::Replaced(what) => write!(f, ": {what} replaced"),
        }
    }
}

/// Everything that is different in `new`, in the order of the file. Where a change stands in the file, how it is
/// written and what is unwise about it makes no difference.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let Config {
        listeners,
        admin,
        trusted_proxies,
        limits,
        access_log,
        shutdown,
        pools,
        routes,
        warnings: _,
        places: _,
    } = old;
    let mut changes = Vec::new();
    compare_listeners(listeners, &new.listeners, &mut changes);
    compare_admin(admin.as_ref(), new.admin.as_ref(), Section::top("admin", &mut changes));
    let mut proxies = Section::top("trusted_proxies", &mut changes);
    proxies.set("the list", trusted_proxies, &new.trusted_proxies, |list| listed(list));
    compare_limits(limits, &new.limits, Section::top("limits", &mut changes));
    compare_access_log(access_log, &new.access_log, Section::top("access_log", &mut changes));
    let Shutdown { drain } = shutdown;
    Section::top("shutdown", &mut changes).time("drain", drain, &new.shutdown.drain);
    compare_pools(pools, &new.pools, &mut changes);
    compare_routes(routes, &new.routes, &mut changes);
    changes
}

/// Collects the changes of one subject.
struct Section<'a> {
    subject: Subject,
    changes: &'a mut Vec<Change>,
}

impl<'a> Section<'a> {
    fn top(key: &'static str, changes: &'a mut Vec<Change>) -> Self {
        Self { subject: Subject::Section(key), changes }
    }

    fn push(&mut self, what: What) {
        self.changes.push(Change { subject: self.subject.clone(), what });
    }

    fn set<T: PartialEq>(&mut self, key: &'static str, old: &T, new: &T, show: impl Fn(&T) -> String) {
        if old != new {
            self.push(What::Set(key, show(new), show(old)));
        }
    }

    fn number<T: PartialEq + ToString>(&mut self, key: &'static str, old: &T, new: &T) {
        self.set(key, old, new, T::to_string);
    }

    /// For what is not shown: that it is there now, is there no longer, or is another.
    fn part<T: PartialEq>(&mut self, what: &str, old: Option<&T>, new: Option<&T>) {
        match (old, new) {
            (None, Some(_)) => self.push(What::PartAdded(what.into())),
            (Some(_), None) => self.push(What::PartRemoved(what.into())),
            (old, new) if old != new => self.push(What::Replaced(what.into())),
            _ => {}
        }
    }

    fn time(&mut self, key: &'static str, old: &Duration, new: &Duration) {
        self.set(key, old, new, show_duration);
    }
}

fn listed<T: ToString>(list: &[T]) -> String {
    let items: Vec<String> = list.iter().map(T::to_string).collect();
    format!("[{}]", items.join(", "))
}

/// The place in `old` of each of `new`: two alike (port 0) are told apart by their order.
pub fn same_listeners(old: &[Listener], new: &[Listener]) -> Vec<Option<usize>> {
    let mut taken = vec![false; old.len()];
    let place = |listener: &Listener| {
        let free = old.iter().enumerate().position(|(at, one)| !taken[at] && one.address == listener.address);
        if let Some(at) = free {
            taken[at] = true;
        }
        free
    };
    new.iter().map(place).collect()
}

fn compare_listeners(old: &[Listener], new: &[Listener], changes: &mut Vec<Change>) {
    let places = same_listeners(old, new);
    let subject = |listener: &Listener| Subject::Listener(listener.address.to_string());
    for (_, listener) in old.iter().enumerate().filter(|(at, _)| !places.contains(&Some(*at))) {
        changes.push(Change { subject: subject(listener), what: What::Removed(String::new()) });
    }
    for (listener, place) in new.iter().zip(places) {
        let Some(at) = place else {
            changes.push(Change { subject: subject(listener), what: What::Added("listening".into()) });
            continue;
        };
        let Listener { address: _, access, proxy_protocol, tls } = &old[at];
        let mut section = Section { subject: subject(listener), changes: &mut *changes };
        compare_access(access, &listener.access, &mut section);
        section.number("proxy_protocol", proxy_protocol, &listener.proxy_protocol);
        compare_listener_tls(tls.as_ref(), listener.tls.as_ref(), &mut section);
    }
}

fn compare_access(old: &FileAccess, new: &FileAccess, section: &mut Section) {
    let FileAccess { mode, group } = old;
    section.set("mode", mode, &new.mode, |mode| mode.map_or(none(), |mode| format!("{mode:04o}")));
    section.set("group", group, &new.group, |group| group.clone().unwrap_or(none()));
}

fn compare_admin(old: Option<&Admin>, new: Option<&Admin>, mut section: Section) {
    match (old, new) {
        (None, None) => {}
        (None, Some(new)) => section.push(What::Added(new.address.to_string())),
        (Some(_), None) => section.push(What::Removed(String::new())),
        (Some(Admin { address, access, token_file, tokens }), Some(new)) => {
            section.number("address", address, &new.address);
            compare_access(access, &new.access, &mut section);
            let path =
                |path: &Option<PathBuf>| path.as_ref().map_or(none(), |path| path.display().to_string());
            section.set("token_file", token_file, &new.token_file, path);
            section.part("tokens", tokens.as_ref(), new.tokens.as_ref());
        }
    }
}

fn compare_limits(old: &Limits, new: &Limits, mut section: Section) {
    let Limits {
        connections,
        connections_per_client,
        handshakes_per_second,
        request_head,
        head_time,
        keep_alive,
    } = old;
    let auto = |number: &Option<u32>| number.map_or("auto".into(), |number| number.to_string());
    section.set("connections", connections, &new.connections, auto);
    section.number("connections_per_client", connections_per_client, &new.connections_per_client);
    section.number("handshakes_per_second", handshakes_per_second, &new.handshakes_per_second);
    section.set("request_head", request_head, &new.request_head, |bytes| show_size(*bytes as u64));
    section.time("head_time", head_time, &new.head_time);
    section.time("keep_alive", keep_alive, &new.keep_alive);
}

fn compare_access_log(old: &AccessLog, new: &AccessLog, mut section: Section) {
    let AccessLog { format, path } = old;
    section.set("format", format, &new.format, |format| {
        let word = match format {
            LogFormat::Json => "json",
            LogFormat::Text => "text",
            LogFormat::Off => "off",
        };
        word.into()
    });
    section.set("path", path, &new.path, |path| match path {
        LogPath::Stdout => "stdout".into(),
        LogPath::File(path) => path.display().to_string(),
    });
}

fn none() -> String {
    "none".into()
}

/// Whether tunnels that came by `route` still belong somewhere: a route with the same host and path is there, or one
/// to the same pool that takes all that this one took.
pub fn is_still_there(route: &Route, new: &[Route]) -> bool {
    let same = |other: &Route| other.host == route.host && other.path == route.path;
    new.iter().any(|other| same(other) || (other.pool == route.pool && other.includes(route)))
}

fn compare_routes(old: &[Route], new: &[Route], changes: &mut Vec<Change>) {
    let same = |one: &Route, other: &Route| one.host == other.host && one.path == other.path;
    let subject = |route: &Route| Subject::Route(route_text(route));
    for route in old.iter().filter(|route| !new.iter().any(|other| same(route, other))) {
        changes.push(Change { subject: subject(route), what: What::Removed(format!("pool {}", route.pool)) });
    }
    for route in new {
        let mut section = Section { subject: subject(route), changes: &mut *changes };
        let Some(old) = old.iter().find(|other| same(route, other)) else {
            section.push(What::Added(format!("pool {}", route.pool)));
            continue;
        };
        let Route { host: _, path: _, origins, pool } = old;
        let list = |origins: &Origins| listed(&origins.iter().collect::<Vec<_>>());
        section.set("origins", origins, &route.origins, list);
        section.number("pool", &pool.to_string(), &route.pool.to_string());
    }
    let order = |routes: &[Route], others: &[Route]| -> Vec<String> {
        let both = routes.iter().filter(|route| others.iter().any(|other| same(route, other)));
        both.map(route_text).collect()
    };
    let mut section = Section::top("routes", changes);
    section.set("the order", &order(old, new), &order(new, old), |names| listed(names));
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::config::resolve;

    const BASE: &str = "\
listeners: [{ address: \"127.0.0.1:8080\" }]
pools:
  chat:
    nodes: [{ id: ws1, address: \"10.0.0.1:3001\" }, { id: ws2, address: \"10.0.0.2:3001\" }]
    affinity: [cookie: { name: pin, secret_file: secret }]
    timeouts: { idle: 1h }
  feed:
    nodes: [{ id: a, address: \"10.0.0.9:80\" }]
routes:
  - { path: /chat, pool: chat }
  - { path: /feed, pool: feed }
";

    fn read(secret: &'static str) -> impl Fn(&Path) -> io::Result<Vec<u8>> {
        move |_| Ok(format!("k1:{}=\n", secret.repeat(43)).into_bytes())
    }

    fn config(text: &str) -> Config {
        resolve("t", text.as_bytes(), &|_| None, &read("A")).unwrap_or_else(|faults| panic!("{faults}"))
    }

    fn said(old: &Config, new: &Config) -> Vec<String> {
        diff(old, new).iter().map(ToString::to_string).collect()
    }

    /// What is said when this is put in the place of that.
    fn replaced(from: &str, to: &str) -> Vec<String> {
        assert!(BASE.contains(from), "{from}");
        said(&config(BASE), &config(&BASE.replace(from, to)))
    }

    #[test]
    fn each_change_is_one_plain_sentence() {
        let node = "{ id: ws2, address: \"10.0.0.2:3001\" }";
        for (from, to, sentence) in [
            (
                node,
                "{ id: ws2, address: \"10.0.0.2:3001\" }, { id: ws4, address: \"10.0.0.4:3001\" }",
                "pool chat: node ws4 added (10.0.0.4:3001)",
            ),
            (&*format!(", {node}"), "", "pool chat: node ws2 removed (10.0.0.2:3001)"),
            (
                "10.0.0.2:3001",
                "10.0.0.3:3001",
                "pool chat: node ws2 moved to 10.0.0.3:3001, was at 10.0.0.2:3001",
            ),
            ("id: ws2,", "id: ws2, weight: 3,", "pool chat: node ws2: weight is 3 now, was 1"),
            (
                "id: ws2,",
                "id: ws2, max_connections: 9,",
                "pool chat: node ws2: max_connections is 9 now, was none",
            ),
            ("id: ws2,", "id: ws2, release: v7,", "pool chat: node ws2: release is v7 now, was none"),
            ("idle: 1h", "idle: 2h", "pool chat: timeouts.idle is 2h now, was 1h"),
            ("idle: 1h", "idle: 1h, close: 3s", "pool chat: timeouts.close is 3s now, was 10s"),
            (
                "timeouts:",
                "balance: random_two\n    timeouts:",
                "pool chat: balance is random_two now, was least_connections",
            ),
            ("timeouts:", "health: null\n    timeouts:", "pool chat: health is none now, was auto"),
            (
                "timeouts:",
                "drain: { code: 3001 }\n    timeouts:",
                "pool chat: drain.code is 3001 now, was 1012",
            ),
            (
                "timeouts:",
                "rebalance: { over: 5m }\n    timeouts:",
                "pool chat: rebalance is over 5m from 1.1 times the average, quiet clients first now, was none",
            ),
            (
                "timeouts:",
                "messages: { ping: 5s }\n    timeouts:",
                "pool chat: messages.ping is 5s now, was none",
            ),
            (
                "name: pin",
                "name: other",
                "pool chat: affinity is [cookie other (signed)] now, was [cookie pin (signed)]",
            ),
            ("name: pin,", "name: pin, same_site: strict,", "pool chat: attributes of cookie pin replaced"),
            ("path: /feed", "path: /news", "route any host, path /news added (pool feed)"),
            (
                "path: /feed, pool: feed",
                "path: /feed, pool: chat",
                "route any host, path /feed: pool is chat now, was feed",
            ),
            ("8080", "8081", "listener 127.0.0.1:8081 added (listening)"),
            (
                "pools:",
                "limits: { request_head: 32KiB }\npools:",
                "limits: request_head is 32KiB now, was 16KiB",
            ),
            (
                "pools:",
                "trusted_proxies: [10.0.0.0/8]\npools:",
                "trusted_proxies: the list is [10.0.0.0/8] now, was []",
            ),
            ("pools:", "access_log: { format: off }\npools:", "access_log: format is off now, was json"),
            ("pools:", "admin: null\npools:", "admin removed"),
            (
                "pools:",
                "admin: { address: \"127.0.0.1:1\" }\npools:",
                "admin: address is 127.0.0.1:1 now, was 127.0.0.1:9090",
            ),
            ("pools:", "shutdown: { drain: 1s }\npools:", "shutdown: drain is 1s now, was 30s"),
            (
                "  feed:\n",
                "  more: { nodes: [{ id: m, address: \"x:1\" }] }\n  feed:\n",
                "pool more added (1 node)",
            ),
        ] {
            let said = replaced(from, to);
            assert!(said.contains(&sentence.to_owned()), "{sentence}\n{said:?}");
            assert!(said.len() <= 2, "{said:?}");
        }
    }

    #[test]
    fn what_was_removed_is_said_too() {
        assert_eq!(replaced("8080", "8081")[0], "listener 127.0.0.1:8080 removed");
        let without = BASE.replace("  feed:\n    nodes: [{ id: a, address: \"10.0.0.9:80\" }]\n", "");
        let without = without.replace("  - { path: /feed, pool: feed }\n", "");
        let expected = ["pool feed removed (1 node)", "route any host, path /feed removed (pool feed)"];
        assert_eq!(said(&config(BASE), &config(&without)), expected);
    }

    #[test]
    fn spelling_order_of_keys_and_comments_change_nothing() {
        let spelt = BASE
            .replace("{ idle: 1h }", "{ connect: 2s, idle: 60m } # as ever")
            .replace("pools:", "\n\npools:");
        assert_eq!(said(&config(BASE), &config(&spelt)), [""; 0]);
    }

    #[test]
    fn the_order_of_routes_and_nodes_counts() {
        let [chat, feed] = ["  - { path: /chat, pool: chat }\n", "  - { path: /feed, pool: feed }\n"];
        let turned = BASE.replace(&format!("{chat}{feed}"), &format!("{feed}{chat}"));
        let expected = "routes: the order is [any host, path /feed, any host, path /chat] now, \
                        was [any host, path /chat, any host, path /feed]";
        assert_eq!(said(&config(BASE), &config(&turned)), [expected]);
    }

    #[test]
    fn other_secrets_are_said_and_never_shown() {
        let old = config(BASE);
        let new = resolve("t", BASE.as_bytes(), &|_| None, &read("E")).unwrap();
        assert_eq!(said(&old, &new), ["pool chat: keys of cookie pin replaced"]);
    }

    #[test]
    fn listeners_on_ports_that_the_system_chooses_are_told_apart_by_their_order() {
        let listener = |text: &str| {
            let address = text.parse().unwrap();
            Listener { address, access: FileAccess::default(), proxy_protocol: false, tls: None }
        };
        let old = ["127.0.0.1:0", "127.0.0.1:8080", "127.0.0.1:0"].map(listener);
        let new = ["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"].map(listener);
        assert_eq!(same_listeners(&old, &new), [Some(0), Some(2), None]);
    }

    #[test]
    fn a_route_is_still_there_when_one_takes_its_place_or_all_that_it_took() {
        let routes = |text: &str| {
            let tail = BASE.find("routes:").unwrap();
            let routes = format!("routes: [{{ path: /only-feed, pool: feed }}, {text}]\n");
            config(&format!("{}{routes}", &BASE[..tail])).routes
        };
        let old = &routes("{ host: a.example, path: /chat/, pool: chat }")[1];
        for (new, expected) in [
            ("{ host: a.example, path: /chat/, pool: feed }", true),
            ("{ host: a.example, path: /chat, pool: chat }", true),
            ("{ host: \"*.example\", pool: chat }", true),
            ("{ path: /, pool: chat }", true),
            ("{ path: /, pool: feed }", false),
            ("{ host: b.example, path: /chat/, pool: chat }", false),
            ("{ host: a.example, path: /chat/x, pool: chat }", false),
        ] {
            assert_eq!(is_still_there(old, &routes(new)), expected, "{new}");
        }
    }
}
