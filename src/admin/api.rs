//! Which path is answered how.
//!
//! Paths are compared as they are sent: nothing is decoded and no `..` is resolved, so another spelling of a path is
//! another path, and there is nothing at it.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time;

use super::access::{self, Exposure};
use super::context::AdminContext;
use super::response::{self, AdminResponse};
use super::sessions::{self, SessionPage, SessionQuery, SessionResponse};
use super::status::status;
use super::{nodes, rebalance};
use crate::http::framing::HeadError;

/// The most bytes of a request body.
const BODY_SIZE: usize = 16 * 1024;

/// The API on one listener.
pub(super) struct Api {
    pub context: Arc<AdminContext>,
    /// Who can reach the listener.
    pub exposure: Exposure,
    /// The time for a whole request body.
    pub body_time: Duration,
}

impl Api {
    /// The response to one request.
    pub(super) async fn reply(&self, request: Request<Incoming>) -> AdminResponse {
        let denial = match &self.context.reload.config().admin {
            Some(admin) => access::denial(&request, self.exposure, admin.tokens.as_ref()),
            // A reload has turned it off, and this connection has not ended yet.
            None => Some(response::error(StatusCode::SERVICE_UNAVAILABLE, "the admin address is turned off")),
        };
        if let Some(denial) = denial {
            return denial;
        }
        if !names_one_host(&request) {
            return response::error(StatusCode::BAD_REQUEST, "exactly one Host is expected");
        }
        let (head, body) = request.into_parts();
        match read_body(&head, body, self.body_time).await {
            Ok(body) => route(&head, &body, &self.context).await,
            Err(error) => response::with_close(error),
        }
    }
}

