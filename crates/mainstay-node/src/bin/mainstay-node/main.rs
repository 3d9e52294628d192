//! The node's command line.
//!
//! `mainstay-node health ADDRESS` asks one that runs whether it is well, for a container's health check.
//!
//! Exit codes: 0 the node ended in order; 1 it could not start, it must not go on beside servers of another kind, or its
//! end took longer than the drain time allows or was cut short by a second signal, or the node that was asked is not well;
//! 2 the flags are wrong.

mod health;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use mainstay_core::log::{self, Format};
use mainstay_core::open_files;
use mainstay_node::config::{NodeFlags, NodeSettings};
use mainstay_node::{InProcessCluster, Node};

/// What is not an argument, for the help.
const ENVIRONMENT: &str = "\
Environment:
  RUST_LOG  what is logged on standard error: error, warn, info (the default),
            debug or trace
  NO_COLOR  no colors in the log

Signals:
  TERM INT  end in order: /health says 503, clients are closed with 1012 over the
            drain time; a second one at once

Health check:
  mainstay-node health ADDRESS
            ask the node that listens there (127.0.0.1:3001) for /health; 0 it is
            well, 1 it is not, it drains or nobody answers";

/// Asks a node that runs whether it is well.
#[derive(Parser)]
#[command(name = HEALTH, bin_name = "mainstay-node health")]
struct HealthCommand {
    /// Where it listens: HOST:PORT
    #[arg(value_name = "ADDRESS", value_parser = health::address)]
    address: String,
}

const HEALTH: &str = "health";

/// A WebSocket and Socket.IO node that shares rooms and users with its peers, Node.js servers among them.
#[derive(Parser)]
#[command(name = "mainstay-node", version, after_help = ENVIRONMENT)]
struct Cli {
    #[command(flatten)]
    flags: NodeFlags,
}

fn main() -> ExitCode {
    // Not a subcommand of the flags, which say what a node must have.
    if std::env::args_os().nth(1).is_some_and(|word| word == HEALTH) {
        let address = HealthCommand::parse_from(std::env::args_os().skip(1)).address;
        return match health::check(&address) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("mainstay-node: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let cli = Cli::parse();
    let settings = match NodeSettings::resolve(cli.flags, &|path| std::fs::read_to_string(path)) {
        Ok(settings) => settings,
        Err(faults) => {
            for fault in &faults.0 {
                eprintln!("mainstay-node: {fault}");
            }
            return ExitCode::from(2);
        }
    };
    log::init(Format::Text);
    open_files::raise_limit();
    match run(settings) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mainstay-node: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the node on all cores until a signal. Says whether it ended in order.
fn run(settings: NodeSettings) -> io::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let world = InProcessCluster::for_node(&settings);
        let node = Node::start(settings, &world).await.map_err(io::Error::other)?;
        let node = Arc::new(node);
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            why = node.wait_until_unfit() => {
                tracing::error!(%why, "node stops: it is incompatible with the other servers");
                node.drain().await;
                return Ok(false);
            }
        }
        tracing::info!("shutdown begins");
        tokio::select! {
            in_order = node.drain() => Ok(in_order),
            _ = term.recv() => Ok(false),
            _ = int.recv() => Ok(false),
        }
    });
    // What is left are tasks that the end did not wait for.
    runtime.shutdown_background();
    outcome
}
