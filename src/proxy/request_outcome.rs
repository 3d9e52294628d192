//! How a request of a pool ended, counted once, also when nobody waited for its answer.

use std::thread;

use super::session::ProxySession;
use crate::http::reply::ProxyError;
use crate::http::server::Reply;
use crate::metrics::HandshakeResult;

/// How a plain request whose client left is counted: among 4xx, by the status that nginx made usual.
const CLIENT_LEFT: u16 = 499;

/// A request that is being served. When it is dropped before it is finished, its client has left, or its service
/// panicked.
pub(super) struct RequestOutcome<'a> {
    session: &'a ProxySession,
    is_finished: bool,
}

impl<'a> RequestOutcome<'a> {
    /// The request of this session.
    pub(super) fn begin(session: &'a ProxySession) -> Self {
        Self { session, is_finished: false }
    }

    /// Counts its answer. The handshake of a tunnel is counted when it is adopted, or not.
    pub(super) fn finish<T>(mut self, answer: &Result<Reply<T>, ProxyError>) {
        self.is_finished = true;
        let meter = &self.session.pool.meter;
        match answer {
            Err(error) if self.session.is_upgrade => meter.record_handshake(error.handshake_result()),
            Err(error) => meter.record_request(error.status().as_u16()),
            Ok(reply) if !self.session.is_upgrade => meter.record_request(reply.response.status().as_u16()),
            Ok(reply) if reply.upgrade.is_none() => meter.record_handshake(HandshakeResult::Refused),
            Ok(_) => {}
        }
    }
}

impl Drop for RequestOutcome<'_> {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        let (session, pool) = (self.session, &self.session.pool);
        let error = thread::panicking().then_some(ProxyError::Panicked);
        if error.is_none() {
            tracing::debug!(client = %session.client.address, pool = %pool.config.name, "client disconnected before the response");
        }
        if session.is_upgrade {
            pool.meter.record_handshake(HandshakeResult::Failed);
        } else {
            pool.meter.record_request(error.map_or(CLIENT_LEFT, |error| error.status().as_u16()));
        }
    }
}
