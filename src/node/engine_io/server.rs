//! The server's outside: a request comes in, an answer goes out, sessions live in between.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::answer::{Answer, Refusal, answer, bare, unavailable};
use super::connection::Connection;
use super::ending::{CloseKind, Reason};
use super::handshake::Handshake;
use super::settings::Settings;
use super::shared::{Figures, Shared};
use super::socket::Socket;
use super::state::Transport;
use super::{Handler, Inbox, Revision, query};
use crate::ws::handshake;

/// Closes at shutdown go out in steps of this.
const PACE: Duration = Duration::from_millis(50);

/// What the last ones get beyond the time that was given, to write their Close and hear the client's.
const LAST: Duration = Duration::from_secs(5);

/// An Engine.IO server. A clone is the same server.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    /// Ends the wheel with the last clone.
    _wheel: Arc<DropGuard>,
}

/// What a request asks for, once it is known to be in order.
struct Asked {
    revision: Revision,
    is_websocket: bool,
}

impl Server {
    /// A server whose sessions go to `handler`. Needs a tokio runtime with its timer.
    pub fn new(settings: Settings, handler: Arc<dyn Handler>) -> Self {
        let shared = Arc::new(Shared::new(settings, handler));
        let end = CancellationToken::new();
        let (turning, ended) = (shared.clone(), end.clone());
        shared.tasks.spawn(async move { ended.run_until_cancelled(turning.wheel.run()).await });
        Self { shared, _wheel: Arc::new(end.drop_guard()) }
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
        let (mut parts, _body) = request.into_parts();
        let is_upgrade = handshake::is_upgrade(&parts.headers);
        let answered = match self.judge(&parts, is_upgrade) {
            Ok(_) if self.shared.is_stopping.load(Ordering::Relaxed) => Ok(unavailable("the server ends")),
            Ok(_) if self.shared.sessions.is_full() => Ok(unavailable("Server at capacity")),
            Ok(asked) => self.open(&asked, &mut parts, peer),
            Err(refusal) => Err(refusal),
        };
        answered.unwrap_or_else(|refusal| {
            self.shared.counters.refused();
            if is_upgrade { refusal.upgrade_answer() } else { refusal.answer() }
        })
    }

    /// Judges a request in the order in which Node does.
    fn judge(&self, parts: &Parts, is_upgrade: bool) -> Result<Asked, Refusal> {
        let query = parts.uri.query().unwrap_or_default();
        let served = self.shared.settings.transports;
        let is_websocket = match query::last(query, "transport").as_deref() {
            Some("websocket") if served.websocket => true,
            _ => return Err(Refusal::UnknownTransport),
        };
        if query::last(query, "sid").is_some_and(|sid| !sid.is_empty()) {
            return Err(Refusal::UnknownSid);
        }
        if parts.method != Method::GET {
            return Err(Refusal::BadMethod);
        }
        if is_websocket && !is_upgrade {
            return Err(Refusal::BadRequest);
        }
        match query::last(query, "EIO").as_deref() {
            Some("4") => Ok(Asked { revision: Revision::Four, is_websocket }),
            _ if self.shared.settings.revision_3 => Ok(Asked { revision: Revision::Three, is_websocket }),
            _ => Err(Refusal::Unsupported),
        }
    }

    fn open(&self, asked: &Asked, parts: &mut Parts, peer: SocketAddr) -> Result<Answer, Refusal> {
        let facts = Handshake::of(parts, peer);
        self.shared.handler.admits(&facts).map_err(Refusal::Forbidden)?;
        debug_assert!(asked.is_websocket);
        let (answer, upgrade) = switch(parts)?;
        self.shared.tasks.spawn(carry(self.shared.clone(), upgrade, facts, asked.revision));
        Ok(answer)
    }

    /// A look at the server's sums.
    pub fn figures(&self) -> Figures {
        self.shared.counters.figures(self.shared.sessions.len())
    }

    /// Opens no more sessions and closes those that are open with 1012, evenly over `over`; returns when the last one
    /// has ended, a few seconds later at the latest.
    pub async fn shutdown(&self, over: Duration) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        let end = Instant::now() + over;
        let mut open = self.shared.sessions.all();
        while !open.is_empty() {
            let steps = end.saturating_duration_since(Instant::now()).as_millis() / PACE.as_millis();
            let share = open.len().div_ceil(usize::try_from(steps).unwrap_or(usize::MAX).max(1));
            for connection in open.drain(open.len() - share..) {
                connection.close(CloseKind::Restart);
            }
            sleep(PACE.min(over)).await;
        }
        let all_gone = async {
            while self.shared.sessions.len() > 0 {
                // Also those whose upgrade was on its way when the closing began.
                self.shared.sessions.all().iter().for_each(|late| late.close(CloseKind::Restart));
                sleep(PACE).await;
            }
        };
        let _ = timeout(LAST, all_gone).await;
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
                shared.tasks.spawn(socket.live(parts.read_buf.into()));
            }
            Err(_) => connection.finish(Reason::TransportError),
        },
        Err(upgraded) => {
            let socket = Socket::new(TokioIo::new(upgraded), connection, inbox);
            shared.tasks.spawn(socket.live(Vec::new()));
        }
    }
}

/// The stream, registered with the runtime anew: in its old registration it would hold the waker of hyper's task, and so
/// the 2 KiB of that task, for as long as the socket lives.
fn registered_anew(stream: TcpStream) -> io::Result<TcpStream> {
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
