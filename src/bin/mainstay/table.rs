//! Answers of the admin API as a person wants to read them.
//!
//! What an answer says is data: control characters in it never reach the terminal, and a key that is not there (an
//! older or newer balancer may run) is shown as `-`.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use mainstay::admin::client::printable;

/// `/api/status`.
pub fn status(status: &Value) -> String {
    let mut out = format!(
        "mainstay {}, {}, up {}, generation {}, pid {}\n",
        text(&status["version"]),
        text(&status["phase"]),
        since(&status["started_at"]),
        text(&status["generation"]),
        text(&status["pid"]),
    );
    let listeners: Vec<String> = items(&status["listeners"]).iter().map(text).collect();
    out.push_str(&format!("listeners {}\n", listeners.join(", ")));
    let totals = &status["totals"];
    let (tunnels, up, nodes) = (text(&status["tunnels"]), text(&totals["up"]), text(&totals["nodes"]));
    out.push_str(&format!("{tunnels} tunnels, {up} of {nodes} nodes up\n\n"));
    let mut rows = Vec::new();
    for pool in items(&status["pools"]) {
        rows.extend(items(&pool["nodes"]).iter().map(|node| node_row(&pool["name"], node)));
    }
    out + &table(NODES, &rows)
}

/// What the columns of `mainstay status` say.
pub const STATUS_COLUMNS: &str = "\
Columns:
  STATE    up, down (its probes or its traffic failed), draining (asked for), removed
           (gone from the config, its tunnels are still being closed)
  TUNNELS  live tunnels of this balancer
  MAX      max_connections; - is no limit
  USE      how much of what the node takes is taken: what it says of itself
           (X-Mainstay-Load), else TUNNELS of MAX; - where neither is known
  WEIGHT   its share of the clients, beside those of the others
  RELEASE  what it runs: X-Mainstay-Release, else release in the config
  LAST PROBE  what the last health probe came to, and when";

const NODES: &[&str] =
    &["POOL", "NODE", "STATE", "<TUNNELS", "<MAX", "<USE", "<WEIGHT", "RELEASE", "ADDRESS", "HEALTH"];

fn node_row(pool: &Value, node: &Value) -> Vec<String> {
    let used = node["utilization"].as_f64().map_or("-".into(), |used| format!("{:.0}%", used * 100.0));
    let mut row = vec![text(pool)];
    row.extend(["id", "state", "connections", "max_connections"].map(|key| text(&node[key])));
    row.push(used);
    row.extend(["weight", "release", "address"].map(|key| text(&node[key])));
    row.push(health(&node["health"]));
    row
}

/// Why the node is left out, if real traffic has ejected it; else what its last probe brought.
fn health(health: &Value) -> String {
    match health["ejected"]["reason"].as_str() {
        Some(reason) => {
            format!("ejected for up to {}: {}", left(&health["ejected"]["until"]), printable(reason))
        }
        None => probe(&health["last_probe"]),
    }
}

fn probe(probe: &Value) -> String {
    match (probe["ok"].as_bool(), since(&probe["at"])) {
        (Some(true), ago) => format!("ok {ago} ago"),
        (Some(false), ago) => format!("failed {ago} ago: {}", text(&probe["fault"])),
        (None, _) => "-".into(),
    }
}

/// `/api/sessions`.
pub fn sessions(page: &Value) -> String {
    let rows: Vec<Vec<String>> = items(&page["sessions"]).iter().map(session_row).collect();
    let mut out = table(SESSIONS, &rows);
    if page["next"].is_string() {
        out.push_str(&format!("there are more: --after {}\n", text(&page["next"])));
    }
    out
}

/// What the columns of `mainstay sessions` say.
pub const SESSIONS_COLUMNS: &str = "\
Columns:
  AGE       since the upgrade request
  GEN       the generation of the config that it was opened under: 1 at the start, one more
            with each reload that changed something; it keeps the timeouts and limits of it
  IN, OUT   bytes from the client, bytes from the node
  MSGS IN, MSGS OUT  messages from the client, from the node
  LAST      since the last message of either side
  RTT       how long the client took to answer the last ping of the balancer
            (messages.ping); - before that
  AFFINITY  what placed it: the source that decided, and whether that kept, moved,
            hashed or placed the client";

const SESSIONS: &[&str] = &[
    "ID",
    "CLIENT",
    "POOL",
    "NODE",
    "<AGE",
    "<GEN",
    "<IN",
    "<OUT",
    "<MSGS IN",
    "<MSGS OUT",
    "<LAST",
    "<RTT",
    "AFFINITY",
];

fn session_row(session: &Value) -> Vec<String> {
    let rtt = session["round_trip"].as_f64().map_or("-".into(), |rtt| format!("{:.0}ms", rtt * 1000.0));
    let affinity = &session["affinity"];
    let mut row: Vec<String> = ["id", "client", "pool", "node"].map(|key| text(&session[key])).into();
    row.push(since(&session["opened_at"]));
    row.push(text(&session["generation"]));
    row.extend(["in", "out"].map(|way| text(&session["bytes"][way])));
    row.extend(["in", "out"].map(|way| text(&session["messages"][way])));
    row.extend([since(&session["last_message_at"]), rtt]);
    row.push(format!("{} {}", text(&affinity["source"]), text(&affinity["outcome"])));
    row
}

