//! The demo: a balancer and its nodes in one process, with a chat page.
//!
//! Without Redis the nodes share rooms and users in memory; with it, several demos on one Redis are one fleet.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::app::{self, App};
use crate::config;
use mainstay_node::config::NodeSettings;
use mainstay_node::{InProcessCluster, Node};

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demo {
    /// How many nodes.
    pub nodes: u16,
    /// The port of the balancer on 127.0.0.1.
    pub port: u16,
    /// The Redis that the nodes meet through; in memory without.
    pub redis: Option<String>,
}

/// Runs nodes and a balancer in front of them until SIGTERM or SIGINT.
pub fn run(demo: Demo) -> io::Result<()> {
    // The nodes live as long as the balancer, whose end closes every tunnel to them.
    let nodes: Arc<Mutex<Vec<Node>>> = Arc::default();
    let kept = Arc::clone(&nodes);
    let outcome = app::run_until(async move {
        let started = start(&demo).await?;
        let written: Vec<_> = started
            .iter()
            .map(|(id, node)| format!("{{ id: {id}, address: \"{}\" }}", node.address()))
            .collect();
        kept.lock().extend(started.into_iter().map(|(_, node)| node));
        let text = config_text(&written, demo.port);
        let config =
            config::resolve("demo", text.as_bytes(), &|_| None, &|_| Err(io::ErrorKind::NotFound.into()));
        let app = App::start(&config.map_err(io::Error::other)?).await;
        let app = app.map_err(|error| io::Error::new(error.kind(), format!("{error} (--port PORT)")))?;
        tracing::info!("open http://{}/", app.listeners().first().map_or("", String::as_str));
        Ok(app)
    });
    drop(nodes);
    outcome
}

async fn start(demo: &Demo) -> io::Result<Vec<(String, Node)>> {
    let mut world = None;
    let mut started = Vec::new();
    for number in 1..=demo.nodes {
        let id = id(number, demo.redis.is_some());
        let mut arguments = vec!["--id", &id, "--listen", "127.0.0.1:0", "--page"];
        arguments.extend(demo.redis.iter().flat_map(|url| ["--redis", url]));
        let settings = NodeSettings::from_arguments(&arguments, &|path| std::fs::read_to_string(path))
            .map_err(io::Error::other)?;
        let world = world.get_or_insert_with(|| InProcessCluster::for_node(&settings));
        let node = Node::start(settings, world).await.map_err(io::Error::other)?;
        started.push((id, node));
    }
    Ok(started)
}

/// Names are the demo's own in memory; through Redis they must differ from those of another demo.
fn id(number: u16, is_shared: bool) -> String {
    if is_shared { format!("ws{number}-{}", std::process::id()) } else { format!("ws{number}") }
}

fn config_text(nodes: &[String], port: u16) -> String {
    format!(
        "listeners: [{{ address: \"127.0.0.1:{port}\" }}]\n\
         admin: {{ address: \"127.0.0.1:0\" }}\n\
         shutdown: {{ drain: 2s }}\n\
         pools:\n  demo:\n    nodes: [{}]\n    \
         affinity: [{{ query: {{ name: user }} }}, {{ cookie: {{}} }}]\n",
        nodes.join(", ")
    )
}
