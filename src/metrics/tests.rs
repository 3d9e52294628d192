//! What is counted is what the text says.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

/// The metrics of the outside contract, and the one of the access log.
const CONTRACT: [&str; 25] = [
    "mainstay_websocket_connections",
    "mainstay_handshakes_total",
    "mainstay_handshake_seconds",
    "mainstay_handshake_retries_total",
    "mainstay_closes_total",
    "mainstay_bytes_total",
    "mainstay_messages_total",
    "mainstay_requests_total",
    "mainstay_affinity_total",
    "mainstay_node_state",
    "mainstay_node_utilization",
    "mainstay_drain_left",
    "mainstay_drain_closed",
    "mainstay_drain_deadline_seconds",
    "mainstay_health_checks_total",
    "mainstay_rebalance_left",
    "mainstay_rebalance_closes_total",
    "mainstay_config_generation",
    "mainstay_config_reloads_total",
    "mainstay_config_last_reload_success",
    "mainstay_upgrades_total",
    "mainstay_connections_refused_total",
    "mainstay_panics_total",
    "mainstay_access_log_dropped_total",
    "mainstay_build_info",
];

const PROCESS: [&str; 8] = [
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
    "process_virtual_memory_bytes",
    "process_virtual_memory_max_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
];

/// One value of every metric.
fn counted() -> Arc<Metrics> {
    let metrics = Metrics::new(2);
    let (pool, node) = (metrics.pool("chat"), metrics.node("chat", "ws1"));
    pool.record_handshake(HandshakeResult::Upgraded);
    pool.record_handshake_time(Duration::from_millis(3));
    pool.record_request(204);
    pool.record_affinity("cookie", "kept");
    node.shard(0).add(TrafficDirection::In, 100, &[1, 0, 2, 0, 0]);
    node.shard(1).add(TrafficDirection::In, 30, &[4, 0, 0, 0, 1]);
    node.shard(1).add(TrafficDirection::Out, 7, &[0, 1, 0, 0, 0]);
    node.record_close(CloseSide::Client, 1001);
    node.record_probe(true);
    node.set_state("up");
    node.set_capacity(Some(8));
    node.set_drain(Some(DrainGauge { closed: Box::new(|| 4), deadline: 1.8e9 }));
    metrics.set_generation(3);
    metrics
}

/// The value of the one line that begins with this name and these labels.
fn value(metrics: &Metrics, series: &str) -> Option<f64> {
    let text = metrics.render();
    let mut found = text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = found.next().map(|value| value.parse().unwrap());
    assert_eq!(found.next(), None, "{series} occurs twice");
    value
}

/// A small reader of the text format: every line is a comment or a sample, samples follow their `# TYPE` and
/// their labels are quoted. Gives the series, or says which line is wrong.
fn parse(text: &str) -> Result<BTreeSet<String>, String> {
    let mut series = BTreeSet::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# TYPE ") {
            family = comment.split(' ').next().unwrap_or_default().into();
        } else if !line.starts_with("# HELP ") {
            let name = sample(line).ok_or_else(|| line.to_string())?;
            let of_family =
                ["", "_bucket", "_sum", "_count"].iter().any(|end| name == format!("{family}{end}"));
            if !of_family || !series.insert(line.rsplit_once(' ').unwrap_or_default().0.to_string()) {
                return Err(format!("out of place or twice: {line}"));
            }
        }
    }
    Ok(series)
}

/// The metric's name, when the line is `name{label="value",...} number`.
fn sample(line: &str) -> Option<&str> {
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?;
    let (name, mut rest) = line.split_at(end);
    if let Some(labels) = rest.strip_prefix('{') {
        rest = labels;
        while !rest.starts_with('}') {
            let (label, value) = rest.split_once("=\"")?;
            let is_name = label.trim_start_matches(',').chars().all(|c| c.is_ascii_lowercase());
            rest = quoted(value).filter(|_| is_name)?;
        }
        rest = &rest[1..];
    }
    rest.strip_prefix(' ')?.parse::<f64>().ok().map(|_| name)
}

/// What follows the closing quote.
fn quoted(value: &str) -> Option<&str> {
    let mut chars = value.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some(&value[at + 1..]),
            '\\' => drop(chars.next().filter(|(_, c)| ['\\', '"', 'n'].contains(c))?),
            _ => {}
        }
    }
    None
}

#[test]
fn every_metric_of_the_contract_is_there_under_its_name() {
    let text = counted().render();
    for name in CONTRACT.iter().chain(&PROCESS) {
        assert!(text.contains(&format!("\n# TYPE {name} ")) || text.contains(&format!("# HELP {name} ")));
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} has no value");
    }
    let types = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert_eq!(types, CONTRACT.len() + PROCESS.len(), "a metric that no list here names");
}

