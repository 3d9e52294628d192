//! Routes: host and path to a pool, first match wins.

use std::sync::Arc;

/// One entry of `routes`.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The host that the request must name; `None` is any.
    pub host: Option<Host>,
    /// The path prefix that the request must have; `None` is any.
    pub path: Option<String>,
    /// Name of the pool.
    pub pool: Arc<str>,
}

/// A host pattern, lower case, without port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// This very name.
    Exact(String),
    /// `*.example.com`: any name below this one (kept here as `example.com`), not itself.
    Below(String),
}
