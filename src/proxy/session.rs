//! The story of a request, top to bottom: head, route, affinity, and then a tunnel or a plain answer.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue, ORIGIN};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::accept::Connection;
use super::catch_panic::catch_panic;
use super::request_body::RequestBody;
use super::{ProxyContext, ProxyState, UpstreamPool, forward, upgrade};
use mainstay_core::forwarded::{ForwardedClient, forwarded_client};

use crate::affinity::Directory as _;
use crate::affinity::{self, Prefixes, Source, Wish, Wishes, engine_io};
use crate::http::headers;
use crate::http::reply::ProxyError;
use crate::http::request_stream::InFlightRequest;
use crate::http::{Body, BodyError, trace};
use crate::metrics::Handshake;
use crate::net::proxy_protocol::Ends;
use crate::pool::pick::{Ask, Balance, Candidate, Candidates, Load, Outcome, Shortage, candidates};
use crate::pool::rollout::Rollout;
use crate::ws::handshake;

/// How a plain request whose client left is counted: among 4xx, by the status that nginx made usual.
const CLIENT_LEFT: u16 = 499;

/// A request that has a pool: what dialling, answering and adopting need to know.
pub struct Session {
    /// Unique in the process, and random enough to draw from.
    pub id: u64,
    /// The generation that it sees from here to its adoption (invariant I3).
    pub state: Arc<ProxyState>,
    /// Its pool.
    pub pool: Arc<UpstreamPool>,
    /// Its route, as written in the config.
    pub route: Arc<str>,
    /// Where it comes from.
    pub client: ForwardedClient,
    /// The trace that it is part of; its node is told.
    pub trace: [u8; 16],
    /// What the affinity sources say.
    pub wishes: Wishes,
    /// It may live on any node: nothing of it is anywhere yet.
    pub opens: bool,
    /// It belongs to an Engine.IO session, which lives on one node and is unknown to every other.
    pub in_session: bool,
    /// The load bound of its pool, where it may be placed by that.
    load_bound: Option<f64>,
    /// The draining node on which it stays for now.
    pub stays: Option<usize>,
    /// The rollout that was under way when it came.
    pub rollout: Option<Arc<Rollout>>,
    /// When its head was read.
    pub begun: Instant,
    /// The same, on the calendar.
    pub opened_at: SystemTime,
}

