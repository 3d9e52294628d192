//! The server's outside: a request comes in, an answer goes out, sessions live in between.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::SET_COOKIE;
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::engine_io::response::{RequestError, empty_response, service_unavailable};
use crate::engine_io::session::binding;
use crate::engine_io::session::connection::Connection;
use crate::engine_io::session::connection_handler::ConnectionHandler;
use crate::engine_io::session::context::EngineContext;
use crate::engine_io::session::counters::EngineStats;
use crate::engine_io::session::ending::{CloseKind, CloseReason};
use crate::engine_io::session::handshake::{ClientAddress, Handshake};
use crate::engine_io::session::message_handler::MessageHandler;
use crate::engine_io::session::packet::Revision;
use crate::engine_io::session::sid::Sid;
use crate::engine_io::session::state::{PollingState, Transport};
use crate::engine_io::session::urlencoded;
use crate::engine_io::settings::EngineSettings;
use crate::engine_io::transport::polling::jsonp;
use crate::engine_io::transport::polling::requests;
use crate::engine_io::transport::websocket::accept::{reregister, switch_protocols};
use crate::engine_io::transport::websocket::socket::WebSocketTransport;
use crate::engine_io::transport::websocket::upgrade;
use crate::paced_close::close_paced;
use crate::response::HttpResponse;
use mainstay_core::ws::handshake;

/// How often it is checked whether the last sessions have ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// What the last ones get beyond the time that was given, to write their Close and hear the client's.
const CLOSE_MARGIN: Duration = Duration::from_secs(5);

/// An Engine.IO server. A clone is the same server.
#[derive(Clone)]
pub struct EngineServer {
    context: Arc<EngineContext<Connection>>,
    /// The layer above.
    handler: Arc<dyn ConnectionHandler>,
    /// Ends the wheel.
    end: CancellationToken,
    /// Ends it with the last clone, too.
    _guard: Arc<DropGuard>,
}

/// What a request asks for, once it is known to be in order.
enum EngineRequest {
    /// A new session by polling.
    Poll(Revision),
    /// A new session on a WebSocket.
    Open(Revision),
    /// Something of an open session that polls.
    Of(Arc<Connection>),
    /// To take an open session over.
    Probe(Arc<Connection>),
    /// A WebSocket where there is nothing for it.
    Nothing,
}

impl EngineServer {
    /// A server whose sessions go to `handler`. Needs a tokio runtime with its timer.
    pub fn new(settings: EngineSettings, handler: Arc<dyn ConnectionHandler>) -> Self {
        let context = Arc::new(EngineContext::new(settings));
        let end = CancellationToken::new();
        let (turning, ended) = (context.clone(), end.clone());
        context.tasks.spawn(async move {
            ended.run_until_cancelled(turning.timer_wheel.run(Connection::check_timers)).await
        });
        Self { context, handler, end: end.clone(), _guard: Arc::new(end.drop_guard()) }
    }

    /// Answers one request that came from `peer`. A WebSocket goes on in a task of the server's own; a poll waits in
    /// the returned future, and dropping that ends the session.
    pub async fn respond<B>(&self, request: Request<B>, peer: SocketAddr) -> HttpResponse
    where
        B: Body + Send + 'static,
    {
        if request.uri().path() != self.context.settings.path {
            return empty_response(StatusCode::NOT_FOUND);
        }
        let (mut parts, body) = request.into_parts();
        let cors = self.context.settings.cors.as_ref();
        if let Some(cors) = cors.filter(|_| parts.method == Method::OPTIONS) {
            return cors.preflight(&parts.headers);
        }
        let is_upgrade = handshake::is_upgrade(&parts.headers);
        let answered = match self.classify(&parts, is_upgrade, peer) {
            Ok(EngineRequest::Of(connection)) => requests::respond(&connection, &parts, body).await,
            Ok(asked) => self.open(asked, &mut parts, peer),
            Err(refusal) => Err(refusal),
        };
        let mut answer = answered.unwrap_or_else(|refusal| {
            self.context.counters.record_refused();
            if is_upgrade { refusal.upgrade_response() } else { refusal.response() }
        });
        if let Some(cors) = cors {
            cors.add_headers(answer.headers_mut(), &parts.headers);
        }
        answer
    }

