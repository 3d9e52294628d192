//! The way in at one listener: what a connection has to go through before HTTP begins.
//!
//! An entrance lives as long as its listener; what it asks for can be replaced at any moment and holds for the
//! connections that come from then on. Each step waits for its first byte before anything is made for it.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ipnet::IpNet;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::ProxyContext;
use super::accept::{LAST_CALL, linger};
use super::catch_panic::catch_panic;
use crate::config::{self, ListenerTls, TlsVersion};
use crate::http::reply::ProxyError;
use crate::metrics::{Handshake, Refusal};
use crate::net::places::Place;
use crate::net::proxy_protocol::{self, Ends, HeaderFault};
use crate::net::stream::Stream;
use crate::net::tls::departed::Version;
use crate::net::tls::server::{Certificate, Terminator, Terms};
use crate::shutdown::Phase;

/// See the module.
pub struct Acceptor {
    /// Each connection begins with a PROXY header.
    proxy_protocol: AtomicBool,
    /// `None` is plain text.
    tls: ArcSwapOption<Terminator>,
}

impl Acceptor {
    /// The entrance that a listener's config describes.
    ///
    /// # Errors
    ///
    /// When rustls cannot do what it says.
    pub fn new(config: &config::Listener) -> Result<Self, rustls::Error> {
        let terminator =
            config.tls.as_ref().map(|tls| Terminator::new(&terminator_terms(tls))).transpose()?;
        let proxy_protocol = AtomicBool::new(config.proxy_protocol);
        Ok(Self { proxy_protocol, tls: ArcSwapOption::new(terminator.map(Arc::new)) })
    }

    /// Asks for what `next` asks for from now on.
    pub fn replace_with(&self, next: &Self) {
        self.proxy_protocol.store(next.proxy_protocol.load(Relaxed), Relaxed);
        self.tls.store(next.tls.load_full());
    }

    /// The connection as HTTP is spoken on it; `None` after the end of one that does not get that far.
    pub(super) async fn establish(
        &self,
        front: &ProxyContext,
        mut arrival: AcceptedConnection,
    ) -> Option<EstablishedConnection> {
        let (mut begun, time) = (Instant::now(), front.state.load().limits.head_time);
        if self.proxy_protocol.load(Relaxed) {
            // Whoever may not announce anybody is cut at once.
            let is_trusted = is_trusted(arrival.ends.source.ip(), &front.state.load().trusted_proxies);
            let until = if is_trusted { begun + time } else { begun };
            let first = first_byte(front, &arrival.stream, until).await;
            arrival = catch_panic(front, read_proxy_header(front, arrival, (first, begun, time))).await??;
            begun = Instant::now();
        }
        if !claim(front, &mut arrival) {
            if let Some(telling) = self.refuse(front, arrival.stream, ProxyError::ClientConnectionLimit) {
                Box::pin(telling).await;
            }
            return None;
        }
        let first = first_byte(front, &arrival.stream, begun + time).await;
        if let Some(terminator) = self.tls.load_full() {
            arrival.stream =
                catch_panic(front, accept_tls(front, &terminator, arrival.stream, (first, begun, time)))
                    .await??;
            begun = Instant::now();
        } else if first != FirstByte::Arrived {
            linger(arrival.stream).await;
            return None;
        }
        Some(EstablishedConnection { arrival, begun })
    }

    /// Ends a connection that there is no room for. Where that costs no TLS handshake, and not too many are being
    /// told already, what is given tells it why; all others are closed here and now.
    pub(super) fn refuse(
        &self,
        front: &ProxyContext,
        mut stream: Stream,
        failure: ProxyError,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        tracing::debug!(peer = ?stream.peer(), %failure, "connection sent away");
        let refusal =
            if failure == ProxyError::ConnectionLimit { Refusal::Connections } else { Refusal::PerClient };
        front.metrics.refuse(refusal);
        if self.tls.load().is_some() {
            return None;
        }
        let slot = Arc::clone(&front.admission.refusal_slots).try_acquire_owned().ok()?;
        let answer = failure.to_raw_response(front.next_id());
        Some(async move {
            // The socket's buffer is empty, so this does not wait.
            if stream.write_all(answer.as_bytes()).await.is_ok() {
                linger(stream).await;
            }
            drop(slot);
        })
    }
}

/// A connection that has come in.
pub(super) struct EstablishedConnection {
    /// Where from, and its stream.
    pub arrival: AcceptedConnection,
    /// From when on its first head is awaited.
    pub begun: Instant,
}

