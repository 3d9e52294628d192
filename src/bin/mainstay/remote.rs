//! The commands that speak to a running balancer: where it is, what it is asked, and how its answer is shown.
//!
//! Tables are for people and may change; `--json` is the admin API's own answer, for programs.

use std::path::{Path, PathBuf};

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use mainstay::admin::client::{Client, ClientFault, Place};
use mainstay::admin::sessions::{LARGEST_PAGE, PAGE};
use mainstay::config::{Fault, Faults, Tokens, yaml};
use mainstay::control::load::{admin_place, secret};
use mainstay::pool::NodeId;

use crate::{Failure, show, table};

/// Where a command looks for the config when it is not told.
const CONFIG: &str = "MAINSTAY_CONFIG";
/// Where it asks when it is not told.
const ADMIN: &str = "MAINSTAY_ADMIN";

/// Which balancer, and how its answer is shown.
#[derive(Args)]
pub struct Remote {
    /// The config of the running balancer, which says where its admin API is [env: MAINSTAY_CONFIG] [default: balancer.yaml]
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask here instead: HOST:PORT or unix:/path; only a config named with -c is read then [env: MAINSTAY_ADMIN]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<Place>,
    /// The file whose first token is shown [default: the config's]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print the answer as it came, in JSON
    #[arg(long)]
    json: bool,
}

/// Which sessions.
#[derive(Args)]
pub struct Wanted {
    /// Only those of this pool
    #[arg(long)]
    pool: Option<NodeId>,
    /// Only those on this node
    #[arg(long)]
    node: Option<NodeId>,
    /// The most sessions
    #[arg(long, default_value_t = PAGE as u64, value_parser = clap::value_parser!(u64).range(1..=LARGEST_PAGE as u64))]
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
pub struct Health {
    /// Whether it takes clients, not only whether it is alive: no while it starts or drains, and with no node up
    #[arg(long)]
    ready: bool,
    #[command(flatten)]
    remote: Remote,
}

/// `mainstay health`. No token is needed for it, so none is read.
pub fn health(wanted: &Health) -> Result<(), Failure> {
    let path = if wanted.ready { "/readyz" } else { "/healthz" };
    let remote = &wanted.remote;
    let checked = remote
        .place_and_token_file()
        .and_then(|(place, _)| Ok(Client { place, token: None }.check_blocking(path)?));
    checked.map_err(|failure| remote.failed(failure))?;
    remote.show(&json!({ "ok": true }), |_| "ok\n".to_owned())
}

/// `mainstay status`
pub fn status(remote: &Remote) -> Result<(), Failure> {
    remote.tell(Method::GET, "/api/status", table::status)
}

/// `mainstay config`
pub fn config(remote: &Remote) -> Result<(), Failure> {
    remote.tell(Method::GET, "/api/config", yaml)
}

/// `mainstay sessions`
pub fn sessions(remote: &Remote, wanted: &Wanted) -> Result<(), Failure> {
    let mut path = format!("/api/sessions?limit={}", wanted.limit);
    // None of these has a character that a query would have to escape.
    let pool = wanted.pool.as_ref().map(NodeId::as_str);
    let node = wanted.node.as_ref().map(NodeId::as_str);
    for (key, value) in [("pool", pool), ("node", node), ("after", wanted.after.as_deref())] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}={value}"));
        }
    }
    remote.tell(Method::GET, &path, table::sessions)
}

/// `mainstay kill`: each of them is tried, whatever becomes of the others.
pub fn kill(remote: &Remote, ids: &[String]) -> Result<(), Failure> {
    let client = remote.client().map_err(|failure| remote.failed(failure))?;
    let mut failed = 0;
    for id in ids {
        match client.ask_blocking(Method::DELETE, &format!("/api/sessions/{id}")) {
            Ok(answer) => {
                remote.show(&answer, |answer| format!("closing {}\n", table::text(&answer["closing"])))?;
            }
            Err(ClientFault::Refused { what, .. }) => {
                failed += 1;
                eprintln!("mainstay: {id}: {what}");
                remote.show_json(&json!({ "id": id, "error": what }))?;
            }
            // Whoever cannot be asked about one cannot be asked about the next.
            Err(fault) => return Err(remote.failed(fault.into())),
        }
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Said) }
}

