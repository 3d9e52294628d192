//! Where Redis is: the forms of `--redis`, read once, so that a wrong one is refused at the start with its reason.
//!
//! | form | meaning |
//! |---|---|
//! | `redis://[user:password@]host[:port][/db]` | one server |
//! | `rediss://…` | the same with TLS |
//! | `redis+unix:///path[?db=n&user=…&pass=…]` | one server on a Unix socket |
//! | `redis+sentinel://[user:password@]host[:port][,host[:port]…]/master[/db]` | the master that these sentinels name |
//! | `rediss+sentinel://…` | the same; TLS to the sentinels and to the master |
//! | several `redis://` or `rediss://`, separated by commas | a Redis Cluster, from any of its nodes |
//!
//! One `redis://` is a Redis Cluster too when the flag says so.

use redis::io::tcp::TcpSettings;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, TlsCertificates};
use thiserror::Error;

use super::slots::NodeAddress;

/// The port of a sentinel that names none.
const SENTINEL_PORT: u16 = 26_379;

/// Where Redis is and how to get in.
#[derive(Debug, Clone)]
pub struct RedisAddress {
    /// What is there.
    pub(super) kind: AddressKind,
    /// The authorities that may sign its certificate, as PEM; without them those that browsers trust.
    pub(super) certificates: Option<TlsCertificates>,
    /// The place in words, without a password, for logs and `/health`.
    pub(super) name: String,
}

#[derive(Debug, Clone)]
pub(super) enum AddressKind {
    /// One server.
    Server(Box<ConnectionInfo>),
    /// The master of a name, asked from sentinels.
    Sentinel {
        /// Where the sentinels are.
        sentinels: Vec<ConnectionAddr>,
        /// The name under which they know the master.
        master: String,
        /// User, password and database of the master.
        info: Box<ConnectionInfo>,
    },
    /// A cluster, found from any of these.
    Cluster(Vec<ConnectionInfo>),
}

/// Why a URL names no Redis. It is the operator's to mend.
#[derive(Debug, Error)]
pub enum AddressError {
    /// Nothing was named.
    #[error("no Redis is named; right would be redis://127.0.0.1:6379")]
    Empty,
    /// The redis library cannot read it.
    #[error("{url:?} names no Redis ({reason}); right would be redis://127.0.0.1:6379")]
    Url {
        /// The URL without its password.
        url: String,
        /// What the library says.
        reason: String,
    },
    /// Several places that are not all nodes of a cluster.
    #[error(
        "{0:?} cannot be a node of a Redis Cluster; right would be redis://host:port or rediss://host:port"
    )]
    Cluster(String),
    /// A sentinel URL without the name of a master.
    #[error("{0:?} names no master; right would be redis+sentinel://host:26379/mymaster")]
    Master(String),
}

