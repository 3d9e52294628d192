//! TLS: what a listener shows its clients, and how the nodes of a pool are spoken to.

use std::path::{Path, PathBuf};

use rustls_pki_types::ServerName;
use zeroize::Zeroizing;

use super::identity::{Authorities, Chain, Identity, Signer};
use super::reader::{Section, Value};
use super::sources::key_ring;
use crate::affinity::cookie::KeyRing;
use crate::pool::{Node, NodeAddress};

/// How a listener speaks TLS.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerTls {
    /// Its certificates; at least one. The first is for clients that name no host, or one that none is for.
    pub certificates: Vec<Identity>,
    /// Clients must show a certificate of one of these; `None` asks for none.
    pub client_ca: Option<Authorities>,
    /// The lowest version that is spoken.
    pub min_version: TlsVersion,
    /// Where the secrets of session tickets were read from, as written.
    pub ticket_secret_file: Option<PathBuf>,
    /// What session tickets are sealed with; `None` is a secret that only this process has.
    pub tickets: Option<KeyRing>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl TlsVersion {
    /// As the config writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        }
    }
}

/// How the nodes of a pool are spoken to over TLS.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolTls {
    /// Who may have signed the nodes' certificates. No authority comes with the balancer.
    pub ca: Authorities,
    /// The host that every node's certificate must be for; `None` is the one in each node's address.
    pub server_name: Option<ServerName<'static>>,
    /// What the balancer shows to nodes that ask for a certificate.
    pub identity: Option<Identity>,
}

/// The name that the certificate of a node must be for; `None` where its address has none, or no fit one.
pub fn node_name(tls: &PoolTls, address: &NodeAddress) -> Option<ServerName<'static>> {
    match (&tls.server_name, address) {
        (Some(name), _) => Some(name.clone()),
        (None, NodeAddress::Tcp { host, .. }) => ServerName::try_from(host.clone()).ok(),
        (None, NodeAddress::Unix(_)) => None,
    }
}

const SECRETS: &str = "the path of a secret file, or null";
const LISTENER_KEYS: &[&str] = &["certificates", "client_ca", "min_version", "ticket_secret_file"];

/// `tls` of a listener, if it has it.
pub(super) fn listener(listener: &Section) -> Option<ListenerTls> {
    const EXAMPLE: &str = "- { cert: site.pem, key: site.key }";
    const VERSIONS: &[(&str, TlsVersion)] = &[("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)];
    let section = listener.some("tls")?.section(LISTENER_KEYS);
    let items = section.required("certificates", &format!("a list of them, such as `{EXAMPLE}`"));
    let items = items.map(|value| value.some_items(EXAMPLE)).unwrap_or_default();
    let tickets = section.some("ticket_secret_file");
    Some(ListenerTls {
        certificates: items.iter().filter_map(|item| identity(&item.section(&["cert", "key"]))).collect(),
        client_ca: section.some("client_ca").and_then(|value| authorities(&value)),
        min_version: section.word("min_version", TlsVersion::default(), VERSIONS),
        ticket_secret_file: tickets.and_then(|value| value.text(SECRETS)).map(PathBuf::from),
        tickets: tickets.and_then(|value| key_ring(&value)),
    })
}

/// `tls` of a pool with these nodes, if it has it.
pub(super) fn pool(pool: &Section, nodes: &[Node]) -> Option<PoolTls> {
    let value = pool.some("tls")?;
    let section = value.section(&["ca", "server_name", "cert", "key"]);
    let ca = section.required(
        "ca",
        "`ca:` and a PEM file with the authority that signed the nodes' certificates; none is believed unsaid",
    );
    let server_name = section.some("server_name").and_then(|value| {
        value.parsed("a host name, such as nodes.internal, or an IP address", |text| {
            ServerName::try_from(text.to_owned()).ok()
        })
    });
    let has_identity = section.some("cert").is_some() || section.some("key").is_some();
    let tls = PoolTls {
        ca: ca.and_then(|value| authorities(&value))?,
        server_name,
        identity: has_identity.then(|| identity(&section)).flatten(),
    };
    if section.some("server_name").is_none() {
        for node in nodes.iter().filter(|node| node_name(&tls, &node.address).is_none()) {
            value.fault(format_args!(
                "no certificate can be for the address of node {}; write `server_name:` and what it is for",
                node.id
            ));
        }
    }
    Some(tls)
}

/// The certificate under `cert` and the key under `key`; `None` after a fault.
fn identity(section: &Section) -> Option<Identity> {
    let cert = section.required("cert", "`cert:` and the path of a PEM certificate");
    let key = section.required("key", "`key:` and the path of its PEM private key");
    let chain = cert.and_then(|value| {
        from_file(&value, "the path of a PEM certificate", |path, pem| {
            let mut warn = |warning| value.warn(format_args!("{}: {warning}", path.display()));
            Chain::parse(pem, value.reader.now, &mut warn)
        })
    });
    let signer =
        key.and_then(|value| from_file(&value, "the path of a PEM private key", |_, pem| Signer::parse(pem)));
    let ((chain_path, chain), (signer_path, signer)) = (chain?, signer?);
    let identity = Identity::new((&chain_path, chain), (&signer_path, signer));
    match (identity, key) {
        (Ok(identity), _) => Some(identity),
        (Err(message), key) => {
            key?.fault(format_args!("{}: {message}", signer_path.display()));
            None
        }
    }
}

fn authorities(value: &Value) -> Option<Authorities> {
    from_file(value, "the path of a PEM file with certificates", Authorities::parse).map(|(_, found)| found)
}

/// What `parse` makes of the file that `value` names; its message becomes a fault that begins with the file.
fn from_file<T>(
    value: &Value,
    expected: &str,
    parse: impl FnOnce(&Path, &[u8]) -> Result<T, String>,
) -> Option<(PathBuf, T)> {
    let path = PathBuf::from(value.text(expected)?);
    let bytes = match (value.reader.read)(&path) {
        // It may be a key.
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) => {
            value.fault(format_args!("{}: it cannot be read: {error}", path.display()));
            return None;
        }
    };
    match parse(&path, &bytes) {
        Ok(parsed) => Some((path, parsed)),
        Err(message) => {
            value.fault(format_args!("{}: {message}", path.display()));
            None
        }
    }
}
