//! The drain of a node in the metrics. Its progress is asked for at each scrape.

/// The progress of a drain.
pub struct DrainGauge {
    /// How many tunnels the drain has closed by now.
    pub closed: Box<dyn Fn() -> usize + Send + Sync>,
    /// When it ends at the latest, in Unix seconds.
    pub deadline: f64,
}
