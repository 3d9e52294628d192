//! The nodes that an upgrade is sent to, one after the other.
//!
//! Nothing of the client's goes to a node before the client has heard 101, so another node can be asked as long as none
//! has said yes: when one cannot be reached, breaks off before its answer, or answers 502, 503 or 504. What was the last
//! to be refused is what the client hears when nobody does better. How many nodes are asked is bounded for each
//! handshake and for all of the pool ([`crate::pool::retry`]). A request of an Engine.IO session is sent to its own node
//! alone: no other knows the session.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection as Http};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};

use super::accept::Connection;
use super::session::Session;
use super::upstream::MAX_RESPONSE_HEAD;
use crate::http::reply::ProxyError;
use crate::metrics::Seat;
use crate::net::stream::Stream;
use crate::pool::pick::Candidate;
use crate::ws::handshake::{self, AnswerFault, Offer};

/// An upgrade that is to be sent to a node.
pub struct NodeHandshake<'a> {
    /// Where it came in.
    pub connection: &'a Connection,
    /// Its session.
    pub session: &'a Session,
    /// What it asks for.
    pub target: &'a Uri,
    /// Its fields as nodes get them.
    pub fields: &'a HeaderMap,
    /// What a 101 is checked against.
    pub offer: &'a Offer,
    /// When an answer must be there.
    pub deadline: Instant,
}

/// What a node has answered.
pub enum UpgradeAnswer {
    /// A valid 101.
    Yes(Box<AcceptedUpgrade>),
    /// Something else, in the node's own words.
    No(Candidate, Response<Incoming>),
}

/// A node's valid 101.
pub struct AcceptedUpgrade {
    /// The node.
    pub candidate: Candidate,
    /// The tunnel counts on it.
    pub seat: Seat,
    /// The connection to it.
    pub node: Stream,
    /// What it has sent behind its head.
    pub from_node: Bytes,
    /// The fields of its answer.
    pub fields: HeaderMap,
}

/// How one node took it.
struct AttemptResult {
    answer: Result<UpgradeAnswer, ProxyError>,
    /// Another node may be asked.
    is_refused: bool,
}

type Connected = Http<TokioIo<Stream>, Empty<Bytes>>;

