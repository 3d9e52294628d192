//! The JSON Schema of the config (draft 2020-12), for editors, and the same as pages of a manual.
//!
//! One table of keys (`top`, `pool`) with the words of balancer.yaml; here is what becomes of it. The schema helps while
//! one writes: it knows names, types, words and defaults. What one key means for another (two listeners on one
//! address, a pool that no route names) only `mainstay check` knows. Tests hold the table to the reader: each knows
//! exactly the keys of the other, and the same defaults.

mod form;
mod pool;
mod top;

use serde_json::{Map, Value, json};

use form::Form;

/// One key of the config.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// As written.
    name: &'static str,
    /// What its value looks like.
    form: Form,
    /// What it is for, in the words of balancer.yaml.
    says: &'static str,
    /// What it is when it is left out, as JSON; `None` where something else decides.
    default: Option<&'static str>,
    /// Whether it has to be written.
    is_required: bool,
}

/// A key that may be left out.
const fn key(name: &'static str, form: Form, says: &'static str) -> Key {
    Key { name, form, says, default: None, is_required: false }
}

impl Key {
    /// With the JSON that it is when it is left out.
    const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    /// To be written always.
    const fn required(self) -> Self {
        Self { is_required: true, ..self }
    }

    fn default(&self) -> Option<Value> {
        self.default.map(|json| serde_json::from_str(json).expect("a test has read every default"))
    }

    fn schema(&self) -> Value {
        let mut schema = self.form.schema();
        schema["description"] = self.says.into();
        if let Some(default) = self.default() {
            schema["default"] = default;
        }
        schema
    }
}

/// The JSON Schema of the whole config.
pub fn schema() -> Value {
    let mut schema = section(top::KEYS);
    schema["type"] = "object".into();
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "The config of Mainstay".into();
    schema["description"] = "${NAME} and ${NAME:-default} inside a value come from the environment. \
                             `mainstay check` says more than this schema can."
        .into();
    schema["$defs"] = json!({ "variable": {
        "description": "A value from the environment.", "type": "string", "pattern": form::VARIABLE
    } });
    schema
}

/// A mapping with these keys and no others; null is one without keys.
fn section(keys: &[Key]) -> Value {
    let properties: Map<String, Value> = keys.iter().map(|key| (key.name.to_owned(), key.schema())).collect();
    let required: Vec<&str> = keys.iter().filter(|key| key.is_required).map(|key| key.name).collect();
    let mut schema = json!({ "properties": properties, "additionalProperties": false });
    schema["type"] = if required.is_empty() { json!(["object", "null"]) } else { "object".into() };
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schema
}

/// One key as a manual shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
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
pub fn entries() -> Vec<Entry> {
    let mut entries = Vec::new();
    gather(top::KEYS, "", &mut entries);
    entries
}

fn gather(keys: &[Key], below: &str, into: &mut Vec<Entry>) {
    for key in keys {
        let path = format!("{below}{}", key.name);
        into.push(Entry {
            path: path.clone(),
            form: key.form.words(),
            default: key.default.map(str::to_owned),
            is_required: key.is_required,
            says: key.says,
        });
        if let Some((step, keys)) = key.form.inner() {
            gather(keys, &format!("{path}{step}."), into);
        }
    }
}

#[cfg(test)]
mod tests;
