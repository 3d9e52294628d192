//! What is allowed and unwise, each with its place.

use std::fs;

use mainstay::config::{Summary, resolve};

#[test]
fn what_is_unwise_is_a_warning_with_its_place() {
    let text = "pools:\n  chat:\n    nodes: [{ id: ws1, address: \"127.0.0.1:3001\" }]\n    load_bound: 1.0\n    \
        timeouts: { idle: 44s }\n    affinity: [cookie: { same_site: none }, client_ip: {}]\n    \
        messages: { ping: 44s }\n    balance: client_ip\n";
    let config = resolve("w.yaml", text.as_bytes(), &|_| None, &|path| fs::read(path)).unwrap();
    let lines: Vec<String> =
        config.warnings.iter().map(|warning| warning.line("w.yaml", "warning: ")).collect();
    let places: Vec<&str> = lines.iter().filter_map(|line| line.split(": ").nth(2)).collect();
    let expected = ["nodes", "load_bound", "idle", "same_site", "client_ip", "ping", "balance"];
    assert_eq!(places, expected, "{lines:#?}");
    let places: Vec<&str> = lines.iter().filter_map(|line| line.split(" warning: ").next()).collect();
    let expected =
        ["3:12", "4:17", "5:23", "6:37", "6:56", "7:23", "8:14"].map(|place| format!("w.yaml:{place}:"));
    assert_eq!(places, expected, "{lines:#?}");
}

#[test]
fn what_is_probably_a_slip_of_the_pen_is_a_warning_with_its_place() {
    let text = "pools:\n  chat:\n    nodes:\n      - { id: a, address: \"x:1\" }\n      - { id: b, address: \"x:1\" }\n    \
        health: { interval: 1s, timeout: 5s }\n  old:\n    nodes: [{ id: c, address: \"c:1\" }, { id: d, address: \"d:1\" }]\n    \
        health: { tcp: {}, interval: 500ms }\nroutes: [{ pool: chat }]\n";
    let config = resolve("w.yaml", text.as_bytes(), &|_| None, &|path| fs::read(path)).unwrap();
    let lines: Vec<String> =
        config.warnings.iter().map(|warning| warning.line("w.yaml", "warning: ")).collect();
    let said = [
        ("w.yaml:5:27: warning: address: the node on line 4 is at x:1, too", "one node with more `weight`"),
        ("w.yaml:6:38: warning: timeout: a probe may take 5s", "write a timeout of 1s or less"),
        ("w.yaml:7:3: warning: old: no route leads to this pool", "or remove it"),
        ("w.yaml:9:34: warning: interval: a probe may take 1s", "write a timeout of 500ms or less"),
    ];
    assert_eq!(lines.len(), said.len(), "{lines:#?}");
    for ((start, end), line) in said.iter().zip(&lines) {
        assert!(line.starts_with(start) && line.contains(end), "{line}");
    }
}

#[test]
fn whoever_says_that_there_is_no_proxy_is_not_warned_of_one() {
    let pool = "pools: { a: { nodes: [{ id: x, address: \"x:1\" }, { id: y, address: \"y:1\" }], \
        affinity: [client_ip: {}], balance: client_ip } }";
    for (said, warnings) in [("", 2), ("trusted_proxies: []", 0), ("trusted_proxies: [10.0.0.0/8]", 0)] {
        let text = format!("{said}\n{pool}\n");
        let config = resolve("w.yaml", text.as_bytes(), &|_| None, &|path| fs::read(path)).unwrap();
        assert_eq!(config.warnings.len(), warnings, "{said}: {:?}", config.warnings);
    }
}

#[test]
fn the_summary_says_what_a_load_bound_does() {
    let said = |affinity: &str, bound: &str| {
        let text = format!(
            "pools: {{ a: {{ nodes: [{{ id: x, address: \"x:1\" }}], affinity: [{affinity}], load_bound: {bound} }} }}"
        );
        let config = resolve("s.yaml", text.as_bytes(), &|_| None, &|path| fs::read(path)).unwrap();
        let summary = Summary(&config).to_string();
        summary.lines().find(|line| line.starts_with("  bound")).map(str::to_owned).unwrap_or_default()
    };
    assert_eq!(said("client_ip: {}", "null"), "");
    assert!(said("client_ip: {}", "1.25").ends_with("those are placed by it with engine_io"));
    assert_eq!(said("engine_io: {}, client_ip: {}", "2"), "  bound   2: a busy key may have several nodes");
    assert_eq!(said("cookie: {}", "1.25"), "  bound   1.25: no effect, as no source gives a key");
}
