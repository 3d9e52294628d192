//! The whole config: the keys at the top, and the small sections.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use mainstay_core::units::ANY_TIME;
use serde_json::{Value as Json, json};

use super::change::{Change, Comparison};
use super::entry::{Form, Keys, derived, names, section, shown};
use super::fault::Fault;
use super::forms::{Word, duration, list, section, word};
use super::key::{Shape, Text};
use super::limits::Limits;
use super::listeners::{AddressPositions, admin, check_admin, listeners};
use super::listeners::{Admin, ListenerConfig};
use super::pools::{self, Pool, pools};
use super::proxies::network;
use super::reader::Value;
use super::routes::{default_routes, routes, warn_of_unused};
use crate::route::Route;

section! {
    /// Everything that the balancer was told, checked.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Config {
        /// Where clients come in.
        listeners: Vec<ListenerConfig> = listeners().or(json!([{ "address": "0.0.0.0:8080" }]));
        /// Metrics, health and API. A loopback address and a Unix socket are for this machine only; any other address
        /// needs a token. null turns it off.
        admin: Option<Admin> = admin();
        /// The proxies before this balancer. Only their X-Forwarded-For and PROXY header is believed; anybody else could
        /// write what he likes into it. Behind a proxy that is not named here, every client has the address of the
        /// proxy.
        trusted_proxies: Vec<IpNet> = list(network()).or(json!([]));
        /// What clients may take.
        limits: Limits = section();
        /// One line when a session opens and one when it closes.
        access_log: AccessLogConfig = section();
        /// The orderly end, on SIGTERM.
        shutdown: Shutdown = section();
        /// Sets of nodes by name; metrics and routes use the name.
        pools: Vec<Pool> = pools().required(pools::EXAMPLE);
        /// What goes where; the first match wins, narrow ones first. Without any routes, all goes to the only pool.
        routes: Vec<Route> = routes().or_silently(json!([]));
        /// What is allowed and unwise, in the order of the file.
        warnings: Vec<Fault> = derived(|_| Some(Vec::new()));
        /// Where the file says what can fail only when it is tried.
        places: AddressPositions = derived(|top| Some(AddressPositions::read(top)));
    }
}

section! {
    /// Where sessions are written down.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct AccessLogConfig {
        /// How a line looks; off writes none.
        format: LogFormat = word().or("json");
        /// Where the lines go; a file is opened anew on SIGUSR1.
        path: LogPath = log_path().or("stdout");
    }
}

/// How a line of the access log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// `key=value` words.
    Text,
    /// No access log.
    Off,
}

impl Word for LogFormat {
    const WORDS: &'static [(&'static str, Self)] =
        &[("json", Self::Json), ("text", Self::Text), ("off", Self::Off)];
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPath {
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

fn log_path() -> Form<LogPath> {
    let read = |value: &Value| match value.text("`stdout` or the path of a file")? {
        "stdout" => Some(LogPath::Stdout),
        path => Some(LogPath::File(path.into())),
    };
    let show = |path: &LogPath| match path {
        LogPath::Stdout => "stdout".into(),
        LogPath::File(path) => path.display().to_string().into(),
    };
    Form::new(Shape::Text(Text("stdout, or the path of a file", "")), read, show)
}

section! {
    /// The orderly end.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Shutdown {
        /// The tunnels are closed with 1001 one after the other over this time, so that their clients do not all come
        /// back in the same second. The process has ended by then.
        drain: Duration = duration(ANY_TIME).or("30s");
    }
}

/// The whole config; of no use when the reader has heard of a fault.
pub(super) fn config(root: &Value) -> Option<Config> {
    let config = Config::read(&root.section(names(&Config::keys())));
    check_admin(root);
    let said = root.entry("routes").is_some();
    let default = if said { Vec::new() } else { default_routes(root) };
    let config = config.map(|config| if said { config } else { Config { routes: default, ..config } })?;
    warn_of_unused(root, &config.routes);
    Some(config)
}

/// All of `config`, as a tree with the keys of the config file.
///
/// What it says is a config again: [`super::resolve`] makes the same of it. Of secrets it has the path of their file and
/// never what is in there.
pub fn effective(config: &Config) -> Json {
    escaped(shown(config))
}

/// In a config file `${` begins a variable; the sign itself is written `$${`.
fn escaped(value: Json) -> Json {
    match value {
        Json::String(text) => Json::String(text.replace("${", "$${")),
        Json::Array(items) => items.into_iter().map(escaped).collect(),
        Json::Object(entries) => entries.into_iter().map(|(key, value)| (key, escaped(value))).collect(),
        plain => plain,
    }
}

/// Everything that is different in `new`, in the order of the file. Where a change stands in the file, how it is
/// written and what is unwise about it makes no difference.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    Comparison::of(old, new, Config::compare)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::config::{FileAccess, is_still_there, resolve, same_listeners};

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
            ListenerConfig { address, access: FileAccess::default(), proxy_protocol: false, tls: None }
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