/// The response to a request whose head cannot be read.
pub(super) fn head_error_response(error: &HeadError) -> AdminResponse {
    let status = match error {
        HeadError::TooSlow => StatusCode::REQUEST_TIMEOUT,
        HeadError::TooLarge(_) | HeadError::TooManyFields(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        _ => StatusCode::BAD_REQUEST,
    };
    response::with_close(response::error(status, &error.to_string()))
}

/// RFC 9112, section 3.2: a request without a Host, or with two, is answered with 400; HTTP/1.0, which simple
/// health checkers still speak, may leave it out.
fn names_one_host(request: &Request<Incoming>) -> bool {
    match request.headers().get_all(header::HOST).iter().count() {
        0 => request.version() == Version::HTTP_10,
        count => count == 1,
    }
}

/// The whole body, within its size and time.
async fn read_body(head: &Parts, body: Incoming, within: Duration) -> Result<Vec<u8>, AdminResponse> {
    let too_large = || {
        let what = format!("the body is too large; {BODY_SIZE} bytes are the most");
        response::error(StatusCode::PAYLOAD_TOO_LARGE, &what)
    };
    let told =
        head.headers.get(header::CONTENT_LENGTH).and_then(|told| told.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|told| told > BODY_SIZE as u64) {
        return Err(too_large());
    }
    match time::timeout(within, Limited::new(body, BODY_SIZE).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(fault)) if fault.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(response::error(StatusCode::BAD_REQUEST, "the body broke off or is badly framed")),
        Err(_) => Err(response::error(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

const READ: &str = "GET, HEAD";

async fn route(head: &Parts, body: &[u8], context: &AdminContext) -> AdminResponse {
    let (method, path) = (&head.method, head.uri.path());
    if let Some(id) = path.strip_prefix("/api/sessions/") {
        return match method {
            &Method::DELETE => close(id, context).await,
            _ => response::method_not_allowed("DELETE"),
        };
    }
    if let Some(pool) = rebalance::parse_path(path) {
        return match method {
            &Method::POST => rebalance::begin(pool, body, context),
            _ => response::method_not_allowed("POST"),
        };
    }
    if let Some(action) = nodes::parse_path(path) {
        return match method {
            &Method::POST => nodes::perform(action, body, context).await,
            _ => response::method_not_allowed("POST"),
        };
    }
    let allowed = match path {
        "/metrics" | "/healthz" | "/readyz" | "/api/status" | "/api/config" | "/api/sessions" => READ,
        "/api/reload" | "/api/upgrade" => "POST",
        _ => return response::error(StatusCode::NOT_FOUND, "there is nothing at this path"),
    };
    if !allowed.split(", ").any(|allowed| allowed == method.as_str()) {
        return response::method_not_allowed(allowed);
    }
    match path {
        "/metrics" => response::metrics(context.proxy().metrics.render()),
        "/healthz" => response::text("ok\n"),
        "/readyz" => match context.readiness() {
            Ok(()) => response::text("ready\n"),
            Err(why) => response::error(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        "/api/status" => response::json(StatusCode::OK, &status(context)),
        "/api/config" => response::json(StatusCode::OK, &crate::config::effective(&context.reload.config())),
        "/api/sessions" => list(head.uri.query().unwrap_or_default(), context).await,
        "/api/upgrade" => upgrade(body, context).await,
        _ => reload(body, context).await,
    }
}

async fn list(query: &str, context: &AdminContext) -> AdminResponse {
    let query = match sessions::parse_query(query) {
        Ok(query) => query,
        Err(what) => return response::error(StatusCode::BAD_REQUEST, &what),
    };
    let relay = &context.proxy().relay;
    let found = relay.list_sessions(query.selector(), query.after, query.limit + 1).await;
    let page = SessionPage::of(found.into_iter().map(SessionResponse::from).collect(), query.limit);
    match unknown_name(&query, context) {
        // What is gone from the config may have sessions still.
        Some(what) if page.is_empty() => response::error(StatusCode::BAD_REQUEST, &what),
        _ => response::json(StatusCode::OK, &page),
    }
}

/// A pool or a node that the config does not know: a typing error, which an empty list would hide.
fn unknown_name(query: &SessionQuery, context: &AdminContext) -> Option<String> {
    let config = context.reload.config();
    let pools =
        || config.pools.iter().filter(|pool| query.pool.as_ref().is_none_or(|name| **name == *pool.name));
    if let (Some(name), None) = (&query.pool, pools().next()) {
        let known: Vec<&str> = config.pools.iter().map(|pool| &*pool.name).collect();
        return Some(format!("there is no pool `{name}`; the pools are: {}", known.join(", ")));
    }
    let name = query.node.as_ref()?;
    let is_known = pools().any(|pool| pool.nodes.iter().any(|node| node.id.as_str() == name));
    (!is_known).then(|| format!("there is no node `{name}`; /api/status names the nodes"))
}

/// Ends a session; it is gone when its peers have answered the Close, or after a grace time.
async fn close(id: &str, context: &AdminContext) -> AdminResponse {
    let what = "there is no such session; it has ended, or its id is not one of /api/sessions";
    let relay = &context.proxy().relay;
    match sessions::parse_id(id) {
        Some(number) if relay.close(sessions::close_order(number)).counted().await > 0 => {
            response::json(StatusCode::ACCEPTED, &json!({ "closing": format!("{number:016x}") }))
        }
        _ => response::error(StatusCode::NOT_FOUND, what),
    }
}

async fn reload(body: &[u8], context: &AdminContext) -> AdminResponse {
    if !is_empty(body) {
        let what = "a reload takes no body; leave it out, or send `{}`";
        return response::error(StatusCode::BAD_REQUEST, what);
    }
    match context.reload.reload_from_file().await {
        Ok(changes) => {
            let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
            response::json(StatusCode::OK, &json!({ "changes": changes }))
        }
        Err(faults) => response::config_faults(&faults),
    }
}

async fn upgrade(body: &[u8], context: &AdminContext) -> AdminResponse {
    if !is_empty(body) {
        let what = "an upgrade takes no body; leave it out, or send `{}`";
        return response::error(StatusCode::BAD_REQUEST, what);
    }
    match context.upgrader.upgrade().await {
        Ok(replaced) => {
            let pause = replaced.pause.as_secs_f64() * 1000.0;
            let told = json!({ "process": replaced.process, "tunnels": replaced.tunnels, "pause_ms": pause });
            response::with_close(response::json(StatusCode::OK, &told))
        }
        Err(error) => response::error(StatusCode::CONFLICT, &error.to_string()),
    }
}

/// Whether there is no body, or an object without keys.
fn is_empty(body: &[u8]) -> bool {
    body.is_empty() || serde_json::from_slice(body).is_ok_and(|value: Value| value == json!({}))
}