impl RedisAddress {
    /// Reads what `--redis` says; `cluster` is the flag for a cluster of which one node is named.
    pub fn parse(text: &str, cluster: bool) -> Result<RedisAddress, AddressError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        let kind = match split_sentinel_scheme(text) {
            Some((scheme, rest)) => read_sentinel(text, scheme, rest)?,
            None => {
                let urls: Vec<&str> = text.split(',').map(str::trim).collect();
                let mut infos = urls.iter().map(|url| read_url(url)).collect::<Result<Vec<_>, _>>()?;
                match infos.pop() {
                    Some(info) if infos.is_empty() && !cluster => AddressKind::Server(Box::new(info)),
                    last => AddressKind::Cluster(check_cluster_nodes(
                        &urls,
                        infos.into_iter().chain(last).collect(),
                    )?),
                }
            }
        };
        Ok(RedisAddress { kind, certificates: None, name: mask_password(text) })
    }

    /// Trusts the authorities in this PEM text instead of those that browsers trust.
    pub fn with_root_certificates(mut self, pem: Vec<u8>) -> RedisAddress {
        self.certificates = Some(TlsCertificates { client_tls: None, root_cert: Some(pem) });
        self
    }

    /// The password of a file, which is not in the process list as one in a URL is.
    pub fn with_password(mut self, password: &str) -> RedisAddress {
        let set = |info: &mut ConnectionInfo| {
            let settings = info.redis_settings().clone().set_password(password);
            *info = info.clone().set_redis_settings(settings);
        };
        match &mut self.kind {
            AddressKind::Server(info) | AddressKind::Sentinel { info, .. } => set(info),
            AddressKind::Cluster(nodes) => nodes.iter_mut().for_each(set),
        }
        self
    }

    /// How a node of a cluster is reached: as its seeds are, at another address.
    pub(super) fn node_info(&self, node: &NodeAddress) -> Option<ConnectionInfo> {
        let AddressKind::Cluster(seeds) = &self.kind else { return None };
        let (seed, host) = (seeds.first()?, node.host.clone());
        let address = match seed.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
                host,
                port: node.port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host, node.port),
        };
        Some(seed.clone().set_addr(address))
    }

    /// Whether it is a Redis Cluster.
    pub fn is_cluster(&self) -> bool {
        matches!(self.kind, AddressKind::Cluster(_))
    }

    /// The place in words, without a password.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// How every connection of a node is set: each message at once, and a dead peer is noticed.
pub(super) fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn read_url(url: &str) -> Result<ConnectionInfo, AddressError> {
    let fault = |reason: String| AddressError::Url { url: mask_password(url), reason };
    let info = url.into_connection_info().map_err(|error| fault(error.to_string()))?;
    // Pushes, which carry everything that is heard, exist from the third version of the protocol on (Redis 6).
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp_settings()))
}

fn check_cluster_nodes(
    urls: &[&str],
    infos: Vec<ConnectionInfo>,
) -> Result<Vec<ConnectionInfo>, AddressError> {
    let unix = infos.iter().position(|info| matches!(info.addr(), ConnectionAddr::Unix(_)));
    match unix {
        Some(address) => Err(AddressError::Cluster(mask_password(urls[address]))),
        None => Ok(infos),
    }
}

/// The scheme of the master's URL and what follows the sentinels' own.
fn split_sentinel_scheme(text: &str) -> Option<(&'static str, &str)> {
    let plain = text.strip_prefix("redis+sentinel://").map(|rest| ("redis", rest));
    plain.or_else(|| text.strip_prefix("rediss+sentinel://").map(|rest| ("rediss", rest)))
}

fn read_sentinel(text: &str, scheme: &str, rest: &str) -> Result<AddressKind, AddressError> {
    let no_master = || AddressError::Master(mask_password(text));
    let (authority, path) = rest.split_once('/').ok_or_else(no_master)?;
    let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
    let (master, database) = path.trim_end_matches('/').split_once('/').unwrap_or((path, "0"));
    let master = master.trim_end_matches('/');
    if master.is_empty() {
        return Err(no_master());
    }
    let at = if user.is_empty() { String::new() } else { format!("{user}@") };
    let mut sentinels = Vec::new();
    let mut master_info = None;
    for host in hosts.split(',').map(str::trim) {
        let port = if has_port(host) { String::new() } else { format!(":{SENTINEL_PORT}") };
        let found = read_url(&format!("{scheme}://{at}{host}{port}/{database}"))?;
        sentinels.push(found.addr().clone());
        master_info = Some(found);
    }
    let info = Box::new(master_info.ok_or(AddressError::Empty)?);
    Ok(AddressKind::Sentinel { sentinels, master: master.to_owned(), info })
}

