//! Counters as another process has counted them, on which this one counts on.
//!
//! What is carried are the values as they are shown, by name and labels, so that a counter of either version is carried
//! without a word about it here; one that the other version does not have begins at its own. What a node or a pool that
//! the config does not name (any more) had counted is shown no longer, as after a reload. `process_*` is each process's
//! own.

use std::collections::{BTreeMap, HashMap};

use prometheus::proto::{Bucket, Counter, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use serde::{Deserialize, Serialize};

/// All counters of a process at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CounterSnapshot {
    /// By the name of the metric.
    families: BTreeMap<String, Vec<CounterSeries>>,
}

/// One counter or one histogram.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct CounterSeries {
    /// Names and values, in the order in which they are shown.
    labels: Vec<(String, String)>,
    /// A counter's value; of a histogram, the sum.
    value: f64,
    /// `None` for a counter.
    buckets: Option<HistogramBuckets>,
}

/// What a histogram has counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct HistogramBuckets {
    /// Upper bounds, and how many observations are at most as large.
    bounds: Vec<(f64, u64)>,
    /// All observations.
    count: u64,
}

/// Whether the config has this pool, or this node of it.
pub(super) type Knows<'a> = &'a dyn Fn(&str, Option<&str>) -> bool;

impl CounterSnapshot {
    /// The counters among what is shown.
    pub(super) fn of(families: &[MetricFamily]) -> Self {
        let counted = families.iter().filter(|family| is_exported(family.name(), family.get_field_type()));
        let all = |family: &MetricFamily| {
            (family.name().to_owned(), family.get_metric().iter().map(CounterSeries::of).collect())
        };
        Self { families: counted.map(all).collect() }
    }

    /// Adds what was counted elsewhere to the metrics with this name.
    pub(super) fn add_to(&self, name: &str, metrics: &mut Vec<Metric>, knows: Knows) {
        let Some(carried) = self.families.get(name) else { return };
        let labels = |metric: &Metric| {
            metric.get_label().iter().map(|pair| pair.value().to_owned()).collect::<Vec<String>>()
        };
        let places: HashMap<Vec<String>, usize> =
            metrics.iter().enumerate().map(|(at, metric)| (labels(metric), at)).collect();
        for series in carried.iter().filter(|series| series.is_known(knows)) {
            let values: Vec<String> = series.labels.iter().map(|(_, value)| value.clone()).collect();
            match places.get(&values) {
                Some(&at) => series.add_to(&mut metrics[at]),
                None => metrics.push(series.metric()),
            }
        }
    }
}

/// Whether a metric is a counter that another process can count on.
fn is_exported(name: &str, kind: MetricType) -> bool {
    matches!(kind, MetricType::COUNTER | MetricType::HISTOGRAM) && !name.starts_with("process_")
}