/// Serves one request.
pub async fn serve(connection: &Connection, request: Request<Incoming>) -> Response<Body> {
    let (fault, in_flight) = connection.link.begin_request();
    let front = &connection.front;
    let is_upgrade = handshake::is_upgrade(request.headers());
    let (request, upload) = RequestBody::track(request);
    let answer = match fault {
        Some(fault) => Err(ProxyError::Head(fault)),
        None => {
            let served = catch_panic(front, route_and_serve(connection, request)).await;
            served.unwrap_or_else(|| Err(broken_off(connection)))
        }
    };
    let mut response = answer.unwrap_or_else(|failure| {
        tracing::debug!(%failure, peer = %connection.peer, "request refused");
        if is_upgrade && matches!(failure, ProxyError::NoRoute | ProxyError::Target) {
            front.metrics.unrouted_handshake(failure.handshake_result());
        } else if matches!(failure, ProxyError::NoRoute | ProxyError::Target | ProxyError::Head(_)) {
            front.metrics.unrouted(failure.status().as_u16());
        }
        failure.to_response(front.next_id())
    });
    if response.status() != handshake::YES {
        headers::ensure_date(response.headers_mut(), SystemTime::now());
        if front.shutdown.is_relieved() || !upload.is_whole() {
            // The next request goes to the process that has taken over, or would stand behind a body that nobody reads.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
    while_in_flight(response, in_flight)
}

/// A request whose service panicked is answered all the same, and becomes no tunnel.
fn broken_off(connection: &Connection) -> ProxyError {
    tracing::error!(client = %connection.peer, "a request panicked, it is answered with 500");
    drop(connection.handoff.lock().take());
    ProxyError::Panicked
}

/// Keeps the connection's clocks still until the answer has gone out.
fn while_in_flight(response: Response<Body>, in_flight: InFlightRequest) -> Response<Body> {
    response.map(|body| Flying { body, _in_flight: in_flight }.boxed_unsync())
}

/// An answer's body; the request is in flight for as long as it exists.
struct Flying {
    body: Body,
    _in_flight: InFlightRequest,
}

impl http_body::Body for Flying {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn route_and_serve(
    connection: &Connection,
    mut request: Request<RequestBody>,
) -> Result<Response<Body>, ProxyError> {
    let is_upgrade = handshake::is_upgrade(request.headers());
    headers::ensure_host(&mut request, connection.ends.destination);
    if request.method() == Method::CONNECT || !request.uri().path().starts_with('/') {
        return Err(ProxyError::Target);
    }
    let mut session = open(connection, &mut request, is_upgrade)?;
    retarget(&mut request, &mut session)?;
    let mut unanswered = Unanswered { session: &session, is_upgrade, is_done: false };
    if is_upgrade {
        let answer = upgrade::serve(connection, &session, request).await;
        unanswered.is_done = true;
        if let Err(failure) = &answer {
            session.pool.meter.handshake(failure.handshake_result());
        }
        return answer;
    }
    let answer = forward::serve(connection, &session, request).await;
    unanswered.is_done = true;
    let status = answer.as_ref().map_or_else(ProxyError::status, Response::status);
    session.pool.meter.request(status.as_u16());
    answer
}

/// A request that is being served. When it is dropped before it is done, its client has left, or its service panicked.
struct Unanswered<'a> {
    session: &'a Session,
    is_upgrade: bool,
    /// There is an answer.
    is_done: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let (session, pool) = (self.session, &self.session.pool);
        let failure = thread::panicking().then_some(ProxyError::Panicked);
        if failure.is_none() {
            tracing::debug!(client = %session.client.address, pool = %pool.config.name, "client left before its answer");
        }
        if self.is_upgrade {
            pool.meter.handshake(Handshake::Failed);
        } else {
            pool.meter.request(failure.map_or(CLIENT_LEFT, |failure| failure.status().as_u16()));
        }
    }
}

/// Route, origin, trace and affinity.
fn open(
    connection: &Connection,
    request: &mut Request<RequestBody>,
    is_upgrade: bool,
) -> Result<Session, ProxyError> {
    let front = &connection.front;
    let (begun, opened_at) = (Instant::now(), SystemTime::now());
    let state = front.state.load_full();
    let host = host(request.headers());
    let (_, route) = state.routes.find(host, request.uri().path()).ok_or(ProxyError::NoRoute)?;
    let pool = state.pools.get(&route.pool).cloned().ok_or(ProxyError::NoRoute)?;
    let origins = request.headers().get_all(ORIGIN).iter().map(HeaderValue::as_bytes);
    if is_upgrade && !route.origins.allow(origins) {
        pool.meter.handshake(ProxyError::Origin.handshake_result());
        return Err(ProxyError::Origin);
    }
    let name = route.name().into();
    let trace = trace::ensure_traceparent(request.headers_mut(), || front.random_bytes());
    let client =
        forwarded_client(connection.peer, connection.is_secure, request.headers(), &state.trusted_proxies);
    let asked = affinity::Request {
        headers: request.headers(),
        query: request.uri().query(),
        client: client.address,
        now: unix(opened_at),
        pool: &pool.config.name,
    };
    let wishes = affinity::wishes(&pool.config.affinity, &asked, &pool.nodes);
    let in_session = engine_io::is_of_a_session(asked.query);
    let opens =
        if is_upgrade { !in_session } else { engine_io::is_polling_handshake(request.method(), asked.query) };
    let load_bound = pool.load_bound(opens, is_upgrade);
    let stays = pool.draining_pin(&wishes, request.uri().query().and_then(engine_io::session_key));
    Ok(Session {
        id: front.next_id(),
        state,
        rollout: pool.rollout.present(),
        pool,
        route: name,
        client,
        trace,
        in_session,
        wishes,
        opens,
        load_bound,
        stays,
        begun,
        opened_at,
    })
}

fn host(headers: &HeaderMap) -> &str {
    headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default()
}

/// Unix seconds.
pub fn unix(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Makes the target a path, without the balancer's own tag in a Socket.IO sid.
fn retarget(request: &mut Request<RequestBody>, session: &mut Session) -> Result<(), ProxyError> {
    let uri = request.uri();
    let untagged = uri.query().filter(|_| session.pool.tags_sids()).and_then(engine_io::untag);
    let known = untagged.filter(|(tag, _)| session.pool.nodes.by_tag(*tag).is_some());
    let target = match known {
        Some((_, query)) => format!("{}?{query}", uri.path()).parse::<PathAndQuery>().ok(),
        None => uri.path_and_query().cloned(),
    };
    *request.uri_mut() = Uri::from(target.ok_or(ProxyError::Target)?);
    Ok(())
}

impl Session {
    /// The ends that a node is told in a PROXY header. Of a client behind a proxy, the port is not known.
    pub fn ends(&self, connection: &Connection) -> Ends {
        let ends = connection.ends;
        if self.client.address == connection.peer {
            return ends;
        }
        Ends { source: SocketAddr::new(self.client.address, 0), ..ends }
    }

    /// The candidates for this session. A plain request adds no tunnel (`tunnel` is false).
    pub fn candidates<'a>(
        &'a self,
        front: &'a ProxyContext,
        tunnel: bool,
    ) -> Candidates<'a, impl Fn(usize) -> Load + 'a> {
        let ask = Ask {
            wishes: &self.wishes,
            balance: self.pool.balance(),
            load_bound: self.load_bound,
            client: self.client.address,
            tunnel,
            opens: self.opens,
            in_session: self.in_session,
            stays: self.stays,
            rollout: self.rollout.as_deref(),
            draw: self.id,
            turn: self.pool.next_placement(self.wishes.list().is_empty()),
        };
        let now = front.now();
        candidates(&self.pool.nodes, ask, move |node| self.pool.upstreams[node].load(now))
    }

    /// The key that `candidate` was found by, when nothing will pin the client to its node.
    pub fn key(&self, candidate: &Candidate) -> Option<u64> {
        let sets_pin = self.pool.config.affinity.iter().any(|source| matches!(source, Source::Cookie(_)));
        if sets_pin || matches!(candidate.outcome, Outcome::Kept) {
            return None;
        }
        match self.wishes.list().last() {
            Some(Wish::Key { hash, .. }) => Some(*hash),
            _ if self.pool.balance() == Balance::ClientIp => {
                Some(affinity::client_key(self.client.address, Prefixes::default()))
            }
            _ => None,
        }
    }

    /// Why a list of candidates came to its end.
    pub fn failure(shortage: Option<Shortage>) -> ProxyError {
        match shortage {
            Some(Shortage::NoneUp) => ProxyError::NoNodeUp,
            Some(Shortage::AllFull) => ProxyError::AllNodesFull,
            None => ProxyError::NodesUnreachable,
        }
    }

    /// Sets the cookies that pin the client to `candidate`'s node.
    pub fn set_cookies(&self, candidate: &Candidate, headers: &mut HeaderMap) {
        let Some(tag) = self.pool.nodes.tag(candidate.node) else { return };
        if headers::is_shared_cacheable(headers) {
            return;
        }
        for rule in self.wishes.cookies_due(&self.pool.config.affinity, candidate.node) {
            let now = unix(self.opened_at);
            if let Some(cookie) = rule.set_cookie(&self.pool.config.name, tag, now, self.client.is_https) {
                headers.append(http::header::SET_COOKIE, cookie);
            }
        }
    }
}
