//! The commands that speak to a running balancer: where it is, what it is asked, and how its answer is shown.
//!
//! Tables are for people and may change; `--json` is the admin API's own answer, for programs.

use std::path::{Path, PathBuf};

use clap::Args;
use http::Method;
use serde_json::Value;

use mainstay::admin::client::{Client, Place};
use mainstay::admin::sessions::{LARGEST_PAGE, PAGE};
use mainstay::config::Tokens;
use mainstay::control::load::{admin_place, secret};
use mainstay::pool::NodeId;

use crate::{Failure, show, table};

/// Which balancer, and how its answer is shown.
#[derive(Args)]
pub struct Remote {
    /// The config of the running balancer, which says where its admin API is [default: balancer.yaml]
    #[arg(short, long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask here instead: HOST:PORT or unix:/path; only a config named with -c is read then
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

/// `mainstay status`
pub fn status(remote: &Remote) -> Result<(), Failure> {
    remote.tell(Method::GET, "/api/status", table::status)
}

/// `mainstay config`
pub fn config(remote: &Remote) -> Result<(), Failure> {
    remote.tell(Method::GET, "/api/config", |config| format!("{config:#}\n"))
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

/// `mainstay kill`
pub fn kill(remote: &Remote, ids: &[String]) -> Result<(), Failure> {
    let shown = |answer: &Value| format!("closing {}\n", table::text(&answer["closing"]));
    ids.iter().try_for_each(|id| remote.tell(Method::DELETE, &format!("/api/sessions/{id}"), shown))
}

/// `mainstay reload`
pub fn reload(remote: &Remote) -> Result<(), Failure> {
    remote.tell(Method::POST, "/api/reload", table::changes)
}

impl Remote {
    /// Asks, and shows the answer.
    fn tell(&self, method: Method, path: &str, human: impl Fn(&Value) -> String) -> Result<(), Failure> {
        let answer = self.client()?.ask_blocking(method, path)?;
        self.show(&answer, human)
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
        let named = match (&self.admin, &self.config) {
            (Some(place), None) => return Ok((place.clone(), None)),
            (_, config) => config.as_deref().unwrap_or(Path::new("balancer.yaml")),
        };
        let found = admin_place(named)?;
        let place = match (&self.admin, &found.address) {
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
