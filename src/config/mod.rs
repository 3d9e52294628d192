//! The config as used: resolved and checked, with the defaults beside the fields.
//!
//! [`resolve`] goes from YAML as written to a [`Config`], or to every fault at once. The environment and the files
//! that the config names come in as arguments, so nothing here touches the world.
//!
//! In reading order: `address` (where to listen), `fault` (what is wrong, and where), `raw` (the tree of the YAML, with `variables` put in),
//! `reader` (what each key must be, with `units`), then the sections: `check` (the top), `listeners`, `limits`, `pools` (with `nodes`), `rebalance`, `sources`, `tls` (with
//! the certificates of `identity`), and `token` (who may use the admin API). `summary` says in a few lines what a config amounts to, `effective` all of it (as `yaml`), and
//! `diff` what is different in another one, `schema` what one may look like.

mod address;
mod check;
mod diff;
mod drain;
mod effective;
mod fault;
mod identity;
mod limits;
mod listeners;
mod nodes;
mod pools;
mod raw;
mod reader;
mod rebalance;
pub mod schema;
mod sources;
mod summary;
mod tls;
mod variables;
mod yaml;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::affinity::AffinitySource;
use crate::pool::Node;
use crate::pool::health::HealthThresholds;
use crate::pool::retry::RetryPolicy;
use crate::pool::select::BalancePolicy;
use crate::route::Route;

pub use address::ListenAddress;
pub use diff::{Change, Subject, What, diff, is_still_there, same_listeners};
pub use drain::Drain;
pub use effective::effective;
pub use fault::{Fault, Faults, Position};
pub use identity::{Authorities, Identity};
pub use limits::{Budget, Limits, Supply};
pub use listeners::{Admin, FileAccess, Listener};
pub use mainstay_core::bearer_tokens::Tokens;
use mainstay_core::units;
pub use mainstay_core::units::{duration, show_duration, size};
pub use raw::LARGEST_FILE;
pub use reader::ReadFile;
pub use rebalance::Rebalance;
pub use summary::Summary;
pub use tls::{ListenerTls, PoolTls, TlsVersion, node_name};
pub use variables::Env;
pub use yaml::yaml;

/// Everything that the balancer was told, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where clients come in; at least one. `0.0.0.0:8080` unless told.
    pub listeners: Vec<Listener>,
    /// Metrics and health; `None` when it is turned off (`admin: null`).
    pub admin: Option<Admin>,
    /// Peers whose word about the client's address is believed; nobody unless told.
    pub trusted_proxies: Vec<IpNet>,
    /// What a client may take.
    pub limits: Limits,
    /// Where sessions are written down.
    pub access_log: AccessLog,
    /// The orderly end.
    pub shutdown: Shutdown,
    /// The pools, in the order of the file; at least one, names unique.
    pub pools: Vec<Pool>,
    /// The routes, first match wins; at least one. Without any in the file: everything to the only pool.
    pub routes: Vec<Route>,
    /// What is allowed and unwise, in the order of the file.
    pub warnings: Vec<Fault>,
    /// Where the file says what can fail only when it is tried.
    pub places: Places,
}

/// Where in the file the addresses stand that have to be bound. All places are alike: a config is no other one for
/// being written in another way.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// One for each of [`Config::listeners`]; none when the file does not name any.
    pub listeners: Vec<Position>,
    /// The admin address, when the file names it.
    pub admin: Option<Position>,
}

impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Where sessions are written down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessLog {
    /// How a line looks.
    pub format: LogFormat,
    /// Where the lines go.
    pub path: LogPath,
}

/// How a line of the access log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// `key=value` words.
    Text,
    /// No access log.
    Off,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LogPath {
    /// Standard output.
    #[default]
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// The orderly end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// How long the closing of all tunnels is spread over; the process ends by then.
    pub drain: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { drain: Duration::from_secs(30) }
    }
}

/// A set of nodes and how it is used.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Name: 1 to 64 of `A-Z a-z 0-9 _ . -`; routes share it.
    pub name: Arc<str>,
    /// The nodes, ids unique; at least one.
    pub nodes: Vec<Node>,
    /// Where a client's pin or key comes from, first match wins. One balancer cookie unless told; may be empty.
    pub affinity: Vec<AffinitySource>,
    /// How a client is placed that none of these place.
    pub balance: BalancePolicy,
    /// Hashing places nothing new on a node past this times the average; 1.0 to 1000.0. `None`: no node is passed over.
    pub load_bound: Option<f64>,
    /// How nodes are probed.
    pub health: Health,
    /// How probes and failures are judged.
    pub rule: HealthThresholds,
    /// How often a handshake that a node refused is sent to another.
    pub retries: RetryPolicy,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// What a message may be.
    pub messages: Messages,
    /// How tunnels are closed when their node is taken out.
    pub drain: Drain,
    /// How it evens itself out when a node joins or returns; `None` moves nobody.
    pub rebalance: Option<Rebalance>,
    /// The PROXY header that begins each connection to a node; `None` sends none.
    pub send_proxy_protocol: Option<ProxyVersion>,
    /// Where connections to the nodes come from; empty leaves it to the system.
    pub source_addresses: Vec<IpAddr>,
    /// How the nodes are spoken to over TLS; `None` is plain text.
    pub tls: Option<PoolTls>,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

