//! Which part of the node answers which path.
//!
//! | path | answered by |
//! |---|---|
//! | `/socket.io/` | `engine_io`, for `socketio` |
//! | `/ws` | `plain`; `/ws/schema.json` describes its messages |
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

use super::answer::{self, Answer};
use super::application::Application;
use super::config::{Adapter, Settings};
use super::engine_io::{self, ClientAddress};
use super::health::Health;
use super::hub::Hub;
use super::limits::Seats;
use super::metrics::Metrics;
use super::plain::{self, Plain};
use super::presence::Presence;
use super::socketio::SocketIo;
use super::visitors::Visitors;
use super::{api, chat, server};

/// What the answers are made of.
pub(super) struct Routes {
    /// As they were given.
    pub(super) settings: Settings,
    /// Of clients.
    pub(super) seats: Arc<Seats>,
    /// What is counted.
    pub(super) metrics: Metrics,
    /// The namespaces.
    pub(super) hub: Arc<Hub>,
    /// What clients and back-end code ask.
    pub(super) application: Arc<Application>,
    /// The transports of Socket.IO.
    pub(super) engine: engine_io::Server,
    /// Socket.IO clients.
    pub(super) socketio: Arc<SocketIo>,
    /// What becomes of their events.
    pub(super) visitors: Arc<Visitors>,
    /// Plain clients.
    pub(super) plain: Plain,
    /// Who is there.
    pub(super) presence: Arc<Presence>,
    /// How far the node is on its way to the end.
    pub(super) shutdown: Shutdown,
}

impl server::Service for Routes {
    async fn answer(self: Arc<Self>, mut request: Request<Incoming>, peer: SocketAddr) -> Answer {
        match request.uri().path() {
            "/socket.io/" => {
                let client = self.client(&request, peer);
                request.extensions_mut().insert(client);
                self.engine.respond(request, peer).await
            }
            "/ws" => self.plain.upgrade(request, peer),
            "/ws/schema.json" => for_reading(&request, || {
                answer::typed(StatusCode::OK, "application/schema+json", plain::SCHEMA)
            }),
            "/" if self.settings.page => for_reading(&request, || chat::page(&self.settings.id)),
            "/health" => for_reading(&request, || self.health()),
            "/metrics" => for_reading(&request, || self.metrics()),
            path if path.starts_with("/api/") => self.api(request).await,
            _ => answer::error(StatusCode::NOT_FOUND, "there is nothing on this path"),
        }
    }
}

impl Routes {
    /// Where the client is, as far as the peer is believed.
    fn client(&self, request: &Request<Incoming>, peer: SocketAddr) -> ClientAddress {
        let trusted = &self.settings.clients.trusted_proxies;
        ClientAddress(forwarded::forwarded_client(peer.ip(), false, request.headers(), trusted).address)
    }

    fn health(&self) -> Answer {
        let health = Health {
            node: &self.settings.id,
            release: self.settings.release.as_deref(),
            connections: self.seats.taken(),
            max: self.seats.most(),
            adapter: self.settings.cluster.adapter.word(),
            bus: (self.settings.cluster.adapter != Adapter::Memory).then(|| self.hub.bus_state()),
            is_draining: self.shutdown.phase() > Phase::Serving,
        };
        health.answer()
    }

    fn metrics(&self) -> Answer {
        answer::typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.text())
    }

    async fn api(&self, request: Request<Incoming>) -> Answer {
        if let Some(refusal) = api::refusal(&request, self.settings.api.as_ref()) {
            return refusal;
        }
        let path = request.uri().path();
        if let Some(id) = path.strip_prefix("/api/users/") {
            return api::user(request.method(), id, async |user| self.application.connections(user).await)
                .await;
        }
        if path != "/api/publish" {
            return answer::error(StatusCode::NOT_FOUND, "there is /api/users/{id} and /api/publish");
        }
        match api::publication(request).await {
            Ok(publication) => self.publish(publication).await,
            Err(refusal) => refusal,
        }
    }

    async fn publish(&self, publication: api::Publication) -> Answer {
        match self.application.publication(publication).await {
            Ok(None) => answer::json(StatusCode::OK, &serde_json::json!({ "ok": true })),
            Ok(Some(delivered)) => {
                answer::json(StatusCode::OK, &serde_json::json!({ "ok": true, "delivered": delivered }))
            }
            Err(words) => answer::error(StatusCode::SERVICE_UNAVAILABLE, &words),
        }
    }
}

/// An answer to GET and HEAD.
fn for_reading(request: &Request<Incoming>, answer: impl FnOnce() -> Answer) -> Answer {
    match *request.method() {
        Method::GET | Method::HEAD => answer(),
        _ => answer::not_allowed("GET, HEAD"),
    }
}
