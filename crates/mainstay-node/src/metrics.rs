//! What a node counts, and the text of `/metrics`.
//!
//! `websocket_connections` has no prefix: the fleet's autoscaler rule names it so. Everything else begins with
//! `mainstay_node_`. Labels are fixed words; nothing that a client says becomes one. What others publish has a time in it
//! on streams alone (the entry's id), so only there a delivery is measured and a lag known; a publication everywhere.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use mainstay_core::process_metrics::ProcessConstants;
use socketio_redis::metrics::AdapterMetrics;

use crate::limits::ConnectionLimiter;

/// Seconds: a hop through Redis on the same network up to one that is in trouble.
const LATENCY: [f64; 12] = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// The node has all the clients it may have.
    Capacity,
    /// Its token.
    Auth,
    /// Its web page.
    Origin,
    /// The node is about to end.
    Draining,
}

/// Why a client is closed by the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForcedCloseReason {
    /// It does not read what it is sent.
    Slow,
    /// It says too much.
    Rate,
    /// Nothing came from it.
    Idle,
    /// It was not admitted to a namespace in time, or had to make way for those that came later.
    Pending,
    /// Its token has expired.
    Expired,
    /// Its messages or frames are broken.
    Broken,
    /// Somebody of the fleet disconnects it.
    Application,
    /// The node ends.
    Shutdown,
}

/// The counters of one node. Clones count the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    process: Arc<ProcessConstants>,
    limiter: Arc<ConnectionLimiter>,
    connections: IntGauge,
    /// Messages from clients.
    pub messages_in: IntCounter,
    /// Messages to clients, one for each that gets it.
    pub messages_out: IntCounter,
    /// Clients that were cut because they do not read.
    pub slow_consumers: IntCounter,
    /// Rooms with a client of this node in them.
    pub rooms: IntGauge,
    /// What the Redis adapter counts.
    pub(crate) adapter: AdapterCounters,
    refused: IntCounterVec,
    cut: IntCounterVec,
}

impl Metrics {
    /// All at zero; the connections are those that `limiter` counts.
    pub fn new(limiter: &Arc<ConnectionLimiter>) -> Self {
        let registry = Registry::new();
        let most = int_gauge(&registry, "mainstay_node_connections_max", "The most clients there may be.");
        most.set(i64::try_from(limiter.max()).unwrap_or(i64::MAX));
        Self {
            connections: int_gauge(&registry, "websocket_connections", "Clients that are connected."),
            messages_in: counter(&registry, "messages_received_total", "Messages from clients."),
            messages_out: counter(
                &registry,
                "messages_delivered_total",
                "Messages to clients, one for each.",
            ),
            slow_consumers: counter(
                &registry,
                "slow_consumers_total",
                "Clients that were cut because they do not read.",
            ),
            rooms: int_gauge(&registry, "mainstay_node_rooms", "Rooms with a client of this node in them."),
            adapter: AdapterCounters::new(&registry),
            refused: counters(&registry, "refused_total", "Clients that were not let in, by reason."),
            cut: counters(&registry, "closed_total", "Clients that the node closed, by reason."),
            process: Arc::new(ProcessConstants::read()),
            limiter: Arc::clone(limiter),
            registry,
        }
    }

    /// A client was not let in.
    pub(crate) fn count_refusal(&self, why: RefusalReason) {
        let word = match why {
            RefusalReason::Capacity => "capacity",
            RefusalReason::Auth => "auth",
            RefusalReason::Origin => "origin",
            RefusalReason::Draining => "draining",
        };
        self.refused.with_label_values(&[word]).inc();
    }

    /// The node closes a client.
    pub(crate) fn count_forced_close(&self, why: ForcedCloseReason) {
        let word = match why {
            ForcedCloseReason::Slow => {
                self.slow_consumers.inc();
                "slow"
            }
            ForcedCloseReason::Rate => "rate",
            ForcedCloseReason::Idle => "idle",
            ForcedCloseReason::Pending => "pending",
            ForcedCloseReason::Expired => "expired",
            ForcedCloseReason::Broken => "broken",
            ForcedCloseReason::Application => "application",
            ForcedCloseReason::Shutdown => "shutdown",
        };
        self.cut.with_label_values(&[word]).inc();
    }

