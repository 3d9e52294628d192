//! The config as used: resolved and checked, each key written once.
//!
//! [`resolve`] goes from YAML as written to a [`Config`], or to every fault at once. The environment and the files
//! that the config names come in as arguments, so nothing here touches the world.
//!
//! Each section is a table (`entry`) of its keys: type, form, default, and what it is for. The reader, the schema, the
//! manual, what is in effect and what a reload changes are made of the tables.
//!
//! In reading order: `address` (where to listen), `fault` (what is wrong, and where), `raw` (the tree of the YAML, with
//! `variables` put in), `reader` (what a value must be, with `units`), `key` (what a table says of a key), `change` (what
//! differs between two configs), `entry` and `forms` (what tables are made of), then the sections: `proxies`,
//! `listeners`, `limits`, `pools` (with `nodes`, `sources`, `health`, `drain`, `rebalance`), `tls` (with the certificates
//! of `identity` and the keys of `secret`), `routes`, and `top`, the whole of it.
//! `budget` says whether it fits into what the system gives, `summary` in a few lines what a config amounts to, `yaml` writes all of it, `schema` says what one may look like.

mod address;
mod budget;
mod change;
mod drain;
mod entry;
mod fault;
mod forms;
mod health;
mod identity;
mod key;
mod limits;
mod listeners;
mod nodes;
mod pools;
mod proxies;
mod raw;
mod reader;
mod rebalance;
mod routes;
pub mod schema;
mod secret;
mod sources;
mod summary;
mod tls;
mod top;
mod variables;
mod yaml;

pub use address::ListenAddress;
pub use budget::{Budget, Supply};
pub use change::{Change, Subject, What};
pub use drain::Drain;
pub use fault::{Fault, Faults, Position};
pub use health::{HealthCheck, PassiveHealthCheck, Probe};
pub use identity::{Authorities, Identity};
pub use limits::Limits;
pub(crate) use listeners::same_listeners;
pub use listeners::{AddressPositions, Admin, AdminEndpoint, FileAccess, ListenerConfig};
pub use mainstay_core::bearer_tokens::Tokens;
pub use mainstay_core::units::{duration, show_duration, size};
pub use pools::{Messages, Pool, ProxyVersion, Timeouts};
pub(crate) use raw::LARGEST_FILE;
pub use reader::ReadFile;
pub use rebalance::Rebalance;
pub(crate) use routes::is_still_there;
pub use summary::Summary;
pub(crate) use tls::node_name;
pub use tls::{ListenerTls, PoolTls, TlsVersion};
pub use top::{AccessLogConfig, Config, LogFormat, LogPath, Shutdown, diff, effective};
pub use variables::Env;
pub use yaml::yaml;

/// The config that the YAML `text` of `file` says, or everything that is wrong with it.
///
/// `env` looks up the variables of `${NAME}`; `read` reads the files that the config names (a `secret_file`). Whether
/// certificates are valid now is not asked; [`resolve_at`] does.
///
/// # Errors
///
/// Every fault of the file, in its order.
pub fn resolve(file: &str, text: &[u8], env: Env, read: ReadFile) -> Result<Config, Faults> {
    resolve_for(file, None, text, env, read)
}

/// The same at a time, in Unix seconds: a certificate that has expired, or is not valid yet, is a fault.
///
/// # Errors
///
/// Every fault of the file, in its order.
pub fn resolve_at(file: &str, now: i64, text: &[u8], env: Env, read: ReadFile) -> Result<Config, Faults> {
    resolve_for(file, Some(now), text, env, read)
}

fn resolve_for(
    file: &str,
    now: Option<i64>,
    text: &[u8],
    env: Env,
    read: ReadFile,
) -> Result<Config, Faults> {
    let mut faults = Vec::new();
    let Some(root) = raw::parse(text, env, &mut faults) else {
        return Err(Faults::new(file, faults));
    };
    let reader = reader::Reader::new(read, now, Some(&root));
    let config = top::config(&reader::Value::root(&reader, &root));
    let (found, mut warnings) = reader.into_findings();
    faults.extend(found);
    match config {
        Some(config) if faults.is_empty() => {
            warnings.sort();
            // What an anchor holds is read once for each alias.
            warnings.dedup();
            Ok(Config { warnings, ..config })
        }
        _ => Err(Faults::new(file, faults)),
    }
}

/// Where the admin API of the config in `text` is. Faults elsewhere do not matter, as long as the YAML can be read.
///
/// # Errors
///
/// The faults of the section `admin`, or those of the YAML.
pub fn admin_place(file: &str, text: &[u8], env: Env) -> Result<AdminEndpoint, Faults> {
    let mut faults = Vec::new();
    let root = raw::parse(text, env, &mut faults);
    let reader = reader::Reader::silent(None);
    let place = root.as_ref().and_then(|root| listeners::admin_place(reader::Value::root(&reader, root)));
    let (found, _) = reader.into_findings();
    match place {
        Some(place) if found.is_empty() => Ok(place),
        _ => {
            faults.extend(found);
            Err(Faults::new(file, faults))
        }
    }
}
