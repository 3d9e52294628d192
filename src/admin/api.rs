//! Which path is answered how.
//!
//! Paths are compared as they are sent: nothing is decoded and no `..` is resolved, so another spelling of a path is
//! another path, and there is nothing at it.

use std::time::Duration;

use http::request::Parts;
use http::{Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time;

use super::answer::{self, Answer};
use super::sessions::{self, Page};
use super::{BODY_SIZE, Readiness, Server, View, gate, nodes, rebalance};
use crate::http::framing::HeadError;

/// The answer to one request.
pub(super) async fn reply(request: Request<Incoming>, server: &Server) -> Answer {
    let view = &*server.view;
    let refusal = match &(view.config)().admin {
        Some(admin) => gate::refusal(&request, server.reach, admin.tokens.as_ref()),
        // A reload has turned it off, and this connection has not ended yet.
        None => Some(answer::error(StatusCode::SERVICE_UNAVAILABLE, "the admin address is turned off")),
    };
    if let Some(refusal) = refusal {
        return refusal;
    }
    if !names_one_host(&request) {
        return answer::error(StatusCode::BAD_REQUEST, "exactly one Host is expected");
    }
    let (head, body) = request.into_parts();
    match whole(&head, body, server.limits.body_time).await {
        Ok(body) => route(&head, &body, view).await,
        Err(refusal) => answer::last(refusal),
    }
}

/// What a request that is none is told.
pub(super) fn refusal(fault: &HeadError) -> Answer {
    let status = match fault {
        HeadError::TooSlow => StatusCode::REQUEST_TIMEOUT,
        HeadError::TooLarge(_) | HeadError::TooManyFields(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        _ => StatusCode::BAD_REQUEST,
    };
    answer::last(answer::error(status, &fault.to_string()))
}

/// RFC 9112, section 3.2: a request without a Host, or with two, is answered with 400; HTTP/1.0, which simple
/// health checkers still speak, may leave it out.
fn names_one_host(request: &Request<Incoming>) -> bool {
    match request.headers().get_all(header::HOST).iter().count() {
        0 => request.version() == Version::HTTP_10,
        count => count == 1,
    }
}

/// The whole body, which is small and here soon.
async fn whole(head: &Parts, body: Incoming, within: Duration) -> Result<Vec<u8>, Answer> {
    let too_large = || {
        let what = format!("the body is too large; {BODY_SIZE} bytes are the most");
        answer::error(StatusCode::PAYLOAD_TOO_LARGE, &what)
    };
    let told =
        head.headers.get(header::CONTENT_LENGTH).and_then(|told| told.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|told| told > BODY_SIZE as u64) {
        return Err(too_large());
    }
    match time::timeout(within, Limited::new(body, BODY_SIZE).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(fault)) if fault.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(answer::error(StatusCode::BAD_REQUEST, "the body broke off or is badly framed")),
        Err(_) => Err(answer::error(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

const READ: &str = "GET, HEAD";

async fn route(head: &Parts, body: &[u8], view: &View) -> Answer {
    let (method, path) = (&head.method, head.uri.path());
    if let Some(id) = path.strip_prefix("/api/sessions/") {
        return match method {
            &Method::DELETE => close(id, view).await,
            _ => answer::method_not_allowed("DELETE"),
        };
    }
    if let Some(pool) = rebalance::pool(path) {
        return match method {
            &Method::POST => rebalance::begin(pool, body, view),
            _ => answer::method_not_allowed("POST"),
        };
    }
    if let Some(deed) = nodes::deed(path) {
        return match method {
            &Method::POST => nodes::carry_out(deed, body, view).await,
            _ => answer::method_not_allowed("POST"),
        };
    }
    let allowed = match path {
        "/metrics" | "/healthz" | "/readyz" | "/api/status" | "/api/config" | "/api/sessions" => READ,
        "/api/reload" | "/api/upgrade" => "POST",
        _ => return answer::error(StatusCode::NOT_FOUND, "there is nothing at this path"),
    };
    if !allowed.split(", ").any(|allowed| allowed == method.as_str()) {
        return answer::method_not_allowed(allowed);
    }
    match path {
        "/metrics" => answer::metrics(view.metrics.render()),
        "/healthz" => answer::text("ok\n"),
        "/readyz" => match (view.readiness)() {
            Readiness::Ready => answer::text("ready\n"),
            Readiness::NotReady(why) => answer::error(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        "/api/status" => answer::json(StatusCode::OK, &(view.status)()),
        "/api/config" => answer::json(StatusCode::OK, &crate::config::effective(&(view.config)())),
        "/api/sessions" => list(head.uri.query().unwrap_or_default(), view).await,
        "/api/upgrade" => upgrade(body, view).await,
        _ => reload(body, view).await,
    }
}

async fn list(query: &str, view: &View) -> Answer {
    let wanted = match sessions::wanted(query) {
        Ok(wanted) => wanted,
        Err(what) => return answer::error(StatusCode::BAD_REQUEST, &what),
    };
    let limit = wanted.limit;
    let unknown = unknown_name(&wanted, view);
    let page = Page::of((view.sessions)(wanted).await, limit);
    match unknown {
        // What is gone from the config may have sessions still.
        Some(what) if page.is_empty() => answer::error(StatusCode::BAD_REQUEST, &what),
        _ => answer::json(StatusCode::OK, &page),
    }
}

/// A pool or a node that the config does not know: a slip of the pen, which an empty list would hide.
fn unknown_name(wanted: &sessions::Wanted, view: &View) -> Option<String> {
    let config = (view.config)();
    let pools =
        || config.pools.iter().filter(|pool| wanted.pool.as_ref().is_none_or(|name| **name == *pool.name));
    if let (Some(name), None) = (&wanted.pool, pools().next()) {
        let known: Vec<&str> = config.pools.iter().map(|pool| &*pool.name).collect();
        return Some(format!("there is no pool `{name}`; the pools are: {}", known.join(", ")));
    }
    let name = wanted.node.as_ref()?;
    let is_known = pools().any(|pool| pool.nodes.iter().any(|node| node.id.as_str() == name));
    (!is_known).then(|| format!("there is no node `{name}`; /api/status names the nodes"))
}

/// Ends a session; it is gone when its peers have answered the Close, or after a grace time.
async fn close(id: &str, view: &View) -> Answer {
    let what = "there is no such session; it has ended, or its id is not one of /api/sessions";
    match sessions::id(id) {
        Some(number) if (view.close)(number).await => {
            answer::json(StatusCode::ACCEPTED, &json!({ "closing": format!("{number:016x}") }))
        }
        _ => answer::error(StatusCode::NOT_FOUND, what),
    }
}

async fn reload(body: &[u8], view: &View) -> Answer {
    if !says_nothing(body) {
        let what = "a reload takes no body; leave it out, or send `{}`";
        return answer::error(StatusCode::BAD_REQUEST, what);
    }
    match (view.reload)().await {
        Ok(changes) => answer::json(StatusCode::OK, &json!({ "changes": changes })),
        Err(faults) => answer::config_faults(&faults),
    }
}

async fn upgrade(body: &[u8], view: &View) -> Answer {
    if !says_nothing(body) {
        let what = "an upgrade takes no body; leave it out, or send `{}`";
        return answer::error(StatusCode::BAD_REQUEST, what);
    }
    match (view.upgrade)().await {
        Ok(replaced) => {
            let pause = replaced.pause.as_secs_f64() * 1000.0;
            let told = json!({ "process": replaced.process, "tunnels": replaced.tunnels, "pause_ms": pause });
            answer::last(answer::json(StatusCode::OK, &told))
        }
        Err(why) => answer::error(StatusCode::CONFLICT, &why),
    }
}

/// No body, or an object without keys.
fn says_nothing(body: &[u8]) -> bool {
    body.is_empty() || serde_json::from_slice(body).is_ok_and(|value: Value| value == json!({}))
}
