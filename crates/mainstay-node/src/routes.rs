//! Which part of the node answers which path.
//!
//! | path | answered by |
//! |---|---|
//! | `/socket.io/` | `engine_io`, for `socketio` |
//! | `/ws` | `ws_json`; `/ws/schema.json` describes its messages |
//! | `/` | the chat page, where the settings ask for it |
//! | `/health` | `health` |
//! | `/metrics` | `metrics` |
//! | `/api/…` | `api`, for who shows a token |

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;

use mainstay_core::forwarded;
use mainstay_core::shutdown::{Phase, Shutdown};

use crate::app::ChatApp;
use crate::app::publication::Publication;
use crate::app::socketio_app::SocketIoApp;
use crate::config::{AdapterKind, NodeSettings};
use crate::engine_io::{self, ClientAddress};
use crate::health::Health;
use crate::hub::Hub;
use crate::limits::ConnectionLimiter;
use crate::metrics::Metrics;
use crate::presence::Presence;
use crate::response::{self, HttpResponse};
use crate::socketio::SocketIoServer;
use crate::ws_json::{self, WsJsonServer};
use crate::{api, chat_page, http_server};

/// What the answers are made of.
pub(crate) struct Routes {
    /// As they were given.
    pub(crate) settings: NodeSettings,
    /// Of clients.
    pub(crate) limiter: Arc<ConnectionLimiter>,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// The namespaces.
    pub(crate) hub: Arc<Hub>,
    /// What clients and back-end code ask.
    pub(crate) application: Arc<ChatApp>,
    /// The transports of Socket.IO.
    pub(crate) engine: engine_io::EngineServer,
    /// Socket.IO clients.
    pub(crate) socketio: Arc<SocketIoServer>,
    /// What becomes of their events.
    pub(crate) socketio_app: Arc<SocketIoApp>,
    /// Clients of the JSON protocol.
    pub(crate) ws_json: WsJsonServer,
    /// Who is there.
    pub(crate) presence: Arc<Presence>,
    /// How far the node is on its way to the end.
    pub(crate) shutdown: Shutdown,
}

impl http_server::RequestHandler for Routes {
    async fn respond(self: Arc<Self>, mut request: Request<Incoming>, peer: SocketAddr) -> HttpResponse {
        match request.uri().path() {
            "/socket.io/" => {
                let client = self.client_address(&request, peer);
                request.extensions_mut().insert(client);
                self.engine.respond(request, peer).await
            }
            "/ws" => self.ws_json.upgrade(request, peer),
            "/ws/schema.json" => for_reading(&request, || {
                response::with_content_type(StatusCode::OK, "application/schema+json", ws_json::SCHEMA)
            }),
            "/" if self.settings.page => for_reading(&request, || chat_page::page(&self.settings.id)),
            "/health" => for_reading(&request, || self.health()),
            "/metrics" => for_reading(&request, || self.metrics()),
            path if path.starts_with("/api/") => self.api(request).await,
            _ => response::error(StatusCode::NOT_FOUND, "there is nothing on this path"),
        }
    }
}

impl Routes {
    /// Where the client is, as far as the peer is believed.
    fn client_address(&self, request: &Request<Incoming>, peer: SocketAddr) -> ClientAddress {
        let trusted = &self.settings.clients.trusted_proxies;
        ClientAddress(forwarded::forwarded_client(peer.ip(), false, request.headers(), trusted).address)
    }

    fn health(&self) -> HttpResponse {
        let health = Health {
            node: &self.settings.id,
            release: self.settings.release.as_deref(),
            connections: self.limiter.in_use(),
            max: self.limiter.max(),
            adapter: self.settings.cluster.adapter.word(),
            bus: (self.settings.cluster.adapter != AdapterKind::Memory).then(|| self.hub.bus_state()),
            is_draining: self.shutdown.phase() > Phase::Serving,
        };
        health.response()
    }

    fn metrics(&self) -> HttpResponse {
        response::with_content_type(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            self.metrics.text(),
        )
    }

    async fn api(&self, request: Request<Incoming>) -> HttpResponse {
        if let Some(refusal) = api::check_token(&request, self.settings.api.as_ref()) {
            return refusal;
        }
        let path = request.uri().path();
        if let Some(id) = path.strip_prefix("/api/users/") {
            return api::user(request.method(), id, async |user| self.application.connections(user).await)
                .await;
        }
        if path != "/api/publish" {
            return response::error(StatusCode::NOT_FOUND, "there is /api/users/{id} and /api/publish");
        }
        match api::read_publication(request).await {
            Ok(publication) => self.publish(publication).await,
            Err(refusal) => refusal,
        }
    }

    async fn publish(&self, publication: Publication) -> HttpResponse {
        match self.application.publish_from_api(publication).await {
            Ok(None) => response::json(StatusCode::OK, &serde_json::json!({ "ok": true })),
            Ok(Some(delivered)) => {
                response::json(StatusCode::OK, &serde_json::json!({ "ok": true, "delivered": delivered }))
            }
            Err(words) => response::error(StatusCode::SERVICE_UNAVAILABLE, &words),
        }
    }
}

/// An answer to GET and HEAD.
fn for_reading(request: &Request<Incoming>, answer: impl FnOnce() -> HttpResponse) -> HttpResponse {
    match *request.method() {
        Method::GET | Method::HEAD => answer(),
        _ => response::not_allowed("GET, HEAD"),
    }
}
