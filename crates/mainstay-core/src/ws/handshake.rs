//! The opening handshake (RFC 6455, section 4): what a client may ask and what a node may answer.
//!
//! Both checks look at parsed heads only. They are strict: whatever is not plainly right is refused, because a
//! tunnel is opened on the strength of it and nobody looks at the bytes afterwards.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, StatusCode, Version};

/// What is wrong with a client's upgrade request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeRequestError {
    /// Not GET.
    #[error("a WebSocket handshake is a GET request")]
    Method,
    /// HTTP/1.0, which has no Upgrade.
    #[error("a WebSocket handshake needs HTTP/1.1")]
    HttpVersion,
    /// No protocol of the Upgrade field is `websocket`.
    #[error("`Upgrade: websocket` is the only upgrade served here")]
    Upgrade,
    /// Connection does not name Upgrade.
    #[error("`Connection: Upgrade` is missing; a proxy on the way may strip it")]
    Connection,
    /// No Sec-WebSocket-Version, or another than 13.
    #[error("`Sec-WebSocket-Version: 13`, once, is the only version served here")]
    Version,
    /// No key, two keys, or not 16 bytes in base64.
    #[error("`Sec-WebSocket-Key` must be there once, with 16 bytes in base64")]
    Key,
    /// The request has a body.
    #[error("a WebSocket handshake has no body")]
    Body,
}

/// What is wrong with a node's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeResponseError {
    /// Upgrade is not `websocket`, once.
    #[error("the node's 101 has no `Upgrade: websocket`")]
    Upgrade,
    /// Connection does not name Upgrade.
    #[error("the node's 101 has no `Connection: Upgrade`")]
    Connection,
    /// Sec-WebSocket-Accept is missing, doubled or not the answer to the key.
    #[error("the node's 101 has a wrong Sec-WebSocket-Accept")]
    Accept,
    /// A subprotocol that the client did not offer, or more than one.
    #[error("the node's 101 names a subprotocol that the client did not offer")]
    Protocol,
}

/// An upgrade request that is in order: what the answer is checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeOffer {
    /// The Sec-WebSocket-Accept that answers the client's key.
    accept: String,
    /// The subprotocols that the client offers.
    protocols: Vec<String>,
}

/// Whether a request asks for a WebSocket. A bare `Connection: upgrade` does not: many a proxy in front sends that with
/// every request. Nor does an Upgrade to anything else, which a server may ignore (RFC 9110, section 7.8).
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.get_all(UPGRADE).iter().any(|value| names_websocket(value.as_bytes()))
}

/// Whether the value of an Upgrade field, a list of protocols, names this one.
pub fn names_websocket(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|name| name.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

/// Checks a client's request.
pub fn check_request(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
) -> Result<UpgradeOffer, UpgradeRequestError> {
    if version != Version::HTTP_11 {
        return Err(UpgradeRequestError::HttpVersion);
    }
    if !is_upgrade(headers) {
        return Err(UpgradeRequestError::Upgrade);
    }
    if method != Method::GET {
        return Err(UpgradeRequestError::Method);
    }
    if !has_token(headers, &CONNECTION, "upgrade") {
        return Err(UpgradeRequestError::Connection);
    }
    if only(headers, &SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err(UpgradeRequestError::Version);
    }
    let key = only(headers, &SEC_WEBSOCKET_KEY).filter(|key| is_key(key)).ok_or(UpgradeRequestError::Key)?;
    let has_length = headers.get_all(CONTENT_LENGTH).iter().any(|length| length != "0");
    if has_length || headers.contains_key(TRANSFER_ENCODING) {
        return Err(UpgradeRequestError::Body);
    }
    let protocols = tokens(headers, &SEC_WEBSOCKET_PROTOCOL).map(str::to_owned).collect();
    Ok(UpgradeOffer { accept: accept(key), protocols })
}

impl UpgradeOffer {
    /// Checks the head of a node's 101. Other statuses are no upgrade and not for this check.
    pub fn check_response(&self, headers: &HeaderMap) -> Result<(), UpgradeResponseError> {
        if !only(headers, &UPGRADE).is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
            return Err(UpgradeResponseError::Upgrade);
        }
        if !has_token(headers, &CONNECTION, "upgrade") {
            return Err(UpgradeResponseError::Connection);
        }
        if only(headers, &SEC_WEBSOCKET_ACCEPT) != Some(&self.accept) {
            return Err(UpgradeResponseError::Accept);
        }
        let offered = |name: &str| self.protocols.iter().any(|offered| offered == name);
        match (headers.contains_key(SEC_WEBSOCKET_PROTOCOL), only(headers, &SEC_WEBSOCKET_PROTOCOL)) {
            (false, _) => Ok(()),
            (true, Some(name)) if offered(name) => Ok(()),
            _ => Err(UpgradeResponseError::Protocol),
        }
    }
}