#[test]
fn the_text_is_well_formed_with_and_without_pools() {
    let empty = parse(&Metrics::new(1).render()).unwrap();
    assert!(empty.contains("mainstay_requests_total{pool=\"\",status=\"4xx\"}"));
    let full = parse(&counted().render()).unwrap();
    assert!(full.len() > empty.len() + 40, "{full:#?}");
}

#[test]
fn the_reader_of_these_tests_sees_what_is_wrong() {
    for wrong in ["a{b=\"c} 1", "a{b=c} 1", "a one", "a{b=\"\\x\"} 1", "a{b=\"c\"}1", "", "x 1"] {
        assert!(parse(&format!("# TYPE a counter\n{wrong}\n")).is_err(), "{wrong}");
    }
    assert!(parse("# TYPE a counter\na 1\na 2\n").is_err());
    assert!(parse("# TYPE a counter\na{b=\"x\\\"y\\n\\\\\",c=\"\"} 1\n").is_ok());
}

#[test]
fn a_hostile_name_cannot_write_a_line_of_its_own() {
    let metrics = Metrics::new(1);
    let hostile = "a\"} 1\nmainstay_fake 2\\";
    metrics.node(hostile, hostile).record_close(CloseSide::Node, 1000);
    let series = parse(&metrics.render()).unwrap();
    let escaped = r#"a\"} 1\nmainstay_fake 2\\"#;
    let expected =
        format!("mainstay_closes_total{{pool=\"{escaped}\",node=\"{escaped}\",side=\"node\",code=\"1000\"}}");
    assert!(series.contains(&expected), "{series:#?}");
}

