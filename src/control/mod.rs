//! The control plane: loads and reloads the config, checks the health of the nodes, and reports to the service manager.
//!
//! [`Reload`] is the entry: it owns the running config and applies another one.

mod reload;
pub mod health_check;
mod listen_spec;
mod listeners;
pub mod load;
pub mod log_rotation;
pub mod probe;
pub mod rebalance;
mod removal;
pub mod service_status;
pub mod upgrade;
pub mod watch;

pub use listen_spec::ListenSpec;
pub use listeners::BoundListeners;
pub use reload::{Reload, ServeAdmin, handover_name};
