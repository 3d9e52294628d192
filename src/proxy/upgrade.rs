//! The upgrade of a client as nodes get it.
//!
//! It carries the head alone: what the client sent behind that stays in the request stream until the client has been
//! told 101 (invariant I5).

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{HeaderMap, Request, Uri, Version};
use http_body_util::Empty;

use super::client_connection::ClientConnection;
use super::session::ProxySession;
use crate::http::headers;
use crate::http::reply::ProxyError;
use crate::ws::handshake::{self, UpgradeOffer};

/// A valid upgrade request.
pub struct UpgradeRequest {
    target: Uri,
    fields: HeaderMap,
    /// What a 101 is checked against.
    pub offer: UpgradeOffer,
}

impl UpgradeRequest {
    /// Checks the request of a client.
    ///
    /// # Errors
    ///
    /// [`ProxyError::Upgrade`] when it is no valid WebSocket handshake.
    pub fn check<B>(request: Request<B>) -> Result<Self, ProxyError> {
        let (parts, _) = request.into_parts();
        let offer = handshake::check_request(&parts.method, parts.version, &parts.headers);
        Ok(Self { offer: offer.map_err(ProxyError::Upgrade)?, target: parts.uri, fields: parts.headers })
    }

    /// Makes its fields those that nodes get.
    pub fn forward_for(&mut self, connection: &ClientConnection, session: &ProxySession) {
        headers::strip_hop_by_hop(&mut self.fields);
        headers::set_forwarded(&mut self.fields, connection.peer, &session.client);
        headers::set_client_subject(&mut self.fields, connection.subject.as_ref());
        set_upgrade(&mut self.fields);
    }

    /// The request for one node.
    pub fn to_request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.target.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.headers_mut() = self.fields.clone();
        request
    }

    /// The query of its target.
    pub fn query(&self) -> Option<&str> {
        self.target.query()
    }
}

/// Sets the fields of this hop that every upgrade has.
pub fn set_upgrade(fields: &mut HeaderMap) {
    fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
}
