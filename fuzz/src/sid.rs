//! Socket.IO session ids: what is tagged comes back untagged, and nothing else changes.

use http::Method;
use mainstay::affinity::cookie::NodeTag;
use mainstay::affinity::engine_io::{
    TAG_OVERHEAD, find_node_tag, has_session, is_polling_handshake, is_websocket_handshake, parse_heartbeat,
    session_key, strip_tag, tag_response,
};

use super::input::Input;

/// One input: which way it is looked at, then an answer of a node or a query of a client.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 2 {
        0 => answer(input.rest()),
        _ => {
            if let Ok(text) = str::from_utf8(input.rest()) {
                query(text);
            }
        }
    }
}

fn answer(body: &[u8]) {
    let _ = parse_heartbeat(body);
    let tag = NodeTag::of("chat", "ws1");
    let Some(tagged) = tag_response(body, tag) else { return };
    assert_eq!(tagged.len(), body.len() + TAG_OVERHEAD);
    assert_eq!(parse_heartbeat(&tagged), parse_heartbeat(body));
    let before = sid_of(body, &tagged, &format!(".{tag}"));
    let after = format!("{before}.{tag}");
    // The client puts the sid that it was given into its query as it is.
    let query = format!("EIO=4&transport=polling&t=x&sid={after}&b64=1");
    let bare = format!("EIO=4&transport=polling&t=x&sid={before}&b64=1");
    assert_eq!(strip_tag(&query), Some((tag, bare.clone())));
    assert_eq!(find_node_tag(&query), Some(tag));
    assert!(has_session(Some(&query)) && session_key(&query).is_some());
    // A sid that itself ends like a tagged one comes back tagged only.
    assert!(strip_tag(&bare).is_some() || session_key(&query) == session_key(&bare), "it is one session");
}

/// The sid that was tagged, by the one difference of the two answers.
fn sid_of(body: &[u8], tagged: &[u8], mark: &str) -> String {
    // A sid may end like the tag begins, so that the tag could stand in several places; it stands before the quote.
    let at = (0..body.len())
        .filter(|&at| body[at] == b'"')
        .find(|&at| tagged[at..].starts_with(mark.as_bytes()) && tagged[at + mark.len()..] == body[at..])
        .expect("only the tag was put in, behind the sid");
    assert_eq!(tagged[..at], body[..at]);
    let start = body[..at].iter().rposition(|&byte| byte == b'"').expect("a sid begins behind its quote");
    String::from_utf8(body[start + 1..at].to_vec()).expect("what is tagged is text")
}

fn query(text: &str) {
    let polling = is_polling_handshake(&Method::GET, Some(text));
    let websocket = is_websocket_handshake(Some(text));
    let of_a_session = has_session(Some(text));
    assert!(u8::from(polling) + u8::from(websocket) + u8::from(of_a_session) <= 1);
    let Some((tag, bare)) = strip_tag(text) else {
        assert_eq!(find_node_tag(text), None);
        return;
    };
    assert_eq!(find_node_tag(text), Some(tag));
    assert_eq!(bare.len() + TAG_OVERHEAD, text.len());
    let mark = format!(".{tag}");
    let back = text.match_indices(&mark).any(|(at, _)| {
        let mut again = bare.clone();
        at <= again.len() && again.is_char_boundary(at) && {
            again.insert_str(at, &mark);
            again == text
        }
    });
    assert!(back, "only the tag was taken out");
}
