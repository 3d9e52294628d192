//! The demo: a balancer and its nodes in one process.

use std::io;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{self, App};
use crate::{config, node};

/// Runs `nodes` nodes and a balancer in front of them on 127.0.0.1:`port` until SIGTERM or SIGINT.
pub fn run(nodes: u16, port: u16) -> io::Result<()> {
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let end = stop.clone();
    let outcome = app::run_until(async move {
        let mut written = Vec::new();
        for number in 1..=nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let id = format!("ws{number}");
            written.push(format!("{{ id: {id}, address: \"{}\" }}", listener.local_addr()?));
            tasks.spawn(node::serve(Arc::from(id), listener, stop.clone()));
        }
        let text = config_text(&written, port);
        let config =
            config::resolve("demo", text.as_bytes(), &|_| None, &|_| Err(io::ErrorKind::NotFound.into()));
        let app = App::start(&config.map_err(io::Error::other)?).await?;
        tracing::info!("open http://{}/", app.listeners().first().map_or("", String::as_str));
        Ok(app)
    });
    end.cancel();
    outcome
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
