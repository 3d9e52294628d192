//! The chat page of the demo: one HTML file, compiled in, with the serving node's name put in its place.
//!
//! Rules: the name is the only part that varies, it stands in an attribute, and it is escaped; script and style are
//! the file's own, so the policy can allow exactly these by their hashes.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderValue, StatusCode};

use crate::response::{self, HttpResponse};

const PAGE: &str = include_str!("page.html");

/// Stands in the page where the node's name belongs.
const PLACEHOLDER: &str = "{{node}}";

/// The answer to a request for the page of the node `id`.
pub(crate) fn page(id: &str) -> HttpResponse {
    let mut answer = response::with_content_type(StatusCode::OK, "text/html; charset=utf-8", render(id));
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, content_security_policy());
    answer
}

/// The page as the node `id` serves it.
fn render(id: &str) -> Bytes {
    Bytes::from(PAGE.replace(PLACEHOLDER, &escape_html(id)))
}

/// The Content-Security-Policy of the page: its own script and style, sockets to its own origin, nothing else.
fn content_security_policy() -> HeaderValue {
    let script = source_hash("<script>", "</script>");
    let style = source_hash("<style>", "</style>");
    let policy = format!(
        "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).expect("base64 and the words around it are visible ASCII")
}

/// `'sha256-…'` (CSP level 3, section 2.3.1) of what stands between the two tags.
fn source_hash(open: &str, close: &str) -> String {
    let inner =
        PAGE.split_once(open).and_then(|(_, rest)| rest.split_once(close)).map_or("", |(inner, _)| inner);
    format!("'sha256-{}'", STANDARD.encode(digest(&SHA256, inner.as_bytes())))
}

fn escape_html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_its_node_and_has_exactly_one_script_and_one_style() {
        let page = String::from_utf8(render("ws1").to_vec()).unwrap();
        assert!(page.contains("data-served-by=\"ws1\""));
        assert!(!page.contains(PLACEHOLDER));
        for tag in ["<script>", "</script>", "<style>", "</style>"] {
            assert_eq!(page.matches(tag).count(), 1, "{tag}");
        }
    }

    #[test]
    fn a_name_made_of_markup_stays_text() {
        let page = String::from_utf8(render("\"><script>x&y").to_vec()).unwrap();
        assert!(page.contains("data-served-by=\"&quot;&gt;&lt;script&gt;x&amp;y\""));
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        for elsewhere in ["http://", "https://", " src=", "@import", "url("] {
            assert!(!PAGE.contains(elsewhere), "{elsewhere}");
        }
        assert!(!PAGE.contains(" style=\"") && !PAGE.contains(" onclick="), "the policy forbids these");
    }

    #[test]
    fn the_policy_allows_the_two_inline_blocks_and_no_other() {
        let policy = content_security_policy();
        let policy = policy.to_str().unwrap();
        assert_eq!(policy.matches("'sha256-").count(), 2);
        assert!(!policy.contains("unsafe"));
        assert_ne!(source_hash("<script>", "</script>"), source_hash("<missing>", "</missing>"));
    }
}
