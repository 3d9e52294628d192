//! The accept loop of one listener: the next connection for which there is a permit.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_core::open_files;

use super::acceptor::{AcceptedConnection, Acceptor};
use super::context::ProxyContext;
use crate::http::reply::ProxyError;
use crate::net::listener::Listener;
use crate::net::proxy_protocol::ProxyAddresses;
use crate::net::stream::Stream;
use crate::shutdown::Phase;

/// The pause after an accept that failed for want of a file descriptor, so that the loop does not spin: the connection
/// waits in the kernel's queue meanwhile.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Without such a failure for this long, the shortage is over.
const RECOVERED_AFTER: Duration = Duration::from_secs(5);

/// Accepts on one listener.
pub(super) struct AcceptLoop {
    context: Arc<ProxyContext>,
    listener: Listener,
    acceptor: Arc<Acceptor>,
    /// When an accept last failed for want of a file descriptor; `None` once that is over.
    exhausted_at: Option<Instant>,
}

impl AcceptLoop {
    /// Accepts on `listener` by the rules of `acceptor`.
    pub(super) fn new(context: Arc<ProxyContext>, listener: Listener, acceptor: Arc<Acceptor>) -> Self {
        Self { context, listener, acceptor, exhausted_at: None }
    }

    /// The next connection; `None` once draining begins.
    pub(super) async fn next(&mut self) -> Option<AcceptedConnection> {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.context.shutdown.wait_for(Phase::Draining) => return None,
            };
            let connection = match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    self.pause_after(&error).await;
                    None
                }
            };
            if connection.is_some() {
                return connection;
            }
        }
    }

    /// Takes a permit for the connection, or refuses it. That is decided here and not in a task of its own: the sockets
    /// of refused connections would pile up.
    fn admit(&mut self, stream: Stream, peer: Option<SocketAddr>) -> Option<AcceptedConnection> {
        if self.exhausted_at.take_if(|at| at.elapsed() >= RECOVERED_AFTER).is_some() {
            tracing::info!("accept resumed: file descriptors are available again");
        }
        let context = &self.context;
        let Some(permit) = context.admission.connections.acquire(context.state.load().connections) else {
            if let Some(reply) = self.acceptor.refuse(context, stream, ProxyError::ConnectionLimit) {
                context.tasks.spawn(reply);
            }
            return None;
        };
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let ends = ProxyAddresses {
            source: peer.map_or(here, plain),
            destination: stream.local_addr().map_or(here, plain),
        };
        Some(AcceptedConnection { stream, ends, permit })
    }

    async fn pause_after(&mut self, error: &std::io::Error) {
        if !open_files::is_exhausted(error) {
            // It concerns only the one connection, which is gone.
            tracing::debug!(%error, "accept failed");
            return tokio::task::yield_now().await;
        }
        if self.exhausted_at.replace(Instant::now()).is_none() {
            tracing::error!(%error, limit = open_files::limit(), "accept paused: file descriptor limit reached");
        }
        tokio::time::sleep(ACCEPT_BACKOFF).await;
    }
}
