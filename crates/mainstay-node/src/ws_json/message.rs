//! The messages of a client as text: requests in, answers and events out.
//!
//! `schema.json` beside this file says the same as a JSON Schema; a test holds the two together.

use std::borrow::Cow;

use bytes::Bytes;

use socketio_redis::value::Value;

/// The JSON Schema of every message, served on `/ws/schema.json`.
pub(crate) const SCHEMA: &str = include_str!("schema.json");

/// A request as it came, and the `id` under which its answer is wanted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RequestMessage {
    /// Text or a number; it stands in the answer as it came.
    pub(super) id: Option<Value>,
    /// Its type.
    pub(super) word: Box<str>,
    /// All its fields, those two among them.
    pub(super) fields: Vec<(Box<str>, Value)>,
}

/// A message that is no request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MessageError {
    /// The `id`, where it could be read.
    pub(super) id: Option<Value>,
    /// What is wrong, and what would be right.
    pub(super) words: String,
}

impl RequestMessage {
    /// Reads a text message.
    pub(super) fn read(text: &str) -> Result<Self, MessageError> {
        let error = |words: &str| MessageError { id: None, words: words.into() };
        let value = Value::from_json(text).map_err(|_| error("a message is one JSON object"))?;
        if value.as_map().is_none() {
            return Err(error("a message is one JSON object"));
        }
        let id = match value.get("id") {
            None | Some(Value::Null) => None,
            Some(id @ (Value::Text(_) | Value::Int(_) | Value::Uint(_))) if is_short(id) => Some(id.clone()),
            Some(_) => return Err(error("id is a whole number or text of at most 64 bytes")),
        };
        let Some(word) = value.get("type").and_then(Value::as_text) else {
            let words = "a message has a type; write join, leave, publish, direct or presence".into();
            return Err(MessageError { id, words });
        };
        let word = word.into();
        let Value::Map(fields) = value else { return Err(error("a message is one JSON object")) };
        Ok(Self { id, word, fields })
    }
}

fn is_short(id: &Value) -> bool {
    id.as_text().is_none_or(|text| text.len() <= 64)
}

/// `{"type":"ok","request":…,"id":…, …}`.
pub(super) fn ok(id: Option<Value>, word: &str, facts: Vec<(&str, Value)>) -> String {
    let head = [("type", text("ok")), ("request", text(word))];
    object(head.into_iter().chain(id.map(|id| ("id", id))).chain(facts))
}

/// `{"type":"error","id":…,"error":…}`.
pub(super) fn error(id: Option<Value>, words: &str) -> String {
    let head = [("type", text("error"))].into_iter().chain(id.map(|id| ("id", id)));
    object(head.chain([("error", text(words))]))
}

/// The first message of a connection: who and where the client is.
pub(super) fn welcome(id: &str, node: &str, user: Option<&str>) -> String {
    let user = user.map_or(Value::Null, text);
    object([("type", text("welcome")), ("id", text(id)), ("node", text(node)), ("user", user)])
}

/// An event as clients of this protocol get it, to be sent to any number of them; `None` when it is no event. The application's own events (`message`, `direct`) have one
/// object, whose fields are those of the message; any other is `{"type":"event","event":…,"data":[…]}`.
pub(super) fn event(data: &[Value]) -> Option<Bytes> {
    let (name, arguments) = data.split_first()?;
    let name: Cow<str> = match name {
        Value::Text(name) => Cow::Borrowed(name),
        // Node.js lets a number be an event's name.
        other => Cow::Owned(other.to_json()),
    };
    match arguments {
        [Value::Map(fields)] if matches!(&*name, "message" | "direct") => {
            let fields = fields.iter().filter(|(key, _)| **key != *"type");
            let fields = fields.map(|(key, value)| (&**key, value.clone()));
            Some(object([("type", text(&name))].into_iter().chain(fields)).into())
        }
        _ => {
            let data = Value::List(arguments.to_vec());
            Some(object([("type", text("event")), ("event", text(&name)), ("data", data)]).into())
        }
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> String {
    Value::Map(fields.into_iter().map(|(key, value)| (key.into(), value)).collect()).to_json()
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;

    #[test]
    fn a_request_is_read_and_its_id_stands_in_the_answer_as_it_came() {
        for (id, shown) in [("7", "7"), ("\"a\"", "\"a\"")] {
            let asked = RequestMessage::read(&format!(r#"{{"type":"join","room":"r","id":{id}}}"#)).unwrap();
            assert_eq!(asked.fields[1], ("room".into(), Value::Text("r".into())));
            let answer = ok(asked.id, &asked.word, vec![("members", Value::Int(2))]);
            assert_eq!(answer, format!(r#"{{"type":"ok","request":"join","id":{shown},"members":2}}"#));
        }
        let silent = RequestMessage::read(r#"{"type":"leave","room":"r"}"#).unwrap();
        assert_eq!(ok(silent.id, &silent.word, vec![]), r#"{"type":"ok","request":"leave"}"#);
    }

    #[test]
    fn every_bad_message_gets_an_error_that_says_what_would_be_right() {
        let deep = "[".repeat(10_000);
        let cases = [
            ("", "one JSON object"),
            ("hello", "one JSON object"),
            ("[1]", "one JSON object"),
            ("{\"type\":\"join\"", "one JSON object"),
            (deep.as_str(), "one JSON object"),
            ("{}", "a message has a type"),
            (r#"{"type":7}"#, "a message has a type"),
            (r#"{"type":"join","id":[1]}"#, "id is a whole number or text"),
        ];
        for (message, said) in cases {
            let fault = RequestMessage::read(message).unwrap_err();
            assert!(fault.words.contains(said), "{message}: {}", fault.words);
        }
        let fault = RequestMessage::read(r#"{"id":9}"#).unwrap_err();
        assert!(
            error(fault.id, &fault.words)
                .starts_with(r#"{"type":"error","id":9,"error":"a message has a type"#)
        );
    }

    #[test]
    fn an_event_of_the_application_is_a_message_and_any_other_is_told_with_its_name() {
        let data = |json: &str| Value::from_json(json).unwrap().as_list().unwrap().to_vec();
        let message = event(&data(r#"["message",{"room":"r","data":1,"type":"x"}]"#)).unwrap();
        assert_eq!(message, r#"{"type":"message","room":"r","data":1}"#);
        let other = event(&data(r#"["price",1,{"a":null}]"#)).unwrap();
        assert_eq!(other, r#"{"type":"event","event":"price","data":[1,{"a":null}]}"#);
        assert_eq!(event(&data("[42]")).unwrap(), r#"{"type":"event","event":"42","data":[]}"#);
        assert_eq!(event(&[]), None);
        let bytes = event(&[Value::Text("bin".into()), Value::Binary(vec![1, 2].into())]).unwrap();
        assert_eq!(bytes, r#"{"type":"event","event":"bin","data":[{"type":"Buffer","data":[1,2]}]}"#);
    }

    #[test]
    fn the_schema_names_every_type_that_is_read_or_written() {
        let schema: Json = serde_json::from_str(SCHEMA).unwrap();
        let named: Vec<&str> = schema["$defs"]
            .as_object()
            .unwrap()
            .values()
            .filter_map(|message| message["properties"]["type"]["const"].as_str())
            .collect();
        for word in
            ["join", "leave", "publish", "direct", "presence", "ok", "error", "welcome", "message", "event"]
        {
            assert!(named.contains(&word), "{word}");
        }
    }
}
