//! The control plane: loads and reloads the config, checks the health of the nodes, and reports to the service manager.
//!
//! [`Reload`] is the entry: it owns the running config and applies another one.

pub(crate) mod health_check;
mod listen_spec;
mod listeners;
pub mod load;
pub(crate) mod log_rotation;
pub(crate) mod probe;
pub mod rebalance;
mod reload;
mod removal;
pub(crate) mod service_status;
pub mod upgrade;
pub(crate) mod watch;

pub(crate) use listen_spec::ListenSpec;
pub(crate) use listeners::BoundListeners;
pub use reload::Reload;
pub(crate) use reload::{ServeAdmin, handover_name};
