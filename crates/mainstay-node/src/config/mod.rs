//! The settings of a node: what the command line gives, checked as a whole.
//!
//! [`NodeFlags`] is what is written, [`NodeSettings`] what is used; [`NodeSettings::resolve`] goes from one to the other and says
//! everything that is wrong at once, each fault with its flag and what would be right. Files are read through the
//! function that is given, so that tests need none.

mod clients;
mod cluster;
mod flags;
mod read;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mainstay_core::{bearer_tokens::Tokens, units::show_duration};

use crate::auth::{AuthSettings, JwtKey};
use socketio_redis::client::RedisAddress;

pub use clients::ClientSettings;
pub use cluster::{AdapterKind, ClusterSettings, RedisPlace, RedisUrl};
pub use flags::{AuthFlags, ClientFlags, ClusterFlags, NodeFlags};

/// How long a lost session may be recovered where the adapter can, as Socket.IO's `maxDisconnectionDuration`.
const RECOVERY: Duration = Duration::from_secs(120);

/// What a node is told.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// The node's name.
    pub id: Arc<str>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether other processes may listen there, too.
    pub reuse_port: bool,
    /// The release, for `X-Mainstay-Release`.
    pub release: Option<Arc<str>>,
    /// Whether `/` is the chat page.
    pub page: bool,
    /// How the node meets the others.
    pub cluster: ClusterSettings,
    /// What clients may do.
    pub clients: ClientSettings,
    /// Who may connect.
    pub auth: AuthSettings,
    /// What opens `/api`; `None`: it is closed.
    pub api: Option<Tokens>,
}

/// Everything that is wrong with the flags; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct SettingsError(pub Vec<String>);

/// Reads a file that a flag names.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

impl NodeSettings {
    /// The settings that these arguments give, as a command line would.
    ///
    /// # Errors
    ///
    /// Everything that is wrong.
    pub fn from_arguments(arguments: &[&str], file: ReadFile) -> Result<Self, SettingsError> {
        let written = std::iter::once(&"mainstay-node").chain(arguments);
        let alone = <FlagsCommand as clap::Parser>::try_parse_from(written);
        let alone = alone.map_err(|fault| SettingsError(vec![fault.to_string()]))?;
        Self::resolve(alone.flags, file)
    }

    /// Checks the flags as a whole.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, one line a fault.
    pub fn resolve(flags: NodeFlags, file: ReadFile) -> Result<Self, SettingsError> {
        let mut faults = Vec::new();
        let cluster = cluster_settings(flags.cluster, file, &mut faults);
        let auth = auth_settings(&flags.auth, file, &mut faults);
        let api = flags.auth.api_token_file.as_deref().and_then(|path| {
            let text = read_file("--api-token-file", path, file, &mut faults)?;
            let tokens = Tokens::parse(&text);
            tokens.map_err(|fault| faults.push(format!("--api-token-file {}: {fault}", path.display()))).ok()
        });
        let clients = clients::client_settings(flags.clients, &mut faults);
        if !faults.is_empty() {
            return Err(SettingsError(faults));
        }
        Ok(Self {
            id: flags.id.into(),
            listen: flags.listen,
            reuse_port: flags.reuse_port,
            release: flags.release.map(Into::into),
            page: flags.page,
            cluster,
            clients,
            auth,
            api,
        })
    }
}

/// The flags as a command of their own, for who has no command line.
#[derive(Debug, clap::Parser)]
struct FlagsCommand {
    #[command(flatten)]
    flags: NodeFlags,
}

