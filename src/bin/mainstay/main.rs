//! The balancer's command line.
//!
//! Commands for a running balancer are in `remote`, its answers as tables in `table`; what packages and editors want is
//! in `generate`.
//!
//! Exit codes: 0 all is well; 1 the config has faults, the balancer could not run, or a second signal cut its end
//! short; 2 the command is not one.

mod drain;
mod generate;
mod rebalance;
mod remote;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use mainstay::admin::client::ClientFault;
use mainstay::config::{Faults, Summary};
use mainstay::control::load::load;
use mainstay::control::upgrade::UpgradeChannel;

use drain::{NodePath, Wish};
use generate::{Completions, Manual};
use remote::{Remote, Wanted};

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
    command: Option<Command>,
    /// Without a command: run.
    #[command(flatten)]
    run: ConfigFile,
}

#[derive(Subcommand)]
enum Command {
    /// Run the balancer; the default
    Run(ConfigFile),
    /// Check a config: a summary, or every fault as FILE:LINE:COLUMN: what is wrong, and what would be right
    Check(ConfigFile),
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
    Status(Remote),
    /// Ask a running balancer whether it is well, for a container's health check: 0 it is, 1 it is not
    Health(remote::Health),
    /// List the live sessions of a running balancer
    #[command(after_help = table::SESSIONS_COLUMNS)]
    Sessions {
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        remote: Remote,
    },
    /// End sessions of a running balancer: a Close with code 1012 to both sides, after which clients come back
    Kill {
        /// The sessions' ids, as `mainstay sessions` and the access log show them
        #[arg(required = true, value_name = "ID", value_parser = remote::session_id)]
        ids: Vec<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Drain a node: no new sessions, and its tunnels closed evenly over a time; shows how far it is until it is done
    Drain(Wish),
    /// Take the drain of a node back: who has not been told to leave stays, and the node takes clients again
    Undrain {
        /// The node
        #[arg(value_name = "POOL/NODE")]
        node: NodePath,
        #[command(flatten)]
        remote: Remote,
    },
    /// Even a pool out: nodes with more than their share give up the rest; shows the plan, and how far it is
    Rebalance(rebalance::Wish),
    /// Make a running balancer read its config anew: every change, or every fault and nothing changed
    Reload(Remote),
    /// Replace the running balancer by the program that stands at its path now, with every connection kept
    Upgrade(Remote),
    /// Show the config in effect in a running balancer, with every default: YAML in the order of the reference, a config
    /// file itself; --json is the same as JSON
    Config(Remote),
    /// Print the JSON Schema of the config, for editors
    Schema,
    /// Print a script that completes the command line
    Completions(Completions),
    /// Write the manual pages
    Man(Manual),
}

#[derive(Args)]
struct ConfigFile {
    /// The config file [env: MAINSTAY_CONFIG] [default: balancer.yaml]
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn path(self) -> PathBuf {
        self.config.or_else(remote::config_from_env).unwrap_or_else(|| "balancer.yaml".into())
    }
}

/// Why the process ends with 1.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] Faults),
    #[error("mainstay: {0}")]
    Run(#[from] io::Error),
    #[error("mainstay: {0}")]
    Remote(#[from] ClientFault),
    /// It is not known where the running balancer is, or what token opens it.
    #[error("mainstay: {0}")]
    Place(String),
    /// What was watched ended otherwise.
    #[error("mainstay: {0}")]
    Otherwise(String),
    /// All of it has been said, some of it failed.
    #[error("")]
    Said,
}

impl Failure {
    /// What keeps the balancer from running: a config that cannot be put into effect has a place for each fault.
    fn of_run(error: io::Error) -> Self {
        match error.downcast::<Faults>() {
            Ok(faults) => Self::Config(faults),
            Err(error) => Self::Run(error),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match carry_out(cli.command.unwrap_or(Command::Run(cli.run))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Said) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the command says.
fn carry_out(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(file) => run(file),
        Command::Check(file) => check(file),
        #[cfg(feature = "demo")]
        Command::Demo { nodes, port, redis } => {
            mainstay::demo::run(mainstay::demo::Demo { nodes, port, redis }).map_err(Failure::from)
        }
        Command::Status(remote) => remote::status(&remote),
        Command::Health(wanted) => remote::health(&wanted),
        Command::Sessions { wanted, remote } => remote::sessions(&remote, &wanted),
        Command::Kill { ids, remote } => remote::kill(&remote, &ids),
        Command::Drain(wish) => drain::drain(&wish),
        Command::Undrain { node, remote } => drain::undrain(&node, &remote),
        Command::Rebalance(wish) => rebalance::rebalance(&wish),
        Command::Reload(remote) => remote::reload(&remote),
        Command::Upgrade(remote) => remote::upgrade(&remote),
        Command::Config(remote) => remote::config(&remote),
        Command::Schema => generate::schema(),
        Command::Completions(wanted) => generate::completions(&wanted, Cli::command()),
        Command::Man(wanted) => generate::manual(&wanted, Cli::command()),
    }
}

fn run(file: ConfigFile) -> Result<(), Failure> {
    let channel = UpgradeChannel::from_env()?;
    let path = file.path();
    match (load(&path), channel) {
        (Ok(config), channel) => mainstay::app::run(&path, &config, channel).map_err(Failure::of_run),
        (Err(faults), None) => Err(faults.into()),
        (Err(faults), Some(channel)) => {
            channel.refuse(&faults.to_string());
            Err(faults.into())
        }
    }
}

fn check(file: ConfigFile) -> Result<(), Failure> {
    let path = file.path();
    let config = load(&path)?;
    let name = path.display().to_string();
    let mut answer = format!("{name}: ok\n{}", Summary(&config));
    for warning in &config.warnings {
        answer.push_str(&warning.line(&name, "warning: "));
        answer.push('\n');
    }
    show(&answer)
}

/// Prints to standard output. That a pipe is closed early, as `head` does, is no failure.
fn show(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
