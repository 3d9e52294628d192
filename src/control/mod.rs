//! The control plane: loading the config, watching the nodes, and telling the service manager.

pub mod ask;
pub mod load;
pub mod probe;
pub mod report;
