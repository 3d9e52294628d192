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
pub struct Carried {
    /// By the name of the metric.
    families: BTreeMap<String, Vec<Series>>,
}

/// One counter or one histogram.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Series {
    /// Names and values, in the order in which they are shown.
    labels: Vec<(String, String)>,
    /// A counter's value; of a histogram, the sum.
    value: f64,
    /// `None` for a counter.
    buckets: Option<Buckets>,
}

/// What a histogram has counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Buckets {
    /// Upper bounds, and how many observations are at most as large.
    bounds: Vec<(f64, u64)>,
    /// All observations.
    count: u64,
}

/// Whether the config has this pool, or this node of it.
pub(super) type Knows<'a> = &'a dyn Fn(&str, Option<&str>) -> bool;

impl Carried {
    /// The counters among what is shown.
    pub(super) fn of(families: &[MetricFamily]) -> Self {
        let counted = families.iter().filter(|family| is_carried(family.name(), family.get_field_type()));
        let all = |family: &MetricFamily| {
            (family.name().to_owned(), family.get_metric().iter().map(Series::of).collect())
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
fn is_carried(name: &str, kind: MetricType) -> bool {
    matches!(kind, MetricType::COUNTER | MetricType::HISTOGRAM) && !name.starts_with("process_")
}

impl Series {
    fn of(metric: &Metric) -> Self {
        let labels = metric.get_label().iter().map(|pair| (pair.name().to_owned(), pair.value().to_owned()));
        let labels = labels.collect();
        let histogram = metric.get_histogram();
        if histogram.get_bucket().is_empty() {
            return Self { labels, value: metric.get_counter().get_value(), buckets: None };
        }
        let bound = |bucket: &Bucket| (bucket.upper_bound(), bucket.cumulative_count());
        let bounds = histogram.get_bucket().iter().map(bound).collect();
        let buckets = Buckets { bounds, count: histogram.get_sample_count() };
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
