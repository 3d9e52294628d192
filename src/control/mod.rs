//! The control plane: loading the config and putting another one into effect, watching the nodes, and telling the
//! service manager.
//!
//! [`Reload`] is the way in: it has the running config, and whoever wants another one asks it.

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
