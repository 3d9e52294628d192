//! The balancer's command line.
//!
//! Exit codes: 0 all is well; 1 the config has faults, the balancer could not run, or a second signal cut its end
//! short; 2 the command is not one.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use mainstay::config::{Faults, Summary};
use mainstay::control::load::load;

/// Balances WebSocket connections over a fleet of nodes and keeps each client on its node.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
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
    Demo {
        /// How many nodes
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
        nodes: u16,
        /// The port of the balancer on 127.0.0.1
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
}

#[derive(Args)]
struct ConfigFile {
    /// The config file
    #[arg(short, long = "config", value_name = "FILE", default_value = "balancer.yaml")]
    config: PathBuf,
}

/// Why the process ends with 1.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] Faults),
    #[error("mainstay: {0}")]
    Run(#[from] io::Error),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(file) => run(file),
        Command::Check(file) => check(file),
        Command::Demo { nodes, port } => mainstay::demo::run(nodes, port).map_err(Failure::from),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(file: ConfigFile) -> Result<(), Failure> {
    let config = load(&file.config)?;
    Ok(mainstay::app::run(&file.config, &config)?)
}

fn check(file: ConfigFile) -> Result<(), Failure> {
    let config = load(&file.config)?;
    let name = file.config.display().to_string();
    let mut answer = format!("{name}: ok\n{}", Summary(&config));
    for warning in &config.warnings {
        answer.push_str(&warning.line(&name, "warning: "));
        answer.push('\n');
    }
    // `println!` would panic where a pipe is closed early, as `head` does.
    Ok(io::stdout().write_all(answer.as_bytes())?)
}
