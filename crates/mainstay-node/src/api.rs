//! `/api`: what back-end code asks of a node, in any language, with a token.
//!
//! - `GET /api/users/{id}` → `{"user","online","connections":[{"socketId","nodeId","connectedAt","status"}]}`, the newest
//!   connection first.
//! - `POST /api/publish` with `{"room": …}` or `{"user": …}`, `"data"`, and `"event"` unless it is `message` → `{"ok":true}`,
//!   for a user with `"delivered"`, to how many connections it was sent. 503 when the other nodes were not reached; the
//!   clients of this one have it all the same.
//!
//! Rules: every request shows `Authorization: Bearer` with one of the tokens of `--api-token-file`; without that file
//! the API is closed. JSON is strict: a field that is unknown or missing is a fault that says what would be right.

use http::header::AUTHORIZATION;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::json;

use mainstay_core::bearer_tokens::Tokens;

use crate::app::publication::{Publication, PublishTarget};
use crate::app::request::check_room;
use crate::auth::User;
use crate::presence::UserConnection;
use crate::response::{self, HttpResponse};
use socketio_redis::value::Value;

/// The longest body.
const MAX_BODY: usize = 1 << 20;

/// Why this request may not be answered.
pub(crate) fn check_token<B>(request: &Request<B>, tokens: Option<&Tokens>) -> Option<HttpResponse> {
    let Some(tokens) = tokens else {
        let words = "the API is closed; start the node with --api-token-file";
        return Some(response::error(StatusCode::FORBIDDEN, words));
    };
    let field = request.headers().get(AUTHORIZATION).map(|field| field.as_bytes());
    let token = field.and_then(|field| {
        let (scheme, token) = field.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
    });
    if token.is_some_and(|token| tokens.accept(token)) {
        return None;
    }
    let mut refusal = response::error(StatusCode::UNAUTHORIZED, "a token is needed: Authorization: Bearer …");
    let scheme = http::HeaderValue::from_static("Bearer");
    refusal.headers_mut().insert(http::header::WWW_AUTHENTICATE, scheme);
    Some(refusal)
}

/// `GET /api/users/{id}`; `id` as it stands in the path.
///
/// `find` tells the user's connections, or what cannot be known now.
pub(crate) async fn user(
    method: &Method,
    id: &str,
    find: impl AsyncFnOnce(&User) -> Result<Vec<UserConnection>, String>,
) -> HttpResponse {
    if method != Method::GET {
        return response::not_allowed("GET");
    }
    let Some(user) = percent_decode(id).as_deref().and_then(User::parse) else {
        return response::error(
            StatusCode::BAD_REQUEST,
            "a user's name has 1 to 128 bytes and no control characters",
        );
    };
    match find(&user).await {
        Ok(connections) => response::json(StatusCode::OK, &user_body(&user, &connections)),
        Err(fault) => response::error(StatusCode::SERVICE_UNAVAILABLE, &fault),
    }
}

fn user_body(user: &User, connections: &[UserConnection]) -> serde_json::Value {
    json!({ "user": user.as_str(), "online": !connections.is_empty(), "connections": connections })
}

/// The body of `POST /api/publish`.
///
/// # Errors
///
/// The answer that says what is wrong.
pub(crate) async fn read_publication(request: Request<Incoming>) -> Result<Publication, HttpResponse> {
    if request.method() != Method::POST {
        return Err(response::not_allowed("POST"));
    }
    let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(response::error(StatusCode::PAYLOAD_TOO_LARGE, "a body has at most 1 MiB"));
        }
        Err(_) => return Err(response::error(StatusCode::BAD_REQUEST, "the body ended too early")),
    };
    let text = std::str::from_utf8(&body).map_err(|_| "the body is UTF-8".to_owned());
    text.and_then(parse_publication).map_err(|words| response::error(StatusCode::BAD_REQUEST, &words))
}

