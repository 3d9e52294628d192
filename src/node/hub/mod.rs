//! The hub: what the clients of a node and of its fellows share, whichever protocol they speak.

pub mod adapter;