    /// Everything, in Prometheus' text format 0.0.4.
    pub fn text(&self) -> String {
        self.connections.set(i64::try_from(self.limiter.in_use()).unwrap_or(i64::MAX));
        let families = self.registry.gather();
        let mut text = TextEncoder::new().encode_to_string(&families).unwrap_or_default();
        let sample = self.process.sample();
        let process = [
            ("process_cpu_seconds_total", "counter", sample.cpu_seconds),
            ("process_resident_memory_bytes", "gauge", sample.resident_memory),
            ("process_open_fds", "gauge", sample.open_fds),
            ("process_max_fds", "gauge", sample.max_fds),
            ("process_start_time_seconds", "gauge", sample.start_time),
            ("process_threads", "gauge", sample.threads),
        ];
        for (name, kind, value) in process {
            if let Some(value) = value {
                text.push_str(&format!("# TYPE {name} {kind}\n{name} {value}\n"));
            }
        }
        text
    }
}

/// What the Redis adapter counts. Clones count the same.
#[derive(Debug, Clone)]
pub(crate) struct AdapterCounters {
    /// Requests for the rest of the fleet that could not be sent because Redis is away.
    pub(crate) unpublished: IntCounter,
    /// Payloads from other nodes that said nothing to this one.
    unreadable: IntCounter,
    /// Messages of other nodes that were lost before this node read them: trimmed from the stream, or without room.
    missed: IntCounter,
    /// 1 while Redis answers, or none is used.
    redis_up: IntGauge,
    /// From a broadcast's start to Redis' answer.
    publish_seconds: Histogram,
    /// From a broadcast's entry into Redis to its delivery here; on streams.
    delivery_seconds: Histogram,
    /// How far this node's reading of the stream is behind, seconds; 0 on other adapters.
    lag_seconds: Gauge,
}

impl AdapterCounters {
    fn new(registry: &Registry) -> Self {
        let redis_up =
            int_gauge(registry, "mainstay_node_redis_up", "1 while Redis answers, or none is used.");
        redis_up.set(1);
        Self {
            redis_up,
            unpublished: counter(
                registry,
                "unpublished_total",
                "Broadcasts that did not reach the other nodes because Redis was away.",
            ),
            unreadable: counter(
                registry,
                "unreadable_total",
                "Payloads from other nodes that said nothing to this one.",
            ),
            missed: counter(
                registry,
                "missed_total",
                "Messages of other nodes that were lost before this node read them.",
            ),
            publish_seconds: histogram(registry, "publish_seconds", "From a broadcast to Redis' answer."),
            delivery_seconds: histogram(
                registry,
                "delivery_seconds",
                "From a broadcast's entry into Redis to its delivery here; on streams only.",
            ),
            lag_seconds: registered(
                registry,
                Gauge::new(
                    "mainstay_node_adapter_lag_seconds",
                    "Age of the newest stream entry when it was read; on streams only.",
                ),
            ),
        }
    }
}

impl AdapterMetrics for AdapterCounters {
    fn record_publish(&self, took: Duration) {
        self.publish_seconds.observe(took.as_secs_f64());
    }

    fn record_unpublished(&self) {
        self.unpublished.inc();
    }

    fn record_unreadable(&self) {
        self.unreadable.inc();
    }

    fn record_missed(&self, messages: u64) {
        self.missed.inc_by(messages);
    }

    fn record_delivery(&self, after: Duration) {
        self.delivery_seconds.observe(after.as_secs_f64());
    }

    fn set_lag(&self, lag: Duration) {
        self.lag_seconds.set(lag.as_secs_f64());
    }

    fn set_connected(&self, is_connected: bool) {
        self.redis_up.set(i64::from(is_connected));
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(format!("mainstay_node_{name}"), help))
}

fn counters(registry: &Registry, name: &str, help: &str) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(format!("mainstay_node_{name}"), help), &["reason"]))
}

fn int_gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::new(name, help))
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let options = HistogramOpts::new(format!("mainstay_node_{name}"), help).buckets(LATENCY.to_vec());
    registered(registry, Histogram::with_opts(options))
}

/// The metric, in the registry's text from now on.
fn registered<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("literal names and labels are right");
    registry.register(Box::new(metric.clone())).expect("each name is registered once, in this file");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_name_of_the_autoscaler_rule_and_counts_by_reason() {
        let limiter = ConnectionLimiter::new(10);
        let metrics = Metrics::new(&limiter);
        let _seat = limiter.try_acquire();
        metrics.count_forced_close(ForcedCloseReason::Slow);
        metrics.count_refusal(RefusalReason::Capacity);
        let text = metrics.text();
        for line in [
            "websocket_connections 1",
            "mainstay_node_connections_max 10",
            "mainstay_node_redis_up 1",
            "mainstay_node_slow_consumers_total 1",
            "mainstay_node_closed_total{reason=\"slow\"} 1",
            "mainstay_node_refused_total{reason=\"capacity\"} 1",
        ] {
            assert!(text.lines().any(|there| there == line), "{line} in\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
    }
}
