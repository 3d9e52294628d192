//! Accepting: one task per client connection until it ends or becomes a tunnel.
//!
//! A client that asks nothing must cost next to nothing: there may be as many of them as there is room for. So the task
//! of a connection begins as a wait for its first byte (`Entrance::receive`); the guard is there from that byte on,
//! and hyper with its buffers from the first whole head on, each in a box of its own.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::ProxyContext;
use super::acceptor::{AcceptedConnection, Acceptor, EstablishedConnection};
use super::catch_panic::catch_panic;
use super::session;
use super::upgrade::Adoptable;
use crate::http::reply::ProxyError;
use crate::http::request_stream::{RequestLimits, RequestStream, RequestTracker};
use crate::net::listen::Listener;
use crate::net::places::Place;
use crate::net::proxy_protocol::Ends;
use crate::net::stream::Stream;
use crate::net::tls::Secured;
use crate::shutdown::Phase;
use mainstay_core::open_files;

/// The rest after an accept that failed for want of a file descriptor, so that the loop does not spin: the connection
/// waits in the kernel's queue meanwhile.
const REST: Duration = Duration::from_millis(50);
/// Without such a failure for this long, the shortage is over.
const CALM: Duration = Duration::from_secs(5);
/// How long, and how much, a client may still send after its last answer, so that the answer reaches it.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 1 << 20);
/// Bytes that one read of these may bring.
const LINGER_READ: usize = 4096;

/// How long a connection on which nothing has been asked yet may still begin, when another process has taken over.
pub(super) const LAST_CALL: Duration = Duration::from_secs(1);

/// What the requests of one client connection share.
pub struct Connection {
    /// The process.
    pub front: Arc<ProxyContext>,
    /// The other end of the socket, or whom its PROXY header names; a Unix socket's counts as this machine.
    pub peer: IpAddr,
    /// The same with its port, and where it came to.
    pub ends: Ends,
    /// Its place among the connections, until a tunnel takes it over.
    pub place: Mutex<Option<Place>>,
    /// TLS lies below it.
    pub is_secure: bool,
    /// The subject of the certificate that the client had to show.
    pub subject: Option<HeaderValue>,
    /// The guard of the framing.
    pub link: Arc<RequestTracker>,
    /// A tunnel to be, once its 101 is on the way to the client.
    pub handoff: Mutex<Option<Adoptable>>,
}

/// Accepts until draining begins.
pub async fn run(front: Arc<ProxyContext>, listener: Listener, entrance: Arc<Acceptor>) {
    let mut shortage = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = front.shutdown.reached(Phase::Draining) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                if shortage.take_if(|since: &mut Instant| since.elapsed() >= CALM).is_some() {
                    tracing::info!("accepting again, there are file descriptors left");
                }
                let most = front.state.load().connections;
                let (shared, entrance) = (Arc::clone(&front), Arc::clone(&entrance));
                match front.admission.connections.take(most) {
                    Some(place) => {
                        let arrival = AcceptedConnection::new(stream, peer, place);
                        front.tasks.spawn(live(shared, entrance, arrival));
                    }
                    // Decided here and not in a task: the sockets of those who are only closed would pile up.
                    None => {
                        if let Some(telling) = entrance.refuse(&shared, stream, ProxyError::ConnectionLimit) {
                            front.tasks.spawn(telling);
                        }
                    }
                }
            }
            Err(error) if open_files::is_used_up(&error) => {
                if shortage.replace(Instant::now()).is_none() {
                    tracing::error!(%error, limit = open_files::limit(), "no file descriptor is left, accepting rests");
                }
                tokio::time::sleep(REST).await;
            }
            // Of the one connection that is not there any more.
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The whole life of a client connection.
async fn live(front: Arc<ProxyContext>, entrance: Arc<Acceptor>, arrival: AcceptedConnection) {
    let Some(received) = entrance.establish(&front, arrival).await else { return };
    drop(entrance);
    catch_panic(&front, serve(Arc::clone(&front), received)).await;
}

