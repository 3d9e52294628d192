//! A session: a request that has a pool, what the affinity sources say about it, and the candidates for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Uri};
use mainstay_core::forwarded::{ForwardedClient, forwarded_client};

use super::client_connection::ClientConnection;
use super::context::ProxyContext;
use super::routing::MatchedRoute;
use super::state::{ProxyState, UpstreamPool};
use crate::affinity::NodeDirectory as _;
use crate::affinity::{self, AffinityHint, AffinityHints, AffinitySource, ClientPrefixes, engine_io};
use crate::http::headers;
use crate::http::reply::ProxyError;
use crate::http::trace;
use crate::net::proxy_protocol::ProxyAddresses;
use crate::pool::rollout::Rollout;
use crate::pool::select::{
    BalancePolicy, Candidate, Candidates, NoNodeReason, NodeLoad, SelectOutcome, SelectRequest,
    select_candidates,
};

/// A request that has a pool: what dialling, answering and adopting need to know.
pub(super) struct ProxySession {
    /// Unique in the process, and random enough to draw from.
    pub id: u64,
    /// The generation that it sees from here to its adoption (invariant I3).
    pub state: Arc<ProxyState>,
    /// Its pool.
    pub pool: Arc<UpstreamPool>,
    /// Its route, as written in the config.
    pub route: Arc<str>,
    /// It asks for a tunnel.
    pub is_upgrade: bool,
    /// Its client.
    pub client: ForwardedClient,
    /// The trace that it is part of; its node is told.
    pub trace: [u8; 16],
    /// What the affinity sources say.
    pub hints: AffinityHints,
    /// It may live on any node: nothing of it is anywhere yet.
    pub opens: bool,
    /// It belongs to an Engine.IO session, which lives on one node and is unknown to every other.
    pub in_session: bool,
    /// The load bound of its pool, where that applies to it.
    load_bound: Option<f64>,
    /// The draining node that it still uses.
    draining_pin: Option<usize>,
    /// The rollout that was under way when it came.
    rollout: Option<Arc<Rollout>>,
    /// When its head was read.
    pub begun: Instant,
    /// The same, on the calendar.
    pub opened_at: SystemTime,
}

impl ProxySession {
    /// The session of a request that has a route. The request has a `traceparent` from then on, and its target is a path
    /// without the balancer's own tag in a Socket.IO sid.
    ///
    /// # Errors
    ///
    /// [`ProxyError::Target`] when its target is no path.
    pub(super) fn new<B>(
        connection: &ClientConnection,
        route: MatchedRoute,
        request: &mut Request<B>,
    ) -> Result<Self, ProxyError> {
        let MatchedRoute { state, pool, name, is_upgrade } = route;
        let (context, opened_at) = (&connection.context, SystemTime::now());
        let trace = trace::ensure_traceparent(request.headers_mut(), || context.random_bytes());
        let trusted = &state.trusted_proxies;
        let client = forwarded_client(connection.peer, connection.is_secure, request.headers(), trusted);
        let query = request.uri().query();
        let asked = affinity::AffinityRequest {
            headers: request.headers(),
            query,
            client: client.address,
            now: unix_seconds(opened_at),
            pool: &pool.config.name,
        };
        let hints = affinity::collect_hints(&pool.config.affinity, &asked, &pool.nodes);
        let in_session = engine_io::has_session(query);
        let opens =
            if is_upgrade { !in_session } else { engine_io::is_polling_handshake(request.method(), query) };
        let session = Self {
            id: context.next_id(),
            load_bound: pool.load_bound(opens, is_upgrade),
            draining_pin: pool.draining_pin(&hints, query.and_then(engine_io::session_key)),
            rollout: pool.rollout.current(),
            state,
            pool,
            route: name,
            is_upgrade,
            client,
            trace,
            hints,
            opens,
            in_session,
            begun: Instant::now(),
            opened_at,
        };
        *request.uri_mut() = session.target(request.uri()).ok_or(ProxyError::Target)?;
        Ok(session)
    }

    /// The target as its node gets it.
    fn target(&self, uri: &Uri) -> Option<Uri> {
        let untagged = uri.query().filter(|_| self.pool.tags_sids()).and_then(engine_io::strip_tag);
        let known = untagged.filter(|(tag, _)| self.pool.nodes.find_by_tag(*tag).is_some());
        let target = match known {
            Some((_, query)) => format!("{}?{query}", uri.path()).parse::<PathAndQuery>().ok(),
            None => uri.path_and_query().cloned(),
        };
        target.map(Uri::from)
    }

    /// The ends that a node is told in a PROXY header. Of a client behind a proxy, the port is not known.
    pub(super) fn ends(&self, connection: &ClientConnection) -> ProxyAddresses {
        let ends = connection.ends;
        if self.client.address == connection.peer {
            return ends;
        }
        ProxyAddresses { source: SocketAddr::new(self.client.address, 0), ..ends }
    }

    /// The candidates for this session, by the loads of now.
    pub(super) fn candidates<'a>(
        &'a self,
        context: &ProxyContext,
    ) -> Candidates<'a, impl Fn(usize) -> NodeLoad + use<'a>> {
        let ask = SelectRequest {
            hints: &self.hints,
            balance: self.pool.config.balance,
            load_bound: self.load_bound,
            client: self.client.address,
            is_tunnel: self.is_upgrade,
            opens_session: self.opens,
            is_in_session: self.in_session,
            draining_pin: self.draining_pin,
            rollout: self.rollout.as_deref(),
            random: self.id,
            sequence: self.pool.next_placement(self.hints.as_slice().is_empty()),
        };
        let now = context.now();
        select_candidates(&self.pool.nodes, ask, move |node| self.pool.upstreams[node].load(now))
    }

    /// The key that `candidate` was found by, when nothing will pin the client to its node.
    pub(super) fn key(&self, candidate: &Candidate) -> Option<u64> {
        let sets_pin =
            self.pool.config.affinity.iter().any(|source| matches!(source, AffinitySource::Cookie(_)));
        if sets_pin || matches!(candidate.outcome, SelectOutcome::Kept) {
            return None;
        }
        match self.hints.as_slice().last() {
            Some(AffinityHint::Key { hash, .. }) => Some(*hash),
            _ if self.pool.config.balance == BalancePolicy::ClientIp => {
                Some(affinity::hash_client(self.client.address, ClientPrefixes::default()))
            }
            _ => None,
        }
    }

    /// Why no candidate has served the session: the balancer's own limits, or those of the nodes.
    pub(super) fn exhausted(shortage: Option<NoNodeReason>, is_local: bool) -> ProxyError {
        match shortage {
            _ if is_local => ProxyError::LocalExhaustion,
            Some(NoNodeReason::NoneUp) => ProxyError::NoNodeUp,
            Some(NoNodeReason::AllFull) => ProxyError::AllNodesFull,
            None => ProxyError::NodesUnreachable,
        }
    }

    /// Sets the cookies that pin the client to `candidate`'s node.
    pub(super) fn set_cookies(&self, candidate: &Candidate, headers: &mut HeaderMap) {
        let Some(tag) = self.pool.nodes.tag(candidate.node) else { return };
        if headers::is_shared_cacheable(headers) {
            return;
        }
        for rule in self.hints.cookies_to_set(&self.pool.config.affinity, candidate.node) {
            let now = unix_seconds(self.opened_at);
            if let Some(cookie) = rule.set_cookie(&self.pool.config.name, tag, now, self.client.is_https) {
                headers.append(http::header::SET_COOKIE, cookie);
            }
        }
    }
}

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
