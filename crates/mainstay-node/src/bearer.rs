//! Where a request can carry a token: the query, the Authorization field, or a subprotocol, which is all that a page's
//! script can set for a WebSocket.

use std::borrow::Cow;

use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderMap, HeaderValue};

use mainstay_core::query::{self, Occurrence};

/// What a subprotocol begins with that is a token.
const PREFIX: &str = "bearer.";

/// The value of `name` in the query, decoded; `None` when it is not there exactly once.
pub(super) fn of_query(text: &str, name: &str) -> Option<String> {
    match query::find(text, name) {
        Occurrence::Once(value) => String::from_utf8(query::decode(value).into_owned()).ok(),
        _ => None,
    }
}

/// The token of `Authorization: Bearer`.
pub(super) fn of_header(field: Option<&HeaderValue>) -> Option<String> {
    of_value(field?.to_str().ok()?)
}

/// The same of the field's value as text.
pub(super) fn of_value(value: &str) -> Option<String> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// The token of a subprotocol `bearer.TOKEN`.
pub(super) fn of_protocols(headers: &HeaderMap) -> Option<String> {
    protocols(headers).find_map(|protocol| Some(protocol.strip_prefix(PREFIX)?.to_owned()))
}

/// Whether the client offers this subprotocol.
pub(super) fn offers(headers: &HeaderMap, wanted: &str) -> bool {
    protocols(headers).any(|protocol| protocol == wanted)
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = Cow<'_, str>> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|protocol| Cow::Borrowed(protocol.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_in_each_of_its_places() {
        assert_eq!(of_query("a=1&token=x.y%2Ez", "token").as_deref(), Some("x.y.z"));
        assert_eq!(of_query("token=a&token=b", "token"), None);
        assert_eq!(of_query("token=%ff", "token"), None);
        let field = HeaderValue::from_static("bearer  x.y.z ");
        assert_eq!(of_header(Some(&field)).as_deref(), Some("x.y.z"));
        assert_eq!(of_header(Some(&HeaderValue::from_static("Basic eA=="))), None);
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mainstay.v1, bearer.x.y.z"));
        assert_eq!(of_protocols(&headers).as_deref(), Some("x.y.z"));
        assert!(offers(&headers, "mainstay.v1") && !offers(&headers, "mainstay"));
    }
}
