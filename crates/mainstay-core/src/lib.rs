//! What the balancer and the node share.
//!
//! A module names only modules above it in this file.

#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

// pure: data and arithmetic; time and randomness come in as arguments
pub mod hash;
pub mod query;
pub mod host;
pub mod origin;
pub mod forwarded;
pub mod bearer_tokens;
pub mod units;
pub mod ws;
pub mod rate_limit;

// mechanism: I/O without policy
pub mod shutdown;
pub mod service;
pub mod log;
pub mod open_files;
pub mod listening_process;
pub mod process_metrics;
