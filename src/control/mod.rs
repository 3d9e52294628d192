//! The control plane: loading the config and putting another one into effect, watching the nodes, and telling the
//! service manager.
//!
//! [`Reload`] is the way in: it has the running config, and whoever wants another one asks it.

mod apply;
pub mod ask;
mod bind;
mod doors;
pub mod load;
pub mod pages;
pub mod probe;
pub mod rebalance;
mod removal;
pub mod service_status;
pub mod upgrade;
pub mod watch;

pub use apply::{Reload, ServeAdmin, handed_name};
pub use bind::ListenSpec;
pub use doors::Bound;
