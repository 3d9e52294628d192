//! The protocol between the two processes: the kinds of frames, and their bodies.
//!
//! Bodies are JSON, so that either process may be older: unknown fields are ignored, and missing ones have a default. Both
//! must have the same [`VERSION`]; tunnels have a version of their own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::rebalance::PendingRebalance;
use crate::control::removal::RemovalSnapshot;
use crate::metrics::snapshot::CounterSnapshot;
use crate::pool::health::HealthState;

/// The version of the protocol.
pub const VERSION: u32 = 1;

/// The kinds of frames.
pub mod kind {
    /// Old to new: [`Hello`](super::Hello), with the listening sockets.
    pub const HELLO: u8 = 1;
    /// New to old: [it is ready to serve](super::Ready).
    pub const READY: u8 = 2;
    /// New to old: it cannot, and the reason as text. Of a batch: it holds none of it and never will.
    pub(crate) const FAULT: u8 = 3;
    /// Old to new: [`HandedState`](super::HandedState).
    pub const STATE: u8 = 4;
    /// Old to new: some tunnels of a batch with their sockets.
    pub const PIECE: u8 = 5;
    /// Old to new: the batch is complete; the number of its tunnels, as 8 bytes.
    pub const WHOLE: u8 = 6;
    /// New to old: it holds the batch.
    pub const HELD: u8 = 7;
    /// Old to new: it has let go of the batch.
    pub(crate) const GO: u8 = 8;
    /// Old to new: its [`FinalReport`](super::FinalReport); it ends.
    pub(crate) const FINAL: u8 = 9;
    /// Old to new: is it alive? Asked before a batch is frozen.
    pub const PING: u8 = 10;
    /// New to old: it is.
    pub const PONG: u8 = 11;
    /// Old to new: the batch that was sent, or a part of it, is revoked: the old process carries it again.
    pub(crate) const REVOKE: u8 = 12;
    /// New to old: it holds nothing of the revoked batch.
    pub(crate) const FREED: u8 = 13;
    /// Old to new: all tunnels have gone over that were there, and the old process has no listener any more.
    pub(crate) const SETTLED: u8 = 14;
}

/// What the old process says first.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// See [`VERSION`].
    pub version: u32,
    /// The generation of its config.
    pub generation: u32,
    /// The age of its health clock.
    pub clock: Duration,
    /// The name of each listening socket in the config.
    pub listeners: Vec<String>,
    /// It sends the state that governs its tunnels before the first of them, and `kind::SETTLED` after the last.
    pub settles: bool,
}

/// What the new process says when it is ready.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ready {
    /// It knows [`kind::PING`], `kind::REVOKE` and `kind::SETTLED`.
    pub settles: bool,
}

/// The state that the new process continues from.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HandedState {
    /// What has been counted.
    pub counted: CounterSnapshot,
    /// What is known of the nodes.
    pub nodes: Vec<NodeRecord>,
    /// The drains that are under way.
    pub drains: Vec<DrainRecord>,
    /// The nodes and routes that are gone from the config and whose tunnels are still being closed.
    pub left: Vec<RemovalSnapshot>,
    /// The rebalances that were under way; they go on when the tunnels have come.
    pub rebalances: Vec<PendingRebalance>,
}

/// What is known of one node.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeRecord {
    /// The pool's name.
    pub pool: String,
    /// The node's name.
    pub node: String,
    /// Its address: the record is of no use for a node at another address.
    pub address: String,
    /// Its health.
    pub health: HealthState,
}

/// What the old process says last. It only adds to [`HandedState`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FinalReport {
    /// All that it has counted.
    pub counted: CounterSnapshot,
    /// The drains as they stand there: only what they have closed since counts. Without [`Hello::settles`] they have not
    /// been named before.
    pub drains: Vec<DrainRecord>,
    /// The rebalances that were under way at the takeover, where [`Ready`] did not say that they can come earlier.
    pub rebalances: Vec<PendingRebalance>,
}

/// A drain under way.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainRecord {
    /// The pool's name.
    pub pool: String,
    /// The node's name.
    pub node: String,
    /// An operator ordered it.
    pub is_ordered: bool,
    /// Its whole window.
    pub over: Duration,
    /// The close code.
    pub code: u16,
    /// The reason in the Close.
    pub reason: String,
    /// How much of the window has passed.
    pub elapsed: Duration,
    /// Tunnels that have ended since it began.
    pub closed: usize,
}
