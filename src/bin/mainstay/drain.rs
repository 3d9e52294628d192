//! `mainstay drain` and `mainstay undrain`: drains a node and shows the progress.
//!
//! The balancer drains by itself: the command only watches, and may end before.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Map, Value};
use tokio::{runtime, time};

use mainstay::admin::client::AdminClient;
use mainstay::pool::NodeId;

use crate::error::CliError;
use crate::output::{print, time_left};
use crate::remote::RemoteArgs;
use crate::table;

/// How often the progress is asked for.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The arguments of `mainstay drain`.
#[derive(Args)]
pub struct DrainArgs {
    /// The node
    #[arg(value_name = "POOL/NODE")]
    node: NodePath,
    /// The closes are spread over this time, such as 60s or 5m [default: the pool's]
    #[arg(long, value_name = "TIME")]
    over: Option<String>,
    /// The close code: 1012, 1001, 1013 or 3000 to 4999 [default: the pool's]
    #[arg(long)]
    code: Option<u16>,
    /// The close reason, at most 123 bytes [default: the pool's]
    #[arg(long)]
    reason: Option<String>,
    /// Begin it and do not watch; ending a command that watches does not end the drain either
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// A node of a pool, as it is written on the command line.
#[derive(Debug, Clone)]
pub struct NodePath {
    pool: NodeId,
    node: NodeId,
}

impl FromStr for NodePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pool, node) = text.split_once('/').ok_or("write it as POOL/NODE, like chat/ws1")?;
        Ok(Self { pool: pool.parse()?, node: node.parse()? })
    }
}

impl NodePath {
    fn path(&self, action: &str) -> String {
        format!("/api/pools/{}/nodes/{}/{action}", self.pool, self.node)
    }

    /// This node in the answer of `/api/status`.
    fn find<'a>(&self, status: &'a Value) -> Option<&'a Value> {
        let named = |list: &'a Value, key: &str, name: &str| {
            list.as_array()?.iter().find(|item| item[key].as_str() == Some(name))
        };
        let pool = named(&status["pools"], "name", self.pool.as_str())?;
        named(&pool["nodes"], "id", self.node.as_str())
    }

    fn line(&self, what: &str) -> String {
        format!("{}/{}: {what}\n", self.pool, self.node)
    }
}

/// `mainstay drain`
pub fn drain(args: &DrainArgs) -> Result<(), CliError> {
    let client = args.remote.client().map_err(|error| args.remote.report(error))?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let begun = client.request_with(Method::POST, &args.node.path("drain"), Some(&args.body())).await?;
        // A node that had a few tunnels may have lost them by now.
        let is_empty = ["left", "closed"].iter().all(|count| begun["drain"][count] == 0);
        let line = |begun: &Value| match is_empty {
            true => args.node.line(EMPTY),
            false => args.node.line(&progress(&begun["drain"])),
        };
        args.remote.print(&begun, |begun| warnings(begun) + &line(begun))?;
        if args.detach || is_empty { Ok(()) } else { watch(args, &client, &begun["drain"]).await }
    });
    // A resolver that hangs is not waited for.
    runtime.shutdown_background();
    outcome.map_err(|error| args.remote.report(error))
}

/// The line for a node without tunnels.
const EMPTY: &str = "nothing to do, it has no tunnels; it takes no clients until `mainstay undrain`";

/// `mainstay undrain`
pub fn undrain(node: &NodePath, remote: &RemoteArgs) -> Result<(), CliError> {
    let state = |answer: &Value| warnings(answer) + &node.line(&table::text(&answer["state"]));
    remote.run(Method::POST, &node.path("undrain"), state)
}

/// Prints each step until no tunnel is left.
async fn watch(args: &DrainArgs, client: &AdminClient, begun: &Value) -> Result<(), CliError> {
    let mut shown = begun.clone();
    while shown["left"] != 0 {
        time::sleep(POLL_INTERVAL).await;
        let status = client.request(Method::GET, "/api/status").await?;
        let Some(node) = args.node.find(&status) else {
            let what = "taken out of the config; its tunnels leave with that";
            return print(&args.node.line(what));
        };
        let drain = &node["drain"];
        if drain.is_null() {
            let what = format!("the drain of {}/{} was taken back", args.node.pool, args.node.node);
            return Err(CliError::Cancelled(what));
        }
        if (&drain["left"], &drain["deadline"]) != (&shown["left"], &shown["deadline"]) {
            shown = drain.clone();
            args.remote.print(drain, |drain| args.node.line(&progress(drain)))?;
        }
    }
    args.remote.print(&shown, |_| args.node.line("drained; it takes no clients until `mainstay undrain`"))
}

impl DrainArgs {
    fn body(&self) -> Value {
        let mut body = Map::new();
        let texts = [("over", &self.over), ("reason", &self.reason)];
        body.extend(texts.into_iter().filter_map(|(key, text)| Some((key.into(), text.clone()?.into()))));
        body.extend(self.code.map(|code| ("code".into(), code.into())));
        Value::Object(body)
    }
}

fn warnings(answer: &Value) -> String {
    let warnings = answer["warnings"].as_array().map(Vec::as_slice).unwrap_or_default();
    warnings.iter().map(|warning| format!("warning: {}\n", table::text(warning))).collect()
}

/// `120 left, 30 closed, 28s to go`
fn progress(drain: &Value) -> String {
    let (left, closed) = (table::text(&drain["left"]), table::text(&drain["closed"]));
    format!("{left} left, {closed} closed, at most {} to go", time_left(&drain["deadline"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_written_with_its_pool() {
        let path: NodePath = "chat/ws1".parse().unwrap();
        assert_eq!(path.path("drain"), "/api/pools/chat/nodes/ws1/drain");
        for text in ["ws1", "chat/", "/ws1", "chat/a b", "chat/ws1/drain"] {
            assert!(text.parse::<NodePath>().is_err(), "{text}");
        }
        let status = json!({ "pools": [{ "name": "chat", "nodes": [{ "id": "ws1", "drain": null }] }] });
        assert!(path.find(&status).is_some());
        assert!("chat/ws2".parse::<NodePath>().unwrap().find(&status).is_none());
    }

    #[test]
    fn progress_is_one_line_even_of_another_version() {
        let line = progress(&json!({ "left": 3, "closed": 4, "deadline": "2020-01-01T00:00:00Z" }));
        assert_eq!(line, "3 left, 4 closed, at most 0s to go");
        assert_eq!(progress(&json!({})), "- left, - closed, at most - to go");
    }
}
