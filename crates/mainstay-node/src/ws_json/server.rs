//! The JSON protocol's outside: the handshake of `/ws`, and the end of all its clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::header::{AUTHORIZATION, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use yawc::WebSocket;

use mainstay_core::ws::handshake;

use crate::auth::{AuthError, Authenticator, Identity};
use crate::bearer;
use crate::metrics::RefusalReason;
use crate::paced_close::close_paced;
use crate::response::{self, HttpResponse};

use super::client::{WsJsonClient, WsJsonHandler};
use super::connection;
use super::context::{WsJsonContext, WsJsonSettings};
use super::handshake::handshake_facts;
use super::outbox::OutboxEnd;

/// The subprotocol that is spoken; a client need not name it.
pub(super) const PROTOCOL: &str = "mainstay.v1";

/// The server of the JSON protocol.
pub(crate) struct WsJsonServer {
    context: Arc<WsJsonContext>,
}

impl WsJsonServer {
    /// A server whose clients talk to `handler`.
    pub(crate) fn new(settings: WsJsonSettings, handler: Arc<dyn WsJsonHandler>) -> Self {
        Self { context: WsJsonContext::new(settings, handler) }
    }

    /// Answers a request for `/ws`: a 101 and a connection, or why not.
    pub(crate) fn upgrade(&self, mut request: Request<Incoming>, peer: SocketAddr) -> HttpResponse {
        let WsJsonContext { settings, is_stopping, tasks, .. } = &*self.context;
        if let Err(fault) = handshake::check_request(request.method(), request.version(), request.headers()) {
            return not_an_upgrade(&fault);
        }
        if is_stopping.load(Ordering::Relaxed) {
            settings.metrics.count_refusal(RefusalReason::Draining);
            return response::error(StatusCode::SERVICE_UNAVAILABLE, "the node is about to end");
        }
        if !settings.origins.allows(request.headers().get_all(ORIGIN).iter().map(HeaderValue::as_bytes)) {
            settings.metrics.count_refusal(RefusalReason::Origin);
            return response::error(StatusCode::FORBIDDEN, "pages of this origin may not connect");
        }
        let identity = match identify(&settings.auth, &request) {
            Ok(identity) => identity,
            Err(fault) => {
                settings.metrics.count_refusal(RefusalReason::Auth);
                return response::error(StatusCode::UNAUTHORIZED, &fault.to_string());
            }
        };
        let facts = handshake_facts(&request, peer);
        let speaks = bearer::offers(request.headers(), PROTOCOL);
        let Ok((response, upgrade)) =
            WebSocket::upgrade_with_options(&mut request, self.context.options.clone())
        else {
            return response::error(StatusCode::BAD_REQUEST, "this is no WebSocket handshake");
        };
        tasks.spawn(connection::run(Arc::clone(&self.context), upgrade, identity, facts));
        let mut answer = response.map(|_| Full::default());
        if speaks {
            answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        }
        answer
    }

    /// Lets nobody in any more and closes all clients with 1012, spread over `over`; returns when the last has gone.
    pub(crate) async fn shutdown(&self, over: Duration) {
        let WsJsonContext { open, is_stopping, tasks, .. } = &*self.context;
        is_stopping.store(true, Ordering::Relaxed);
        let clients: Vec<_> = open.lock().values().cloned().collect();
        let restart = |client: &Arc<WsJsonClient>| client.outbox.end(OutboxEnd::Restart);
        close_paced(clients, over, restart, || !open.lock().is_empty()).await;
        // Also those whose upgrade was on its way when the closing began.
        open.lock().values().for_each(restart);
        tasks.close();
        tasks.wait().await;
    }
}

/// Who opens this WebSocket.
fn identify(auth: &Authenticator, request: &Request<Incoming>) -> Result<Identity, AuthError> {
    let query = request.uri().query().unwrap_or_default();
    let headers: &HeaderMap = request.headers();
    let token = bearer::of_query(query, "token")
        .or_else(|| bearer::of_header(headers.get(AUTHORIZATION)))
        .or_else(|| bearer::of_protocols(headers));
    auth.identify(token.as_deref(), bearer::of_query(query, "user").as_deref())
}

fn not_an_upgrade(fault: &handshake::UpgradeRequestError) -> HttpResponse {
    let status = match fault {
        handshake::UpgradeRequestError::Method => return response::not_allowed("GET"),
        handshake::UpgradeRequestError::Key | handshake::UpgradeRequestError::Body => StatusCode::BAD_REQUEST,
        _ => StatusCode::UPGRADE_REQUIRED,
    };
    let mut answer =
        response::error(status, &format!("{fault}; the messages are described on /ws/schema.json"));
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
