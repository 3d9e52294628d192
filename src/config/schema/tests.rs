//! The table against the reader: the same keys, the same defaults.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::{Config, Faults, Places, resolve};
use super::form::Form;
use super::*;

/// A place in the config: the way there, and the keys that the table has there.
struct Place {
    way: Vec<Step>,
    keys: &'static [Key],
}

#[derive(Clone)]
enum Step {
    Key(&'static str),
    Item,
    Name,
}

/// Every section of the table.
fn places() -> Vec<Place> {
    fn walk(way: &[Step], keys: &'static [Key], into: &mut Vec<Place>) {
        into.push(Place { way: way.to_vec(), keys });
        for key in keys {
            let mut way = way.to_vec();
            way.push(Step::Key(key.name));
            match key.form {
                Form::Section(keys) | Form::Switch(keys) => walk(&way, keys, into),
                Form::Sections(keys) | Form::Choices(keys) => {
                    walk(&[way, vec![Step::Item]].concat(), keys, into)
                }
                Form::Named(keys) => walk(&[way, vec![Step::Name]].concat(), keys, into),
                _ => {}
            }
        }
    }
    let mut places = Vec::new();
    walk(&[], top::KEYS, &mut places);
    places
}

impl Place {
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

/// The keys that the reader knows in a section, from what it says about one that it does not know.
fn known_to_the_reader(place: &Place) -> BTreeSet<String> {
    const NOBODYS: &str = "qqqqqqqqqqqq";
    let said = faults(&place.with(json!({ NOBODYS: 1 })));
    let said = said.iter().find(|line| line.contains(&format!("unknown key `{NOBODYS}`"))).unwrap();
    let (_, known) = said.split_once("; ").unwrap();
    match known.strip_prefix("its keys are ") {
        Some(keys) => keys.split(", ").map(str::to_owned).collect(),
        None => {
            assert_eq!(known, "it takes none");
            BTreeSet::new()
        }
    }
}

#[test]
fn the_schema_has_exactly_the_keys_that_the_reader_knows() {
    let places = places();
    assert!(places.len() >= 25, "{} sections", places.len());
    for place in places {
        let known = known_to_the_reader(&place);
        let listed: BTreeSet<String> = place.keys.iter().map(|key| key.name.to_owned()).collect();
        assert_eq!(listed, known, "{}", place.shown());
    }
}

#[test]
fn what_the_schema_requires_the_reader_misses_and_nothing_else() {
    for place in places() {
        let said = faults(&place.with(json!({})));
        // Naming no probe and no source is another fault, if it is one.
        let missed: BTreeSet<&str> = said
            .iter()
            .filter_map(|line| line.split_once(" is missing; "))
            .filter_map(|(before, _)| before.rsplit('`').nth(1))
            .collect();
        for key in place.keys {
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
    fn defaults(keys: &[Key], skipped: &[&str]) -> Value {
        let keys = keys.iter().filter(|key| !skipped.contains(&key.name));
        let value = |key: &Key| {
            let inner = match key.form {
                Form::Section(keys) | Form::Switch(keys) => Some(defaults(keys, &[])),
                _ => None,
            };
            Some((key.name.to_owned(), key.default().or(inner)?))
        };
        keys.filter_map(value).collect::<Map<String, Value>>().into()
    }
    // Probes and affinity sources are alternatives: one of them is the default, with its own defaults.
    let mut pool = defaults(pool::KEYS, &["health", "affinity"]);
    let alternatives = |key: &str| pool::KEYS.iter().find(|k| k.name == key).unwrap().form.inner().unwrap().1;
    pool["health"] = defaults(alternatives("health"), &["http", "tcp", "websocket"]);
    let cookie = alternatives("affinity").iter().find(|key| key.name == "cookie").unwrap();
    pool["affinity"] = json!([{ "cookie": defaults(cookie.form.inner().unwrap().1, &[]) }]);
    let node = alternatives("nodes");
    let mut first = defaults(node, &[]);
    first["id"] = "a".into();
    first["address"] = "a:1".into();
    pool["nodes"] = json!([first, { "id": "b", "address": "b:1" }]);
    let mut route =
        defaults(top::KEYS.iter().find(|key| key.name == "routes").unwrap().form.inner().unwrap().1, &[]);
    route["pool"] = "p".into();
    let mut config = defaults(top::KEYS, &["pools", "routes"]);
    config["pools"] = json!({ "p": pool });
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
    assert_eq!(Config { places: Places::default(), ..written }, left_out);
}

#[test]
fn every_key_says_what_it_is_for_and_what_it_is_when_left_out() {
    for place in places() {
        for key in place.keys {
            let has_inner = key.form.inner().is_some();
            let is_said = key.says.len() >= 5 && key.says.ends_with('.');
            assert!(is_said, "{} in {} says {:?}", key.name, place.shown(), key.says);
            let default = key.default();
            assert!(default.is_some() || key.is_required || has_inner, "{} in {}", key.name, place.shown());
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
