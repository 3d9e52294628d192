//! The route of a request: its host and path name a pool, and its page must be of an allowed origin.

use std::sync::Arc;

use http::header::{HOST, HeaderValue, ORIGIN};
use http::{HeaderMap, Method, Request};

use super::client_connection::ClientConnection;
use super::state::{ProxyState, UpstreamPool};
use crate::http::headers;
use crate::http::reply::ProxyError;
use crate::ws::handshake;

/// A route that a request matches.
pub(super) struct MatchedRoute {
    /// The present generation.
    pub state: Arc<ProxyState>,
    /// The pool of the route.
    pub pool: Arc<UpstreamPool>,
    /// The route, as written in the config.
    pub name: Arc<str>,
    /// The request asks for a tunnel.
    pub is_upgrade: bool,
}

/// Finds the route of a request, which has a Host from then on.
///
/// # Errors
///
/// [`ProxyError::Target`], [`ProxyError::NoRoute`] and [`ProxyError::Origin`].
pub(super) fn match_route<B>(
    connection: &ClientConnection,
    request: &mut Request<B>,
) -> Result<MatchedRoute, ProxyError> {
    headers::ensure_host(request, connection.ends.destination);
    if request.method() == Method::CONNECT || !request.uri().path().starts_with('/') {
        return Err(ProxyError::Target);
    }
    let is_upgrade = handshake::is_upgrade(request.headers());
    let state = connection.context.state.load_full();
    let (_, route) =
        state.routes.find(host(request.headers()), request.uri().path()).ok_or(ProxyError::NoRoute)?;
    let pool = state.pools.get(&route.pool).cloned().ok_or(ProxyError::NoRoute)?;
    let origins = request.headers().get_all(ORIGIN).iter().map(HeaderValue::as_bytes);
    if is_upgrade && !route.origins.allows(origins) {
        pool.meter.record_handshake(ProxyError::Origin.handshake_result());
        return Err(ProxyError::Origin);
    }
    let name = route.name().into();
    Ok(MatchedRoute { state, pool, name, is_upgrade })
}

fn host(headers: &HeaderMap) -> &str {
    headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default()
}
