//! The JSON Schema of the config (draft 2020-12), for editors, and the same as pages of a manual.
//!
//! It is made of the tables that the reader reads by. The schema helps while one writes: it knows names, types, words
//! and defaults. What one key means for another (two listeners on one address, a pool that no route names) only
//! `mainstay check` knows.

use serde_json::{Map, Value, json};

use super::entry::Keys;
use super::key::{Key, KeysOf, Shape, Text};
use super::top::Config;

/// Text with a variable in it, whatever the key wants.
const VARIABLE: &str = r"\$\{";
/// Units that have one meaning only. The reader knows more; who writes `hours` is told to write `h`.
const DURATION: &str = r"([0-9]+ ?(ms|s|m|h|d|w) ?)+";
const SIZE: &str = "[0-9]+(B|KiB|MiB|GiB)";

/// The JSON Schema of the whole config.
pub fn schema() -> Value {
    let mut schema = section(Config::keys);
    schema["type"] = "object".into();
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "The config of Mainstay".into();
    schema["description"] = "${NAME} and ${NAME:-default} inside a value come from the environment. \
                             `mainstay check` says more than this schema can."
        .into();
    schema["$defs"] = json!({ "variable": {
        "description": "A value from the environment.", "type": "string", "pattern": VARIABLE
    } });
    schema
}

/// A mapping with these keys and no others; null is one without keys.
fn section(keys: KeysOf) -> Value {
    let keys = keys();
    let properties: Map<String, Value> = keys.iter().map(|key| (key.name.to_owned(), of_key(key))).collect();
    let required: Vec<&str> = keys.iter().filter(|key| key.is_required).map(|key| key.name).collect();
    let mut schema = json!({ "properties": properties, "additionalProperties": false });
    schema["type"] = if required.is_empty() { json!(["object", "null"]) } else { "object".into() };
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schema
}

fn of_key(key: &Key) -> Value {
    let mut schema = of_shape(&key.shape);
    schema["description"] = key.says.into();
    if let Some(default) = &key.default {
        schema["default"] = default.clone();
    }
    schema
}

fn of_shape(shape: &Shape) -> Value {
    match shape {
        Shape::Section(keys) => section(*keys),
        Shape::Named(keys) => json!({
            "type": "object", "minProperties": 1, "additionalProperties": section(*keys),
            "propertyNames": { "pattern": whole("[A-Za-z0-9_.-]{1,64}") }
        }),
        Shape::Sections(keys) => json!({ "type": "array", "minItems": 1, "items": section(*keys) }),
        Shape::Choices(keys) => {
            let mut item = section(*keys);
            item["type"] = "object".into();
            item["minProperties"] = 1.into();
            item["maxProperties"] = 1.into();
            json!({ "type": "array", "items": item })
        }
        Shape::Texts(Text(_, pattern)) => json!({ "type": "array", "items": text(pattern) }),
        Shape::Text(Text(_, pattern)) => text(pattern),
        Shape::Word(words) => or_variable(json!({ "enum": words })),
        Shape::Flag => or_variable(json!({ "type": "boolean" })),
        Shape::Whole(least, most) => {
            or_variable(json!({ "type": "integer", "minimum": least, "maximum": most }))
        }
        Shape::Number(least, most) => {
            or_variable(json!({ "type": "number", "minimum": least, "maximum": most }))
        }
        Shape::Codes(codes, least, most) => json!({ "anyOf": [
            { "enum": codes }, { "type": "integer", "minimum": least, "maximum": most }, variable()
        ] }),
        Shape::Duration(_) => text(DURATION),
        Shape::Size(_) => text(SIZE),
        Shape::Maybe(shape) => or_null(of_shape(shape)),
        Shape::Either(word, shape) => json!({ "anyOf": [{ "const": word }, of_shape(shape)] }),
    }
}

fn text(pattern: &str) -> Value {
    match pattern {
        "" => json!({ "type": "string", "minLength": 1 }),
        pattern => json!({ "type": "string", "pattern": format!("{}|{VARIABLE}", whole(pattern)) }),
    }
}

/// The pattern for all of a text.
fn whole(pattern: &str) -> String {
    format!("^({pattern})$")
}

fn variable() -> Value {
    json!({ "$ref": "#/$defs/variable" })
}

fn or_variable(schema: Value) -> Value {
    json!({ "anyOf": [schema, variable()] })
}

fn or_null(mut schema: Value) -> Value {
    match schema.as_object_mut().and_then(|object| object.remove("type")) {
        Some(Value::String(kind)) => schema["type"] = json!([kind, "null"]),
        Some(kinds) => schema["type"] = kinds,
        // What has no type of its own is a choice.
        None => schema = json!({ "anyOf": [schema, { "type": "null" }] }),
    }
    schema
}

/// One key as a manual shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDescription {
    /// All names from the top, `pools.NAME.nodes[].id`.
    pub path: String,
    /// What its value looks like, in a few words.
    pub form: String,
    /// What it is when it is left out, as in YAML.
    pub default: Option<String>,
    /// Whether it has to be written.
    pub is_required: bool,
    /// What it is for.
    pub says: &'static str,
}

/// Every key of the config, in the order of balancer.yaml.
pub fn entries() -> Vec<KeyDescription> {
    let mut entries = Vec::new();
    gather(Config::keys(), "", &mut entries);
    entries
}

fn gather(keys: Vec<Key>, below: &str, into: &mut Vec<KeyDescription>) {
    for key in keys {
        let path = format!("{below}{}", key.name);
        into.push(KeyDescription {
            path: path.clone(),
            form: key.shape.words(),
            default: key.default.map(|default| default.to_string()),
            is_required: key.is_required,
            says: key.says,
        });
        if let Some((step, keys)) = key.shape.inner() {
            gather(keys, &format!("{path}{step}."), into);
        }
    }
}

#[cfg(test)]
mod tests;
