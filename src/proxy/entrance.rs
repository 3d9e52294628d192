//! The way in at one listener: what a connection has to go through before HTTP begins.
//!
//! An entrance lives as long as its listener; what it asks for can be replaced at any moment and holds for the
//! connections that come from then on.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use zeroize::Zeroizing;

use super::Front;
use super::accept::linger;
use crate::config::{self, ListenerTls, TlsVersion};
use crate::metrics::Handshake;
use crate::net::stream::Stream;
use crate::net::tls::departed::Version;
use crate::net::tls::server::{Certificate, Terminator, Terms};
use crate::shutdown::Phase;

/// See the module.
pub struct Entrance {
    /// `None` is plain text.
    tls: ArcSwapOption<Terminator>,
}

impl Entrance {
    /// The entrance that a listener's config describes.
    ///
    /// # Errors
    ///
    /// When rustls cannot do what it says.
    pub fn new(config: &config::Listener) -> Result<Self, rustls::Error> {
        let terminator = config.tls.as_ref().map(|tls| Terminator::new(&terms(tls))).transpose()?;
        Ok(Self { tls: ArcSwapOption::new(terminator.map(Arc::new)) })
    }

    /// Asks for what `next` asks for from now on.
    pub fn change(&self, next: &Self) {
        self.tls.store(next.tls.load_full());
    }

    /// The connection as HTTP is spoken on it, within `time`; `None` after the end of one that does not get that far.
    pub(super) async fn receive(&self, front: &Front, stream: Stream, time: Duration) -> Option<Stream> {
        match self.tls.load_full() {
            None => Some(stream),
            // In a box, so that connections without TLS do not carry the room for it.
            Some(terminator) => Box::pin(secure(front, &terminator, stream, time)).await,
        }
    }
}

fn terms(tls: &ListenerTls) -> Terms {
    let certificate = |identity: &config::Identity| Certificate {
        names: identity.names.clone(),
        certified: Arc::clone(&identity.certified),
    };
    let secrets = tls.tickets.iter().flat_map(|tickets| tickets.secrets());
    Terms {
        certificates: tls.certificates.iter().map(certificate).collect(),
        client_roots: tls.client_ca.as_ref().map(|ca| Arc::clone(&ca.roots)),
        min_version: match tls.min_version {
            TlsVersion::Tls12 => Version::Tls12,
            TlsVersion::Tls13 => Version::Tls13,
        },
        ticket_secrets: secrets.map(|secret| Zeroizing::new(secret.to_vec())).collect(),
    }
}

async fn secure(front: &Front, terminator: &Terminator, stream: Stream, time: Duration) -> Option<Stream> {
    let peer = stream.peer();
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(time, terminator.accept(stream)) => accepted,
        () = front.shutdown.reached(Phase::Draining) => return None,
    };
    match accepted {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err((error, stream))) => {
            tracing::debug!(?peer, %error, "TLS handshake failed");
            // The alert must not be overtaken by a reset.
            linger(stream).await;
        }
        Err(_) => tracing::debug!(?peer, "TLS handshake not done in time"),
    }
    front.metrics.unrouted_handshake(Handshake::Refused);
    None
}