impl CounterSeries {
    fn of(metric: &Metric) -> Self {
        let labels = metric.get_label().iter().map(|pair| (pair.name().to_owned(), pair.value().to_owned()));
        let labels = labels.collect();
        let histogram = metric.get_histogram();
        if histogram.get_bucket().is_empty() {
            return Self { labels, value: metric.get_counter().get_value(), buckets: None };
        }
        let bound = |bucket: &Bucket| (bucket.upper_bound(), bucket.cumulative_count());
        let bounds = histogram.get_bucket().iter().map(bound).collect();
        let buckets = HistogramBuckets { bounds, count: histogram.get_sample_count() };
        Self { labels, value: histogram.get_sample_sum(), buckets: Some(buckets) }
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn is_known(&self, knows: Knows) -> bool {
        match self.label("pool") {
            // No pool has an empty name: that is what matched none.
            None | Some("") => true,
            Some(pool) => knows(pool, self.label("node")),
        }
    }

    fn add_to(&self, metric: &mut Metric) {
        let Some(buckets) = &self.buckets else {
            let mut counter = Counter::default();
            counter.set_value(metric.get_counter().get_value() + self.value);
            metric.set_counter(counter);
            return;
        };
        let before = metric.get_histogram();
        let is_same =
            before.get_bucket().iter().map(Bucket::upper_bound).eq(buckets.bounds.iter().map(|b| b.0));
        if !is_same {
            // Another version's bounds: where between them its observations lie cannot be told.
            return;
        }
        let mut sum = Histogram::default();
        let summed = before.get_bucket().iter().zip(&buckets.bounds).map(|(bucket, (bound, more))| {
            let mut summed = Bucket::default();
            summed.set_upper_bound(*bound);
            summed.set_cumulative_count(bucket.cumulative_count() + more);
            summed
        });
        sum.set_bucket(summed.collect());
        sum.set_sample_count(before.get_sample_count() + buckets.count);
        sum.set_sample_sum(before.get_sample_sum() + self.value);
        metric.set_histogram(sum);
    }

    /// The series alone, where this process has not counted for it yet.
    fn metric(&self) -> Metric {
        let pairs = self.labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value(value.clone());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        if let Some(buckets) = &self.buckets {
            let mut empty = Histogram::default();
            let bounds = buckets.bounds.iter().map(|(bound, _)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(*bound);
                bucket
            });
            empty.set_bucket(bounds.collect());
            metric.set_histogram(empty);
        }
        self.add_to(&mut metric);
        metric
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{HandshakeResult, Metrics, TrafficDirection};
    use super::*;

    const HANDSHAKES: &str = "mainstay_handshakes_total{pool=\"chat\",result=\"upgraded\"}";

    /// Some counts of a pool with a node.
    fn counted() -> std::sync::Arc<Metrics> {
        let metrics = Metrics::new(1);
        let (pool, node) = (metrics.pool("chat"), metrics.node("chat", "ws1"));
        pool.record_handshake(HandshakeResult::Upgraded);
        pool.record_handshake_time(Duration::from_millis(3));
        node.shard(0).add(TrafficDirection::In, 100, &[1, 0, 0, 0, 0]);
        node.record_probe(true);
        node.set_state("up");
        metrics.set_generation(7);
        metrics
    }

    /// What it says, as another process hears it.
    fn heard(metrics: &Metrics) -> CounterSnapshot {
        serde_json::from_str(&serde_json::to_string(&metrics.export()).unwrap()).unwrap()
    }

    /// The samples of one metric, in the order of the text.
    fn samples(metrics: &Metrics, name: &str) -> Vec<(String, f64)> {
        let text = metrics.render();
        let of_it = text.lines().filter(|line| line.starts_with(name));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        };
        of_it.map(sample).collect()
    }

    fn value(metrics: &Metrics, series: &str) -> Option<f64> {
        samples(metrics, series).first().map(|(_, value)| *value)
    }

    #[test]
    fn a_process_counts_on_from_what_another_had_counted() {
        let next = counted();
        next.import(heard(&counted()));
        next.pool("chat").record_handshake(HandshakeResult::Upgraded);
        assert_eq!(value(&next, HANDSHAKES), Some(3.0));
        assert_eq!(value(&next, "mainstay_bytes_total{pool=\"chat\",direction=\"in\"}"), Some(200.0));
        let probes = "mainstay_health_checks_total{pool=\"chat\",node=\"ws1\",result=\"ok\"}";
        assert_eq!(value(&next, probes), Some(2.0));
        let third = counted();
        third.import(heard(&next));
        assert_eq!(value(&third, HANDSHAKES), Some(4.0), "and so on from process to process");
    }

    #[test]
    fn no_counter_of_a_process_is_less_in_the_one_that_counts_on() {
        let (before, next) = (counted(), Metrics::new(1));
        next.node("chat", "ws1");
        next.import(heard(&before));
        let families = before.families();
        let counters = families.iter().filter(|family| is_exported(family.name(), family.get_field_type()));
        let mut compared = 0;
        for (series, was) in counters.flat_map(|family| samples(&before, family.name())) {
            assert_eq!(value(&next, &series), Some(was), "{series}");
            compared += 1;
        }
        assert!(compared > 30, "{compared} are too few to be all");
    }

