//! A node's drain as a scrape sees it. What drains is not known here: it is asked when it is scraped.

/// See the module.
pub struct DrainGauge {
    /// How many tunnels the drain has closed by now.
    pub closed: Box<dyn Fn() -> usize + Send + Sync>,
    /// When it ends at the latest, in Unix seconds.
    pub deadline: f64,
}
