//! What the tables say of keys against what the reader makes of them.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::{AddressPositions, Config, Faults, resolve};
use super::*;

/// A place in the config: the way there, and the keys that the table has there.
struct TablePosition {
    way: Vec<Step>,
    keys: Vec<Key>,
}

#[derive(Clone)]
enum Step {
    Key(&'static str),
    Item,
    Name,
}

/// Every section of the table.
fn places() -> Vec<TablePosition> {
    fn walk(way: &[Step], keys: Vec<Key>, into: &mut Vec<TablePosition>) {
        for key in &keys {
            let Some((step, keys)) = key.shape.inner() else { continue };
            let step = match step {
                "[]" => vec![Step::Item],
                ".NAME" => vec![Step::Name],
                _ => vec![],
            };
            walk(&[way, &[Step::Key(key.name)], &step].concat(), keys, into);
        }
        into.push(TablePosition { way: way.to_vec(), keys });
    }
    let mut places = Vec::new();
    walk(&[], Config::keys(), &mut places);
    places
}

impl TablePosition {
    /// A config that has only `inner` there.
    fn with(&self, inner: Value) -> Value {
        self.way.iter().rev().fold(inner, |inner, step| match step {
            Step::Key(name) => json!({ *name: inner }),
            Step::Item => json!([inner]),
            Step::Name => json!({ "p": inner }),
        })
    }

    fn shown(&self) -> String {
        self.with(json!("HERE")).to_string()
    }
}

fn read(config: &Value) -> Result<Config, Faults> {
    let file = |_: &Path| Err(io::ErrorKind::NotFound.into());
    // JSON is YAML.
    resolve("f", config.to_string().as_bytes(), &|_| None, &file)
}

fn faults(config: &Value) -> Vec<String> {
    let said = |faults: Faults| faults.list().iter().map(|fault| fault.message.clone()).collect();
    read(config).map_or_else(said, |_| Vec::new())
}

#[test]
fn what_the_schema_requires_the_reader_misses_and_nothing_else() {
    let places = places();
    assert!(places.len() >= 25, "{} sections", places.len());
    for place in places {
        let said = faults(&place.with(json!({})));
        // Naming no probe and no source is another fault, if it is one.
        let missed: BTreeSet<&str> = said
            .iter()
            .filter_map(|line| line.split_once(" is missing; "))
            .filter_map(|(before, _)| before.rsplit('`').nth(1))
            .collect();
        for key in &place.keys {
            assert_eq!(
                key.is_required,
                missed.contains(key.name),
                "{} in {}: {said:?}",
                key.name,
                place.shown()
            );
        }
    }
}

/// A config that writes every default out, and nothing else but nodes.
fn all_defaults() -> Value {
    fn defaults(keys: Vec<Key>, skipped: &[&str]) -> Value {
        let keys = keys.into_iter().filter(|key| !skipped.contains(&key.name));
        let value = |key: Key| {
            let inner = match key.shape.inner() {
                Some(("", keys)) => Some(defaults(keys, &[])),
                _ => None,
            };
            Some((key.name.to_owned(), key.default.or(inner)?))
        };
        keys.filter_map(value).collect::<Map<String, Value>>().into()
    }
    fn inner(keys: Vec<Key>, name: &str) -> Vec<Key> {
        keys.into_iter().find(|key| key.name == name).and_then(|key| key.shape.inner()).unwrap().1
    }
    // Probes and affinity sources are alternatives: one of them is the default, with its own defaults.
    let pool = || inner(Config::keys(), "pools");
    let mut written = defaults(pool(), &["health", "affinity"]);
    written["health"] = defaults(inner(pool(), "health"), &["http", "tcp", "websocket"]);
    let cookie = inner(inner(pool(), "affinity"), "cookie");
    written["affinity"] = json!([{ "cookie": defaults(cookie, &[]) }]);
    let mut first = defaults(inner(pool(), "nodes"), &[]);
    first["id"] = "a".into();
    first["address"] = "a:1".into();
    written["nodes"] = json!([first, { "id": "b", "address": "b:1" }]);
    let mut route = defaults(inner(Config::keys(), "routes"), &[]);
    route["pool"] = "p".into();
    let mut config = defaults(Config::keys(), &["pools", "routes"]);
    config["pools"] = json!({ "p": written });
    config["routes"] = json!([route]);
    config
}

#[test]
fn the_defaults_of_the_schema_are_those_of_the_reader() {
    let written = all_defaults();
    let left_out = json!({ "pools": { "p": { "nodes": [
        { "id": "a", "address": "a:1" }, { "id": "b", "address": "b:1" }
    ] } } });
    let [written, left_out] = [&written, &left_out]
        .map(|config| read(config).unwrap_or_else(|faults| panic!("{faults}\n{config:#}")));
    // Only one of them says where its addresses are.
    assert_eq!(Config { places: AddressPositions::default(), ..written }, left_out);
}

#[test]
fn every_key_says_what_it_is_for_and_what_it_is_when_left_out() {
    for place in places() {
        for key in &place.keys {
            let has_inner = key.shape.inner().is_some();
            let is_said = key.says.len() >= 5 && key.says.ends_with('.');
            assert!(is_said, "{} in {} says {:?}", key.name, place.shown(), key.says);
            assert!(
                key.default.is_some() || key.is_required || has_inner,
                "{} in {}",
                key.name,
                place.shown()
            );
        }
    }
}

#[test]
fn the_manual_has_every_key_once_with_its_path() {
    let entries = entries();
    let paths: BTreeSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    assert_eq!(paths.len(), entries.len());
    for path in
        ["listeners[].tls.certificates[].cert", "pools.NAME.nodes[].id", "pools.NAME.affinity[].cookie.name"]
    {
        assert!(paths.contains(path), "{path} is not among {paths:#?}");
    }
    let drain = entries.iter().find(|entry| entry.path == "pools.NAME.drain.code").unwrap();
    assert_eq!(
        (drain.form.as_str(), drain.default.as_deref()),
        ("1001, 1012, 1013 or 3000 to 4999", Some("1012"))
    );
}

#[test]
fn the_schema_names_its_draft_and_refuses_other_keys_everywhere() {
    fn sections(schema: &Value, seen: &mut usize) {
        if let Some(object) = schema.as_object() {
            if object.contains_key("properties") {
                assert_eq!(object["additionalProperties"], false);
                *seen += 1;
            }
            object.values().for_each(|inner| sections(inner, seen));
        }
        schema.as_array().into_iter().flatten().for_each(|inner| sections(inner, seen));
    }
    let schema = schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let mut seen = 0;
    sections(&schema, &mut seen);
    assert_eq!(seen, places().len());
}