    #[test]
    fn a_histogram_is_added_bucket_by_bucket() {
        let next = counted();
        next.pool("chat").record_handshake_time(Duration::from_secs(3_600));
        let alone = samples(&next, "mainstay_handshake_seconds");
        let before = counted();
        let carried = samples(&before, "mainstay_handshake_seconds");
        next.import(heard(&before));
        let sum = samples(&next, "mainstay_handshake_seconds");
        assert!(sum.len() > 5 && sum.len() == alone.len());
        for ((sum, alone), carried) in sum.iter().zip(&alone).zip(&carried) {
            assert_eq!((&sum.0, sum.1), (&alone.0, alone.1 + carried.1));
        }
        assert!(sum.last().unwrap().1 > sum[0].1, "the last is the count");
    }

    #[test]
    fn a_histogram_with_other_bounds_changes_nothing() {
        let before = counted();
        let mut carried = heard(&before);
        let series = &mut carried.families.get_mut("mainstay_handshake_seconds").unwrap()[0];
        series.buckets.as_mut().unwrap().bounds[0].0 *= 2.0;
        let next = counted();
        next.import(carried);
        assert_eq!(
            samples(&next, "mainstay_handshake_seconds"),
            samples(&before, "mainstay_handshake_seconds")
        );
        assert_eq!(value(&next, HANDSHAKES), Some(2.0), "the counters are carried all the same");
    }

    #[test]
    fn gauges_and_the_process_s_own_numbers_are_not_carried() {
        let carried = heard(&counted());
        let names: Vec<&str> = carried.families.keys().map(String::as_str).collect();
        assert!(
            names.contains(&"mainstay_handshakes_total") && names.contains(&"mainstay_handshake_seconds")
        );
        for name in ["mainstay_websocket_connections", "mainstay_node_state", "mainstay_config_generation"] {
            assert!(!names.contains(&name), "{name}");
        }
        assert!(names.iter().all(|name| !name.starts_with("process_")), "{names:?}");
        let next = counted();
        next.import(carried);
        assert_eq!(value(&next, "mainstay_config_generation"), Some(7.0));
    }

    #[test]
    fn a_counter_that_this_version_does_not_have_is_not_shown() {
        let mut carried = heard(&counted());
        let series = carried.families["mainstay_handshakes_total"].clone();
        carried.families.insert("mainstay_of_another_version_total".into(), series);
        let next = counted();
        next.import(carried);
        assert_eq!(samples(&next, "mainstay_of_another_version_total"), []);
        assert_eq!(value(&next, HANDSHAKES), Some(2.0));
        next.import(serde_json::from_str("{\"of_another_version\": 1}").unwrap());
        assert_eq!(value(&next, HANDSHAKES), Some(1.0), "with nothing carried it has its own");
    }

    #[test]
    fn what_the_config_does_not_name_is_shown_no_longer() {
        let carried = heard(&counted());
        let other_node = Metrics::new(1);
        other_node.node("chat", "ws2");
        other_node.import(carried.clone());
        assert_eq!(value(&other_node, HANDSHAKES), Some(1.0), "the pool goes on");
        let text = other_node.render();
        assert!(text.contains("node=\"ws2\"") && !text.contains("node=\"ws1\""), "{text}");
        let other_pool = Metrics::new(1);
        other_pool.pool("game");
        other_pool.import(carried);
        assert!(!other_pool.render().contains("chat"));
    }

    #[test]
    fn what_matched_no_pool_and_what_has_no_pool_is_carried_under_any_config() {
        let before = counted();
        before.record_unrouted_request(404);
        before.record_reload(true);
        let next = Metrics::new(1);
        next.import(heard(&before));
        assert_eq!(value(&next, "mainstay_requests_total{pool=\"\",status=\"4xx\"}"), Some(1.0));
        assert_eq!(value(&next, "mainstay_config_reloads_total{result=\"applied\"}"), Some(1.0));
    }
}
