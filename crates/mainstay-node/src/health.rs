//! `/health`: how the node is, for the balancer, for Kubernetes and for people.
//!
//! | status | HTTP | meaning |
//! |---|---|---|
//! | `ok` | 200 | |
//! | `full` | 200 | the node has all the clients it may have; the balancer reads that from `X-Mainstay-Load` and sends nobody |
//! | `degraded` | 200 | Redis is away, refuses writes, or a subscription is not proved: local clients go on, and `redis.why` says what it is |
//! | `draining` | 503 | the node is about to end |
//! | `unfit` | 503 | the node must not go on, and ends |
//!
//! `X-Mainstay-Load` is connections/max, `X-Mainstay-State` is `draining` from the first moment on, and
//! `X-Mainstay-Release` is what `--release` says.

use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::response::{self, HttpResponse};
use socketio_redis::adapter::AdapterState;

const LOAD: HeaderName = HeaderName::from_static("x-mainstay-load");
const STATE: HeaderName = HeaderName::from_static("x-mainstay-state");
const RELEASE: HeaderName = HeaderName::from_static("x-mainstay-release");

/// What is told.
pub(crate) struct Health<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The release, when it was said.
    pub release: Option<&'a str>,
    /// Clients.
    pub connections: usize,
    /// The most of them.
    pub max: usize,
    /// How broadcasts travel.
    pub adapter: &'static str,
    /// Whether the other nodes are reached; `None` where there is no Redis.
    pub bus: Option<AdapterState>,
    /// Whether the node is about to end.
    pub(crate) is_draining: bool,
}

impl Health<'_> {
    fn status(&self) -> &'static str {
        match &self.bus {
            Some(AdapterState::Incompatible { .. }) => "unfit",
            _ if self.is_draining => "draining",
            Some(AdapterState::Unreachable { .. }) => "degraded",
            _ if self.connections >= self.max => "full",
            _ => "ok",
        }
    }

    /// The answer to `GET /health`.
    pub(crate) fn response(&self) -> HttpResponse {
        let status = self.status();
        let code = match status {
            "draining" | "unfit" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        };
        let body = json!({
            "status": status, "node": self.node, "connections": self.connections, "max": self.max,
            "release": self.release, "adapter": self.adapter, "redis": self.bus.as_ref().map(redis),
        });
        let mut answer = response::json(code, &body);
        let headers = answer.headers_mut();
        let load = format!("{}/{}", self.connections, self.max);
        if let Ok(load) = HeaderValue::try_from(load) {
            headers.insert(LOAD, load);
        }
        if self.is_draining {
            headers.insert(STATE, HeaderValue::from_static("draining"));
        }
        if let Some(release) = self.release.and_then(|release| HeaderValue::try_from(release).ok()) {
            headers.insert(RELEASE, release);
        }
        answer
    }
}

fn redis(state: &AdapterState) -> Value {
    match state {
        AdapterState::Up => json!({ "state": "up" }),
        AdapterState::Unreachable { reason: why } => json!({ "state": "away", "why": &**why }),
        AdapterState::Incompatible { reason: why } => json!({ "state": "unfit", "why": &**why }),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn told(change: impl FnOnce(&mut Health)) -> (u16, Value, HttpResponse) {
        let mut health = Health {
            node: "ws1",
            release: None,
            connections: 3,
            max: 10,
            adapter: "streams",
            bus: Some(AdapterState::Up),
            is_draining: false,
        };
        change(&mut health);
        let answer = health.response();
        let bytes = answer.body().clone().collect().await.unwrap().to_bytes();
        (answer.status().as_u16(), serde_json::from_slice(&bytes).unwrap(), answer)
    }

    #[tokio::test]
    async fn a_node_that_is_well_tells_its_load() {
        let (status, body, answer) = told(|health| health.release = Some("v7")).await;
        assert_eq!(
            (status, &body["status"], &body["connections"], &body["max"]),
            (200, &"ok".into(), &3.into(), &10.into())
        );
        assert_eq!((&body["node"], &body["redis"]["state"]), (&"ws1".into(), &"up".into()));
        assert_eq!(answer.headers()["x-mainstay-load"], "3/10");
        assert_eq!(answer.headers()["x-mainstay-release"], "v7");
        assert!(!answer.headers().contains_key("x-mainstay-state"));
    }

    #[tokio::test]
    async fn each_state_has_its_word_and_its_status() {
        let away = || Some(AdapterState::Unreachable { reason: "connection refused".into() });
        let (status, body, _) = told(|health| health.bus = away()).await;
        assert_eq!(
            (status, &body["status"], &body["redis"]["why"]),
            (200, &"degraded".into(), &"connection refused".into())
        );
        let (status, body, _) = told(|health| health.connections = 10).await;
        assert_eq!((status, &body["status"]), (200, &"full".into()));
        let (status, body, answer) = told(|health| (health.bus, health.is_draining) = (away(), true)).await;
        assert_eq!((status, &body["status"]), (503, &"draining".into()));
        assert_eq!(answer.headers()["x-mainstay-state"], "draining");
        let (status, body, _) =
            told(|health| health.bus = Some(AdapterState::Incompatible { reason: "x".into() })).await;
        assert_eq!((status, &body["status"]), (503, &"unfit".into()));
        let (_, body, _) = told(|health| health.bus = None).await;
        assert_eq!(body["redis"], Value::Null);
    }
}
