//! Every metric in one table: name, type, labels, what it means, and where its numbers are.
//!
//! The rows are in the order of the text. A row without a single value is left out of it. What the config bounds
//! (the pools, the closed sets of results) starts at 0, so that a rate is right from the first event on; closes
//! and affinity, with many labels that may never occur, appear with their first event.

use std::collections::BTreeMap;
use std::sync::Arc;

use mainstay_core::process_metrics::ProcessSample;
use prometheus::TextEncoder;
use prometheus::core::Metric as _;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::labels::{
    AFFINITY_OUTCOMES, AFFINITY_SOURCES, CLOSE_CODES, CloseSide, ConnectionRefusal, HandshakeResult,
    MESSAGE_KINDS, NODE_STATES, PanicLocation, RETRY_RESULTS, STATUS_CLASSES, TrafficDirection,
};
use super::meter_shard::RelayedTotals;
use super::node_meter::NodeMeter;
use super::pool_meter::PoolMeter;
use super::registry::PoolEntry;
use super::snapshot::CounterSnapshot;

/// What the table reads.
pub(super) struct Scrape<'a> {
    pub pools: &'a BTreeMap<Arc<str>, PoolEntry>,
    pub unrouted: &'a PoolMeter,
    pub generation: u64,
    /// Rejected, applied.
    pub reloads: [u64; 2],
    pub last_reload_applied: bool,
    /// By [`ConnectionRefusal`].
    pub refused: [u64; ConnectionRefusal::ALL.len()],
    /// By [`PanicLocation`].
    pub panics: [u64; PanicLocation::ALL.len()],
    pub access_log_dropped: u64,
    pub process: ProcessSample,
    /// Upgrades of this process: failed, done.
    pub upgrades: [u64; 2],
    /// What a process before this one had counted.
    pub carried: &'a CounterSnapshot,
}

/// One metric.
struct MetricRow {
    name: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    help: &'static str,
    /// Adds the metric's values.
    collect: fn(&Scrape, &mut RowSamples),
}

const COUNTER: MetricType = MetricType::COUNTER;
const GAUGE: MetricType = MetricType::GAUGE;
const HISTOGRAM: MetricType = MetricType::HISTOGRAM;

