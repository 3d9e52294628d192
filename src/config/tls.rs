//! TLS: what a listener shows its clients, and how the nodes of a pool are spoken to.

use std::path::{Path, PathBuf};

use rustls_pki_types::ServerName;
use serde_json::{Map, Value as Json};
use zeroize::Zeroizing;

use super::change::{Comparison, What};
use super::entry::{Flat, Form, Keys, derived, section};
use super::forms::{FILE, Word, file, sections, word};
use super::identity::{Authorities, Chain, Identity, Signer};
use super::key::{Key, Shape, Text};
use super::reader::{Section, Value};
use super::secret::key_ring;
use crate::affinity::cookie::KeyRing;
use crate::pool::{Node, NodeAddress};

section! {
    /// How a listener speaks TLS.
    #[derive(Debug, Clone, PartialEq)]
    pub struct ListenerTls {
        /// Chosen by the name that the client asks for (SNI); the first when none fits.
        certificates: Vec<Identity> = sections(EXAMPLE)
            .compared_by(|old, new, to| compare_certificates(old, new, to))
            .required(format!("a list of them, such as `{EXAMPLE}`"));
        /// Whoever signed the certificates that clients must show, as PEM; null asks for none.
        client_ca: Option<Authorities> = authorities()
            .maybe()
            .compared_by(|old, new, to| compare_authorities(&old.as_ref(), &new.as_ref(), to))
            .or(Json::Null);
        /// The oldest TLS that is spoken.
        min_version: TlsVersion = word().or("1.2");
        /// Lines of NAME:BASE64; sessions resume on every replica that has the same file. null: on this process only.
        ticket_secret_file: Option<PathBuf> = file(SECRETS).or_null();
        /// What session tickets are sealed with; `None` is a secret that only this process has.
        tickets: Option<KeyRing> = derived(|tls| Some(tls.some("ticket_secret_file").and_then(|file| key_ring(&file))))
            .compared_by(|old, new, to| to.part("ticket secrets", old.as_ref(), new.as_ref()));
    }
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

impl Word for TlsVersion {
    const WORDS: &'static [(&'static str, Self)] = &[("1.2", Self::Tls12), ("1.3", Self::Tls13)];
}

section! {
    /// How the nodes of a pool are spoken to over TLS.
    #[derive(Debug, Clone, PartialEq)]
    pub struct PoolTls {
        /// Whoever signed the nodes' certificates, as PEM; no authority is believed unsaid.
        ca: Authorities = authorities().required(
            "`ca:` and a PEM file with the authority that signed the nodes' certificates; none is believed unsaid",
        );
        /// The name that the node's certificate must have; null: that of its address.
        server_name: Option<ServerName<'static>> = server_name().or_null();
        /// The certificate to show to the nodes, and its private key.
        identity: Option<Identity> = identity_or_none();
    }
}

/// The name that the certificate of a node must be for; `None` where its address has none, or no fit one.
pub(crate) fn node_name(tls: &PoolTls, address: &NodeAddress) -> Option<ServerName<'static>> {
    match (&tls.server_name, address) {
        (Some(name), _) => Some(name.clone()),
        (None, NodeAddress::Tcp { host, .. }) => ServerName::try_from(host.clone()).ok(),
        (None, NodeAddress::Unix(_)) => None,
    }
}

const EXAMPLE: &str = "- { cert: site.pem, key: site.key }";
const SECRETS: &str = "the path of a secret file, or null";
const CERT: &str = "the path of a PEM certificate";
const KEY: &str = "the path of a PEM private key";