/// The Sec-WebSocket-Accept that answers `key` (section 4.2.2, step 5).
pub fn accept(key: &str) -> String {
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key.as_bytes());
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(sha1.finish())
}

/// The status that says yes.
pub const YES: StatusCode = StatusCode::SWITCHING_PROTOCOLS;

fn is_key(key: &str) -> bool {
    key.len() == 24 && STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

/// The value of a field that is there exactly once, trimmed.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(str::trim),
        _ => None,
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Field = (&'static str, &'static str);

    const GOOD: [Field; 4] = [
        ("upgrade", "WebSocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn headers(fields: &[Field]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        map
    }

    fn check(fields: &[Field]) -> Result<UpgradeOffer, UpgradeRequestError> {
        check_request(&Method::GET, Version::HTTP_11, &headers(fields))
    }

    fn with(change: Field) -> Vec<Field> {
        GOOD.iter().filter(|field| field.0 != change.0).copied().chain([change]).collect()
    }

    #[test]
    fn the_example_of_the_rfc_is_accepted() {
        assert_eq!(check(&GOOD).unwrap().accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn each_broken_request_is_refused_for_its_own_reason() {
        let without = |name| GOOD.iter().filter(|field| field.0 != name).copied().collect::<Vec<_>>();
        let and = |field| GOOD.iter().copied().chain([field]).collect::<Vec<_>>();
        let cases = [
            (with(("upgrade", "h2c")), UpgradeRequestError::Upgrade),
            (with(("upgrade", "websocket/13, websockets")), UpgradeRequestError::Upgrade),
            (without("connection"), UpgradeRequestError::Connection),
            (with(("connection", "keep-alive")), UpgradeRequestError::Connection),
            (without("sec-websocket-version"), UpgradeRequestError::Version),
            (with(("sec-websocket-version", "8")), UpgradeRequestError::Version),
            (and(("sec-websocket-version", "13")), UpgradeRequestError::Version),
            (without("sec-websocket-key"), UpgradeRequestError::Key),
            (with(("sec-websocket-key", "c2hvcnQ=")), UpgradeRequestError::Key),
            (with(("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=!")), UpgradeRequestError::Key),
            (and(("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")), UpgradeRequestError::Key),
            (and(("content-length", "5")), UpgradeRequestError::Body),
            (and(("transfer-encoding", "chunked")), UpgradeRequestError::Body),
        ];
        for (fields, fault) in cases {
            assert_eq!(check(&fields), Err(fault), "{fields:?}");
        }
        let map = headers(&GOOD);
        assert_eq!(check_request(&Method::POST, Version::HTTP_11, &map), Err(UpgradeRequestError::Method));
        assert_eq!(
            check_request(&Method::GET, Version::HTTP_10, &map),
            Err(UpgradeRequestError::HttpVersion)
        );
    }

    #[test]
    fn websocket_may_be_one_of_several_protocols() {
        for list in ["h2c, WebSocket", "websocket,h2c", "websocket, websocket", " \twebsocket ,"] {
            assert!(check(&with(("upgrade", list))).is_ok(), "{list}");
        }
        let two_lines: Vec<_> = GOOD.iter().copied().chain([("upgrade", "h2c")]).collect();
        assert!(check(&two_lines).is_ok());
        assert!(!is_upgrade(&headers(&[("connection", "upgrade"), ("upgrade", "h2c, TLS/1.2")])));
    }

    #[test]
    fn an_empty_content_length_is_no_body() {
        let fields: Vec<_> = GOOD.iter().copied().chain([("content-length", "0")]).collect();
        assert!(check(&fields).is_ok());
    }

    #[test]
    fn an_answer_is_tunnelled_only_when_it_is_a_valid_yes() {
        let offer = check(&with(("sec-websocket-protocol", "chat, v2.chat"))).unwrap();
        let yes = [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ];
        assert_eq!(offer.check_response(&headers(&yes)), Ok(()));
        let answer = |change: Field| {
            let kept = yes.iter().filter(|field| field.0 != change.0).copied();
            offer.check_response(&headers(&kept.chain([change]).collect::<Vec<_>>()))
        };
        assert_eq!(answer(("upgrade", "h2c")), Err(UpgradeResponseError::Upgrade));
        assert_eq!(answer(("connection", "close")), Err(UpgradeResponseError::Connection));
        assert_eq!(answer(("sec-websocket-accept", "AAAA")), Err(UpgradeResponseError::Accept));
        assert_eq!(answer(("sec-websocket-protocol", "v2.chat")), Ok(()));
        assert_eq!(answer(("sec-websocket-protocol", "v3.chat")), Err(UpgradeResponseError::Protocol));
        assert_eq!(answer(("sec-websocket-protocol", "chat, v2.chat")), Err(UpgradeResponseError::Protocol));
    }
}
