//! The Grafana dashboard: every query names metrics and labels that exist, and no metric is forgotten.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::contract::{CONTRACT, Metric, VALUES, metric};

/// What a query may use of PromQL.
const WORDS: [&str; 10] =
    ["sum", "min", "max", "count", "by", "rate", "increase", "changes", "histogram_quantile", "time"];

/// A label that Prometheus adds to every series.
const INSTANCE: &str = "instance";

/// The metric that a query names at one place, and the labels that it is asked for.
struct Mention {
    metric: &'static Metric,
    labels: BTreeSet<String>,
}

fn dashboard() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/grafana/mainstay.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// All strings under one of these keys, wherever they are.
fn strings<'a>(value: &'a Value, keys: &[&str], found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| match value {
            Value::String(text) if keys.contains(&key.as_str()) => found.push(text),
            other => strings(other, keys, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| strings(item, keys, found)),
        _ => {}
    }
}

/// What a query mentions, or what is wrong with it.
fn mentions(query: &str) -> Result<Vec<Mention>, String> {
    let (mut mentions, mut grouped, mut before) = (Vec::new(), BTreeSet::new(), "");
    let mut rest = query;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic() || c == '[') {
        if rest[start..].starts_with('[') {
            // A duration, which Grafana fills in.
            rest = rest[start..].split_once(']').ok_or("a bracket is open")?.1;
            continue;
        }
        let word = name(&rest[start..]);
        rest = &rest[start + word.len()..];
        if word == "by" {
            let (labels, after) = rest.trim_start_matches(" (").split_once(')').ok_or("a group is open")?;
            grouped.extend(labels.split(", ").map(str::to_owned));
            rest = after;
        } else if let Some(metric) = metric(word) {
            let must_be_a_rate = metric.kind != "gauge";
            if must_be_a_rate != ["rate", "increase"].contains(&before) {
                return Err(format!("{word} is a {}, and it is used in {before:?}", metric.kind));
            }
            let (matchers, after) =
                rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).ok_or("no matchers")?;
            rest = after;
            let le = word.ends_with("_bucket").then_some("le");
            let labels: BTreeSet<String> =
                metric.labels.iter().copied().chain(le).chain([INSTANCE]).map(str::to_owned).collect();
            matchers.split(", ").try_for_each(|matcher| check_matcher(matcher, &labels))?;
            mentions.push(Mention { metric, labels });
        } else if !WORDS.contains(&word) {
            return Err(format!("{word} is no metric"));
        }
        before = word;
    }
    let known = |label: &String| mentions.iter().any(|mention| mention.labels.contains(label));
    match grouped.into_iter().find(|label| !known(label)) {
        Some(label) => Err(format!("nothing has the label {label}")),
        None if mentions.is_empty() => Err("it names no metric".into()),
        None => Ok(mentions),
    }
}

fn name(text: &str) -> &str {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or_default()
}

/// `label="value"`, `label!="value"` or `label=~"$variable"`.
fn check_matcher(matcher: &str, labels: &BTreeSet<String>) -> Result<(), String> {
    let label = name(matcher);
    if !labels.contains(label) {
        return Err(format!("there is no label {label}"));
    }
    if let Some(variable) = matcher[label.len()..].strip_prefix("=~\"$") {
        return match variable.strip_suffix('"') {
            Some(name) if name == label => Ok(()),
            _ => Err(format!("{matcher} takes another variable")),
        };
    }
    let value = matcher[label.len()..].trim_start_matches('!').strip_prefix("=\"");
    let value = value.and_then(|value| value.strip_suffix('"')).ok_or(format!("{matcher} is none"))?;
    let closed = VALUES.iter().find(|(of, _)| *of == label).ok_or(format!("{label} has any value"))?;
    if closed.1.contains(&value) { Ok(()) } else { Err(format!("{label} is never {value}")) }
}

#[test]
fn every_query_of_the_dashboard_names_metrics_and_labels_that_exist() {
    let dashboard = dashboard();
    let mut queries = Vec::new();
    strings(&dashboard, &["expr"], &mut queries);
    assert!(queries.len() > 25, "{}", queries.len());
    let mut seen = BTreeSet::new();
    for query in queries {
        let mentions = mentions(query).unwrap_or_else(|fault| panic!("{fault} in {query}"));
        seen.extend(mentions.iter().map(|mention| mention.metric.name));
    }
    let own = CONTRACT.iter().map(|metric| metric.name).filter(|name| name.starts_with("mainstay_"));
    let forgotten: Vec<&str> = own.filter(|name| !seen.contains(name)).collect();
    assert!(forgotten.is_empty(), "no panel shows {forgotten:?}");
}

#[test]
fn every_variable_of_the_dashboard_lists_the_values_of_a_label_that_exists() {
    let dashboard = dashboard();
    let mut names = BTreeSet::new();
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        names.insert(format!("${name}"));
        let Some(query) = variable["definition"].as_str() else { continue };
        let (of, label) = query.strip_prefix("label_values(").unwrap().rsplit_once(", ").unwrap();
        let of = metric(self::name(of)).unwrap_or_else(|| panic!("{query}"));
        assert!(label == format!("{name})") && [of.labels, &[INSTANCE]].concat().contains(&name), "{query}");
    }
    assert_eq!(names.len(), 4);
    let text = dashboard.to_string();
    let used: BTreeSet<String> =
        text.match_indices("=~\\\"$").map(|(at, _)| format!("${}", name(&text[at + 5..]))).collect();
    assert!(!used.is_empty() && used.is_subset(&names), "{used:?}");
}

#[test]
fn every_panel_has_a_title_a_description_and_an_id_of_its_own() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert!(["title", "description"].iter().all(|key| panel[key].as_str().unwrap().len() > 2), "{panel}");
    }
}

#[test]
fn the_reader_of_queries_sees_what_is_wrong() {
    for wrong in [
        "sum(mainstay_lost{instance=~\"$instance\"})",
        "sum(mainstay_websocket_connections{color=~\"$color\"})",
        "sum(mainstay_websocket_connections{pool=~\"$node\"})",
        "sum(rate(mainstay_websocket_connections{pool=~\"$pool\"}[5m]))",
        "sum(mainstay_bytes_total{pool=~\"$pool\"})",
        "rate(mainstay_handshakes_total{result=\"lost\"}[5m])",
        "rate(mainstay_handshake_seconds{pool=~\"$pool\"}[5m])",
        "sum by (color) (mainstay_websocket_connections{pool=~\"$pool\"})",
        "sum(mainstay_websocket_connections)",
        "vector(1)",
        "time()",
    ] {
        assert!(mentions(wrong).is_err(), "{wrong}");
    }
}
