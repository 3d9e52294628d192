//! Certificates in a folder of their own, and TLS clients and nodes that use them.

use std::path::Path;
use std::sync::Arc;

use mainstay::app::App;
use mainstay::config::{self, Config};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::harness::{RawStream, soon};

/// A folder with an authority, `ca.pem`, and what it has signed.
pub struct TestCertificates {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl TestCertificates {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority of the tests");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let certs = Self { folder: tempfile::tempdir().unwrap(), authority };
        certs.write("ca.pem", certs.authority.pem());
        certs
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// `NAME.pem` and `NAME.key`, for these hosts, or anew.
    pub fn issue(&self, name: &str, hosts: &[&str]) {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, "Tests, Inc.");
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        self.write(&format!("{name}.pem"), certificate.pem());
        self.write(&format!("{name}.key"), key.serialize_pem());
    }

    pub fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap()
    }

    fn key(&self, name: &str) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap()
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate("ca")).unwrap();
        Arc::new(roots)
    }

    /// A client that speaks these versions and shows the certificate of this name.
    pub fn client_config(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        shown: Option<&str>,
    ) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots());
        Arc::new(match shown {
            Some(name) => {
                builder.with_client_auth_cert(vec![self.certificate(name)], self.key(name)).unwrap()
            }
            None => builder.with_no_client_auth(),
        })
    }

    /// A node's end of TLS, with the certificate of this name; `asks` for one of its client's.
    pub fn node(&self, name: &str, asks: bool) -> TlsAcceptor {
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .unwrap();
        let provider = Arc::new(default_provider());
        let builder = match asks {
            true => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(self.roots(), provider).build().unwrap(),
            ),
            false => builder.with_no_client_auth(),
        };
        TlsAcceptor::from(Arc::new(
            builder.with_single_cert(vec![self.certificate(name)], self.key(name)).unwrap(),
        ))
    }

    /// A config with this `tls` of its one listener, in front of `node`; `more` is the rest of the pool and what is
    /// behind it. `DIR` is the folder.
    pub fn config(&self, tls: &str, node: &TcpListener, more: &str) -> Config {
        let address = node.local_addr().unwrap();
        let text = format!(
            "listeners: [{{ address: \"127.0.0.1:0\", tls: {tls} }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
             access_log: {{ format: off }}\nshutdown: {{ drain: 1s }}\nlimits: {{ head_time: 300ms }}\n\
             pools:\n  chat:\n    nodes: [{{ id: ws1, address: \"{address}\" }}]\n    health: null\n{more}"
        );
        let text = text.replace("DIR", self.folder.path().to_str().unwrap());
        let read = |path: &Path| std::fs::read(path);
        config::resolve("it", text.as_bytes(), &|_| None, &read).unwrap_or_else(|faults| panic!("{faults}"))
    }

    pub async fn start(&self, tls: &str, node: &TcpListener, more: &str) -> App {
        soon(App::start(&self.config(tls, node, more))).await.unwrap()
    }
}

/// A TLS client.
pub type TlsClient = RawStream<client::TlsStream<TcpStream>>;

/// A TLS client of `app` that asks for `host`.
pub async fn connect(app: &App, config: &Arc<ClientConfig>, host: &str) -> std::io::Result<TlsClient> {
    let stream = soon(TcpStream::connect(&app.listeners()[0])).await.unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    soon(TlsConnector::from(Arc::clone(config)).connect(name, stream)).await.map(RawStream)
}

/// A node's side of the next connection, with its TLS handshake done.
pub async fn accept(node: &TcpListener, tls: &TlsAcceptor) -> RawStream<server::TlsStream<TcpStream>> {
    let (stream, _) = soon(node.accept()).await.unwrap();
    RawStream(soon(tls.accept(stream)).await.unwrap())
}