/// `mainstay reload`
pub fn reload(remote: &Remote) -> Result<(), Failure> {
    remote.tell(Method::POST, "/api/reload", table::changes)
}

/// `mainstay upgrade`
pub fn upgrade(remote: &Remote) -> Result<(), Failure> {
    remote.tell(Method::POST, "/api/upgrade", table::upgrade)
}

impl Remote {
    /// Asks, and shows the answer.
    pub fn tell(&self, method: Method, path: &str, human: impl Fn(&Value) -> String) -> Result<(), Failure> {
        let answer = self.client().and_then(|client| Ok(client.ask_blocking(method, path)?));
        self.show(&answer.map_err(|failure| self.failed(failure))?, human)
    }

    /// A failure on its way out: with `--json`, programs get it as the admin API says errors.
    pub fn failed(&self, failure: Failure) -> Failure {
        let (what, faults) = match &failure {
            Failure::Config(faults) => ("the config has faults".to_owned(), json_faults(faults)),
            Failure::Remote(ClientFault::Refused { what, json, .. }) => (what.clone(), json.clone()),
            other => (other.to_string().trim_start_matches("mainstay: ").to_owned(), Vec::new()),
        };
        // A pipe that is closed takes nothing away from the failure itself.
        let _ = self.show_json(&json!({ "error": what, "faults": faults }));
        failure
    }

    /// Shows this, where JSON is wanted.
    fn show_json(&self, value: &Value) -> Result<(), Failure> {
        if self.json { show(&format!("{value}\n")) } else { Ok(()) }
    }

    /// Shows an answer.
    pub fn show(&self, answer: &Value, human: impl Fn(&Value) -> String) -> Result<(), Failure> {
        show(&if self.json { format!("{answer}\n") } else { human(answer) })
    }

    /// Asks nobody yet.
    pub fn client(&self) -> Result<Client, Failure> {
        let (place, file) = self.place_and_token_file()?;
        let file = self.token_file.clone().or(file);
        Ok(Client { place, token: file.as_deref().map(token).transpose()? })
    }

    fn place_and_token_file(&self) -> Result<(Place, Option<PathBuf>), Failure> {
        // What is said on the command line is meant; the environment fills in for who said nothing.
        let (admin, config) = match (&self.admin, &self.config) {
            (None, None) => (place_from_env()?, config_from_env()),
            (admin, config) => (admin.clone(), config.clone()),
        };
        let named = match (&admin, &config) {
            (Some(place), None) => return Ok((place.clone(), None)),
            (_, config) => config.as_deref().unwrap_or(Path::new("balancer.yaml")),
        };
        let found = admin_place(named)?;
        let place = match (&admin, &found.address) {
            (Some(place), _) => place.clone(),
            (None, Some(address)) => Place::of(address).ok_or_else(|| {
                Failure::Place(format!(
                    "{} lets the system choose the admin port; name it with --admin HOST:PORT",
                    named.display()
                ))
            })?,
            (None, None) => {
                let what = "turns the admin API off; give it an `admin: { address: .. }`";
                return Err(Failure::Place(format!("{} {what}", named.display())));
            }
        };
        Ok((place, found.token_file))
    }
}

/// The config file that the environment names; an empty name is none.
pub fn config_from_env() -> Option<PathBuf> {
    std::env::var_os(CONFIG).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn place_from_env() -> Result<Option<Place>, Failure> {
    let Ok(text) = std::env::var(ADMIN) else { return Ok(None) };
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|fault| Failure::Place(format!("{ADMIN}: {fault}")))
}

/// As the admin API says them.
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

/// The token to show.
fn token(file: &Path) -> Result<String, Failure> {
    let shown = file.display();
    let text = secret(file).map_err(|error| {
        let what =
            format!("the token in {shown} cannot be read: {error}; --token-file FILE names another file");
        Failure::Place(what)
    })?;
    let token = String::from_utf8_lossy(&text);
    let first = Tokens::first(&token).map(str::to_owned);
    first.ok_or_else(|| Failure::Place(format!("{shown} has no token; write one in its first line")))
}
