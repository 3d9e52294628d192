//! Replacing the binary with every connection kept.
pub mod steps;
