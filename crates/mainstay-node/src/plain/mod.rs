//! `/ws`: clients without Socket.IO, with JSON messages over a plain WebSocket.
//!
//! A client is known by `?token=`, `Authorization: Bearer` or a subprotocol `bearer.TOKEN` beside [`PROTOCOL`] (what a
//! browser can send); where no token is asked for, `?user=` names it. The first message is `welcome`; then the client
//! asks ([`crate::request`] has the words, `schema.json` the form) and each request is answered once. permessage-
//! deflate is spoken without context takeover, so that an idle connection keeps no window.
//!
//! # Rules
//!
//! - A bad message gets an `error` that says what would be right; a broken frame, and a binary message, end the
//!   connection with the code of RFC 6455 that names it.
//! - Whoever sends to a client never waits: what it does not read is bounded (`outbox`), and then it is cut.
//! - A request is carried out before the next is read.

mod guest;
mod message;
mod outbox;
mod socket;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;
use yawc::{DeflateOptions, Options, WebSocket};

use mainstay_core::origin::Origins;
use mainstay_core::ws::handshake;

use super::answer::{self, Answer};
use super::application::Outcome;
use super::auth::{Auth, Identity};
use super::bearer;
use super::config::Clients;
use super::limits::{Rates, Seats};
use super::metrics::{Metrics, Refused};
use super::paced_close::close_paced;
use super::request::Request as Asked;
use super::value::Value;
use outbox::{End, Outbox};

pub use guest::Guests;
pub use message::SCHEMA;

/// The subprotocol that is spoken; a client need not name it.
pub const PROTOCOL: &str = "mainstay.v1";

/// Messages below this are not compressed: it costs more than it saves.
const COMPRESSION_THRESHOLD: usize = 256;
/// Of a connection's buffers at rest, each.
const BUFFER: usize = 1 << 10;
/// The time that a Close waits for its answer.
const FAREWELL: Duration = Duration::from_secs(2);

/// An outcome to be.
pub type Pending = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What plain clients talk to.
pub trait Stage: Send + Sync + 'static {
    /// A client is there.
    fn arrived(&self, client: &Arc<Client>);
    /// It asks for something.
    fn asked(&self, client: &Arc<Client>, request: Asked) -> Pending;
    /// It has gone. Called once.
    fn left(&self, client: &Client);
}

/// One plain client.
#[derive(Debug)]
pub struct Client {
    /// Its id, as long as a Socket.IO id and as hard to guess.
    pub id: Arc<str>,
    /// Who it is.
    pub identity: Identity,
    /// Its handshake, with Node's keys.
    pub handshake: Value,
    outbox: Outbox,
}

impl Client {
    /// Sends a text message. Says whether it could be put in the queue.
    pub fn send(&self, message: &Bytes) -> bool {
        self.outbox.send(message)
    }