fn has_port(host: &str) -> bool {
    // `[::1]` has colons and no port.
    host.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The URL with `***` where a password is, in each of its parts.
fn mask_password(text: &str) -> String {
    let masked = |url: &str| {
        let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
        // Passwords of Unix sockets stand in the query.
        let rest = rest.split_once('?').map_or(rest, |(path, _)| path);
        match rest.rsplit_once('@') {
            Some((user, address)) => {
                format!("{scheme}://{}:***@{address}", user.split(':').next().unwrap_or_default())
            }
            None => format!("{scheme}://{rest}"),
        }
    };
    text.split(',').map(|url| masked(url.trim())).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let one = |text: &str| match RedisAddress::parse(text, false).unwrap().kind {
            AddressKind::Server(info) => *info,
            other => panic!("{other:?}"),
        };
        let plain = one("redis://cache");
        assert_eq!(plain.addr(), &ConnectionAddr::Tcp("cache".into(), 6379));
        assert!(plain.tcp_settings().nodelay());
        assert_eq!(plain.redis_settings().protocol(), ProtocolVersion::RESP3);
        let secret = one("rediss://me:p%40ss@cache:7000/3");
        assert!(matches!(secret.addr(), ConnectionAddr::TcpTls { port: 7000, insecure: false, .. }));
        assert_eq!(secret.redis_settings().username(), Some("me"));
        assert_eq!(secret.redis_settings().password(), Some("p@ss"));
        assert_eq!(secret.redis_settings().db(), 3);
        assert!(matches!(one("redis+unix:///run/redis.sock").addr(), ConnectionAddr::Unix(_)));
    }

    #[test]
    fn several_places_or_the_flag_make_a_cluster() {
        assert!(RedisAddress::parse("redis://a:1, redis://b:2", false).unwrap().is_cluster());
        assert!(RedisAddress::parse("redis://a:1", true).unwrap().is_cluster());
        assert!(!RedisAddress::parse("redis://a:1", false).unwrap().is_cluster());
        let fault = RedisAddress::parse("redis://a:1,redis+unix:///x", false).unwrap_err();
        assert!(fault.to_string().contains("redis+unix:///x"), "{fault}");
    }

    #[test]
    fn sentinels_have_a_master_and_may_have_several_places() {
        let address =
            RedisAddress::parse("redis+sentinel://me:secret@a:1,b,[::1]/mymaster/2", false).unwrap();
        let AddressKind::Sentinel { sentinels, master, info } = address.kind else { panic!() };
        assert_eq!(sentinels[0], ConnectionAddr::Tcp("a".into(), 1));
        assert_eq!(sentinels[1], ConnectionAddr::Tcp("b".into(), SENTINEL_PORT));
        assert_eq!(sentinels.len(), 3);
        assert_eq!((master.as_str(), info.redis_settings().db()), ("mymaster", 2));
        assert_eq!(info.redis_settings().password(), Some("secret"));
        for text in ["redis+sentinel://a:1", "redis+sentinel://a:1/"] {
            let fault = RedisAddress::parse(text, false).unwrap_err();
            assert!(fault.to_string().contains("redis+sentinel://host:26379/mymaster"), "{fault}");
        }
    }

    #[test]
    fn a_password_is_in_no_name_and_in_no_fault() {
        let address = RedisAddress::parse("redis://u:secret@a:1,redis://:secret@b:2", false).unwrap();
        assert_eq!(address.name(), "redis://u:***@a:1,redis://:***@b:2");
        let fault = RedisAddress::parse("http://u:secret@a", false).unwrap_err();
        assert!(!fault.to_string().contains("secret"), "{fault}");
        assert!(
            !RedisAddress::parse("redis+unix:///x?pass=secret", false).unwrap().name().contains("secret")
        );
        assert!(RedisAddress::parse(" ", false).is_err());
    }

    #[test]
    fn a_password_from_a_file_reaches_every_node() {
        let address = RedisAddress::parse("redis://a:1,redis://b:2", false).unwrap().with_password("new");
        let AddressKind::Cluster(nodes) = address.kind else { panic!() };
        assert!(nodes.iter().all(|node| node.redis_settings().password() == Some("new")));
    }
}
