//! `mainstay rebalance`: begins a rebalance and shows the plan and the progress.
//!
//! The balancer rebalances by itself: the command only watches, and may end before.

use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Map, Value};
use tokio::{runtime, time};

use mainstay::admin::client::AdminClient;
use mainstay::pool::NodeId;

use crate::error::CliError;
use crate::output::time_left;
use crate::remote::RemoteArgs;
use crate::table;

/// How often the progress is asked for.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The arguments of `mainstay rebalance`.
#[derive(Args)]
pub struct RebalanceArgs {
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
    remote: RemoteArgs,
}

/// `mainstay rebalance`
pub fn rebalance(args: &RebalanceArgs) -> Result<(), CliError> {
    let client = args.remote.client().map_err(|error| args.remote.report(error))?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let path = format!("/api/pools/{}/rebalance", args.pool);
        let plan = client.request_with(Method::POST, &path, Some(&args.body())).await?;
        args.remote.print(&plan, table::plan)?;
        if args.detach || plan["moves"] == 0 { Ok(()) } else { watch(args, &client).await }
    });
    // A resolver that hangs is not waited for.
    runtime.shutdown_background();
    outcome.map_err(|error| args.remote.report(error))
}

/// Prints each step until no rebalance is under way.
async fn watch(args: &RebalanceArgs, client: &AdminClient) -> Result<(), CliError> {
    let mut shown = Value::Null;
    loop {
        let status = client.request(Method::GET, "/api/status").await?;
        let pools = status["pools"].as_array().map(Vec::as_slice).unwrap_or_default();
        let pool = pools.iter().find(|pool| pool["name"].as_str() == Some(args.pool.as_str()));
        let rebalance = pool.map_or(&Value::Null, |pool| &pool["rebalance"]);
        if rebalance.is_null() {
            return args.remote.print(rebalance, |_| format!("{}: done\n", args.pool));
        }
        if rebalance["closed"] != shown["closed"] {
            shown = rebalance.clone();
            args.remote.print(rebalance, |rebalance| format!("{}: {}\n", args.pool, progress(rebalance)))?;
        }
        time::sleep(POLL_INTERVAL).await;
    }
}

impl RebalanceArgs {
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
    format!("{closed} of at most {planned} closed, {} to go", time_left(&rebalance["deadline"]))
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
