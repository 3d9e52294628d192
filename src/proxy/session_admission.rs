//! Admission of a session: the limits of its client, and its turn among the handshakes.

use std::net::IpAddr;

use http::Request;

use super::client_connection::ClientConnection;
use super::polling_session::PollingPermit;
use super::session::ProxySession;
use crate::affinity::engine_io;
use crate::http::reply::ProxyError;
use crate::metrics::HandshakeResult;

impl ProxySession {
    /// Waits for the turn of an upgrade. Behind a proxy, the connection counts for its client from now on.
    ///
    /// # Errors
    ///
    /// [`ProxyError::ClientConnectionLimit`] when the client is at its limit, [`ProxyError::HandshakeRateLimit`] when the
    /// turn does not come soon enough.
    pub(super) async fn admit_upgrade(&self, connection: &ClientConnection) -> Result<(), ProxyError> {
        let (client, limit) = (self.client.address, self.state.limits.connections_per_client);
        if client != connection.peer && !connection.permit.lock().acquire_for_client(client, limit) {
            return Err(ProxyError::ClientConnectionLimit);
        }
        self.await_handshake_turn(connection).await
    }

    /// Admits a plain request: one that may open a session by polling waits for its turn and takes a permit, one that
    /// names a session renews its permit.
    ///
    /// # Errors
    ///
    /// As [`admit_upgrade`](Self::admit_upgrade).
    pub(super) async fn admit_plain<B>(
        &self,
        connection: &ClientConnection,
        request: &Request<B>,
    ) -> Result<Option<PollingPermit>, ProxyError> {
        let query = request.uri().query();
        if engine_io::may_open_polling_session(request.method(), query) {
            let permit = self.admit_polling(connection).await;
            return permit.inspect_err(|_| self.pool.meter.record_handshake(HandshakeResult::Limited));
        }
        if let Some((client, _)) = self.polling_limit()
            && let Some(named) = query.and_then(engine_io::session_in_query)
        {
            connection.context.admission.polling.renew(client, named);
        }
        Ok(None)
    }

    async fn admit_polling(
        &self,
        connection: &ClientConnection,
    ) -> Result<Option<PollingPermit>, ProxyError> {
        let permit = match self.polling_limit() {
            Some((client, limit)) => connection.context.admission.polling.open(client, limit)?,
            None => None,
        };
        let turn = self.await_handshake_turn(connection).await;
        turn.inspect_err(|_| permit.iter().for_each(PollingPermit::cancel))?;
        Ok(permit)
    }

    async fn await_handshake_turn(&self, connection: &ClientConnection) -> Result<(), ProxyError> {
        let (context, rate) = (&connection.context, self.state.limits.handshakes_per_second);
        context.admission.await_handshake_turn(self.client.address, rate, &context.tasks).await
    }

    /// The polling session that `query` names has become a tunnel.
    pub(super) fn end_polling(&self, connection: &ClientConnection, query: Option<&str>) {
        if let Some((client, _)) = self.polling_limit()
            && let Some(named) = query.and_then(engine_io::session_in_query)
        {
            connection.context.admission.polling.end(client, named);
        }
    }

    /// The client and the most polling sessions that it may have, where there is a limit. A proxy stands for many
    /// clients.
    fn polling_limit(&self) -> Option<(IpAddr, usize)> {
        let (client, limit) = (self.client.address, self.state.limits.connections_per_client);
        (limit != 0 && !self.state.trusts(client)).then_some((client, limit as usize))
    }
}
