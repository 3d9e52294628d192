//! `mainstay rebalance`: what is to move, and how far that is.
//!
//! The balancer moves by itself: whoever only watches may go, and come back.

use std::time::{Duration, SystemTime};

use clap::Args;
use http::Method;
use serde_json::{Map, Value};
use tokio::{runtime, time};

use mainstay::admin::client::Client;
use mainstay::pool::NodeId;

use crate::remote::Remote;
use crate::{Failure, table};

/// How often it is looked at.
const PAUSE: Duration = Duration::from_millis(500);

/// What is wished.
#[derive(Args)]
pub struct Wish {
    /// The pool; pools are named like nodes
    #[arg(value_name = "POOL")]
    pool: NodeId,
    /// The closes are spread over this time, such as 60s or 5m [default: the pool's, or 10m]
    #[arg(long, value_name = "TIME")]
    over: Option<String>,
    /// Nodes with up to this times their share keep what they have [default: the pool's, or 1.1]
    #[arg(long, value_name = "TIMES")]
    tolerance: Option<f64>,
    /// Whether those that have been quiet for longest are closed first [default: the pool's, or true]
    #[arg(long, value_name = "BOOL")]
    quiet_first: Option<bool>,
    /// Begin it and do not watch; ending a command that watches does not end the rebalance either
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    remote: Remote,
}

/// `mainstay rebalance`
pub fn rebalance(wish: &Wish) -> Result<(), Failure> {
    let client = wish.remote.client().map_err(|failure| wish.remote.failed(failure))?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let path = format!("/api/pools/{}/rebalance", wish.pool);
        let plan = client.ask_with(Method::POST, &path, Some(&wish.body())).await?;
        wish.remote.show(&plan, table::plan)?;
        if wish.detach || plan["moves"] == 0 { Ok(()) } else { watch(wish, &client).await }
    });
    // A resolver that hangs is not waited for.
    runtime.shutdown_background();
    outcome.map_err(|failure| wish.remote.failed(failure))
}

/// Shows each step until none is under way.
async fn watch(wish: &Wish, client: &Client) -> Result<(), Failure> {
    let mut shown = Value::Null;
    loop {
        let status = client.ask(Method::GET, "/api/status").await?;
        let pools = status["pools"].as_array().map(Vec::as_slice).unwrap_or_default();
        let pool = pools.iter().find(|pool| pool["name"].as_str() == Some(wish.pool.as_str()));
        let rebalance = pool.map_or(&Value::Null, |pool| &pool["rebalance"]);
        if rebalance.is_null() {
            return wish.remote.show(rebalance, |_| format!("{}: done\n", wish.pool));
        }
        if rebalance["closed"] != shown["closed"] {
            shown = rebalance.clone();
            wish.remote.show(rebalance, |rebalance| format!("{}: {}\n", wish.pool, progress(rebalance)))?;
        }
        time::sleep(PAUSE).await;
    }
}

impl Wish {
    fn body(&self) -> Value {
        let mut body = Map::new();
        body.extend(self.over.clone().map(|over| ("over".into(), over.into())));
        body.extend(self.tolerance.map(|tolerance| ("tolerance".into(), tolerance.into())));
        body.extend(self.quiet_first.map(|quiet_first| ("quiet_first".into(), quiet_first.into())));
        Value::Object(body)
    }
}

/// `30 of at most 120 closed, 28s to go`
fn progress(rebalance: &Value) -> String {
    let (planned, closed) = (table::text(&rebalance["planned"]), table::text(&rebalance["closed"]));
    let deadline = rebalance["deadline"].as_str().and_then(|at| humantime::parse_rfc3339(at).ok());
    let rest = deadline.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
    let rest = rest.map_or("-".into(), |rest| {
        humantime::format_duration(Duration::from_secs(rest.as_secs())).to_string()
    });
    format!("{closed} of at most {planned} closed, {rest} to go")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_is_one_line_even_of_another_version() {
        let line = progress(&json!({ "planned": 9, "closed": 4, "deadline": "2020-01-01T00:00:00Z" }));
        assert_eq!(line, "4 of at most 9 closed, 0s to go");
        assert_eq!(progress(&json!({})), "- of at most - closed, - to go");
    }
}
