//! The commands for a running balancer: its address, the request, and how the response is printed.
//!
//! Tables are for people and may change; `--json` is the admin API's own answer, for programs.

use std::path::{Path, PathBuf};

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use mainstay::admin::client::{AdminAddress, AdminClient, ClientError};
use mainstay::admin::sessions::{DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE};
use mainstay::config::{Fault, Faults, Tokens, yaml};
use mainstay::control::load::{load_admin_address, read_secret};
use mainstay::pool::NodeId;

use crate::error::CliError;
use crate::output::print;
use crate::table;

/// The config file, where no argument names one.
const CONFIG: &str = "MAINSTAY_CONFIG";
/// The admin address, where no argument names one.
const ADMIN: &str = "MAINSTAY_ADMIN";

/// Which balancer, and how its response is printed.
#[derive(Args)]
pub struct RemoteArgs {
    /// The config of the running balancer, which says where its admin API is [env: MAINSTAY_CONFIG] [default: balancer.yaml]
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask here instead: HOST:PORT or unix:/path; only a config named with -c is read then [env: MAINSTAY_ADMIN]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<AdminAddress>,
    /// The file whose first token is shown [default: the config's]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print the answer as it came, in JSON
    #[arg(long)]
    json: bool,
}

/// Which sessions.
#[derive(Args)]
pub struct SessionsArgs {
    /// Only those of this pool
    #[arg(long)]
    pool: Option<NodeId>,
    /// Only those on this node
    #[arg(long)]
    node: Option<NodeId>,
    /// The most sessions
    #[arg(long, default_value_t = DEFAULT_PAGE_SIZE as u64, value_parser = clap::value_parser!(u64).range(1..=MAX_PAGE_SIZE as u64))]
    limit: u64,
    /// Those behind this id, which the page before ended with
    #[arg(long, value_name = "ID", value_parser = session_id)]
    after: Option<String>,
}

/// The id of a session, as `mainstay sessions` and the access log show it.
pub fn session_id(text: &str) -> Result<String, String> {
    let is_id = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let expected = || "an id is 16 hex digits, as `mainstay sessions` shows them".to_owned();
    is_id.then(|| text.to_owned()).ok_or_else(expected)
}

/// What a health check asks.
#[derive(Args)]
pub struct HealthArgs {
    /// Whether it takes clients, not only whether it is alive: no while it starts or drains, and with no node up
    #[arg(long)]
    ready: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// `mainstay health`. No token is needed for it, so none is read.
pub fn health(args: &HealthArgs) -> Result<(), CliError> {
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let remote = &args.remote;
    let checked = remote
        .address_and_token_file()
        .and_then(|(address, _)| Ok(AdminClient { address, token: None }.check_blocking(path)?));
    checked.map_err(|error| remote.report(error))?;
    remote.print(&json!({ "ok": true }), |_| "ok\n".to_owned())
}

/// `mainstay status`
pub fn status(remote: &RemoteArgs) -> Result<(), CliError> {
    remote.run(Method::GET, "/api/status", table::status)
}

/// `mainstay config`
pub fn config(remote: &RemoteArgs) -> Result<(), CliError> {
    remote.run(Method::GET, "/api/config", yaml)
}

/// `mainstay sessions`
pub fn sessions(remote: &RemoteArgs, args: &SessionsArgs) -> Result<(), CliError> {
    let mut path = format!("/api/sessions?limit={}", args.limit);
    // None of these has a character that a query would have to escape.
    let pool = args.pool.as_ref().map(NodeId::as_str);
    let node = args.node.as_ref().map(NodeId::as_str);
    for (key, value) in [("pool", pool), ("node", node), ("after", args.after.as_deref())] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={value}"));
        }
    }
    remote.run(Method::GET, &path, table::sessions)
}

/// `mainstay kill`: each session is tried, also after an error.
pub fn kill(remote: &RemoteArgs, ids: &[String]) -> Result<(), CliError> {
    let client = remote.client().map_err(|error| remote.report(error))?;
    let mut failed = 0;
    for id in ids {
        match client.request_blocking(Method::DELETE, &format!("/api/sessions/{id}")) {
            Ok(answer) => {
                remote.print(&answer, |answer| format!("closing {}\n", table::text(&answer["closing"])))?;
            }
            Err(ClientError::Refused { what, .. }) => {
                failed += 1;
                eprintln!("mainstay: {id}: {what}");
                remote.print_json(&json!({ "id": id, "error": what }))?;
            }
            // The next request would fail in the same way.
            Err(error) => return Err(remote.report(error.into())),
        }
    }
    if failed == 0 { Ok(()) } else { Err(CliError::Reported) }
}

