//! What a connection of one listener has to pass before HTTP: its PROXY header, the limit of its client, TLS.
//!
//! An acceptor lives as long as its listener. A reload can replace what it asks for at any moment; that holds for the
//! connections that come from then on. Each step waits for its first byte before it allocates anything.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::catch_panic::catch_panic;
use super::context::ProxyContext;
use crate::config::{self, ListenerTls, TlsVersion};
use crate::http::reply::ProxyError;
use crate::metrics::{ConnectionRefusal, HandshakeResult};
use crate::net::connection_limit::ConnectionPermit;
use crate::net::proxy_protocol::{self, ProxyAddresses, ProxyHeaderError};
use crate::net::stream::Stream;
use crate::net::tls::extracted::TlsProtocolVersion;
use crate::net::tls::server::{ServerCertificate, ServerTlsSettings, TlsServer};
use crate::shutdown::Phase;

/// How long a connection on which nothing has been asked yet may still begin, when another process has taken over.
const LAST_CALL: Duration = Duration::from_secs(1);

/// The rules of one listener.
pub struct Acceptor {
    /// Each connection begins with a PROXY header.
    proxy_protocol: AtomicBool,
    /// `None` is plain text.
    tls: ArcSwapOption<TlsServer>,
}

/// A connection that has a permit, before its first byte.
pub struct AcceptedConnection {
    /// What it is read from and written to.
    pub stream: Stream,
    /// Client and destination, as far as they are known here; a Unix socket's client counts as this machine.
    pub ends: ProxyAddresses,
    /// Its permit among the connections.
    pub permit: ConnectionPermit,
}

/// A connection on which HTTP begins.
pub struct EstablishedConnection {
    /// The connection, as HTTP is spoken on it.
    pub accepted: AcceptedConnection,
    /// Since when its first request head is awaited.
    pub since: Instant,
}

/// How the wait for a first byte ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstByte {
    /// It, or the end of the stream, is there.
    Arrived,
    /// It did not come in time.
    TimedOut,
    /// The process ends.
    ShuttingDown,
}

/// The time that one step may take.
#[derive(Debug, Clone, Copy)]
struct StepTime {
    since: Instant,
    limit: Duration,
}

impl StepTime {
    fn begin(limit: Duration) -> Self {
        Self { since: Instant::now(), limit }
    }

    fn deadline(self) -> Instant {
        self.since + self.limit
    }
}

impl Acceptor {
    /// The rules that a listener's config describes.
    ///
    /// # Errors
    ///
    /// When rustls cannot do what it says.
    pub fn new(config: &config::ListenerConfig) -> Result<Self, rustls::Error> {
        let server = config.tls.as_ref().map(|tls| TlsServer::new(&server_settings(tls))).transpose()?;
        let proxy_protocol = AtomicBool::new(config.proxy_protocol);
        Ok(Self { proxy_protocol, tls: ArcSwapOption::new(server.map(Arc::new)) })
    }

    /// Takes over the rules of `next`.
    pub(crate) fn replace_with(&self, next: &Self) {
        self.proxy_protocol.store(next.proxy_protocol.load(Relaxed), Relaxed);
        self.tls.store(next.tls.load_full());
    }

    /// Brings the connection to the beginning of HTTP; `None` after the end of one that does not get that far.
    pub(super) async fn establish(
        &self,
        context: &ProxyContext,
        mut accepted: AcceptedConnection,
    ) -> Option<EstablishedConnection> {
        let mut time = StepTime::begin(context.state.load().limits.head_time);
        if self.proxy_protocol.load(Relaxed) {
            // A peer that may not announce anybody is cut at once.
            let is_trusted = context.state.load().trusts(accepted.ends.source.ip());
            let until = if is_trusted { time.deadline() } else { time.since };
            let first = first_byte(context, &accepted.stream, until).await;
            let announced = read_proxy_header(context, accepted, first, time);
            accepted = catch_panic(&context.metrics, announced).await??;
            time = StepTime::begin(time.limit);
        }
        if !acquire_for_client(context, &mut accepted) {
            let reply = self.refuse(context, accepted.stream, ProxyError::ClientConnectionLimit);
            if let Some(reply) = reply {
                Box::pin(reply).await;
            }
            return None;
        }
        let first = first_byte(context, &accepted.stream, time.deadline()).await;
        if let Some(server) = self.tls.load_full() {
            let secured = accept_tls(context, &server, accepted.stream, first, time);
            accepted.stream = catch_panic(&context.metrics, secured).await??;
            time = StepTime::begin(time.limit);
        } else if first != FirstByte::Arrived {
            accepted.stream.linger().await;
            return None;
        }
        Some(EstablishedConnection { accepted, since: time.since })
    }