#[rustfmt::skip]
static TABLE: &[MetricRow] = &[
    MetricRow { name: "mainstay_websocket_connections", kind: GAUGE, labels: &["pool", "node"], collect: connections,
          help: "Tunnels that are open." },
    MetricRow { name: "mainstay_handshakes_total", kind: COUNTER, labels: &["pool", "result"], collect: handshakes,
          help: "Upgrade requests by how they ended; pool is empty where no route took them." },
    MetricRow { name: "mainstay_handshake_seconds", kind: HISTOGRAM, labels: &["pool"], collect: handshake_seconds,
          help: "Time from an upgrade request's head to its answer." },
    MetricRow { name: "mainstay_handshake_retries_total", kind: COUNTER, labels: &["pool", "result"], collect: retries,
          help: "Handshakes that a node refused and that were sent to another, or would have been but for the budget." },
    MetricRow { name: "mainstay_closes_total", kind: COUNTER, labels: &["pool", "node", "side", "code"], collect: closes,
          help: "Tunnels that ended, by who ended them and the close code (1006: without one)." },
    MetricRow { name: "mainstay_bytes_total", kind: COUNTER, labels: &["pool", "direction"], collect: bytes,
          help: "Bytes relayed in tunnels; in is from the client." },
    MetricRow { name: "mainstay_messages_total", kind: COUNTER, labels: &["pool", "direction", "kind"], collect: messages,
          help: "WebSocket messages relayed in tunnels; in is from the client." },
    MetricRow { name: "mainstay_requests_total", kind: COUNTER, labels: &["pool", "status"], collect: requests,
          help: "Plain HTTP requests by status class; pool is empty where no route took them." },
    MetricRow { name: "mainstay_affinity_total", kind: COUNTER, labels: &["pool", "source", "outcome"], collect: affinity,
          help: "Sessions and requests placed, by what decided their node and how that went." },
    MetricRow { name: "mainstay_node_state", kind: GAUGE, labels: &["pool", "node", "state"], collect: node_state,
          help: "1 for the state that the node is in, 0 for the others." },
    MetricRow { name: "mainstay_node_utilization", kind: GAUGE, labels: &["pool", "node"], collect: node_utilization,
          help: "The load that the node reports, else open tunnels per allowed tunnel where it has max_connections." },
    MetricRow { name: "mainstay_drain_left", kind: GAUGE, labels: &["pool", "node"], collect: drain_left,
          help: "Tunnels that are still on a node that is drained; only while it is." },
    MetricRow { name: "mainstay_drain_closed", kind: GAUGE, labels: &["pool", "node"], collect: drain_closed,
          help: "Tunnels that have ended since the node's drain began." },
    MetricRow { name: "mainstay_drain_deadline_seconds", kind: GAUGE, labels: &["pool", "node"], collect: drain_deadline,
          help: "Unix time by which the node's drain has closed every tunnel." },
    MetricRow { name: "mainstay_health_checks_total", kind: COUNTER, labels: &["pool", "node", "result"], collect: health_checks,
          help: "Health probes by result." },
    MetricRow { name: "mainstay_rebalance_left", kind: GAUGE, labels: &["pool"], collect: |scrape, series| rebalance(scrape, series, 0),
          help: "Tunnels that the rebalance under way may still close; 0 without one." },
    MetricRow { name: "mainstay_rebalance_closes_total", kind: COUNTER, labels: &["pool"], collect: |scrape, series| rebalance(scrape, series, 1),
          help: "Tunnels that rebalances have told to close." },
    MetricRow { name: "mainstay_config_generation", kind: GAUGE, labels: &[], collect: |scrape, series| series.one(Some(scrape.generation as f64)),
          help: "Generation of the state that new sessions get." },
    MetricRow { name: "mainstay_config_reloads_total", kind: COUNTER, labels: &["result"], collect: reloads,
          help: "Changes of the config since the start, by result." },
    MetricRow { name: "mainstay_config_last_reload_success", kind: GAUGE, labels: &[], collect: |scrape, series| series.one(Some(f64::from(u8::from(scrape.last_reload_applied)))),
          help: "1 if the last change of the config was applied, 0 if it was rejected." },
    MetricRow { name: "mainstay_upgrades_total", kind: COUNTER, labels: &["result"], collect: upgrades,
          help: "Replacements of the running binary, by result." },
    MetricRow { name: "mainstay_connections_refused_total", kind: COUNTER, labels: &["reason"], collect: refused,
          help: "Client connections that were refused before HTTP began." },
    MetricRow { name: "mainstay_panics_total", kind: COUNTER, labels: &["part"], collect: panics,
          help: "Sessions that a panic of the balancer's ended; each is a bug." },
    MetricRow { name: "mainstay_access_log_dropped_total", kind: COUNTER, labels: &[], collect: |scrape, series| series.one(Some(scrape.access_log_dropped as f64)),
          help: "Access log lines that were dropped because the log could not keep up." },
    MetricRow { name: "mainstay_build_info", kind: GAUGE, labels: &["version"], collect: |_, series| series.add(&[env!("CARGO_PKG_VERSION")], 1.0),
          help: "1, with the version that runs." },
    MetricRow { name: "process_cpu_seconds_total", kind: COUNTER, labels: &[], collect: |scrape, series| series.one(scrape.process.cpu_seconds),
          help: "User and system time of the process in seconds." },
    MetricRow { name: "process_open_fds", kind: GAUGE, labels: &[], collect: |scrape, series| series.one(scrape.process.open_fds),
          help: "Open file descriptors." },
    MetricRow { name: "process_max_fds", kind: GAUGE, labels: &[], collect: |scrape, series| series.one(scrape.process.max_fds),
          help: "The most file descriptors that may be open." },
    MetricRow { name: "process_virtual_memory_bytes", kind: GAUGE, labels: &[], collect: |scrape, series| series.one(scrape.process.virtual_memory),
          help: "Address space in bytes." },
    MetricRow { name: "process_virtual_memory_max_bytes", kind: GAUGE, labels: &[], collect: |scrape, series| series.one(scrape.process.virtual_memory_max),
          help: "The most address space that may be used, in bytes." },
    MetricRow { name: "process_resident_memory_bytes", kind: GAUGE, labels: &[], collect: |scrape, series| series.one(scrape.process.resident_memory),
          help: "Memory in RAM in bytes." },
    MetricRow { name: "process_start_time_seconds", kind: GAUGE, labels: &[], collect: |scrape, series| series.one(scrape.process.start_time),
          help: "Unix time of the process's start in seconds." },
    MetricRow { name: "process_threads", kind: GAUGE, labels: &[], collect: |scrape, series| series.one(scrape.process.threads),
          help: "Threads of the process." },
];