fn cluster_settings(flags: ClusterFlags, file: ReadFile, faults: &mut Vec<String>) -> ClusterSettings {
    let has_redis = flags.redis.is_some();
    let redis = redis_place(&flags, file, faults);
    let adapter = flags.adapter.unwrap_or(if has_redis { AdapterKind::Streams } else { AdapterKind::Memory });
    let word = adapter.word();
    match (adapter, has_redis) {
        (AdapterKind::Memory, true) => faults.push(
            "--adapter memory keeps everything in the process, and --redis is given; remove one of them"
                .into(),
        ),
        (AdapterKind::Memory, false) | (_, true) => {}
        (_, false) => faults.push(format!("--adapter {word} needs --redis, as redis://127.0.0.1:6379")),
    }
    let can_recover = matches!(adapter, AdapterKind::Streams | AdapterKind::Memory);
    let recovery = flags.recovery.or(can_recover.then_some(RECOVERY)).filter(|time| !time.is_zero());
    if recovery.is_some() && !can_recover {
        // The sharded adapter of Node.js corrupts arguments with the option on, and the classic one stores nothing.
        faults.push(format!("--recovery does not work with --adapter {word}; take streams, or write 0s"));
    }
    if flags.presence_lease < Duration::from_secs(1) {
        faults.push("--presence-lease is too short to be renewed in time; write at least 1s".into());
    }
    ClusterSettings {
        redis,
        adapter,
        prefix: flags.prefix,
        stream_name: flags.stream_name,
        stream_count: flags.stream_count,
        stream_max_len: flags.stream_max_len,
        read_count: flags.read_count,
        sharded_pubsub: flags.sharded_pubsub,
        subscription_mode: flags.subscription_mode,
        recovery,
        presence_prefix: flags.presence_prefix,
        presence_lease: flags.presence_lease,
    }
}

fn redis_place(flags: &ClusterFlags, file: ReadFile, faults: &mut Vec<String>) -> Option<RedisPlace> {
    let url = flags.redis.as_ref()?;
    let mut place = match RedisAddress::parse(&url.0, flags.redis_cluster) {
        Ok(place) => place,
        Err(fault) => {
            faults.push(format!("--redis: {fault}"));
            return None;
        }
    };
    if let Some(path) = &flags.redis_ca {
        place = place.with_root_certificates(read_file("--redis-ca", path, file, faults)?.into_bytes());
    }
    if let Some(path) = &flags.redis_password_file {
        let password = read_file("--redis-password-file", path, file, faults)?;
        place = place.with_password(password.trim_end_matches(['\r', '\n']));
    }
    Some(RedisPlace(place))
}

fn auth_settings(flags: &AuthFlags, file: ReadFile, faults: &mut Vec<String>) -> AuthSettings {
    let key = flags.jwt_key_file.as_deref().zip(flags.jwt_algorithm).and_then(|(path, algorithm)| {
        let text = read_file("--jwt-key-file", path, file, faults)?;
        let key = JwtKey::parse(algorithm, &text);
        key.map_err(|fault| faults.push(format!("--jwt-key-file {}: {fault}", path.display()))).ok()
    });
    if flags.jwt_leeway > Duration::from_secs(300) {
        let most = "a token would live that much longer than it says; write at most 5m";
        faults.push(format!("--jwt-leeway {}: {most}", show_duration(&flags.jwt_leeway)));
    }
    AuthSettings {
        key,
        issuer: flags.jwt_issuer.clone(),
        audience: flags.jwt_audience.clone(),
        leeway: flags.jwt_leeway,
    }
}