fn parse_publication(text: &str) -> Result<Publication, String> {
    let value = Value::from_json(text).map_err(|fault| format!("the body is one JSON object: {fault}"))?;
    let fields = value.as_map().ok_or("the body is one JSON object")?;
    if let Some((name, _)) =
        fields.iter().find(|(name, _)| !["room", "user", "event", "data"].contains(&&**name))
    {
        let name: String = name.chars().take(40).collect();
        return Err(format!("there is no field {name:?}; write room or user, data, and event if you like"));
    }
    let text = |name: &str| match value.get(name) {
        None => Ok(None),
        Some(value) => value.as_text().map(Some).ok_or_else(|| format!("{name} is text")),
    };
    let target = match (text("room")?, text("user")?) {
        (Some(room), None) => {
            check_room(room)?;
            PublishTarget::Room(room.into())
        }
        (None, Some(user)) => PublishTarget::User(
            User::parse(user).ok_or("a user's name has 1 to 128 bytes and no control characters")?,
        ),
        _ => return Err("write one of room and user".into()),
    };
    let event = text("event")?.unwrap_or("message");
    // Socket.IO's own names of events: a client would take one for something that happened to it.
    let reserved =
        ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];
    if event.is_empty() || event.len() > 128 || reserved.contains(&event) {
        return Err(format!("an event has a name of 1 to 128 bytes, none of {}", reserved.join(", ")));
    }
    let data = value.get("data").cloned().ok_or("there is no data; write \"data\": …")?;
    Ok(Publication { target, event: event.into(), data })
}

/// `%XX` decoded; `None` where that is no text.
fn percent_decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, more @ ..] = rest {
        let triple = if *first == b'%' { more.split_at_checked(2) } else { None };
        let value = triple.and_then(|(hex, _)| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (triple, value) {
            (Some((_, after)), Some(value)) => {
                bytes.push(value);
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_is_to_a_room_or_to_a_user() {
        let room = parse_publication(r#"{"room":"lobby","data":{"a":1}}"#).unwrap();
        assert_eq!((room.target, &*room.event), (PublishTarget::Room("lobby".into()), "message"));
        let user = parse_publication(r#"{"user":"bob","event":"price","data":null}"#).unwrap();
        assert_eq!((user.target, &*user.event), (PublishTarget::User(User::parse("bob").unwrap()), "price"));
    }

    #[test]
    fn each_fault_says_what_would_be_right() {
        let cases = [
            ("", "one JSON object"),
            ("[]", "one JSON object"),
            ("{}", "one of room and user"),
            (r#"{"room":"r","user":"u","data":1}"#, "one of room and user"),
            (r#"{"room":"r"}"#, r#"write "data""#),
            (r#"{"room":1,"data":1}"#, "room is text"),
            (r#"{"room":"user:bob","data":1}"#, "write direct"),
            (r#"{"user":"","data":1}"#, "1 to 128 bytes"),
            (r#"{"room":"r","date":1}"#, "no field \"date\""),
            (r#"{"room":"r","data":1,"event":"disconnect"}"#, "none of connect"),
            (r#"{"room":"r","data":1,"event":""}"#, "1 to 128 bytes"),
        ];
        for (body, said) in cases {
            let fault = parse_publication(body).unwrap_err();
            assert!(fault.contains(said), "{body}: {fault}");
        }
    }

    #[test]
    fn only_a_bearer_of_a_token_is_answered() {
        let tokens = Tokens::parse("an-api-token-0123456789").unwrap();
        let status = |field: Option<&str>, tokens| {
            let mut request = Request::new(());
            if let Some(field) = field {
                request.headers_mut().insert(AUTHORIZATION, field.parse().unwrap());
            }
            check_token(&request, tokens).map(|answer| answer.status().as_u16())
        };
        assert_eq!(status(Some("Bearer an-api-token-0123456789"), Some(&tokens)), None);
        assert_eq!(status(Some("bearer  an-api-token-0123456789"), Some(&tokens)), None);
        for wrong in [None, Some("Bearer x"), Some("Basic an-api-token-0123456789"), Some("Bearer")] {
            assert_eq!(status(wrong, Some(&tokens)), Some(401), "{wrong:?}");
        }
        assert_eq!(status(Some("Bearer an-api-token-0123456789"), None), Some(403));
    }

    #[test]
    fn a_name_in_a_path_is_decoded_and_a_plus_stays() {
        for (segment, name) in [("a%20b", "a b"), ("a+b", "a+b"), ("%C3%A9", "é"), ("%", "%"), ("%zz", "%zz")]
        {
            assert_eq!(percent_decode(segment).as_deref(), Some(name), "{segment}");
        }
        assert_eq!(percent_decode("%ff"), None);
    }
}