impl NodeHandshake<'_> {
    /// Dials and asks the candidates in turn; the first that does not refuse decides.
    pub async fn answer(&self) -> Result<UpgradeAnswer, ProxyError> {
        let mut candidates = self.session.candidates(&self.connection.front, true);
        let (mut is_exhausted, mut asked, mut last) = (false, 0, None);
        let mut is_allowed = true;
        for candidate in candidates.by_ref() {
            if !is_allowed && !self.may_retry(asked) {
                break;
            }
            // A dial that fails uses nothing up.
            is_allowed = true;
            let upstream = &self.session.pool.upstreams[candidate.node];
            // It may have filled up since it was looked at: others ask at the same time.
            let most = upstream.node.max_connections.unwrap_or(u32::MAX);
            let Some(seat) = upstream.meter.seat_below(most) else { continue };
            let stream = match self.dial(&candidate, &mut is_exhausted).await {
                Ok(Some(stream)) => stream,
                Ok(None) => continue,
                Err(failure) => return last.unwrap_or(Err(failure)),
            };
            let told = self.ask(candidate, seat, stream).await;
            if !told.is_refused {
                return told.answer;
            }
            (is_allowed, asked) = (false, asked + 1);
            last = Some(told.answer);
        }
        last.unwrap_or_else(|| {
            Err(if is_exhausted {
                ProxyError::LocalExhaustion
            } else {
                Session::failure(candidates.shortage())
            })
        })
    }

    /// Whether one more node may be asked after so many.
    fn may_retry(&self, asked: u32) -> bool {
        let pool = &self.session.pool;
        if self.session.in_session || asked >= pool.config.retries.attempts {
            return false;
        }
        let is_there = pool.retry_budget.lock().take(self.connection.front.now());
        pool.meter.retry(is_there);
        is_there
    }

    /// A connection to the candidate; `None` when there is none, and the next may be tried.
    async fn dial(
        &self,
        candidate: &Candidate,
        is_exhausted: &mut bool,
    ) -> Result<Option<Stream>, ProxyError> {
        let upstream = &self.session.pool.upstreams[candidate.node];
        let dialled = timeout_at(self.deadline, upstream.dial(self.session.ends(self.connection))).await;
        match dialled.map_err(|_| ProxyError::NodeTimeout)? {
            Ok(stream) => Ok(Some(stream)),
            Err(fault) => {
                tracing::debug!(node = %upstream.node.id, %fault, "node not reached, the next is tried");
                *is_exhausted |= fault.is_own();
                self.session.record_dial_failure(&self.connection.front, candidate.node, &fault);
                Ok(None)
            }
        }
    }

    async fn ask(&self, candidate: Candidate, seat: Seat, stream: Stream) -> AttemptResult {
        let Ok(asked) = timeout_at(self.deadline, self.send(stream)).await else {
            let within = self.session.pool.config.timeouts.handshake;
            self.blame(&candidate, &format!("no answer to an upgrade within {within:?}"));
            return AttemptResult { answer: Err(ProxyError::NodeTimeout), is_refused: false };
        };
        let (answer, http) = match asked {
            Ok(answered) => answered,
            Err(error) => return self.broke_off(&candidate, &error),
        };
        self.session.pool.meter.affinity(candidate.source(), candidate.outcome.as_str());
        if answer.status() == handshake::YES {
            return AttemptResult {
                answer: self.accept((candidate, seat), answer, http).await,
                is_refused: false,
            };
        }
        // The client may hear the node's own words; the connection to it ends with them, as the guard has stopped.
        self.connection.front.tasks.spawn(async move {
            let _ = http.await;
        });
        let is_refused = is_refusal(answer.status());
        if is_refused {
            self.blame(&candidate, &format!("an upgrade was answered with {}", answer.status().as_u16()));
        } else {
            self.session.record_success(&self.connection.front, candidate.node);
        }
        AttemptResult { answer: Ok(UpgradeAnswer::No(candidate, answer)), is_refused }
    }

    fn broke_off(&self, candidate: &Candidate, error: &hyper::Error) -> AttemptResult {
        let what = format!("the node's answer broke off: {error}");
        self.blame(candidate, &what);
        AttemptResult { answer: Err(ProxyError::BadNodeResponse(what)), is_refused: true }
    }

    fn blame(&self, candidate: &Candidate, what: &str) {
        let node = &self.session.pool.upstreams[candidate.node].node.id;
        tracing::debug!(%node, what, "node failed an upgrade");
        self.session.record_bad_answer(&self.connection.front, candidate.node, what);
    }

    /// Sends the request, and gives the head of the answer and the connection that it came on.
    async fn send(&self, stream: Stream) -> hyper::Result<(Response<Incoming>, Connected)> {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = self.target.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = self.fields.clone();
        let mut http = http1::Builder::new();
        http.max_buf_size(MAX_RESPONSE_HEAD);
        let (mut sender, mut http) = http.handshake(TokioIo::new(stream)).await?;
        let mut answer = Box::pin(sender.send_request(request));
        let answer = tokio::select! {
            answer = &mut answer => answer,
            ended = poll_fn(|cx| http.poll_without_shutdown(cx)) => match ended {
                Ok(()) => answer.await,
                Err(error) => Err(error),
            },
        };
        Ok((answer?, http))
    }

    /// Checks a 101 and takes the connection.
    async fn accept(
        &self,
        (candidate, seat): (Candidate, Seat),
        answer: Response<Incoming>,
        mut http: Connected,
    ) -> Result<UpgradeAnswer, ProxyError> {
        if let Err(fault) = self.offer.check_answer(answer.headers()) {
            // Whether a subprotocol fits is between the client and the node's application.
            if fault != AnswerFault::Protocol {
                self.blame(&candidate, &fault.to_string());
            }
            return Err(ProxyError::BadNodeResponse(fault.to_string()));
        }
        let ended = poll_fn(|cx| Pin::new(&mut http).poll_without_shutdown(cx)).await;
        ended
            .map_err(|error| ProxyError::BadNodeResponse(format!("the node's answer broke off: {error}")))?;
        self.session.record_success(&self.connection.front, candidate.node);
        let (parts, fields) = (http.into_parts(), answer.into_parts().0.headers);
        let (node, from_node) = (parts.io.into_inner(), parts.read_buf);
        Ok(UpgradeAnswer::Yes(Box::new(AcceptedUpgrade { candidate, seat, node, from_node, fields })))
    }
}

/// The node cannot serve at the moment, which is not the client's fault.
fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}
