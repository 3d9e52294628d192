//! Whether a node is up: rise and fall of probes, passive ejection, slow start.

use std::time::Duration;

/// How a node's health is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Good probes in a row that bring a node up.
    pub rise: u32,
    /// Failed probes in a row that bring a node down.
    pub fall: u32,
    /// Failures in a row seen by real traffic that eject a node; 0 turns ejection off.
    pub failures: u32,
    /// How long an ejected node is left out.
    pub eject: Duration,
    /// How long a returned node's share grows.
    pub slow_start: Duration,
}