async fn serve(front: Arc<ProxyContext>, received: EstablishedConnection) {
    let EstablishedConnection { arrival: AcceptedConnection { stream, ends, place }, begun } = received;
    let limits = front.state.load().limits.clone();
    let is_secure = stream.tls().is_some();
    let subject = stream.tls().and_then(Secured::peer_subject);
    let subject = subject.and_then(|subject| HeaderValue::try_from(subject).ok());
    let rules = RequestLimits {
        request_head: limits.request_head,
        head_time: limits.head_time,
        keep_alive: limits.keep_alive,
        stall_time: limits.keep_alive,
    };
    let (mut guard, link) = RequestStream::with_start(begun, stream, rules);
    let connection = Arc::new(Connection {
        front,
        peer: ends.source.ip(),
        ends,
        place: Mutex::new(Some(place)),
        is_secure,
        subject,
        link,
        handoff: Mutex::new(None),
    });
    let is_asked = tokio::select! {
        head = guard.first_head() => head.unwrap_or_else(|error| {
            tracing::debug!(%error, "client connection ended");
            false
        }),
        () = asked_to_end(&connection) => false,
    };
    if !is_asked {
        return linger(guard.into_parts().0).await;
    }
    // In a box of its own, which is there from here on.
    Box::pin(converse(connection, guard, limits.request_head)).await;
}

/// Request and answer in turn, until the end or a tunnel.
async fn converse(connection: Arc<Connection>, guard: RequestStream<Stream>, request_head: usize) {
    let shared = Arc::clone(&connection);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        Box::pin(async move { Ok::<_, std::convert::Infallible>(session::serve(&shared, request).await) })
    });
    let mut http = http1::Builder::new();
    http.header_read_timeout(None).auto_date_header(false).max_buf_size(request_head.max(16 << 10));
    let mut served = http.serve_connection(TokioIo::new(guard), service);
    let mut asked_to_end = pin!(asked_to_end(&connection));
    let mut is_ending = false;
    let outcome = loop {
        tokio::select! {
            outcome = poll_fn(|cx| served.poll_without_shutdown(cx)) => break outcome,
            () = &mut asked_to_end, if !is_ending => {
                is_ending = true;
                std::pin::Pin::new(&mut served).graceful_shutdown();
            }
        }
    };
    if let Err(error) = &outcome {
        tracing::debug!(%error, "client connection ended");
    }
    let parts = served.into_parts();
    let (stream, held) = parts.io.into_inner().into_parts();
    let handoff = connection.handoff.lock().take();
    match (handoff, outcome) {
        (Some(adoptable), Ok(())) => adopt(&connection, adoptable, stream, parts.read_buf, held),
        (Some(adoptable), Err(_)) => drop(adoptable),
        (None, _) => linger(stream).await,
    }
}

/// When the connection is to end with the answer under way, or at once without one. That another process has taken over is
/// no reason: a request may be on its way to a connection that is silent. The next one is answered, and says that it is
/// the last; where none comes, the connection ends as any silent one does, or with the process.
async fn asked_to_end(connection: &Connection) {
    connection.front.shutdown.reached(Phase::Draining).await;
}

fn adopt(connection: &Connection, adoptable: Adoptable, stream: Stream, read: Bytes, held: Bytes) {
    let place = connection.place.lock().take();
    let mut early = BytesMut::from(&read[..]);
    early.extend_from_slice(&held);
    match stream.leave() {
        Ok(client) => adoptable.adopt(&connection.front, client, early.freeze(), place),
        Err(error) => {
            tracing::debug!(%error, "client socket could not be handed to the relay");
            drop(adoptable);
        }
    }
}

/// Closes without a reset: what the client still sends is read and thrown away, for a moment, or the kernel's reset
/// could overtake the answer.
pub async fn linger(mut stream: Stream) {
    let (time, most) = LINGER;
    let end = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let (mut buffer, mut read) = (vec![0; LINGER_READ], 0);
        while let Ok(len @ 1..) = stream.read(&mut buffer).await {
            read += len;
            if read > most {
                return;
            }
        }
    };
    // Out of time is as good an end as any.
    let _ = tokio::time::timeout(time, end).await;
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
    fn what_a_connection_has_not_come_to_yet_takes_no_room() {
        let (silent, half_a_head, asked) = (size_of_three(live), size_of_two(serve), size_of_three(converse));
        assert!(silent <= 1280, "{silent}");
        assert!(half_a_head <= 1536, "{half_a_head}");
        assert!(asked <= 4096, "{asked}");
    }
}
