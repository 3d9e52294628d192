//! How a pool evens itself out when a node joins or returns.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::Value;

use super::reader::Section;
use super::units::{ANY_TIME, duration};

const KEYS: &[&str] = &["over", "tolerance", "quiet_first"];
/// Below 1 the shares together would not hold all tunnels.
const TOLERANCE: RangeInclusive<f64> = 1.0..=1000.0;

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

impl Rebalance {
    /// This with what an operator wishes otherwise: an object with any of `over`, `tolerance` and `quiet_first`.
    ///
    /// # Errors
    ///
    /// What is wrong with the wish, and what would be right.
    pub fn with(mut self, wish: &Value) -> Result<Self, String> {
        let Some(wish) = wish.as_object() else {
            return Err(
                "the body is no JSON object; write it like {\"over\": \"5m\", \"tolerance\": 1.1}".into()
            );
        };
        for (key, value) in wish {
            let wrong = |expected: &str| format!("{key}: {value} is not {expected}");
            match key.as_str() {
                "over" => {
                    let over = value.as_str().and_then(duration).filter(|over| ANY_TIME.contains(over));
                    self.over = over.ok_or_else(|| wrong("a time up to 366d, like \"60s\" or \"5m\""))?;
                }
                "tolerance" => {
                    let tolerance = value.as_f64().filter(|tolerance| TOLERANCE.contains(tolerance));
                    self.tolerance = tolerance.ok_or_else(|| wrong("a number from 1 to 1000"))?;
                }
                "quiet_first" => {
                    self.quiet_first = value.as_bool().ok_or_else(|| wrong("true or false"))?;
                }
                _ => return Err(format!("there is no key `{key}`; the keys are: {}", KEYS.join(", "))),
            }
        }
        Ok(self)
    }
}

/// What the pool says; `None` leaves everybody where they are.
pub(super) fn rebalance(pool: &Section) -> Option<Rebalance> {
    let section = pool.some("rebalance")?.section(KEYS);
    let default = Rebalance::default();
    // NaN is in no range, so what comes out is a number.
    let tolerance = section.number("tolerance", default.tolerance, TOLERANCE);
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wish_changes_what_it_names_and_nothing_else() {
        let usual = Rebalance::default();
        assert_eq!(usual.with(&json!({})), Ok(usual));
        let wished = usual.with(&json!({ "over": "0s", "tolerance": 1, "quiet_first": false }));
        assert_eq!(wished, Ok(Rebalance { over: Duration::ZERO, tolerance: 1.0, quiet_first: false }));
    }

    #[test]
    fn a_wish_that_is_none_is_refused_with_what_would_be_right() {
        for (wish, said) in [
            (json!([]), "no JSON object"),
            (json!({ "over": 60 }), "over: 60 is not a time"),
            (json!({ "tolerance": 0.9 }), "tolerance: 0.9 is not a number from 1"),
            (json!({ "tolerance": "1.1" }), "is not a number"),
            (json!({ "quiet_first": 1 }), "is not true or false"),
            (json!({ "code": 1012 }), "the keys are: over, tolerance, quiet_first"),
        ] {
            let fault = Rebalance::default().with(&wish).unwrap_err();
            assert!(fault.contains(said), "{wish}: {fault}");
        }
    }
}