    /// Ends a connection over a limit. The reply that says why is given where it costs no TLS handshake and few others
    /// are under way; all other connections are closed here and now.
    pub(super) fn refuse(
        &self,
        context: &ProxyContext,
        mut stream: Stream,
        error: ProxyError,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        tracing::debug!(peer = ?stream.peer_addr(), %error, "connection refused");
        let refusal = if error == ProxyError::ConnectionLimit {
            ConnectionRefusal::Connections
        } else {
            ConnectionRefusal::PerClient
        };
        context.metrics.record_refusal(refusal);
        if self.tls.load().is_some() {
            return None;
        }
        let slot = Arc::clone(&context.admission.refusal_slots).try_acquire_owned().ok()?;
        let reply = error.to_raw_response(context.next_id());
        Some(async move {
            // The socket's buffer is empty, so this does not wait.
            if stream.write_all(reply.as_bytes()).await.is_ok() {
                stream.linger().await;
            }
            drop(slot);
        })
    }
}

/// Waits for the first byte without a buffer.
async fn first_byte(context: &ProxyContext, stream: &Stream, until: Instant) -> FirstByte {
    let shutting_down = async {
        tokio::select! {
            // What is already on its way to this process is still served.
            () = context.shutdown.wait_until_superseded() => tokio::time::sleep(LAST_CALL).await,
            () = context.shutdown.wait_for(Phase::Draining) => {}
        }
    };
    tokio::select! {
        biased;
        // The next read reports an error.
        _ = poll_fn(|cx| stream.poll_readable(cx)) => FirstByte::Arrived,
        () = tokio::time::sleep_until(until) => FirstByte::TimedOut,
        () = shutting_down => FirstByte::ShuttingDown,
    }
}

/// Counts the connection for its client; false when that client is at its limit.
fn acquire_for_client(context: &ProxyContext, accepted: &mut AcceptedConnection) -> bool {
    let (state, client) = (context.state.load(), accepted.ends.source.ip());
    // A proxy stands for many clients; each of its upgrades is counted for its own.
    let limit = if state.trusts(client) { 0 } else { state.limits.connections_per_client };
    accepted.permit.acquire_for_client(client, limit)
}

/// The connection with the ends that its PROXY header names.
async fn read_proxy_header(
    context: &ProxyContext,
    mut accepted: AcceptedConnection,
    first: FirstByte,
    time: StepTime,
) -> Option<AcceptedConnection> {
    let peer = accepted.ends.source.ip();
    let read = if context.state.load().trusts(peer) {
        let read = match first {
            FirstByte::Arrived => tokio::select! {
                read = proxy_protocol::read_header(&mut accepted.stream, time.limit.saturating_sub(time.since.elapsed())) => read,
                () = context.shutdown.wait_for(Phase::Draining) => return None,
            },
            FirstByte::TimedOut => Err(ProxyHeaderError::Timeout(time.limit)),
            FirstByte::ShuttingDown => return None,
        };
        read.map_err(|error| tracing::debug!(%peer, %error, "connection closed: bad PROXY header"))
    } else {
        tracing::debug!(%peer, "connection closed: peer is not in trusted_proxies");
        Err(())
    };
    let Ok(ends) = read else {
        context.metrics.record_refusal(ConnectionRefusal::ProxyProtocol);
        return None;
    };
    accepted.ends = ends.unwrap_or(accepted.ends);
    Some(accepted)
}

fn server_settings(tls: &ListenerTls) -> ServerTlsSettings {
    let certificate = |identity: &config::Identity| ServerCertificate {
        names: identity.names.clone(),
        certified: Arc::clone(&identity.certified),
    };
    let secrets = tls.tickets.iter().flat_map(|tickets| tickets.secrets());
    ServerTlsSettings {
        certificates: tls.certificates.iter().map(certificate).collect(),
        client_roots: tls.client_ca.as_ref().map(|ca| Arc::clone(&ca.roots)),
        min_version: match tls.min_version {
            TlsVersion::Tls12 => TlsProtocolVersion::Tls12,
            TlsVersion::Tls13 => TlsProtocolVersion::Tls13,
        },
        ticket_secrets: secrets.map(|secret| Zeroizing::new(secret.to_vec())).collect(),
    }
}

async fn accept_tls(
    context: &ProxyContext,
    server: &TlsServer,
    stream: Stream,
    first: FirstByte,
    time: StepTime,
) -> Option<Stream> {
    let peer = stream.peer_addr();
    let accepted = match first {
        FirstByte::Arrived => tokio::select! {
            accepted = tokio::time::timeout_at(time.deadline(), server.accept(stream)) => accepted.ok(),
            () = context.shutdown.wait_for(Phase::Draining) => return None,
        },
        FirstByte::TimedOut => None,
        FirstByte::ShuttingDown => return None,
    };
    match accepted {
        Some(Ok(stream)) => return Some(stream),
        Some(Err((error, stream))) => {
            tracing::debug!(?peer, %error, "TLS handshake failed");
            // The alert must not be overtaken by a reset.
            stream.linger().await;
        }
        None => tracing::debug!(?peer, "TLS handshake timed out"),
    }
    context.metrics.record_unrouted_handshake(HandshakeResult::Refused);
    None
}
