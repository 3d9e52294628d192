//! The control plane: loading the config, and watching the nodes.

pub mod ask;
pub mod load;
pub mod pages;
pub mod probe;