#[test]
fn bytes_and_messages_are_summed_over_threads_and_nodes() {
    let metrics = counted();
    metrics.node("chat", "ws2").shard(0).add(TrafficDirection::In, 1000, &[10, 0, 0, 0, 0]);
    assert_eq!(value(&metrics, r#"mainstay_bytes_total{pool="chat",direction="in"}"#), Some(1130.0));
    assert_eq!(value(&metrics, r#"mainstay_bytes_total{pool="chat",direction="out"}"#), Some(7.0));
    let messages = |kind| {
        value(&metrics, &format!(r#"mainstay_messages_total{{pool="chat",direction="in",kind="{kind}"}}"#))
    };
    let all = ["text", "binary", "ping", "pong", "close"].map(messages);
    assert_eq!(all, [Some(15.0), Some(0.0), Some(2.0), Some(0.0), Some(1.0)]);
}

#[test]
fn two_threads_count_on_their_own_shards_and_nothing_is_lost() {
    let metrics = Metrics::new(2);
    let node = metrics.node("chat", "ws1");
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let node = &node;
            scope.spawn(move || {
                (0..10_000).for_each(|_| node.shard(thread).add(TrafficDirection::Out, 3, &[0, 1, 0, 0, 0]));
            });
        }
    });
    assert_eq!(value(&metrics, r#"mainstay_bytes_total{pool="chat",direction="out"}"#), Some(60_000.0));
}

#[test]
fn a_meter_is_found_again_by_its_names() {
    let metrics = counted();
    let permit = metrics.node("chat", "ws1").acquire_permit();
    assert_eq!(metrics.node("chat", "ws1").live(), 1);
    assert_eq!(metrics.node("other", "ws1").live(), 0, "the same name in another pool is another node");
    assert!(Arc::ptr_eq(&metrics.pool("chat"), &metrics.pool("chat")));
    drop(permit);
    assert_eq!(metrics.node("chat", "ws1").live(), 0);
}

#[test]
fn the_sums_of_a_pool_survive_the_removal_of_a_node() {
    let metrics = counted();
    metrics.retain(&|pool, node| pool == "chat" && node != Some("ws1"));
    assert!(!metrics.render().contains("ws1"), "{}", metrics.render());
    let bytes = r#"mainstay_bytes_total{pool="chat",direction="in"}"#;
    assert_eq!(value(&metrics, bytes), Some(130.0));
    metrics.node("chat", "ws1").shard(0).add(TrafficDirection::In, 1, &[0; 5]);
    assert_eq!(value(&metrics, bytes), Some(131.0), "what came back counts from where the pool was");
}

#[test]
fn a_removed_node_is_shown_until_its_last_tunnel_ends() {
    let metrics = counted();
    let permit = metrics.node("chat", "ws1").acquire_permit();
    metrics.retain(&|_, node| node.is_none());
    permit.set_state("removed");
    assert_eq!(value(&metrics, r#"mainstay_websocket_connections{pool="chat",node="ws1"}"#), Some(1.0));
    let state = r#"mainstay_node_state{pool="chat",node="ws1",state="removed"}"#;
    assert_eq!(value(&metrics, state), Some(1.0));
    permit.shard(1).add(TrafficDirection::In, 5, &[0; 5]);
    drop(permit);
    assert_eq!(value(&metrics, state), None);
    assert_eq!(value(&metrics, r#"mainstay_bytes_total{pool="chat",direction="in"}"#), Some(135.0));
}

#[test]
fn a_node_that_comes_back_while_it_is_leaving_stays() {
    let metrics = counted();
    let permit = metrics.node("chat", "ws1").acquire_permit();
    metrics.retain(&|_, _| false);
    let again = metrics.node("chat", "ws1");
    assert!(Arc::ptr_eq(&permit, &again));
    drop((permit, again));
    assert!(metrics.render().contains("node=\"ws1\""));
}

#[test]
fn a_removed_pool_goes_with_its_last_node_and_what_matched_no_pool_stays() {
    let metrics = counted();
    metrics.record_unrouted_request(404);
    metrics.record_unrouted_handshake(HandshakeResult::Refused);
    let permit = metrics.node("chat", "ws1").acquire_permit();
    metrics.retain(&|_, _| false);
    assert!(metrics.render().contains("pool=\"chat\""));
    drop(permit);
    assert!(!metrics.render().contains("pool=\"chat\""));
    assert_eq!(value(&metrics, r#"mainstay_requests_total{pool="",status="4xx"}"#), Some(1.0));
    assert_eq!(value(&metrics, r#"mainstay_handshakes_total{pool="",result="refused"}"#), Some(1.0));
}

#[test]
fn a_handshake_falls_into_the_bucket_of_its_time() {
    let metrics = counted();
    let bucket = |bound| format!(r#"mainstay_handshake_seconds_bucket{{pool="chat",le="{bound}"}}"#);
    assert_eq!(value(&metrics, &bucket("0.0025")), Some(0.0));
    assert_eq!(value(&metrics, &bucket("0.005")), Some(1.0));
    assert_eq!(value(&metrics, &bucket("10")), Some(1.0));
    assert_eq!(value(&metrics, &bucket("+Inf")), Some(1.0));
    assert_eq!(value(&metrics, r#"mainstay_handshake_seconds_sum{pool="chat"}"#), Some(0.003));
}

#[test]
fn utilization_is_live_tunnels_per_allowed_tunnel_and_absent_without_a_limit() {
    let metrics = counted();
    let node = metrics.node("chat", "ws1");
    let permit = [node.acquire_permit(), node.acquire_permit()];
    let utilization = r#"mainstay_node_utilization{pool="chat",node="ws1"}"#;
    assert_eq!(value(&metrics, utilization), Some(0.25));
    node.set_capacity(None);
    assert_eq!(value(&metrics, utilization), None);
    assert_eq!(node.live(), 2);
    drop(permit);
}

#[test]
fn reloads_are_counted_by_result_and_the_last_one_is_shown() {
    let metrics = Metrics::new(1);
    let shown = || {
        [
            r#"mainstay_config_reloads_total{result="applied"}"#,
            r#"mainstay_config_reloads_total{result="rejected"}"#,
            "mainstay_config_last_reload_success",
        ]
        .map(|series| value(&metrics, series).unwrap())
    };
    assert_eq!(shown(), [0.0, 0.0, 1.0], "what a process starts with is a success");
    metrics.record_reload(false);
    assert_eq!(shown(), [0.0, 1.0, 0.0]);
    metrics.record_reload(true);
    assert_eq!(shown(), [1.0, 1.0, 1.0]);
}

#[test]
fn a_node_that_reports_its_own_load_is_believed_until_it_says_nothing() {
    let metrics = counted();
    let node = metrics.node("chat", "ws1");
    let utilization = || value(&metrics, r#"mainstay_node_utilization{pool="chat",node="ws1"}"#);
    assert_eq!(utilization(), Some(0.0));
    node.set_reported_load(Some((30, 40)));
    assert_eq!(utilization(), Some(0.75));
    node.set_reported_load(Some((50, 40)));
    assert_eq!(utilization(), Some(1.25), "a node may be over its own limit");
    node.set_reported_load(Some((1, 0)));
    assert_eq!(utilization(), Some(0.0), "a load of no places says nothing");
    node.set_reported_load(None);
    let permit = node.acquire_permit();
    assert_eq!(utilization(), Some(0.125));
    drop(permit);
}

#[test]
fn the_dropped_access_lines_are_counted_where_the_log_counts_them() {
    let metrics = Metrics::new(1);
    metrics.access_log_dropped().inc_by(5);
    assert_eq!(value(&metrics, "mainstay_access_log_dropped_total"), Some(5.0));
}
