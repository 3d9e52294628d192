//! A config as YAML, in the order of the reference config.
//!
//! What is written is what [`super::resolve`] reads, and what a YAML 1.1 reader reads the same: whatever could be taken
//! for a number, a boolean or null there is in quotes. A key that the reference does not know (of another version) comes
//! last.

use serde_json::{Map, Value};

use super::schema;

/// The YAML of a tree with the keys of the config file, as [`super::effective()`] gives it.
pub fn yaml(config: &Value) -> String {
    let order: Vec<String> = schema::entries().into_iter().map(|entry| entry.path).collect();
    let mut out = String::new();
    match config {
        Value::Object(entries) => {
            mapping(entries, &YamlPosition { order: &order, path: String::new(), indent: 0 }, &mut out)
        }
        other => out = scalar(other) + "\n",
    }
    out
}

/// Where in the tree something is.
struct YamlPosition<'a> {
    /// The paths of all keys, in the order of the reference.
    order: &'a [String],
    /// As in [`schema::KeyDescription`], with what comes before the next key.
    path: String,
    indent: usize,
}

impl YamlPosition<'_> {
    fn rank(&self, key: &str) -> usize {
        let path = format!("{}{key}", self.path);
        self.order.iter().position(|known| *known == path).unwrap_or(self.order.len())
    }

    /// Below a key. The names of pools are the operator's: the reference calls each NAME.
    fn below(&self, key: &str, step: &str) -> Self {
        let key = if self.path == "pools." { "NAME" } else { key };
        Self { order: self.order, path: format!("{}{key}{step}.", self.path), indent: self.indent + 1 }
    }
}

/// Two spaces a level.
fn indent(level: usize) -> String {
    "  ".repeat(level)
}

/// Each key on a line of its own.
fn mapping(entries: &Map<String, Value>, place: &YamlPosition, out: &mut String) {
    let mut keys: Vec<&String> = entries.keys().collect();
    keys.sort_by_key(|key| place.rank(key));
    for key in keys {
        out.push_str(&format!("{}{}:", indent(place.indent), text(key)));
        value(&entries[key], key, place, out);
    }
}

/// What stands behind a key, up to the end of its last line.
fn value(value: &Value, key: &str, place: &YamlPosition, out: &mut String) {
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            out.push('\n');
            mapping(entries, &place.below(key, ""), out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            items.iter().for_each(|one| item(one, &place.below(key, "[]"), out));
        }
        other => out.push_str(&format!(" {}\n", scalar(other))),
    }
}

/// An item of a list: its first key stands behind the dash.
fn item(item: &Value, place: &YamlPosition, out: &mut String) {
    let dash = format!("{}- ", indent(place.indent));
    match item {
        Value::Object(entries) if !entries.is_empty() => {
            let mut lines = String::new();
            let inner = YamlPosition { indent: place.indent + 1, path: place.path.clone(), ..*place };
            mapping(entries, &inner, &mut lines);
            out.push_str(&dash);
            out.push_str(lines.trim_start());
        }
        other => out.push_str(&format!("{dash}{}\n", scalar(other))),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(word) => text(word),
        // Numbers, booleans, null, and what is empty: JSON is YAML.
        other => other.to_string(),
    }
}

/// Plain where no reader of YAML can take it for something else.
fn text(word: &str) -> String {
    let is_plain = word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b));
    let is_time_or_size = word.strip_suffix(|c: char| c.is_ascii_alphabetic()).is_some_and(|rest| {
        let rest = rest.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit())
    }) && !word.contains(['e', 'E', 'x', 'o', 'b']);
    // Booleans and null of YAML 1.1 and 1.2.
    const OTHERWISE: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let is_otherwise = OTHERWISE.contains(&word.to_ascii_lowercase().as_str());
    if (is_plain || is_time_or_size) && !is_otherwise {
        return word.to_owned();
    }
    Value::from(word).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_stand_in_the_order_of_the_reference_and_unknown_ones_last() {
        let config = json!({
            "pools": { "chat": { "zoo": 1, "balance": "round_robin", "nodes": [
                { "weight": 2, "id": "a", "address": "a:1" }, { "id": "b" }
            ], "source_addresses": [], "tls": null } },
            "listeners": [{ "tls": null, "address": "0.0.0.0:80" }],
            "trusted_proxies": ["10.0.0.0/8", "::1"],
        });
        let expected = "listeners:\n  - address: \"0.0.0.0:80\"\n    tls: null\n\
                        trusted_proxies:\n  - \"10.0.0.0/8\"\n  - \"::1\"\n\
                        pools:\n  chat:\n    nodes:\n      - id: a\n        address: \"a:1\"\n        weight: 2\n\
                        \x20     - id: b\n    balance: round_robin\n    source_addresses: []\n    tls: null\n    zoo: 1\n";
        assert_eq!(yaml(&config), expected);
    }

    #[test]
    fn a_text_that_could_be_something_else_is_quoted() {
        for plain in ["chat", "/socket.io/", "30s", "16KiB", "500ms", "least_connections", "a-b.c_d"] {
            assert_eq!(text(plain), plain);
        }
        for quoted in [
            "", "off", "No", "null", "~", "1.2", "0640", "1e3", "0x1f", "0b1", "0o7", "a: b", "#x", "- a",
            "a b", "é", "*a",
        ] {
            assert_eq!(text(quoted), format!("\"{quoted}\""), "{quoted}");
        }
        assert_eq!(text("a\"b\\\n\u{1b}"), r#""a\"b\\\n\u001b""#);
    }
}