/// `mainstay reload`
pub fn reload(remote: &RemoteArgs) -> Result<(), CliError> {
    remote.run(Method::POST, "/api/reload", table::changes)
}

/// `mainstay upgrade`
pub fn upgrade(remote: &RemoteArgs) -> Result<(), CliError> {
    remote.run(Method::POST, "/api/upgrade", table::upgrade)
}

impl RemoteArgs {
    /// Sends a request and prints the response.
    pub fn run(&self, method: Method, path: &str, human: impl Fn(&Value) -> String) -> Result<(), CliError> {
        let answer = self.client().and_then(|client| Ok(client.request_blocking(method, path)?));
        self.print(&answer.map_err(|error| self.report(error))?, human)
    }

    /// With `--json`, prints the error as the admin API does, for programs; gives it back.
    pub fn report(&self, error: CliError) -> CliError {
        let (what, faults) = match &error {
            CliError::Config(faults) => ("the config has faults".to_owned(), json_faults(faults)),
            CliError::Remote(ClientError::Refused { what, json, .. }) => (what.clone(), json.clone()),
            other => (other.to_string().trim_start_matches("mainstay: ").to_owned(), Vec::new()),
        };
        // A pipe that is closed takes nothing away from the failure itself.
        let _ = self.print_json(&json!({ "error": what, "faults": faults }));
        error
    }

    /// Prints this with `--json`.
    fn print_json(&self, value: &Value) -> Result<(), CliError> {
        if self.json { print(&format!("{value}\n")) } else { Ok(()) }
    }

    /// Prints a response: as it came, or for people.
    pub fn print(&self, answer: &Value, human: impl Fn(&Value) -> String) -> Result<(), CliError> {
        print(&if self.json { format!("{answer}\n") } else { human(answer) })
    }

    /// The client for the balancer that the arguments name.
    pub fn client(&self) -> Result<AdminClient, CliError> {
        let (address, file) = self.address_and_token_file()?;
        let file = self.token_file.clone().or(file);
        Ok(AdminClient { address, token: file.as_deref().map(token).transpose()? })
    }

    fn address_and_token_file(&self) -> Result<(AdminAddress, Option<PathBuf>), CliError> {
        // The command line comes first; the environment counts where it names neither.
        let (admin, config) = match (&self.admin, &self.config) {
            (None, None) => (address_from_env()?, config_from_env()),
            (admin, config) => (admin.clone(), config.clone()),
        };
        let named = match (&admin, &config) {
            (Some(address), None) => return Ok((address.clone(), None)),
            (_, config) => config.as_deref().unwrap_or(Path::new("balancer.yaml")),
        };
        let found = load_admin_address(named)?;
        let address = match (&admin, &found.address) {
            (Some(address), _) => address.clone(),
            (None, Some(address)) => AdminAddress::of(address).ok_or_else(|| {
                CliError::NoTarget(format!(
                    "{} lets the system choose the admin port; name it with --admin HOST:PORT",
                    named.display()
                ))
            })?,
            (None, None) => {
                let what = "turns the admin API off; give it an `admin: { address: .. }`";
                return Err(CliError::NoTarget(format!("{} {what}", named.display())));
            }
        };
        Ok((address, found.token_file))
    }
}

/// The config file that the environment names; an empty name is none.
pub fn config_from_env() -> Option<PathBuf> {
    std::env::var_os(CONFIG).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn address_from_env() -> Result<Option<AdminAddress>, CliError> {
    let Ok(text) = std::env::var(ADMIN) else { return Ok(None) };
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| CliError::NoTarget(format!("{ADMIN}: {error}")))
}

/// As the admin API writes them.
fn json_faults(faults: &Faults) -> Vec<Value> {
    let json = |fault: &Fault| {
        json!({
            "file": faults.file(),
            "line": fault.at.map(|at| at.line),
            "column": fault.at.map(|at| at.column),
            "message": fault.message,
        })
    };
    faults.list().iter().map(json).collect()
}

/// The token to send.
fn token(file: &Path) -> Result<String, CliError> {
    let shown = file.display();
    let text = read_secret(file).map_err(|error| {
        let what =
            format!("the token in {shown} cannot be read: {error}; --token-file FILE names another file");
        CliError::NoTarget(what)
    })?;
    let token = String::from_utf8_lossy(&text);
    let first = Tokens::first(&token).map(str::to_owned);
    first.ok_or_else(|| CliError::NoTarget(format!("{shown} has no token; write one in its first line")))
}