/// The whole table with the numbers of this scrape.
pub(super) fn families(scrape: &Scrape) -> Vec<MetricFamily> {
    TABLE.iter().filter_map(|row| family(row, scrape)).collect()
}

/// A table in Prometheus' text format 0.0.4.
pub(super) fn encode_text(families: &[MetricFamily]) -> String {
    // The encoder refuses families without a name or without a value, and there is none here.
    TextEncoder::new().encode_to_string(families).unwrap_or_default()
}

fn family(row: &MetricRow, scrape: &Scrape) -> Option<MetricFamily> {
    let mut series = RowSamples { row, metrics: Vec::new() };
    (row.collect)(scrape, &mut series);
    let knows = |pool: &str, node: Option<&str>| {
        let pool = scrape.pools.get(pool);
        pool.is_some_and(|pool| node.is_none_or(|node| pool.nodes.contains_key(node)))
    };
    scrape.carried.add_to(row.name, &mut series.metrics, &knows);
    if series.metrics.is_empty() {
        return None;
    }
    let mut family = MetricFamily::default();
    family.set_name(row.name.into());
    family.set_help(row.help.into());
    family.set_field_type(row.kind);
    family.set_metric(series.metrics);
    Some(family)
}

/// The values of one row as they are collected.
struct RowSamples<'a> {
    row: &'a MetricRow,
    metrics: Vec<Metric>,
}

impl RowSamples<'_> {
    /// The value of the row for these label values, in the order of the row's labels.
    fn add(&mut self, values: &[&str], value: f64) {
        let mut metric = Metric::from_label(self.labels(values));
        if self.row.kind == COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    /// The value of a row without labels, when there is one.
    fn one(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.add(&[], value);
        }
    }

    fn labels(&self, values: &[&str]) -> Vec<LabelPair> {
        debug_assert_eq!(values.len(), self.row.labels.len(), "{}", self.row.name);
        let pairs = self.row.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).into());
            pair.set_value((*value).into());
            pair
        });
        pairs.collect()
    }
}

fn pools<'a>(scrape: &'a Scrape) -> impl Iterator<Item = &'a PoolMeter> {
    scrape.pools.values().map(|pool| &*pool.meter)
}

/// The pools, and last what matched none of them.
fn pools_and_unrouted<'a>(scrape: &'a Scrape) -> impl Iterator<Item = &'a PoolMeter> {
    pools(scrape).chain([scrape.unrouted])
}

fn nodes<'a>(scrape: &'a Scrape) -> impl Iterator<Item = &'a NodeMeter> {
    scrape.pools.values().flat_map(|pool| pool.nodes.values().map(|node| &*node.meter))
}

fn connections(scrape: &Scrape, series: &mut RowSamples) {
    for node in nodes(scrape) {
        series.add(&[&node.pool, &node.node], f64::from(node.live()));
    }
}

fn handshakes(scrape: &Scrape, series: &mut RowSamples) {
    for pool in pools_and_unrouted(scrape) {
        for result in HandshakeResult::ALL {
            series.add(&[&pool.pool, result.as_str()], pool.handshakes(result) as f64);
        }
    }
}

fn retries(scrape: &Scrape, series: &mut RowSamples) {
    for pool in pools(scrape) {
        for (index, result) in RETRY_RESULTS.iter().enumerate() {
            series.add(&[&pool.pool, result], pool.retries(index) as f64);
        }
    }
}

fn handshake_seconds(scrape: &Scrape, series: &mut RowSamples) {
    for pool in pools(scrape) {
        let mut metric = pool.handshake_seconds.metric();
        metric.set_label(series.labels(&[&pool.pool]));
        series.metrics.push(metric);
    }
}

fn closes(scrape: &Scrape, series: &mut RowSamples) {
    for node in nodes(scrape) {
        for side in CloseSide::ALL {
            for (index, code) in CLOSE_CODES.iter().enumerate() {
                match node.closes(side, index) {
                    0 => {}
                    count => series.add(&[&node.pool, &node.node, side.as_str(), code], count as f64),
                }
            }
        }
    }
}

