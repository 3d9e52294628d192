//! The life of a client connection, from accept to adopt.
//!
//! This file is the table of contents: the numbers are those of the steps in `lib.rs`, and each step is one call into a
//! file of its own, none of which names this one. A step that fails is one row of `ProxyError`.

use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;

use super::accept::AcceptLoop;
use super::acceptor::{AcceptedConnection, Acceptor, EstablishedConnection};
use super::catch_panic::catch_panic;
use super::client_connection::ClientConnection;
use super::context::ProxyContext;
use super::forward;
use super::handoff::{Handoff, PendingTunnel, accept_upgrade};
use super::node_handshake::{UpgradeAnswer, WebSocketUpgrade, ask_nodes};
use super::request_body::RequestBody;
use super::request_outcome::RequestOutcome;
use super::response::PendingResponse;
use super::routing;
use super::session::ProxySession;
use crate::http::reply::ProxyError;
use crate::http::request_stream::RequestStream;
use crate::http::server::{self, Reply};
use crate::net::connection_limit::ConnectionPermit;
use crate::net::listener::Listener;
use crate::net::stream::Stream;

/// How HTTP came to its end on a connection.
enum ConnectionEnd {
    /// It ended; the stream is still to be closed, and counts until it is.
    Closed { stream: Stream, permit: ConnectionPermit },
    /// A node and the client have both been told 101.
    Upgraded(Box<Handoff>),
}

/// Accepts on a listener until draining begins. Each connection is a task of its own.
pub async fn serve_listener(context: Arc<ProxyContext>, listener: Listener, acceptor: Arc<Acceptor>) {
    let mut incoming = AcceptLoop::new(Arc::clone(&context), listener, Arc::clone(&acceptor));
    // 1. Accept, with a permit among the connections.
    while let Some(accepted) = incoming.next().await {
        context.tasks.spawn(run(Arc::clone(&context), Arc::clone(&acceptor), accepted));
    }
}

/// One connection, from its first byte until it is closed or in the relay.
async fn run(context: Arc<ProxyContext>, acceptor: Arc<Acceptor>, accepted: AcceptedConnection) {
    // 1. The PROXY header, and a permit among the connections of its client. 2. TLS.
    let Some(established) = acceptor.establish(&context, accepted).await else { return };
    drop(acceptor);
    catch_panic(&context.metrics, run_http(&context, established)).await;
}

async fn run_http(context: &Arc<ProxyContext>, established: EstablishedConnection) {
    match serve(Arc::clone(context), established).await {
        // 9. Adopt. Steps 10 and 11 are the relay's.
        ConnectionEnd::Upgraded(handoff) => {
            let Some(open) = handoff.open(&context.access_log) else { return };
            if !context.relay.adopt(open.tunnel) {
                tracing::debug!("tunnel rejected: the relay has stopped");
            }
        }
        ConnectionEnd::Closed { stream, permit } => {
            stream.linger().await;
            drop(permit);
        }
    }
}

async fn serve(context: Arc<ProxyContext>, established: EstablishedConnection) -> ConnectionEnd {
    let (connection, mut requests) = ClientConnection::new(context, established);
    // 3. The first request head.
    if !connection.has_request(&mut requests).await {
        let (stream, permit) = (requests.into_parts().0, connection.permit.into_inner());
        return ConnectionEnd::Closed { stream, permit };
    }
    // In a box of its own, which a silent connection does not have.
    Box::pin(serve_requests(connection, requests)).await
}

/// Requests and answers in turn, until the end or a tunnel.
async fn serve_requests(connection: ClientConnection, requests: RequestStream<Stream>) -> ConnectionEnd {
    let respond = |request| respond(&connection, request);
    let served = server::serve(requests, connection.asked_to_end(), respond).await;
    let (stream, permit) = (served.stream, connection.permit.into_inner());
    match served.upgrade {
        Some(tunnel) => {
            ConnectionEnd::Upgraded(Box::new(Handoff { tunnel, client: stream, early: served.early, permit }))
        }
        None => ConnectionEnd::Closed { stream, permit },
    }
}

/// The answer to one request, whoever is to blame for it.
async fn respond(connection: &ClientConnection, request: Request<Incoming>) -> Reply<PendingTunnel> {
    // 3. A request head that is whole and strictly framed.
    let (pending, request) = PendingResponse::begin(connection, request);
    let answer = match request {
        Ok(request) => {
            let answer = catch_panic(&connection.context.metrics, answer(connection, request)).await;
            answer.unwrap_or(Err(ProxyError::Panicked))
        }
        Err(error) => Err(error),
    };
    pending.finish(connection, answer)
}

async fn answer(
    connection: &ClientConnection,
    mut request: Request<RequestBody>,
) -> Result<Reply<PendingTunnel>, ProxyError> {
    // 4. Route.
    let route = routing::match_route(connection, &mut request)?;
    // 5. Affinity.
    let session = ProxySession::new(connection, route, &mut request)?;
    let outcome = RequestOutcome::begin(&session);
    let answer = if session.is_upgrade {
        open_tunnel(connection, &session, request).await
    } else {
        forward::forward(connection, &session, request).await.map(Reply::from)
    };
    outcome.finish(&answer);
    answer
}

async fn open_tunnel(
    connection: &ClientConnection,
    session: &ProxySession,
    request: Request<RequestBody>,
) -> Result<Reply<PendingTunnel>, ProxyError> {
    let mut upgrade = WebSocketUpgrade::check(request)?;
    // 6. A turn among the handshakes; then select: the candidates in order of preference.
    session.admit_upgrade(connection).await?;
    // 7. Dial the candidates in turn, send the upgrade, validate the answer.
    match ask_nodes(connection, session, &mut upgrade).await? {
        // 8. Answer the client; the tunnel is adopted once that answer is out.
        UpgradeAnswer::Accepted(node) => Ok(accept_upgrade(connection, session, &upgrade, *node)),
        UpgradeAnswer::Rejected(node) => Ok(node.into_response(session).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of what an asynchronous function is while it runs.
    fn size_of_three<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_two<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_has_no_memory_for_steps_that_it_has_not_reached() {
        let (silent, half_a_head, asked) =
            (size_of_three(run), size_of_two(serve), size_of_two(serve_requests));
        assert!(silent <= 1280, "{silent}");
        assert!(half_a_head <= 1536, "{half_a_head}");
        assert!(asked <= 4096, "{asked}");
    }
}