/// A certificate with its key is read from two keys at once.
impl Keys for Identity {
    fn keys() -> Vec<Key> {
        vec![
            file(CERT).required(CERT).keys("cert", "The certificate and those of its issuers, as PEM."),
            file(KEY).required(KEY).keys("key", "Its private key, as PEM."),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn read(section: &Section) -> Option<Self> {
        identity(section)
    }

    fn show(&self, into: &mut Map<String, Json>) {
        into.insert("cert".into(), self.cert.display().to_string().into());
        into.insert("key".into(), self.key.display().to_string().into());
    }

    fn compare(_: &Self, _: &Self, _: &mut Comparison) {}
}

/// The same where a pool may leave both out.
fn identity_or_none() -> Flat<Option<Identity>> {
    let read = |tls: &Section| {
        let is_there = tls.some("cert").is_some() || tls.some("key").is_some();
        Some(is_there.then(|| identity(tls)).flatten())
    };
    let keys = || {
        let cert = "The certificate to show to the nodes, as PEM; null shows none.";
        let mut keys = file(CERT).or_null().keys("cert", cert);
        keys.extend(file(KEY).or_null().keys("key", "Its private key, as PEM."));
        keys
    };
    let show = |identity: &Option<Identity>, into: &mut Map<String, Json>| match identity {
        Some(identity) => identity.show(into),
        None => into.extend(["cert", "key"].map(|key| (key.to_owned(), Json::Null))),
    };
    derived(read)
        .with_keys(keys, show)
        .compared_by(|old, new, to| to.part("certificate shown to nodes", old.as_ref(), new.as_ref()))
}

fn server_name() -> Form<ServerName<'static>> {
    let read = |value: &Value| {
        value.parsed("a host name, such as nodes.internal, or an IP address", |text| {
            ServerName::try_from(text.to_owned()).ok()
        })
    };
    Form::new(Shape::Text(Text("a host name", "")), read, |name| name.to_str().into())
}

/// Says of which node no certificate can be.
pub(super) fn check_names(value: &Value, tls: &PoolTls, nodes: &[Node]) {
    if value.entry("server_name").is_some_and(|name| !name.is_null()) {
        return;
    }
    for node in nodes.iter().filter(|node| node_name(tls, &node.address).is_none()) {
        value.fault(format_args!(
            "no certificate can be for the address of node {}; write `server_name:` and what it is for",
            node.id
        ));
    }
}

/// The certificate under `cert` and the key under `key`; `None` after a fault.
fn identity(section: &Section) -> Option<Identity> {
    let cert = section.required("cert", "`cert:` and the path of a PEM certificate");
    let key = section.required("key", "`key:` and the path of its PEM private key");
    let chain = cert.and_then(|value| {
        from_file(&value, CERT, |path, pem| {
            let mut warn = |warning| value.warn(format_args!("{}: {warning}", path.display()));
            Chain::parse(pem, value.reader.now, &mut warn)
        })
    });
    let signer = key.and_then(|value| from_file(&value, KEY, |_, pem| Signer::parse(pem)));
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

fn authorities() -> Form<Authorities> {
    let read =
        |value: &Value| from_file(value, "the path of a PEM file with certificates", Authorities::parse);
    let show = |ca: &Authorities| ca.file.display().to_string().into();
    Form::new(Shape::Text(FILE), move |value| read(value).map(|(_, found)| found), show)
        .compared_by(|old, new, to| compare_authorities(&Some(old), &Some(new), to))
}

/// Of another file, or others in the same.
fn compare_authorities(old: &Option<&Authorities>, new: &Option<&Authorities>, to: &mut Comparison) {
    let file = |ca: &Option<&Authorities>| ca.map_or("none".into(), |ca| ca.file.display().to_string());
    if file(old) == file(new) {
        to.push(What::Replaced(format!("authorities of {}", file(new))));
    } else {
        to.set(file(new), file(old));
    }
}

/// By their files: a certificate of another file is added, one of the same file is replaced.
fn compare_certificates(old: &[Identity], new: &[Identity], to: &mut Comparison) {
    let is_file_of = |list: &[Identity], one: &Identity| list.iter().any(|other| other.cert == one.cert);
    for one in old.iter().filter(|one| !is_file_of(new, one)) {
        to.push(What::PartRemoved(format!("certificate {}", one.cert.display())));
    }
    for one in new.iter().filter(|one| !old.contains(one)) {
        let what = format!("certificate {} (until {})", one.cert.display(), one.expires);
        to.push(if is_file_of(old, one) { What::Replaced(what) } else { What::PartAdded(what) });
    }
    let files = |list: &[Identity], other: &[Identity]| -> Vec<String> {
        let both = list.iter().filter(|one| is_file_of(other, one));
        both.map(|one| one.cert.display().to_string()).collect()
    };
    // The first is for clients that ask for no name.
    to.order("the order of tls.certificates", &files(old, new), &files(new, old));
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
