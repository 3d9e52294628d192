//! The data plane: from an accepted connection to a tunnel in the relay, or to an ordinary answer.
//!
//! [`connection`] tells the story from accept to adopt; every other file is one step of it, or what the steps share.
//! A [`ProxyState`] is one generation of the config, built once and never changed. What lives longer than a generation
//! (health, meters, idle connections) hangs on the `upstream`s. A session takes one generation at its
//! request and keeps it to its adoption (invariant I3).

mod accept;
pub mod acceptor;
mod admission;
mod catch_panic;
mod client_connection;
pub mod connection;
mod context;
mod dial_exhaustion;
pub mod drain;
mod forward;
mod handoff;
mod idle_timeout_lint;
mod node_handshake;
mod passive_health;
mod polling_session;
mod request_body;
mod request_outcome;
mod response;
mod rollout;
mod routing;
mod session;
mod session_admission;
mod state;
pub(crate) mod upstream;

pub use context::ProxyContext;
pub(crate) use state::budget;
pub use state::{ProxyState, UpstreamPool};
