//! TLS to a node, with this end as the client.
//!
//! There are no roots that come with the balancer: a node's certificate must be of an authority that the config
//! names. The name that it must be for is the caller's to say.

use std::error::Error;
use std::io;
use std::sync::Arc;

use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::record_reader::RecordReader;
use super::rustls_stream::RustlsStream;
use super::secret_log::TrafficSecretLog;
use super::{HTTP_1_1, provider};
use crate::net::stream::Stream;

/// What a node has against the certificate of the balancer. With TLS 1.3 it says so behind the handshake, so it comes as an
/// error of the first read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CertificateRefusal {
    /// None was shown, and the node asks for one.
    Missing,
    /// The one that was shown is not believed.
    Untrusted,
    /// Perhaps that, in TLS 1.2; perhaps there is no cipher in common.
    Unspecified,
}

impl CertificateRefusal {
    /// The one that is the cause of `error`, if it is.
    pub(crate) fn find_in(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            let inner = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
            if let Some(rustls::Error::AlertReceived(alert)) = inner.or(error.downcast_ref()) {
                return Self::from_alert(*alert);
            }
            next = error.source();
        }
        None
    }

    /// RFC 8446, section 6.2.
    fn from_alert(alert: AlertDescription) -> Option<Self> {
        match alert {
            AlertDescription::CertificateRequired => Some(Self::Missing),
            AlertDescription::HandshakeFailure => Some(Self::Unspecified),
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => Some(Self::Untrusted),
            _ => None,
        }
    }
}

/// Makes TLS connections to the nodes of one pool; it remembers their tickets.
#[derive(Debug, Clone)]
pub(crate) struct TlsClient(Arc<ClientConfig>);

impl TlsClient {
    /// Believes certificates of `roots`, and shows `identity` to nodes that ask for one.
    pub(crate) fn new(roots: Arc<RootCertStore>, identity: Option<Arc<CertifiedKey>>) -> Self {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .expect("the provider has suites for both versions")
            .with_root_certificates(roots);
        let mut config = match identity {
            Some(identity) => {
                let identity = SingleCertAndKey::from(CertifiedKey::clone(&identity));
                builder.with_client_cert_resolver(Arc::new(identity))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![HTTP_1_1.to_vec()];
        config.enable_secret_extraction = true;
        Self(Arc::new(config))
    }

    /// The handshake, with a node whose certificate must be for `name`. It has no deadline of its own.
    ///
    /// # Errors
    ///
    /// What is wrong with the node's certificate, or with what it says.
    pub(crate) async fn connect(&self, name: ServerName<'static>, stream: Stream) -> io::Result<Stream> {
        let secrets = Arc::new(TrafficSecretLog::default());
        // As in [`super::server`]: a key log is not told which connection a secret belongs to.
        let mut config = ClientConfig::clone(&self.0);
        config.key_log = secrets.clone();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, RecordReader::new(stream)).await?;
        Ok(Stream::Tls(Box::new(RustlsStream::new(stream.into(), secrets))))
    }
}
