//! The admin address: metrics, liveness, readiness and the API over HTTP/1.1.
//!
//! In reading order: `server` (connections and their limits), `access` (who may ask), `api` (which path is answered how),
//! `status`, [`sessions`], `nodes` and `rebalance` (what is shown and done), `response`; and [`client`], the other
//! end, for the commands.

mod access;
mod api;
pub mod client;
mod context;
mod nodes;
mod rebalance;
mod response;
mod server;
pub mod sessions;
mod status;

pub(crate) use context::AdminContext;
pub(crate) use server::serve;
