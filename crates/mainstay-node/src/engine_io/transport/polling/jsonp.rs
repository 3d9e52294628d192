//! Polling through script elements, for pages that can neither send across origins nor open a WebSocket: each answer
//! is a call of a function that the page has made, each request a form.

use crate::engine_io::session::urlencoded;

/// The head of every answer of a session whose first request had `j`; only its digits count.
pub(crate) fn script_head(j: &str) -> String {
    let digits: String = j.chars().filter(char::is_ascii_digit).collect();
    format!("___eio[{digits}](")
}

/// The script that hands `payload` over. JSON is not quite a part of JavaScript: two separators must be escaped.
pub(crate) fn wrap_payload(head: &str, payload: &str) -> String {
    let literal = serde_json::Value::from(payload).to_string();
    let literal = literal.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    format!("{head}{literal});")
}

/// The payload in a form's body; `None` when it has no field `d`, which is passed over.
///
/// The client escapes line feeds, because a form would change them: `\n` stands for one, `\\n` for those two characters.
pub(crate) fn form_payload(form: &str) -> Option<String> {
    let field = urlencoded::last(form, "d")?;
    let mut payload = String::with_capacity(field.len());
    let mut rest = &*field;
    while let Some(at) = rest.find("\\n") {
        let is_escaped = rest[..at].ends_with('\\');
        payload.push_str(&rest[..at]);
        if is_escaped {
            payload.push('n');
        } else {
            payload.push('\n');
        }
        rest = &rest[at + 2..];
    }
    payload.push_str(rest);
    Some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_a_call_with_one_string() {
        assert_eq!(script_head("1a2"), "___eio[12](");
        assert_eq!(wrap_payload("___eio[0](", "4\"\n\u{2028}"), "___eio[0](\"4\\\"\\n\\u2028\");");
    }

    #[test]
    fn the_forms_escapes_are_undone() {
        assert_eq!(
            form_payload("d=42%5B%22echo%22%2C%22a%5C%5Cnb%22%5D").as_deref(),
            Some("42[\"echo\",\"a\\nb\"]")
        );
        assert_eq!(form_payload("d=a%5Cnb").as_deref(), Some("a\nb"));
        assert_eq!(form_payload("x=1"), None);
    }
}