/// What an upgrade came to.
pub fn upgrade(answer: &Value) -> String {
    let pause = answer["pause_ms"].as_f64().unwrap_or_default();
    format!(
        "replaced: process {}, tunnels that went over: {}, longest pause: {pause:.1} ms\n",
        answer["process"], answer["tunnels"]
    )
}

/// `/api/reload`.
pub fn changes(answer: &Value) -> String {
    match items(&answer["changes"]) {
        [] => "nothing has changed\n".into(),
        changes => changes.iter().map(|change| text(change) + "\n").collect(),
    }
}

/// The answer to a rebalance.
pub fn plan(plan: &Value) -> String {
    let (pool, moves) = (text(&plan["pool"]), &plan["moves"]);
    if *moves == 0 {
        let tolerance = text(&plan["tolerance"]);
        return format!("{pool}: no node has more than {tolerance} times its share, nobody is moved\n");
    }
    let first = if plan["quiet_first"] == true { ", quiet ones first" } else { "" };
    let row = |node: &Value| ["id", "connections", "share", "moves"].map(|key| text(&node[key])).to_vec();
    let rows: Vec<Vec<String>> = items(&plan["nodes"]).iter().map(row).collect();
    let moves = format!("{pool}: at most {} tunnels move over {}{first}\n", text(moves), text(&plan["over"]));
    moves + &table(&["NODE", "<TUNNELS", "<SHARE", "<MOVES"], &rows)
}

/// A value as a word; what is null or absent is `-`.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// How long ago an RFC 3339 time was, in its two greatest units.
fn since(at: &Value) -> String {
    // Another machine's clock may be ahead.
    let age = |at| SystemTime::now().duration_since(at).unwrap_or_default();
    time(at).map_or("-".into(), |at| two_units(age(at)))
}

/// How long it is to an RFC 3339 time.
fn left(at: &Value) -> String {
    let left = |at: SystemTime| at.duration_since(SystemTime::now()).unwrap_or_default();
    // Rounded up: a time that is to come is never none.
    time(at).map_or("-".into(), |at| two_units(left(at) + Duration::from_millis(999)))
}

fn time(at: &Value) -> Option<SystemTime> {
    at.as_str().and_then(|at| humantime::parse_rfc3339(at).ok())
}

fn two_units(age: Duration) -> String {
    let whole = humantime::format_duration(Duration::from_secs(age.as_secs())).to_string();
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Columns under their titles; a title that begins with `<` has its column to the right.
fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize, title: &str| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(title.trim_start_matches('<').len())
    };
    let columns: Vec<(usize, bool)> = titles
        .iter()
        .enumerate()
        .map(|(column, title)| (width(column, title), title.starts_with('<')))
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&columns).map(|(cell, (width, is_right))| match is_right {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        let line = padded.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    let mut out = line(&mut titles.iter().map(|title| title.trim_start_matches('<')));
    rows.iter().for_each(|row| out.push_str(&line(&mut row.iter().map(String::as_str))));
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_stand_under_their_titles_and_numbers_to_the_right() {
        let rows = [vec!["ws1".into(), "7".into()], vec!["a-longer-name".into(), "1234".into()]];
        let shown = table(&["NODE", "<TUNNELS"], &rows);
        assert_eq!(shown, "NODE           TUNNELS\nws1                  7\na-longer-name     1234\n");
        assert_eq!(table(&["NODE", "<TUNNELS"], &[]), "NODE  TUNNELS\n");
    }

    #[test]
    fn an_answer_of_another_version_is_shown_as_far_as_it_goes() {
        assert!(status(&json!({})).starts_with("mainstay -, -, up -, generation -, pid -\n"));
        assert!(sessions(&json!({ "sessions": [{ "id": "x" }] })).contains("\nx   -"));
        assert_eq!(changes(&json!({ "changes": [] })), "nothing has changed\n");
    }

    #[test]
    fn what_an_answer_says_cannot_speak_to_the_terminal() {
        let node =
            json!({ "id": "ws1", "health": { "last_probe": { "ok": false, "fault": "\u{1b}[2Jno\n" } } });
        let shown = status(&json!({ "pools": [{ "name": "p", "nodes": [node] }] }));
        assert!(shown.contains("failed - ago: \u{fffd}[2Jno\u{fffd}"), "{shown}");
        assert!(!shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn an_ejected_node_says_why_and_for_how_long_and_not_that_its_probe_is_good() {
        let until = SystemTime::now() + Duration::from_secs(27);
        let health = json!({
            "last_probe": { "ok": true, "at": humantime::format_rfc3339(SystemTime::now()).to_string() },
            "ejected": { "until": humantime::format_rfc3339(until).to_string(), "reason": "5 failures\u{1b}" },
        });
        let shown =
            status(&json!({ "pools": [{ "name": "p", "nodes": [{ "id": "ws1", "health": health }] }] }));
        assert!(shown.contains("ejected for up to 27s: 5 failures\u{fffd}\n"), "{shown}");
        assert!(!shown.contains(" ok "), "{shown}");
    }

    #[test]
    fn an_age_has_its_two_greatest_units() {
        let at = SystemTime::now() - Duration::from_secs(3 * 3600 + 7 * 60 + 9);
        assert_eq!(since(&json!(humantime::format_rfc3339(at).to_string())), "3h 7m");
        let ahead = SystemTime::now() + Duration::from_secs(3600);
        assert_eq!(since(&json!(humantime::format_rfc3339(ahead).to_string())), "0s");
    }
}
