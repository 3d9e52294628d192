//! The balancer's command line.
//!
//! Commands for a running balancer are in `remote`, its answers as tables in `table`; what packages and editors want is
//! in `generate`.
//!
//! Exit codes: 0 all is well; 1 the config has faults, the balancer could not run, or a second signal cut its end
//! short; 2 the command is not one.

mod drain;
mod error;
mod generate;
mod output;
mod rebalance;
mod remote;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use mainstay::config::Summary;
use mainstay::control::load::load;
use mainstay::control::upgrade::UpgradeChannel;

use drain::{DrainArgs, NodePath};
use error::CliError;
use generate::{CompletionsArgs, ManualArgs};
use output::print;
use rebalance::RebalanceArgs;
use remote::{HealthArgs, RemoteArgs, SessionsArgs};

/// What is not an argument, for the help and the manual.
const ENVIRONMENT: &str = "\
Environment:
  MAINSTAY_CONFIG  the config file, where no -c names one
  MAINSTAY_ADMIN   the admin address that the commands ask, where neither --admin nor
            -c says where it is
  RUST_LOG  what is logged on standard error: error, warn, info (the default),
            debug or trace; for a part of it, too: RUST_LOG=info,mainstay::proxy=debug
            shows every request that is refused
  NO_COLOR  no colors in the log

Signals:
  HUP       reload the config
  USR1      open the access log's file anew
  USR2      replace the running binary, as `mainstay upgrade` does
  TERM INT  end in order; a second one at once";

/// Balances WebSocket connections over a fleet of nodes and keeps each client on its node.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = ENVIRONMENT)]
struct Cli {
    #[command(subcommand)]
    command: Option<CliCommand>,
    /// Without a command: run.
    #[command(flatten)]
    run: ConfigArgs,
}

#[derive(Subcommand)]
enum CliCommand {
    /// Run the balancer; the default
    Run(ConfigArgs),
    /// Check a config: a summary, or every fault as FILE:LINE:COLUMN: what is wrong, and what would be right
    Check(ConfigArgs),
    /// Run a balancer with nodes of its own, to look at
    #[cfg(feature = "demo")]
    Demo {
        /// How many nodes
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
        nodes: u16,
        /// The port of the balancer on 127.0.0.1
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// The nodes meet through this Redis, and several demos on it are one fleet; in memory without
        #[arg(long, value_name = "URL")]
        redis: Option<String>,
    },
    /// Show a running balancer: its nodes, their states and loads
    #[command(after_help = table::STATUS_COLUMNS)]
    Status(RemoteArgs),
    /// Ask a running balancer whether it is well, for a container's health check: 0 it is, 1 it is not
    Health(HealthArgs),
    /// List the live sessions of a running balancer
    #[command(after_help = table::SESSIONS_COLUMNS)]
    Sessions {
        #[command(flatten)]
        filter: SessionsArgs,
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// End sessions of a running balancer: a Close with code 1012 to both sides, after which clients come back
    Kill {
        /// The sessions' ids, as `mainstay sessions` and the access log show them
        #[arg(required = true, value_name = "ID", value_parser = remote::session_id)]
        ids: Vec<String>,
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Drain a node: no new sessions, and its tunnels closed evenly over a time; shows how far it is until it is done
    Drain(DrainArgs),
    /// Cancel the drain of a node: tunnels that are not closed yet stay, and the node takes clients again
    Undrain {
        /// The node
        #[arg(value_name = "POOL/NODE")]
        node: NodePath,
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Even a pool out: nodes with more than their share give up the rest; shows the plan, and how far it is
    Rebalance(RebalanceArgs),
    /// Make a running balancer read its config anew: every change, or every fault and nothing changed
    Reload(RemoteArgs),
    /// Replace the running balancer by the program that stands at its path now, with every connection kept
    Upgrade(RemoteArgs),
    /// Show the config in effect in a running balancer, with every default: YAML in the order of the reference, a config
    /// file itself; --json is the same as JSON
    Config(RemoteArgs),
    /// Print the JSON Schema of the config, for editors
    Schema,
    /// Print a script that completes the command line
    Completions(CompletionsArgs),
    /// Write the manual pages
    Man(ManualArgs),
}

#[derive(Args)]
struct ConfigArgs {
    /// The config file [env: MAINSTAY_CONFIG] [default: balancer.yaml]
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    fn path(self) -> PathBuf {
        self.config.or_else(remote::config_from_env).unwrap_or_else(|| "balancer.yaml".into())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match perform(cli.command.unwrap_or(CliCommand::Run(cli.run))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError::Reported) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Performs the command.
fn perform(command: CliCommand) -> Result<(), CliError> {
    match command {
        CliCommand::Run(file) => run(file),
        CliCommand::Check(file) => check(file),
        #[cfg(feature = "demo")]
        CliCommand::Demo { nodes, port, redis } => {
            mainstay::demo::run(mainstay::demo::Demo { nodes, port, redis }).map_err(CliError::from)
        }
        CliCommand::Status(remote) => remote::status(&remote),
        CliCommand::Health(args) => remote::health(&args),
        CliCommand::Sessions { filter, remote } => remote::sessions(&remote, &filter),
        CliCommand::Kill { ids, remote } => remote::kill(&remote, &ids),
        CliCommand::Drain(args) => drain::drain(&args),
        CliCommand::Undrain { node, remote } => drain::undrain(&node, &remote),
        CliCommand::Rebalance(args) => rebalance::rebalance(&args),
        CliCommand::Reload(remote) => remote::reload(&remote),
        CliCommand::Upgrade(remote) => remote::upgrade(&remote),
        CliCommand::Config(remote) => remote::config(&remote),
        CliCommand::Schema => generate::schema(),
        CliCommand::Completions(args) => generate::completions(&args, Cli::command()),
        CliCommand::Man(args) => generate::manual(&args, Cli::command()),
    }
}

fn run(file: ConfigArgs) -> Result<(), CliError> {
    let channel = UpgradeChannel::from_env()?;
    let path = file.path();
    match (load(&path), channel) {
        (Ok(config), channel) => mainstay::app::run(&path, &config, channel).map_err(CliError::of_run),
        (Err(faults), None) => Err(faults.into()),
        (Err(faults), Some(channel)) => {
            channel.refuse(&faults.to_string());
            Err(faults.into())
        }
    }
}

fn check(file: ConfigArgs) -> Result<(), CliError> {
    let path = file.path();
    let config = load(&path)?;
    let name = path.display().to_string();
    let mut answer = format!("{name}: ok\n{}", Summary(&config));
    for warning in &config.warnings {
        answer.push_str(&warning.line(&name, "warning: "));
        answer.push('\n');
    }
    print(&answer)
}