    /// Judges a request in the order in which Node does.
    fn classify(
        &self,
        parts: &Parts,
        is_upgrade: bool,
        peer: SocketAddr,
    ) -> Result<EngineRequest, RequestError> {
        let query = parts.uri.query().unwrap_or_default();
        let served = self.context.settings.transports;
        let is_websocket = match urlencoded::last(query, "transport").as_deref() {
            Some("websocket") if served.websocket => true,
            Some("polling") if served.polling => false,
            _ => return Err(RequestError::UnknownTransport),
        };
        let revision = match urlencoded::last(query, "EIO").as_deref() {
            Some("4") => Revision::Four,
            _ => Revision::Three,
        };
        if let Some(sid) = urlencoded::last(query, "sid").filter(|sid| !sid.is_empty()) {
            let session = Sid::parse(&sid).and_then(|sid| self.context.sessions.find(sid));
            let session = session.ok_or(RequestError::UnknownSid)?;
            if !session.speaks(revision) || (!is_upgrade && session.is_websocket() != is_websocket) {
                return Err(RequestError::BadRequest);
            }
            if !binding::is_from_opener(&session, parts, ClientAddress::of(parts, peer), is_upgrade) {
                return Err(RequestError::Forbidden("this is not the client that opened the session".into()));
            }
            return Ok(match (is_upgrade, is_websocket) {
                (true, true) => EngineRequest::Probe(session),
                (true, false) => EngineRequest::Nothing,
                // A WebSocket's session has no requests of its own.
                (false, true) => return Err(RequestError::BadRequest),
                (false, false) => EngineRequest::Of(session),
            });
        }
        match (is_upgrade, is_websocket) {
            _ if parts.method != Method::GET => Err(RequestError::BadMethod),
            (false, true) => Err(RequestError::BadRequest),
            (true, false) => Ok(EngineRequest::Nothing),
            (true, true) => Ok(EngineRequest::Open(revision)),
            (false, false) => Ok(EngineRequest::Poll(revision)),
        }
    }

    fn open(
        &self,
        asked: EngineRequest,
        parts: &mut Parts,
        peer: SocketAddr,
    ) -> Result<HttpResponse, RequestError> {
        let (answer, task) = match asked {
            EngineRequest::Of(_) => return Err(RequestError::BadRequest),
            EngineRequest::Nothing => {
                let (answer, upgrade) = switch_protocols(parts)?;
                (answer, self.context.tasks.spawn(upgrade::close_refused(upgrade)))
            }
            EngineRequest::Probe(session) => {
                let (answer, upgrade) = switch_protocols(parts)?;
                let task = match session.begin_probe() {
                    true => self.context.tasks.spawn(upgrade::run_upgrade(upgrade, session)),
                    false => self.context.tasks.spawn(upgrade::close_refused(upgrade)),
                };
                (answer, task)
            }
            EngineRequest::Poll(revision) | EngineRequest::Open(revision) => {
                if let Some(away) = self.unavailable() {
                    return Ok(away);
                }
                let facts = self.admit(parts, peer, revision)?;
                if matches!(asked, EngineRequest::Poll(_)) {
                    return Ok(self.open_polling(parts, facts, revision));
                }
                let (answer, upgrade) = switch_protocols(parts)?;
                (
                    answer,
                    self.context.tasks.spawn(run_websocket(
                        self.context.clone(),
                        self.handler.clone(),
                        upgrade,
                        facts,
                        revision,
                    )),
                )
            }
        };
        drop(task);
        Ok(answer)
    }

    /// The answer to any handshake while nobody is let in.
    fn unavailable(&self) -> Option<HttpResponse> {
        if self.context.is_stopping.load(Ordering::Relaxed) {
            return Some(service_unavailable("the server ends"));
        }
        self.context.sessions.is_full().then(|| service_unavailable("Server at capacity"))
    }