fn read_file(flag: &str, path: &Path, file: ReadFile, faults: &mut Vec<String>) -> Option<String> {
    let read = file(path);
    read.map_err(|error| faults.push(format!("{flag} {}: {error}", path.display()))).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The settings of a node `ws1` with these flags; files are made up.
    pub(crate) fn settings(arguments: &[&str]) -> Result<NodeSettings, String> {
        let file = |path: &Path| match path.to_str() {
            Some("token") => Ok("an-api-token-0123456789".into()),
            Some("secret") => Ok("0123456789abcdef0123456789abcdef\n".into()),
            Some("short") => Ok("short".into()),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        let written = [&["--id", "ws1", "--listen", "127.0.0.1:0"], arguments].concat();
        NodeSettings::from_arguments(&written, &file).map_err(|faults| faults.to_string())
    }

    #[test]
    fn without_redis_the_adapter_is_memory_and_with_it_streams() {
        let alone = settings(&[]).unwrap();
        assert_eq!(alone.cluster.adapter, AdapterKind::Memory);
        assert_eq!(alone.clients.max_connections, 50_000);
        assert_eq!(alone.clients.max_payload, 16 << 10);
        assert_eq!(alone.clients.idle, Duration::from_secs(60));
        assert_eq!(alone.clients.drain, Duration::from_secs(30));
        assert_eq!(alone.clients.namespaces, ["/"]);
        assert_eq!(alone.clients.trusted_proxies.len(), 8);
        assert_eq!(alone.clients.connect_timeout, Duration::from_secs(10));
        assert_eq!((alone.clients.pending.most, alone.clients.pending.per_address), (5000, 500));
        assert_eq!(alone.cluster.recovery, Some(RECOVERY));
        let joined = settings(&["--redis", "redis://127.0.0.1:6379", "--namespaces", "/a,/b"]).unwrap();
        assert_eq!(joined.cluster.adapter, AdapterKind::Streams);
        assert_eq!((joined.cluster.stream_max_len, joined.cluster.read_count), (10_000, 100));
        assert_eq!(joined.clients.namespaces, ["/", "/a", "/b"]);
    }

    #[test]
    fn what_does_not_go_together_is_said_with_the_flag_and_what_would_be_right() {
        const REDIS: &str = "redis://127.0.0.1:6379";
        let cases: &[(&[&str], &str)] = &[
            (&["--adapter", "memory", "--redis", REDIS], "--adapter memory"),
            (&["--adapter", "pubsub"], "needs --redis"),
            (&["--adapter", "sharded", "--redis", REDIS, "--recovery", "2m"], "take streams, or write 0s"),
            (&["--adapter", "pubsub", "--redis", REDIS, "--recovery", "2m"], "take streams, or write 0s"),
            (&["--adapter", "stream"], "possible values: memory, streams, pubsub, sharded"),
            (&["--redis", "http://x"], "right would be redis://"),
            (&["--redis", REDIS, "--redis-ca", "none"], "--redis-ca none"),
            (&["--idle", "20s"], "--ping-interval"),
            (&["--ping-timeout", "0s"], "write 25s"),
            (&["--max-connections", "0"], "write 50000"),
            (&["--connect-timeout", "0s"], "--connect-timeout 0s"),
            (&["--max-pending", "0"], "write 1 or more"),
            (&["--max-payload", "1B"], "write 16KiB"),
            (&["--max-payload", "2MiB"], "--backlog"),
            (&["--origin", "example.com"], "https://example.com"),
            (&["--jwt-key-file", "secret"], "--jwt-algorithm"),
            (&["--jwt-key-file", "none", "--jwt-algorithm", "HS256"], "--jwt-key-file none"),
            (&["--jwt-key-file", "short", "--jwt-algorithm", "HS256"], "32 bytes"),
            (&["--jwt-leeway", "1h"], "at most 5m"),
            (&["--api-token-file", "short"], "line 1 has 5 characters"),
            (&["--presence-lease", "10ms"], "at least 1s"),
            (&["--release", "a b"], "letters, digits"),
        ];
        for (arguments, said) in cases {
            let message = settings(arguments).unwrap_err();
            assert!(message.contains(said), "{arguments:?}: {message}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let message =
            settings(&["--adapter", "pubsub", "--idle", "1s", "--max-connections", "0"]).unwrap_err();
        assert_eq!(message.lines().count(), 3, "{message}");
    }

    #[test]
    fn no_secret_is_shown() {
        let arguments = ["--redis", "redis://me:hunter2@127.0.0.1:6379/1", "--api-token-file", "token"];
        let key = ["--jwt-key-file", "secret", "--jwt-algorithm", "HS256"];
        let settings = settings(&[&arguments[..], &key].concat()).unwrap();
        let shown = format!("{settings:?}");
        for secret in ["hunter2", "0123456789abcdef", "an-api-token"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(shown.contains("127.0.0.1:6379"), "{shown}");
    }
}
