//! What pages of other origins may read: off unless origins are named.
//!
//! It is a rule for browsers, not a protection: a client that is no browser sends what Origin it likes, and a WebSocket
//! does not ask. Who may not come in at all is for [`ConnectionHandler::admit`](crate::engine_io::ConnectionHandler::admit).

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_HEADERS, CONTENT_LENGTH, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::engine_io::response::empty_response;
use crate::response::HttpResponse;
use mainstay_core::origin::Origins;

/// Which origins may read the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// The origins; an empty list is any.
    pub origins: Origins,
    /// Whether a page may send its cookies along. Where any origin may read, the page's own is named then, because
    /// browsers take no star with cookies.
    pub credentials: bool,
}

impl Cors {
    /// The answer to a preflight.
    pub(crate) fn preflight(&self, request: &HeaderMap) -> HttpResponse {
        let mut answer = empty_response(StatusCode::NO_CONTENT);
        self.add_headers(answer.headers_mut(), request);
        let headers = answer.headers_mut();
        let methods = HeaderValue::from_static("GET,HEAD,PUT,PATCH,POST,DELETE");
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        if let Some(asked) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        let vary = match headers.contains_key(VARY) {
            true => "Origin, Access-Control-Request-Headers",
            false => "Access-Control-Request-Headers",
        };
        headers.insert(VARY, HeaderValue::from_static(vary));
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        answer
    }

    /// The page's own origin, when it is one of those.
    fn matching_origin(&self, request: &HeaderMap) -> Option<HeaderValue> {
        let given = request.get_all(ORIGIN).iter().map(HeaderValue::as_bytes);
        request.get(ORIGIN).filter(|_| self.origins.allows(given)).cloned()
    }

    /// Marks an answer of any other kind, errors too.
    pub(crate) fn add_headers(&self, answer: &mut HeaderMap, request: &HeaderMap) {
        let named: Vec<String> = self.origins.iter().map(ToString::to_string).collect();
        let (allowed, varies) = match &named[..] {
            [] if !self.credentials => (Some(HeaderValue::from_static("*")), false),
            // As Node does with one origin: it is named whoever asks, and the browser of anybody else refuses.
            [one] if !one.contains('*') => (HeaderValue::try_from(one).ok(), true),
            _ => (self.matching_origin(request), true),
        };
        if let Some(allowed) = allowed {
            answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            if self.credentials {
                answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
        }
        if varies {
            answer.append(VARY, HeaderValue::from_static("Origin"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(origins: &[&str], credentials: bool, origin: &'static str) -> Option<String> {
        let list = origins.iter().map(|origin| origin.parse().unwrap()).collect();
        let cors = Cors { origins: Origins::new(list), credentials };
        let request = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
        let mut answer = HeaderMap::new();
        cors.add_headers(&mut answer, &request);
        assert_eq!(answer.contains_key(VARY), !origins.is_empty() || credentials);
        answer.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(|origin| origin.to_str().unwrap().to_owned())
    }

    #[test]
    fn one_origin_is_always_named_and_of_several_the_pages_own() {
        let (one, two) = (["https://a.example"], ["https://a.example", "https://*.b.example"]);
        assert_eq!(allowed(&one, false, "https://evil.example").as_deref(), Some("https://a.example"));
        assert_eq!(allowed(&two, false, "https://x.b.example").as_deref(), Some("https://x.b.example"));
        assert_eq!(allowed(&two, false, "https://evil.example"), None);
        assert_eq!(allowed(&two[1..], true, "https://evil.example"), None);
        assert_eq!(allowed(&[], false, "https://x.example").as_deref(), Some("*"));
        assert_eq!(allowed(&[], true, "https://x.example").as_deref(), Some("https://x.example"));
    }
}
