//! The server's outside: a request comes in, an answer goes out, sessions live in between.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SET_COOKIE, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::engine_io::response::{Answer, Refusal, answer, bare, unavailable};
use crate::engine_io::session::binding;
use crate::engine_io::session::connection::Connection;
use crate::engine_io::session::context::{Figures, Shared};
use crate::engine_io::session::ending::{CloseKind, Reason};
use crate::engine_io::session::handler::{Handler, Inbox};
use crate::engine_io::session::handshake::{ClientAddress, Handshake};
use crate::engine_io::session::packet::Revision;
use crate::engine_io::session::sid::Sid;
use crate::engine_io::session::state::{Polling, Transport};
use crate::engine_io::session::urlencoded;
use crate::engine_io::settings::Settings;
use crate::engine_io::transport::polling::jsonp;
use crate::engine_io::transport::polling::requests;
use crate::engine_io::transport::websocket::socket::Socket;
use crate::engine_io::transport::websocket::upgrade;
use crate::paced_close::close_paced;
use mainstay_core::ws::handshake;

/// How often it is checked whether the last sessions have ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// What the last ones get beyond the time that was given, to write their Close and hear the client's.
const LAST: Duration = Duration::from_secs(5);

/// An Engine.IO server. A clone is the same server.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    /// Ends the wheel.
    end: CancellationToken,
    /// Ends it with the last clone, too.
    _guard: Arc<DropGuard>,
}

/// What a request asks for, once it is known to be in order.
enum Asked {
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

impl Server {
    /// A server whose sessions go to `handler`. Needs a tokio runtime with its timer.
    pub fn new(settings: Settings, handler: Arc<dyn Handler>) -> Self {
        let shared = Arc::new(Shared::new(settings, handler));
        let end = CancellationToken::new();
        let (turning, ended) = (shared.clone(), end.clone());
        shared.tasks.spawn(async move { ended.run_until_cancelled(turning.wheel.run()).await });
        Self { shared, end: end.clone(), _guard: Arc::new(end.drop_guard()) }
    }

    /// Answers one request that came from `peer`. A WebSocket goes on in a task of the server's own; a poll waits in
    /// the returned future, and dropping that ends the session.
    pub async fn respond<B>(&self, request: Request<B>, peer: SocketAddr) -> Answer
    where
        B: Body + Send + 'static,
    {
        if request.uri().path() != self.shared.settings.path {
            return bare(StatusCode::NOT_FOUND);
        }
        let (mut parts, body) = request.into_parts();
        let cors = self.shared.settings.cors.as_ref();
        if let Some(cors) = cors.filter(|_| parts.method == Method::OPTIONS) {
            return cors.preflight(&parts.headers);
        }
        let is_upgrade = handshake::is_upgrade(&parts.headers);
        let answered = match self.judge(&parts, is_upgrade, peer) {
            Ok(Asked::Of(connection)) => requests::respond(&connection, &parts, body).await,
            Ok(asked) => self.open(asked, &mut parts, peer),
            Err(refusal) => Err(refusal),
        };
        let mut answer = answered.unwrap_or_else(|refusal| {
            self.shared.counters.refused();
            if is_upgrade { refusal.upgrade_answer() } else { refusal.answer() }
        });
        if let Some(cors) = cors {
            cors.mark(answer.headers_mut(), &parts.headers);
        }
        answer
    }

