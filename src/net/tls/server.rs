//! TLS as clients see it: which certificate, which versions, whose certificates are asked for, which tickets.
//!
//! A `TlsServer` is what one listener offers, checked and ready, and never changes: for other certificates, another
//! one takes its place, and connections that exist keep what they were made with. HTTP/1.1 is the only protocol that
//! is agreed on, and data before the end of the handshake (0-RTT) is off.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, LazyLock};

use aws_lc_rs::digest::{self, SHA256};
use aws_lc_rs::rand;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::extracted::TlsProtocolVersion;
use super::record_reader::RecordReader;
use super::rustls_stream::RustlsStream;
use super::secret_log::TrafficSecretLog;
use super::ticketer::SharedTicketer;
use super::{HTTP_1_1, provider};
use crate::net::stream::Stream;

/// What a listener offers.
#[derive(Debug)]
pub(crate) struct ServerTlsSettings {
    /// The certificates; the first is for clients that name no host, or an unknown one.
    pub certificates: Vec<ServerCertificate>,
    /// Clients must have a certificate of one of these.
    pub client_roots: Option<Arc<RootCertStore>>,
    /// The lowest version that is spoken.
    pub min_version: TlsProtocolVersion,
    /// Secrets of the session tickets, the first seals; without any, one that only this process has.
    pub ticket_secrets: Vec<Zeroizing<Vec<u8>>>,
}

/// A certificate with its key, and the hosts that it is for.
#[derive(Debug, Clone)]
pub(crate) struct ServerCertificate {
    /// Lower case; `*.example.com` is for the names one level below.
    pub names: Vec<String>,
    /// The chain, and the key that signs.
    pub certified: Arc<CertifiedKey>,
}

/// Makes the TLS connections of one listener.
pub(crate) struct TlsServer(Arc<ServerConfig>);

impl TlsServer {
    /// Offers `terms`.
    ///
    /// # Errors
    ///
    /// When rustls cannot do what they say, or the system has no randomness.
    pub(crate) fn new(terms: &ServerTlsSettings) -> Result<Self, rustls::Error> {
        server_config(terms).map(|config| Self(Arc::new(config)))
    }

    /// The handshake. It has no deadline of its own.
    ///
    /// # Errors
    ///
    /// What the client did wrong, with its stream: an alert is on its way there.
    pub(crate) async fn accept(&self, stream: Stream) -> Result<Stream, (io::Error, Stream)> {
        let secrets = Arc::new(TrafficSecretLog::default());
        // A config of its own, because a key log is not told which connection a secret belongs to. All that is big in
        // it is shared.
        let mut config = ServerConfig::clone(&self.0);
        config.key_log = secrets.clone();
        let accepting = TlsAcceptor::from(Arc::new(config)).accept(RecordReader::new(stream));
        match accepting.into_fallible().await {
            Ok(stream) => Ok(Stream::Tls(Box::new(RustlsStream::new(stream.into(), secrets)))),
            Err((error, reader)) => Err((error, reader.into_parts().0)),
        }
    }
}

/// The ticket secret of this process, for listeners that have none of their own. Its tickets outlive a reload.
fn own_ticket_secret() -> Option<Zeroizing<Vec<u8>>> {
    static SECRET: LazyLock<Option<Zeroizing<Vec<u8>>>> = LazyLock::new(|| {
        let mut secret = Zeroizing::new(vec![0; 32]);
        rand::fill(&mut secret).ok().map(|()| secret)
    });
    SECRET.clone()
}

fn server_config(terms: &ServerTlsSettings) -> Result<ServerConfig, rustls::Error> {
    let versions = match terms.min_version {
        TlsProtocolVersion::Tls12 => rustls::ALL_VERSIONS,
        TlsProtocolVersion::Tls13 => &[&TLS13],
    };
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
    let builder = match &terms.client_roots {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
            let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(CertificateResolver::new(&terms.certificates)));
    let secrets = match &terms.ticket_secrets[..] {
        [] => vec![own_ticket_secret().ok_or(rustls::Error::FailedToGetRandomBytes)?],
        secrets => secrets.to_vec(),
    };
    config.ticketer =
        Arc::new(SharedTicketer::new(secrets, client_auth_digest(terms.client_roots.as_deref())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    config.enable_secret_extraction = true;
    Ok(config)
}

/// What a client has to prove, as a number that two listeners share only if they ask for the same.
fn client_auth_digest(roots: Option<&RootCertStore>) -> [u8; 32] {
    let mut context = digest::Context::new(&SHA256);
    for root in roots.into_iter().flat_map(|roots| &roots.roots) {
        context.update(&root.subject);
        context.update(&root.subject_public_key_info);
        context.update(&[u8::from(root.name_constraints.is_some())]);
    }
    let mut policy = [0; 32];
    policy.copy_from_slice(context.finish().as_ref());
    policy
}

/// Which certificate a client gets.
#[derive(Debug)]
struct CertificateResolver {
    /// Those for one name, by the name; several when their keys are of different kinds.
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// For everyone else: the first, with those that are for the same hosts.
    default: Vec<Arc<CertifiedKey>>,
}

impl CertificateResolver {
    fn new(certificates: &[ServerCertificate]) -> Self {
        let mut by_name: HashMap<String, Vec<Arc<CertifiedKey>>> = HashMap::new();
        for certificate in certificates {
            for name in &certificate.names {
                by_name.entry(name.clone()).or_default().push(Arc::clone(&certificate.certified));
            }
        }
        let same = |certificate: &&ServerCertificate| {
            certificates.first().is_some_and(|first| first.names == certificate.names)
        };
        let default = certificates.iter().filter(same).map(|certificate| Arc::clone(&certificate.certified));
        Self { by_name, default: default.collect() }
    }

    /// The certificates for a host: its own, then those of all names on its level.
    fn find(&self, host: &str) -> &[Arc<CertifiedKey>] {
        let host = host.to_ascii_lowercase();
        let wildcard = || self.by_name.get(&format!("*.{}", host.split_once('.')?.1));
        self.by_name.get(&host).or_else(wildcard).unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fitting = hello.server_name().map_or(&self.default[..], |host| self.find(host));
        let can_sign =
            |certified: &&Arc<CertifiedKey>| certified.key.choose_scheme(hello.signature_schemes()).is_some();
        fitting.iter().find(can_sign).or(fitting.first()).cloned()
    }
}