fn totals(pool: &PoolEntry) -> RelayedTotals {
    let mut totals = pool.folded;
    pool.nodes.values().for_each(|node| totals.add(&node.meter.totals()));
    totals
}

fn bytes(scrape: &Scrape, series: &mut RowSamples) {
    for (name, pool) in scrape.pools {
        let totals = totals(pool);
        for direction in TrafficDirection::ALL {
            series.add(&[name, direction.as_str()], totals.bytes[direction as usize] as f64);
        }
    }
}

fn messages(scrape: &Scrape, series: &mut RowSamples) {
    for (name, pool) in scrape.pools {
        let totals = totals(pool);
        for direction in TrafficDirection::ALL {
            for (kind, count) in MESSAGE_KINDS.iter().zip(totals.messages[direction as usize]) {
                series.add(&[name, direction.as_str(), kind], count as f64);
            }
        }
    }
}

fn requests(scrape: &Scrape, series: &mut RowSamples) {
    for pool in pools_and_unrouted(scrape) {
        for (index, class) in STATUS_CLASSES.iter().enumerate() {
            series.add(&[&pool.pool, class], pool.requests(index) as f64);
        }
    }
}

fn affinity(scrape: &Scrape, series: &mut RowSamples) {
    for pool in pools(scrape) {
        for (at, source) in AFFINITY_SOURCES.into_iter().enumerate() {
            for (outcome_at, outcome) in AFFINITY_OUTCOMES.into_iter().enumerate() {
                match pool.affinities(at, outcome_at) {
                    0 => {}
                    count => series.add(&[&pool.pool, source, outcome], count as f64),
                }
            }
        }
    }
}

fn refused(scrape: &Scrape, series: &mut RowSamples) {
    for (why, count) in ConnectionRefusal::ALL.iter().zip(scrape.refused) {
        series.add(&[why.as_str()], count as f64);
    }
}

fn panics(scrape: &Scrape, series: &mut RowSamples) {
    for (part, count) in PanicLocation::ALL.iter().zip(scrape.panics) {
        series.add(&[part.as_str()], count as f64);
    }
}

fn node_state(scrape: &Scrape, series: &mut RowSamples) {
    for node in nodes(scrape) {
        for state in NODE_STATES {
            let is_current = node.current_state() == Some(state);
            series.add(&[&node.pool, &node.node, state], f64::from(u8::from(is_current)));
        }
    }
}

fn node_utilization(scrape: &Scrape, series: &mut RowSamples) {
    for node in nodes(scrape) {
        if let Some(utilization) = node.utilization() {
            series.add(&[&node.pool, &node.node], utilization);
        }
    }
}

/// The nodes that are drained: what is left, what is closed, and the deadline.
fn drains(scrape: &Scrape, series: &mut RowSamples, value: fn(&NodeMeter, (usize, f64)) -> f64) {
    for node in nodes(scrape) {
        if let Some(drain) = node.current_drain() {
            series.add(&[&node.pool, &node.node], value(node, drain));
        }
    }
}

fn drain_left(scrape: &Scrape, series: &mut RowSamples) {
    drains(scrape, series, |node, _| f64::from(node.live()));
}

fn drain_closed(scrape: &Scrape, series: &mut RowSamples) {
    drains(scrape, series, |_, (closed, _)| closed as f64);
}

fn drain_deadline(scrape: &Scrape, series: &mut RowSamples) {
    drains(scrape, series, |_, (_, deadline)| deadline);
}

fn health_checks(scrape: &Scrape, series: &mut RowSamples) {
    for node in nodes(scrape) {
        for (ok, result) in [(true, "ok"), (false, "failed")] {
            series.add(&[&node.pool, &node.node, result], node.probes(ok) as f64);
        }
    }
}

fn upgrades(scrape: &Scrape, series: &mut RowSamples) {
    for (result, count) in ["failed", "done"].into_iter().zip(scrape.upgrades) {
        series.add(&[result], count as f64);
    }
}

/// What is left, or what was closed.
fn rebalance(scrape: &Scrape, series: &mut RowSamples, which: usize) {
    for pool in pools(scrape) {
        series.add(&[&pool.pool], pool.rebalance_counts()[which] as f64);
    }
}

fn reloads(scrape: &Scrape, series: &mut RowSamples) {
    for (result, count) in ["rejected", "applied"].into_iter().zip(scrape.reloads) {
        series.add(&[result], count as f64);
    }
}