    /// Judges a request in the order in which Node does.
    fn judge(&self, parts: &Parts, is_upgrade: bool, peer: SocketAddr) -> Result<Asked, Refusal> {
        let query = parts.uri.query().unwrap_or_default();
        let served = self.shared.settings.transports;
        let is_websocket = match urlencoded::last(query, "transport").as_deref() {
            Some("websocket") if served.websocket => true,
            Some("polling") if served.polling => false,
            _ => return Err(Refusal::UnknownTransport),
        };
        let revision = match urlencoded::last(query, "EIO").as_deref() {
            Some("4") => Revision::Four,
            _ => Revision::Three,
        };
        if let Some(sid) = urlencoded::last(query, "sid").filter(|sid| !sid.is_empty()) {
            let session = Sid::parse(&sid).and_then(|sid| self.shared.sessions.find(sid));
            let session = session.ok_or(Refusal::UnknownSid)?;
            if !session.speaks(revision) || (!is_upgrade && session.is_websocket() != is_websocket) {
                return Err(Refusal::BadRequest);
            }
            if !binding::is_of_opener(&session, parts, ClientAddress::of(parts, peer), is_upgrade) {
                return Err(Refusal::Forbidden("this is not the client that opened the session".into()));
            }
            return Ok(match (is_upgrade, is_websocket) {
                (true, true) => Asked::Probe(session),
                (true, false) => Asked::Nothing,
                // A WebSocket's session has no requests of its own.
                (false, true) => return Err(Refusal::BadRequest),
                (false, false) => Asked::Of(session),
            });
        }
        match (is_upgrade, is_websocket) {
            _ if parts.method != Method::GET => Err(Refusal::BadMethod),
            (false, true) => Err(Refusal::BadRequest),
            (true, false) => Ok(Asked::Nothing),
            (true, true) => Ok(Asked::Open(revision)),
            (false, false) => Ok(Asked::Poll(revision)),
        }
    }

    fn open(&self, asked: Asked, parts: &mut Parts, peer: SocketAddr) -> Result<Answer, Refusal> {
        let (answer, task) = match asked {
            Asked::Of(_) => return Err(Refusal::BadRequest),
            Asked::Nothing => {
                let (answer, upgrade) = switch(parts)?;
                (answer, self.shared.tasks.spawn(upgrade::turn_away(upgrade)))
            }
            Asked::Probe(session) => {
                let (answer, upgrade) = switch(parts)?;
                let task = match session.begin_probe() {
                    true => self.shared.tasks.spawn(upgrade::carry(upgrade, session)),
                    false => self.shared.tasks.spawn(upgrade::turn_away(upgrade)),
                };
                (answer, task)
            }
            Asked::Poll(revision) | Asked::Open(revision) => {
                if let Some(away) = self.unavailable() {
                    return Ok(away);
                }
                let facts = self.admitted(parts, peer, revision)?;
                if matches!(asked, Asked::Poll(_)) {
                    return Ok(self.open_polling(parts, facts, revision));
                }
                let (answer, upgrade) = switch(parts)?;
                (answer, self.shared.tasks.spawn(carry(self.shared.clone(), upgrade, facts, revision)))
            }
        };
        drop(task);
        Ok(answer)
    }

    /// The answer to any handshake while nobody is let in.
    fn unavailable(&self) -> Option<Answer> {
        if self.shared.is_stopping.load(Ordering::Relaxed) {
            return Some(unavailable("the server ends"));
        }
        self.shared.sessions.is_full().then(|| unavailable("Server at capacity"))
    }

    /// The facts of a handshake that the layer above lets in.
    fn admitted(&self, parts: &Parts, peer: SocketAddr, revision: Revision) -> Result<Handshake, Refusal> {
        let facts = Handshake::of(parts, peer);
        self.shared.handler.admits(&facts).map_err(Refusal::Forbidden)?;
        match revision {
            Revision::Three if !self.shared.settings.revision_3 => Err(Refusal::Unsupported),
            _ => Ok(facts),
        }
    }

    fn open_polling(&self, parts: &Parts, facts: Handshake, revision: Revision) -> Answer {
        let query = parts.uri.query().unwrap_or_default();
        let polling = Polling {
            takes_binary: urlencoded::last(query, "b64").is_none_or(|b64| b64.is_empty()),
            jsonp: urlencoded::last(query, "j").map(|j| jsonp::head(&j).into()),
            ..Polling::default()
        };
        let connection =
            Connection::new(&self.shared, facts, Transport::Polling(Box::new(polling)), revision);
        let mut answer = requests::opening(&connection, parts);
        if begin(&self.shared, &connection).is_none() {
            return unavailable("Server at capacity");
        }
        if let Some(name) = &self.shared.settings.cookie {
            let cookie = format!("{name}={}; Path=/; HttpOnly; SameSite=Lax", connection.sid());
            if let Ok(cookie) = HeaderValue::try_from(cookie) {
                answer.headers_mut().insert(SET_COOKIE, cookie);
            }
        }
        answer
    }

