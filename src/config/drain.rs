//! How tunnels are closed when their node is taken out: as the config says, or as an operator wishes for one drain.
//!
//! Both are held to the same rules, because a wrong code keeps clients away for good.

use std::time::Duration;

use mainstay_core::units::{self, ANY_TIME};
use serde_json::Value;

use super::entry::{self, Form, section};
use super::forms::{duration, parsed};
use super::key::{Shape, Text};
use super::reader;

section! {
    /// How tunnels are closed when their node is taken out.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Drain {
        /// The closes are spread over this time.
        over: Duration = duration(ANY_TIME).or("30s");
        /// The close code; after others than these some clients do not come back.
        code: u16 = code().or(1012);
        /// The close reason.
        reason: String = parsed(Text("a text of at most 123 bytes", ".{1,123}"), REASON, fitting)
            .or("service restart");
    }
}

impl Default for Drain {
    fn default() -> Self {
        entry::default()
    }
}

const CODES: &str = "1012, 1001, 1013 or 3000 to 4999: codes after which clients come back";
const REASON: &str = "a reason of at most 123 bytes";

impl Drain {
    /// This drain with what an operator wishes otherwise: an object with any of `over`, `code` and `reason`.
    ///
    /// # Errors
    ///
    /// What is wrong with the wish, and what would be right.
    pub fn with(&self, wish: &Value) -> Result<Self, String> {
        let Some(wish) = wish.as_object() else {
            return Err(
                "the body is no JSON object; write it like {\"over\": \"60s\", \"code\": 1012}".into()
            );
        };
        let mut drain = self.clone();
        for (key, value) in wish {
            let wrong = |expected: &str| format!("{key}: {value} is not {expected}");
            match key.as_str() {
                "over" => {
                    let over =
                        value.as_str().and_then(units::duration).filter(|over| ANY_TIME.contains(over));
                    drain.over = over.ok_or_else(|| wrong("a time up to 366d, like \"60s\" or \"5m\""))?;
                }
                "code" => {
                    let code = value.as_u64().and_then(|code| code.try_into().ok()).filter(comes_back);
                    drain.code = code.ok_or_else(|| wrong(CODES))?;
                }
                "reason" => {
                    drain.reason = value.as_str().and_then(fitting).ok_or_else(|| wrong(REASON))?;
                }
                _ => return Err(format!("there is no key `{key}`; the keys are: over, code, reason")),
            }
        }
        Ok(drain)
    }
}

fn code() -> Form<u16> {
    let read = |value: &reader::Value| value.parsed(CODES, |text| text.parse().ok().filter(comes_back));
    Form::new(Shape::Codes(&[1001, 1012, 1013], 3000, 4999), read, |code| (*code).into())
}

/// 1000 ends some clients for good (Phoenix), 1008 and 1011 others (graphql-ws); the rest must not be sent.
fn comes_back(code: &u16) -> bool {
    matches!(code, 1001 | 1012 | 1013 | 3000..=4999)
}

/// RFC 6455 section 5.5: a control frame carries 125 bytes, two of them are the code.
fn fitting(reason: &str) -> Option<String> {
    (reason.len() <= 123).then(|| reason.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wish_changes_what_it_names_and_nothing_else() {
        let pool = Drain { over: Duration::from_secs(9), code: 1001, reason: "away".into() };
        assert_eq!(pool.with(&json!({})), Ok(pool.clone()));
        assert_eq!(
            pool.with(&json!({ "over": "2m" })),
            Ok(Drain { over: Duration::from_secs(120), ..pool.clone() })
        );
        let all = pool.with(&json!({ "over": "0s", "code": 4000, "reason": "v8" }));
        assert_eq!(all, Ok(Drain { over: Duration::ZERO, code: 4000, reason: "v8".into() }));
    }

    #[test]
    fn a_wish_that_keeps_clients_away_or_says_nothing_sound_is_refused_with_what_would_be_right() {
        for (wish, said) in [
            (json!([]), "no JSON object"),
            (json!({ "over": 60 }), "over: 60 is not a time"),
            (json!({ "over": "60" }), "over: \"60\" is not a time"),
            (json!({ "over": "1000d" }), "up to 366d"),
            (json!({ "code": 1000 }), "code: 1000 is not 1012, 1001"),
            (json!({ "code": 70000 }), "code: 70000 is not"),
            (json!({ "code": "1012" }), "code: \"1012\" is not"),
            (json!({ "reason": "x".repeat(124) }), "at most 123 bytes"),
            (json!({ "reason": 1 }), "at most 123 bytes"),
            (json!({ "ovr": "1s" }), "the keys are: over, code, reason"),
        ] {
            let fault = Drain::default().with(&wish).unwrap_err();
            assert!(fault.contains(said), "{wish}: {fault}");
        }
    }
}
