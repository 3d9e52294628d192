//! What the requests of one client connection share.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;
use parking_lot::Mutex;

use super::acceptor::EstablishedConnection;
use super::context::ProxyContext;
use crate::http::request_stream::{RequestLimits, RequestStream, RequestTracker};
use crate::net::connection_limit::ConnectionPermit;
use crate::net::proxy_protocol::ProxyAddresses;
use crate::net::stream::Stream;
use crate::net::tls::RustlsStream;
use crate::shutdown::Phase;

/// A client connection on which HTTP is spoken.
pub(super) struct ClientConnection {
    /// The process.
    pub context: Arc<ProxyContext>,
    /// The other end of the socket, or whom its PROXY header names; a Unix socket's counts as this machine.
    pub peer: IpAddr,
    /// The same with its port, and the address that it connected to.
    pub ends: ProxyAddresses,
    /// Its permit among the connections. An upgrade behind a trusted proxy moves it to the client of its own.
    pub permit: Mutex<ConnectionPermit>,
    /// TLS lies below it.
    pub is_secure: bool,
    /// The subject of the certificate that the client had to show.
    pub subject: Option<HeaderValue>,
    /// What the stream of requests and their service know of each other.
    pub tracker: Arc<RequestTracker>,
}

impl ClientConnection {
    /// The connection, and the stream of its requests.
    pub(super) fn new(
        context: Arc<ProxyContext>,
        established: EstablishedConnection,
    ) -> (Self, RequestStream<Stream>) {
        let EstablishedConnection { accepted, since } = established;
        let (stream, ends) = (accepted.stream, accepted.ends);
        let is_secure = stream.tls().is_some();
        let subject = stream.tls().and_then(RustlsStream::peer_subject);
        let subject = subject.and_then(|subject| HeaderValue::try_from(subject).ok());
        let limits = context.state.load().limits.clone();
        let limits = RequestLimits {
            request_head: limits.request_head,
            head_time: limits.head_time,
            keep_alive: limits.keep_alive,
            stall_time: limits.keep_alive,
        };
        let (requests, tracker) = RequestStream::with_start(since, stream, limits);
        let (peer, permit) = (ends.source.ip(), Mutex::new(accepted.permit));
        (Self { context, peer, ends, permit, is_secure, subject, tracker }, requests)
    }

    /// Waits for the first request head; false when the connection ends without one.
    pub(super) async fn has_request(&self, requests: &mut RequestStream<Stream>) -> bool {
        tokio::select! {
            head = requests.first_head() => head.unwrap_or_else(|error| {
                tracing::debug!(%error, "client connection ended");
                false
            }),
            () = self.asked_to_end() => false,
        }
    }

    /// Waits until the connection is to end with the answer under way, or at once without one. A takeover by another
    /// process is no reason: a request may be on its way on a silent connection. The next answer says that it is the
    /// last; where no request comes, the connection ends as any silent one does, or with the process.
    pub(super) async fn asked_to_end(&self) {
        self.context.shutdown.wait_for(Phase::Draining).await;
    }
}