    /// The facts of a handshake that the layer above lets in.
    fn admit(&self, parts: &Parts, peer: SocketAddr, revision: Revision) -> Result<Handshake, RequestError> {
        let facts = Handshake::from_request(parts, peer);
        self.handler.admit(&facts).map_err(RequestError::Forbidden)?;
        match revision {
            Revision::Three if !self.context.settings.revision_3 => Err(RequestError::Unsupported),
            _ => Ok(facts),
        }
    }

    fn open_polling(&self, parts: &Parts, facts: Handshake, revision: Revision) -> HttpResponse {
        let query = parts.uri.query().unwrap_or_default();
        let polling = PollingState {
            takes_binary: urlencoded::last(query, "b64").is_none_or(|b64| b64.is_empty()),
            jsonp: urlencoded::last(query, "j").map(|j| jsonp::script_head(&j).into()),
            ..PollingState::default()
        };
        let connection =
            Connection::new(&self.context, facts, Transport::Polling(Box::new(polling)), revision);
        let mut answer = requests::open_response(&connection, parts);
        if register(&self.context, &*self.handler, &connection).is_none() {
            return service_unavailable("Server at capacity");
        }
        if let Some(name) = &self.context.settings.cookie {
            let cookie = format!("{name}={}; Path=/; HttpOnly; SameSite=Lax", connection.sid());
            if let Ok(cookie) = HeaderValue::try_from(cookie) {
                answer.headers_mut().insert(SET_COOKIE, cookie);
            }
        }
        answer
    }

    /// A look at the server's sums.
    pub fn stats(&self) -> EngineStats {
        self.context.counters.stats(self.context.sessions.len())
    }

    /// Opens no more sessions and closes those that are open with 1012, evenly over `over`; returns when the last socket
    /// is closed, ten seconds later at the latest. To be called once, at the end.
    pub async fn shutdown(&self, over: Duration) {
        self.context.is_stopping.store(true, Ordering::Relaxed);
        let sessions = &self.context.sessions;
        let restart = |connection: &Arc<Connection>| connection.close(CloseKind::Restart);
        close_paced(sessions.snapshot(), over, restart, || sessions.len() > 0).await;
        let all_gone = async {
            while sessions.len() > 0 {
                // Also those whose upgrade was on its way when the closing began.
                sessions.snapshot().iter().for_each(restart);
                sleep(CHECK_INTERVAL).await;
            }
        };
        let _ = timeout(CLOSE_MARGIN, all_gone).await;
        // A session is over before its socket is: the last Close has still to be written and answered.
        self.end.cancel();
        self.context.tasks.close();
        let _ = timeout(CLOSE_MARGIN, self.context.tasks.wait()).await;
    }
}

/// A WebSocket-only session, from its 101 to the task that carries it.
async fn run_websocket(
    shared: Arc<EngineContext<Connection>>,
    layer: Arc<dyn ConnectionHandler>,
    upgrade: OnUpgrade,
    facts: Handshake,
    revision: Revision,
) {
    let Ok(upgraded) = upgrade.await else {
        return; // The client left before it read the 101.
    };
    let connection = Connection::new(&shared, facts, Transport::WebSocket, revision);
    connection.queue_open_packet();
    let Some(handler) = register(&shared, &*layer, &connection) else { return };
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => match reregister(parts.io.into_inner()) {
            Ok(stream) => {
                let socket = WebSocketTransport::new(stream, connection, handler);
                shared.tasks.spawn(socket.with_early_bytes(parts.read_buf.into()).into_task());
            }
            Err(_) => connection.finish(CloseReason::TransportError),
        },
        Err(upgraded) => {
            let socket = WebSocketTransport::new(TokioIo::new(upgraded), connection, handler);
            shared.tasks.spawn(socket.into_task());
        }
    }
}

/// Takes a session into the table and tells the layer above; `None` when the table has become full.
fn register(
    shared: &Arc<EngineContext<Connection>>,
    layer: &dyn ConnectionHandler,
    connection: &Arc<Connection>,
) -> Option<Arc<dyn MessageHandler>> {
    if !shared.sessions.insert(connection.sid(), connection.clone()) {
        return None;
    }
    shared.counters.record_opened(connection.is_websocket());
    let handler = layer.opened(connection);
    connection.set_handler(handler.clone());
    shared.timer_wheel.insert(connection, 0);
    Some(handler)
}
