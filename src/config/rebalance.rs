//! How a pool evens itself out when a node joins or returns.

use std::time::Duration;

use super::reader::Section;
use super::units::ANY_TIME;

const KEYS: &[&str] = &["over", "tolerance", "quiet_first"];

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rebalance {
    /// How long the closes are spread over.
    pub over: Duration,
    /// A node keeps what it has up to this times its share of the pool's tunnels; 1 to 1000.
    pub tolerance: f64,
    /// Those that have carried no message for longest are closed first; else any.
    pub quiet_first: bool,
}

impl Default for Rebalance {
    fn default() -> Self {
        Self { over: Duration::from_secs(10 * 60), tolerance: 1.1, quiet_first: true }
    }
}

/// What the pool says; `None` leaves everybody where they are.
pub(super) fn rebalance(pool: &Section) -> Option<Rebalance> {
    let section = pool.some("rebalance")?.section(KEYS);
    let default = Rebalance::default();
    // NaN is in no range, so what comes out is a number.
    let tolerance = section.number("tolerance", default.tolerance, 1.0..=1000.0);
    if let Some(value) = section.value("tolerance").filter(|_| tolerance < 1.02) {
        value.warn("below 1.02, clients are moved for the slightest unevenness; 1.1 is usual");
    }
    let quiet_first = section.value("quiet_first").and_then(|value| value.boolean());
    Some(Rebalance {
        over: section.duration("over", default.over, ANY_TIME),
        tolerance,
        quiet_first: quiet_first.unwrap_or(default.quiet_first),
    })
}