    /// Whether nothing waits for the client.
    pub fn is_ready(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Ends the connection with 1008 and these words when what was sent before is written.
    pub fn end(&self, words: &'static str) {
        self.outbox.end(End::Policy(words));
    }
}

/// An event as plain clients get it, to be sent to any number of them; `None` when it is no event.
pub fn event(data: &[Value]) -> Option<Bytes> {
    message::event(data).map(Bytes::from)
}

/// The plain side of a node.
pub struct Plain {
    shared: Arc<Shared>,
}

/// What the connections share.
struct Shared {
    node: Arc<str>,
    auth: Arc<Auth>,
    origins: Origins,
    clients: Clients,
    seats: Arc<Seats>,
    metrics: Metrics,
    stage: Arc<dyn Stage>,
    options: Options,
    /// Those that are open, to be closed at the end.
    open: Mutex<std::collections::HashMap<u64, Arc<Client>>>,
    /// The next key of `open`.
    next: AtomicU64,
    /// No one is let in any more.
    is_stopping: AtomicBool,
    /// Owns the connections.
    tasks: TaskTracker,
}

/// What a node gives its plain side.
pub struct Parts {
    /// The node's name.
    pub node: Arc<str>,
    /// Who may come in.
    pub auth: Arc<Auth>,
    /// What clients may do.
    pub clients: Clients,
    /// The node's seats.
    pub seats: Arc<Seats>,
    /// The node's counters.
    pub metrics: Metrics,
}

impl Plain {
    /// A plain side whose clients talk to `stage`.
    pub fn new(parts: Parts, stage: Arc<dyn Stage>) -> Self {
        let Parts { node, auth, clients, seats, metrics } = parts;
        let options = options(&clients);
        let origins = clients.origins.clone();
        let (next, is_stopping) = (AtomicU64::new(0), AtomicBool::new(false));
        let (open, tasks) = (Mutex::default(), TaskTracker::new());
        let shared = Shared {
            node,
            auth,
            origins,
            clients,
            seats,
            metrics,
            stage,
            options,
            open,
            next,
            is_stopping,
            tasks,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Answers a request for `/ws`: a 101 and a connection, or why not.
    pub fn upgrade(&self, mut request: Request<Incoming>, peer: SocketAddr) -> Answer {
        let shared = &self.shared;
        if let Err(fault) = handshake::check_request(request.method(), request.version(), request.headers()) {
            return not_an_upgrade(&fault);
        }
        if shared.is_stopping.load(Ordering::Relaxed) {
            shared.metrics.refused(Refused::Draining);
            return answer::error(StatusCode::SERVICE_UNAVAILABLE, "the node is about to end");
        }
        if !shared.origins.allow(request.headers().get_all(ORIGIN).iter().map(HeaderValue::as_bytes)) {
            shared.metrics.refused(Refused::Origin);
            return answer::error(StatusCode::FORBIDDEN, "pages of this origin may not connect");
        }
        let identity = match identify(&shared.auth, &request) {
            Ok(identity) => identity,
            Err(fault) => {
                shared.metrics.refused(Refused::Auth);
                return answer::error(StatusCode::UNAUTHORIZED, &fault.to_string());
            }
        };
        let facts = guest::handshake(&request, peer);
        let speaks = bearer::offers(request.headers(), PROTOCOL);
        let Ok((response, upgrade)) = WebSocket::upgrade_with_options(&mut request, shared.options.clone())
        else {
            return answer::error(StatusCode::BAD_REQUEST, "this is no WebSocket handshake");
        };
        shared.tasks.spawn(socket::converse(Arc::clone(shared), upgrade, (identity, facts)));
        let mut answer = response.map(|_| Full::default());
        if speaks {
            answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        }
        answer
    }

    /// Lets nobody in any more and closes all clients with 1012, spread over `over`; returns when the last has gone.
    pub async fn shutdown(&self, over: Duration) {
        let shared = &self.shared;
        shared.is_stopping.store(true, Ordering::Relaxed);
        let open: Vec<_> = shared.open.lock().values().cloned().collect();
        let restart = |client: &Arc<Client>| client.outbox.end(End::Restart);
        close_paced(open, over, restart, || !shared.open.lock().is_empty()).await;
        // Also those whose upgrade was on its way when the closing began.
        shared.open.lock().values().for_each(restart);
        shared.tasks.close();
        shared.tasks.wait().await;
    }
}

fn options(clients: &Clients) -> Options {
    let deflate = DeflateOptions {
        server_no_context_takeover: true,
        client_no_context_takeover: true,
        compression_threshold: COMPRESSION_THRESHOLD,
        ..DeflateOptions::low_latency()
    };
    // The library's limits are exclusive. They hold for what a compressed message becomes, too.
    let most = clients.max_payload + 1;
    Options { compression: Some(deflate), ..Options::default() }
        .with_limits(most, most)
        .with_utf8()
        .with_read_buffer_capacity(BUFFER)
        .with_write_buffer_capacity(BUFFER)
}

/// Who opens this WebSocket.
fn identify(auth: &Auth, request: &Request<Incoming>) -> Result<Identity, super::auth::AuthFault> {
    let query = request.uri().query().unwrap_or_default();
    let headers: &HeaderMap = request.headers();
    let token = bearer::of_query(query, "token")
        .or_else(|| bearer::of_header(headers.get(AUTHORIZATION)))
        .or_else(|| bearer::of_protocols(headers));
    auth.identify(token.as_deref(), bearer::of_query(query, "user").as_deref())
}

fn not_an_upgrade(fault: &handshake::RequestFault) -> Answer {
    let status = match fault {
        handshake::RequestFault::Method => return answer::not_allowed("GET"),
        handshake::RequestFault::Key | handshake::RequestFault::Body => StatusCode::BAD_REQUEST,
        _ => StatusCode::UPGRADE_REQUIRED,
    };
    let mut answer =
        answer::error(status, &format!("{fault}; the messages are described on /ws/schema.json"));
    if status == StatusCode::UPGRADE_REQUIRED {
        // RFC 9110 section 15.5.22: a 426 names the protocol, and an Upgrade line needs its Connection option.
        for (name, value) in
            [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")]
        {
            answer.headers_mut().insert(name, HeaderValue::from_static(value));
        }
    }
    answer
}

impl Shared {
    fn rates(&self) -> Rates {
        Rates::of(&self.clients)
    }
}

#[cfg(test)]
mod tests;
