//! How a pool evens itself out when a node joins or returns.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use mainstay_core::units::{self, ANY_TIME, show_duration};
use serde_json::Value;

use super::change::Comparison;
use super::entry::{self, TableEntry, section};
use super::forms::{self, duration, flag, number};
use super::reader;

/// Below 1 the shares together would not hold all tunnels. NaN is in no range.
const TOLERANCE: RangeInclusive<f64> = 1.0..=1000.0;

section! {
    /// How a pool evens itself out when a node joins or returns.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct Rebalance {
        /// The moves are spread over this time.
        over: Duration = duration(ANY_TIME).or("10m");
        /// Times the average that a node may have and keep.
        tolerance: f64 = number(TOLERANCE).checked(warn_of_haste).or(1.1);
        /// Those that have been quiet for longest go first.
        quiet_first: bool = flag().or(true);
    }
}

impl Default for Rebalance {
    fn default() -> Self {
        entry::default()
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
                    let over =
                        value.as_str().and_then(units::duration).filter(|over| ANY_TIME.contains(over));
                    self.over = over.ok_or_else(|| wrong("a time up to 366d, like \"60s\" or \"5m\""))?;
                }
                "tolerance" => {
                    let tolerance = value.as_f64().filter(|tolerance| TOLERANCE.contains(tolerance));
                    self.tolerance = tolerance.ok_or_else(|| wrong("a number from 1 to 1000"))?;
                }
                "quiet_first" => {
                    self.quiet_first = value.as_bool().ok_or_else(|| wrong("true or false"))?;
                }
                _ => {
                    let known = "over, tolerance, quiet_first";
                    return Err(format!("there is no key `{key}`; the keys are: {known}"));
                }
            }
        }
        Ok(self)
    }
}

/// The key `rebalance` of a pool; `None` leaves everybody where they are.
pub(super) fn rebalance() -> TableEntry<Option<Rebalance>> {
    let said = |rule: &Option<Rebalance>| rule.map_or("none".to_owned(), |rule| rule.to_string());
    let compare = move |old: &_, new: &_, to: &mut Comparison| to.set(said(new), said(old));
    forms::section().maybe().compared_by(compare).or(Value::Null)
}

fn warn_of_haste(value: &reader::Value, tolerance: &f64) {
    if *tolerance < 1.02 {
        value.warn("below 1.02, clients are moved for the slightest unevenness; 1.1 is usual");
    }
}

impl fmt::Display for Rebalance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = if self.quiet_first { ", quiet clients first" } else { "" };
        write!(f, "over {} from {} times the average{first}", show_duration(&self.over), self.tolerance)
    }
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