    /// A look at the server's sums.
    pub fn figures(&self) -> Figures {
        self.shared.counters.figures(self.shared.sessions.len())
    }

    /// Opens no more sessions and closes those that are open with 1012, evenly over `over`; returns when the last socket
    /// is closed, ten seconds later at the latest. To be called once, at the end.
    pub async fn shutdown(&self, over: Duration) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        let sessions = &self.shared.sessions;
        let restart = |connection: &Arc<Connection>| connection.close(CloseKind::Restart);
        close_paced(sessions.all(), over, restart, || sessions.len() > 0).await;
        let all_gone = async {
            while sessions.len() > 0 {
                // Also those whose upgrade was on its way when the closing began.
                sessions.all().iter().for_each(restart);
                sleep(CHECK_INTERVAL).await;
            }
        };
        let _ = timeout(LAST, all_gone).await;
        // A session is over before its socket is: the last Close has still to be written and answered.
        self.end.cancel();
        self.shared.tasks.close();
        let _ = timeout(LAST, self.shared.tasks.wait()).await;
    }
}

/// The 101 to a WebSocket's request, and what comes after it.
fn switch(parts: &mut Parts) -> Result<(Answer, OnUpgrade), Refusal> {
    handshake::check_request(&parts.method, parts.version, &parts.headers)
        .map_err(|_| Refusal::BadRequest)?;
    let key = parts.headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    let accept =
        key.and_then(|key| HeaderValue::try_from(handshake::accept(key)).ok()).ok_or(Refusal::BadRequest)?;
    let upgrade = parts.extensions.remove::<OnUpgrade>().ok_or(Refusal::BadRequest)?;
    let headers = [(CONNECTION, "Upgrade"), (UPGRADE, "websocket")];
    let mut answer = answer(StatusCode::SWITCHING_PROTOCOLS, &headers, "");
    answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok((answer, upgrade))
}

/// A WebSocket-only session, from its 101 to the task that carries it.
async fn carry(shared: Arc<Shared>, upgrade: OnUpgrade, facts: Handshake, revision: Revision) {
    let Ok(upgraded) = upgrade.await else {
        return; // The client left before it read the 101.
    };
    let connection = Connection::new(&shared, facts, Transport::WebSocket, revision);
    connection.say_open();
    let Some(inbox) = begin(&shared, &connection) else { return };
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => match registered_anew(parts.io.into_inner()) {
            Ok(stream) => {
                let socket = Socket::new(stream, connection, inbox);
                shared.tasks.spawn(socket.with(parts.read_buf.into()).live());
            }
            Err(_) => connection.finish(Reason::TransportError),
        },
        Err(upgraded) => {
            let socket = Socket::new(TokioIo::new(upgraded), connection, inbox);
            shared.tasks.spawn(socket.live());
        }
    }
}

/// The stream, registered with the runtime anew: in its old registration it would hold the waker of hyper's task, and so
/// the 2 KiB of that task, for as long as the socket lives.
pub(crate) fn registered_anew(stream: TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.into_std()?)
}

/// Takes a session into the table and tells the layer above; `None` when the table has become full.
fn begin(shared: &Arc<Shared>, connection: &Arc<Connection>) -> Option<Arc<dyn Inbox>> {
    if !shared.sessions.insert(connection.clone()) {
        return None;
    }
    shared.counters.opened(connection.is_websocket());
    let inbox = shared.handler.opened(connection);
    connection.listen(inbox.clone());
    shared.wheel.insert(connection, 0);
    Some(inbox)
}