/// What became of the wait for a first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstByte {
    /// It, or the end of the stream, is there.
    Arrived,
    /// It did not come in time.
    TimedOut,
    /// The process waits for nobody any more.
    ShuttingDown,
}

/// Waits for the first byte without a buffer.
async fn first_byte(front: &ProxyContext, stream: &Stream, until: Instant) -> FirstByte {
    let ending = async {
        tokio::select! {
            // What is already on its way to this process is still served.
            () = front.shutdown.relieved() => tokio::time::sleep(LAST_CALL).await,
            () = front.shutdown.reached(Phase::Draining) => {}
        }
    };
    tokio::select! {
        biased;
        // An error is told to who reads.
        _ = poll_fn(|cx| stream.poll_readable(cx)) => FirstByte::Arrived,
        () = tokio::time::sleep_until(until) => FirstByte::TimedOut,
        () = ending => FirstByte::ShuttingDown,
    }
}

/// Counts the connection for its client, unless that one has as many as it may.
fn claim(front: &ProxyContext, arrival: &mut AcceptedConnection) -> bool {
    let (state, client) = (front.state.load(), arrival.ends.source.ip());
    // A proxy stands for many clients; each of its upgrades is counted for its own.
    let most =
        if is_trusted(client, &state.trusted_proxies) { 0 } else { state.limits.connections_per_client };
    arrival.place.claim(client, most)
}

/// A connection on its way in.
pub(super) struct AcceptedConnection {
    /// What it is read from and written to.
    pub stream: Stream,
    /// Client and destination, as far as they are known here; a Unix socket's client counts as this machine.
    pub ends: Ends,
    /// Its place among the connections.
    pub place: Place,
}

impl AcceptedConnection {
    /// An accepted connection.
    pub fn new(stream: Stream, peer: Option<SocketAddr>, place: Place) -> Self {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let ends = Ends { source: peer.map_or(here, plain), destination: stream.local().map_or(here, plain) };
        Self { stream, ends, place }
    }
}

/// Whether the word of this peer about its clients is believed.
pub(super) fn is_trusted(peer: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&peer))
}

/// The connection with the ends that its PROXY header names.
async fn read_proxy_header(
    front: &ProxyContext,
    mut arrival: AcceptedConnection,
    (first, begun, time): (FirstByte, Instant, Duration),
) -> Option<AcceptedConnection> {
    let peer = arrival.ends.source.ip();
    let read = if is_trusted(peer, &front.state.load().trusted_proxies) {
        let read = match first {
            FirstByte::Arrived => tokio::select! {
                read = proxy_protocol::read(&mut arrival.stream, time.saturating_sub(begun.elapsed())) => read,
                () = front.shutdown.reached(Phase::Draining) => return None,
            },
            FirstByte::TimedOut => Err(HeaderFault::TooSlow(time)),
            FirstByte::ShuttingDown => return None,
        };
        read.map_err(|fault| tracing::debug!(%peer, %fault, "connection cut at its PROXY header"))
    } else {
        tracing::debug!(%peer, "connection cut: its peer is none of trusted_proxies");
        Err(())
    };
    match read {
        Ok(ends) => {
            arrival.ends = ends.unwrap_or(arrival.ends);
            Some(arrival)
        }
        Err(()) => {
            front.metrics.refuse(Refusal::ProxyProtocol);
            None
        }
    }
}

fn terminator_terms(tls: &ListenerTls) -> Terms {
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

async fn accept_tls(
    front: &ProxyContext,
    terminator: &Terminator,
    stream: Stream,
    (first, begun, time): (FirstByte, Instant, Duration),
) -> Option<Stream> {
    let peer = stream.peer();
    let accepted = match first {
        FirstByte::Arrived => tokio::select! {
            accepted = tokio::time::timeout_at(begun + time, terminator.accept(stream)) => accepted.ok(),
            () = front.shutdown.reached(Phase::Draining) => return None,
        },
        FirstByte::TimedOut => None,
        FirstByte::ShuttingDown => return None,
    };
    match accepted {
        Some(Ok(stream)) => return Some(stream),
        Some(Err((error, stream))) => {
            tracing::debug!(?peer, %error, "TLS handshake failed");
            // The alert must not be overtaken by a reset.
            linger(stream).await;
        }
        None => tracing::debug!(?peer, "TLS handshake not done in time"),
    }
    front.metrics.unrouted_handshake(Handshake::Refused);
    None
}
