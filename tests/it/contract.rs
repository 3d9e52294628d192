//! The metrics of the outside contract: their names, types and labels, and the values of the labels that are closed.

/// A metric of the contract.
pub struct Metric {
    pub name: &'static str,
    pub kind: &'static str,
    /// In any order; a histogram's buckets have `le`, too.
    pub labels: &'static [&'static str],
}

#[rustfmt::skip]
pub const CONTRACT: &[Metric] = &[
    Metric { name: "mainstay_websocket_connections", kind: "gauge", labels: &["pool", "node"] },
    Metric { name: "mainstay_handshakes_total", kind: "counter", labels: &["pool", "result"] },
    Metric { name: "mainstay_handshake_seconds", kind: "histogram", labels: &["pool"] },
    Metric { name: "mainstay_handshake_retries_total", kind: "counter", labels: &["pool", "result"] },
    Metric { name: "mainstay_closes_total", kind: "counter", labels: &["pool", "node", "side", "code"] },
    Metric { name: "mainstay_bytes_total", kind: "counter", labels: &["pool", "direction"] },
    Metric { name: "mainstay_messages_total", kind: "counter", labels: &["pool", "direction", "kind"] },
    Metric { name: "mainstay_requests_total", kind: "counter", labels: &["pool", "status"] },
    Metric { name: "mainstay_affinity_total", kind: "counter", labels: &["pool", "source", "outcome"] },
    Metric { name: "mainstay_node_state", kind: "gauge", labels: &["pool", "node", "state"] },
    Metric { name: "mainstay_node_utilization", kind: "gauge", labels: &["pool", "node"] },
    Metric { name: "mainstay_drain_left", kind: "gauge", labels: &["pool", "node"] },
    Metric { name: "mainstay_drain_closed", kind: "gauge", labels: &["pool", "node"] },
    Metric { name: "mainstay_drain_deadline_seconds", kind: "gauge", labels: &["pool", "node"] },
    Metric { name: "mainstay_health_checks_total", kind: "counter", labels: &["pool", "node", "result"] },
    Metric { name: "mainstay_rebalance_left", kind: "gauge", labels: &["pool"] },
    Metric { name: "mainstay_rebalance_closes_total", kind: "counter", labels: &["pool"] },
    Metric { name: "mainstay_config_generation", kind: "gauge", labels: &[] },
    Metric { name: "mainstay_config_reloads_total", kind: "counter", labels: &["result"] },
    Metric { name: "mainstay_config_last_reload_success", kind: "gauge", labels: &[] },
    Metric { name: "mainstay_connections_refused_total", kind: "counter", labels: &["reason"] },
    Metric { name: "mainstay_upgrades_total", kind: "counter", labels: &["result"] },
    Metric { name: "mainstay_panics_total", kind: "counter", labels: &["part"] },
    Metric { name: "mainstay_access_log_dropped_total", kind: "counter", labels: &[] },
    Metric { name: "mainstay_build_info", kind: "gauge", labels: &["version"] },
    Metric { name: "process_cpu_seconds_total", kind: "counter", labels: &[] },
    Metric { name: "process_open_fds", kind: "gauge", labels: &[] },
    Metric { name: "process_max_fds", kind: "gauge", labels: &[] },
    Metric { name: "process_virtual_memory_bytes", kind: "gauge", labels: &[] },
    Metric { name: "process_virtual_memory_max_bytes", kind: "gauge", labels: &[] },
    Metric { name: "process_resident_memory_bytes", kind: "gauge", labels: &[] },
    Metric { name: "process_start_time_seconds", kind: "gauge", labels: &[] },
    Metric { name: "process_threads", kind: "gauge", labels: &[] },
];

/// Every value that a label with closed values can have; the others are the config's names.
pub const VALUES: &[(&str, &[&str])] = &[
    ("side", &["client", "node", "balancer"]),
    ("direction", &["in", "out"]),
    ("kind", &["text", "binary", "ping", "pong", "close"]),
    ("status", &["1xx", "2xx", "3xx", "4xx", "5xx"]),
    ("state", &["up", "down", "draining", "removed"]),
    (
        "result",
        &[
            "upgraded",
            "refused",
            "failed",
            "limited",
            "ok",
            "applied",
            "rejected",
            "done",
            "sent",
            "over_budget",
        ],
    ),
    ("reason", &["connections", "connections_per_client", "proxy_protocol"]),
    ("source", &["cookie", "node_cookie", "engine_io", "header", "query", "client_ip", "none"]),
    ("reason", &["connections", "connections_per_client", "proxy_protocol"]),
    ("part", &["front_desk", "relay"]),
    ("outcome", &["kept", "moved", "hashed", "placed"]),
];

/// The metric that a sample of this name belongs to.
pub fn metric(sample: &str) -> Option<&'static Metric> {
    let named = |name: &str| CONTRACT.iter().find(|metric| metric.name == name);
    named(sample).filter(|metric| metric.kind != "histogram").or_else(|| {
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.strip_suffix(end))?;
        named(name).filter(|metric| metric.kind == "histogram")
    })
}