impl ProxyVersion {
    /// Its word in a config.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// The default of [`Pool::rule`].
pub const RULE: HealthThresholds = HealthThresholds {
    rise: 2,
    fall: 3,
    failures: 5,
    eject: Duration::from_secs(30),
    max_ejected: 50,
    slow_start: Duration::from_secs(30),
};

/// How nodes are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// From one probe to the next.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self { probe: Probe::Auto, interval: Duration::from_secs(2), timeout: Duration::from_secs(1) }
    }
}

/// What a probe asks of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A GET of `/health`, whatever the node makes of it: any answer is good but one of 5xx, and so is a connection as
    /// long as the node has not answered any. A server that knows nothing of the balancer passes it.
    Auto,
    /// A GET.
    Http {
        /// Its path, with query if any.
        path: String,
        /// The status of a good answer, 200 to 599.
        status: u16,
    },
    /// A connection.
    Tcp,
    /// A WebSocket handshake.
    WebSocket {
        /// Its path, with query if any.
        path: String,
    },
    /// Nothing (`health: null`): a node is up until real traffic fails on it.
    Off,
}

/// How long things may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect to a node.
    pub connect: Duration,
    /// From the request to the node's answer to an Upgrade.
    pub handshake: Duration,
    /// How long a tunnel may carry nothing in either direction.
    pub idle: Duration,
    /// How long one side of a tunnel has once the other has sent a Close or ended its stream: 1 s to 1 h.
    pub close: Duration,
    /// From a plain request to the head of its answer.
    pub request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(60 * 60),
            close: Duration::from_secs(10),
            request: Duration::from_secs(60),
        }
    }
}

/// What a message may be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Messages {
    /// The most bytes of one message; a longer one ends the tunnel with 1009. `None` is no limit.
    pub max_size: Option<u64>,
    /// How long a client may send nothing before the balancer asks whether it is there, and then again before its
    /// tunnel is closed: 1 s to 1 day. `None`: clients are not asked.
    pub ping: Option<Duration>,
}

/// The config that the YAML `text` of `file` says, or everything that is wrong with it.
///
/// `env` looks up the variables of `${NAME}`; `read` reads the files that the config names (a `secret_file`). Whether
/// certificates are valid now is not asked; [`resolve_at`] does.
///
/// # Errors
///
/// Every fault of the file, in its order.
pub fn resolve(file: &str, text: &[u8], env: Env, read: ReadFile) -> Result<Config, Faults> {
    resolve_for((file, None), text, env, read)
}

/// The same at a time, in Unix seconds: a certificate that has expired, or is not valid yet, is a fault.
///
/// # Errors
///
/// Every fault of the file, in its order.
pub fn resolve_at(file: &str, now: i64, text: &[u8], env: Env, read: ReadFile) -> Result<Config, Faults> {
    resolve_for((file, Some(now)), text, env, read)
}

fn resolve_for(
    (file, now): (&str, Option<i64>),
    text: &[u8],
    env: Env,
    read: ReadFile,
) -> Result<Config, Faults> {
    let mut faults = Vec::new();
    let Some(root) = raw::parse(text, env, &mut faults) else {
        return Err(Faults::new(file, faults));
    };
    let reader = reader::Reader::new(read, now);
    let mut config = check::config(reader::Value::root(&reader, &root));
    let (found, mut warnings) = reader.into_findings();
    faults.extend(found);
    if !faults.is_empty() {
        return Err(Faults::new(file, faults));
    }
    warnings.sort();
    // What an anchor holds is read once for each alias.
    warnings.dedup();
    config.warnings = warnings;
    Ok(config)
}

/// Where the admin API of a config is, whatever else is wrong with the config; for the commands that speak to a
/// running balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminPlace {
    /// Where it listens; `None` when it is turned off.
    pub address: Option<ListenAddress>,
    /// The file with its tokens, as written.
    pub token_file: Option<PathBuf>,
}

/// Where the admin API of the config in `text` is. Faults elsewhere do not matter, as long as the YAML can be read.
///
/// # Errors
///
/// The faults of the section `admin`, or those of the YAML.
pub fn admin_place(file: &str, text: &[u8], env: Env) -> Result<AdminPlace, Faults> {
    let mut faults = Vec::new();
    let root = raw::parse(text, env, &mut faults);
    let reader = reader::Reader::new(&|_| Err(std::io::ErrorKind::Unsupported.into()), None);
    let place = root.as_ref().and_then(|root| listeners::admin_place(reader::Value::root(&reader, root)));
    let (found, _) = reader.into_findings();
    match place {
        Some(place) if found.is_empty() => Ok(place),
        _ => {
            faults.extend(found);
            Err(Faults::new(file, faults))
        }
    }
}
