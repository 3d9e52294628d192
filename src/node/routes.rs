//! Which part of the node answers which path.
//!
//! | path | answered by |
//! |---|---|
//! | `/health` | `health` |
//! | `/metrics` | `metrics` |
//! | `/api/…` | `api`, for who shows a token |

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;

use crate::shutdown::{Phase, Shutdown};

use super::answer::{self, Answer};
use super::config::Settings;
use super::health::Health;
use super::limits::Seats;
use super::metrics::Metrics;
use super::presence::Presence;
use super::{api, server};

/// What the answers are made of.
pub(super) struct Routes {
    /// As they were given.
    pub(super) settings: Settings,
    /// Of clients.
    pub(super) seats: Arc<Seats>,
    /// What is counted.
    pub(super) metrics: Metrics,
    /// Who is there.
    pub(super) presence: Arc<Presence>,
    /// How far the node is on its way to the end.
    pub(super) shutdown: Shutdown,
}

impl server::Service for Routes {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, _peer: SocketAddr) -> Answer {
        match request.uri().path() {
            "/health" => for_reading(&request, || self.health()),
            "/metrics" => for_reading(&request, || self.metrics()),
            path if path.starts_with("/api/") => self.api(request).await,
            _ => answer::error(StatusCode::NOT_FOUND, "there is nothing on this path"),
        }
    }
}

impl Routes {
    fn health(&self) -> Answer {
        let health = Health {
            node: &self.settings.id,
            release: self.settings.release.as_deref(),
            connections: self.seats.taken(),
            max: self.seats.most(),
            adapter: self.settings.cluster.adapter.word(),
            bus: None,
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
            return api::user(&self.presence, request.method(), id).await;
        }
        answer::error(StatusCode::NOT_FOUND, "there is /api/users/{id}")
    }
}

/// An answer to GET and HEAD.
fn for_reading(request: &Request<Incoming>, answer: impl FnOnce() -> Answer) -> Answer {
    match *request.method() {
        Method::GET | Method::HEAD => answer(),
        _ => answer::not_allowed("GET, HEAD"),
    }
}
