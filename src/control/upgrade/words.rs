//! What the two processes say to each other: kinds of frames, and what stands in them.
//!
//! Bodies are JSON, so that either may be older: unknown fields are passed over, missing ones have a default. What they
//! must agree on is [`VERSION`]; tunnels have a version of their own.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::rebalance::Unfinished;
use crate::control::removal::RemovalSnapshot;
use crate::metrics::carried::Carried;
use crate::pool::health::Memory;

/// The version of the conversation.
pub const VERSION: u32 = 1;

/// The kinds of frames.
pub mod kind {
    /// Old to new: [`Hello`](super::Hello), with the listening sockets.
    pub const HELLO: u8 = 1;
    /// New to old: [it could serve now](super::Ready).
    pub const READY: u8 = 2;
    /// New to old: it cannot, in words. Of a batch: it holds none of it and never will.
    pub const FAULT: u8 = 3;
    /// Old to new: [`Take`](super::Take).
    pub const TAKE: u8 = 4;
    /// Old to new: some tunnels of a batch with their sockets.
    pub const PIECE: u8 = 5;
    /// Old to new: that was the batch; how many tunnels, as 8 bytes.
    pub const WHOLE: u8 = 6;
    /// New to old: it holds the batch.
    pub const HELD: u8 = 7;
    /// Old to new: it has let go of the batch.
    pub const GO: u8 = 8;
    /// Old to new: its [last words](super::Last); it ends.
    pub const LAST: u8 = 9;
    /// Old to new: is it there? Asked while everything is carried, before something is frozen.
    pub const PING: u8 = 10;
    /// New to old: it is.
    pub const PONG: u8 = 11;
    /// Old to new: the batch that was sent, or a part of it, is the old one's again.
    pub const BACK: u8 = 12;
    /// New to old: it holds nothing of the batch that was taken back.
    pub const FREED: u8 = 13;
    /// Old to new: all tunnels have gone over that were there, and it has no listener any more.
    pub const SETTLED: u8 = 14;
}

/// Where the old process stands.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// See [`VERSION`].
    pub version: u32,
    /// The generation of its config.
    pub generation: u32,
    /// How old the clock of health is.
    pub clock: Duration,
    /// What the config calls each of the listening sockets.
    pub listeners: Vec<String>,
    /// It says what governs its tunnels before it gives the first, and [`kind::SETTLED`] behind the last.
    pub settles: bool,
}

/// What the new process knows.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ready {
    /// [`kind::PING`], [`kind::BACK`] and [`kind::SETTLED`].
    pub settles: bool,
}

/// What the new process goes on from.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Take {
    /// What has been counted.
    pub counted: Carried,
    /// What is known of the nodes.
    pub nodes: Vec<Known>,
    /// The drains that are under way.
    pub drains: Vec<Drained>,
    /// What is gone from the config and still being left.
    pub left: Vec<RemovalSnapshot>,
    /// The rebalances that were under way; to go on with when the tunnels are there.
    pub rebalances: Vec<Unfinished>,
}

/// What is known of one node.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    /// The pool's name.
    pub pool: String,
    /// The node's name.
    pub node: String,
    /// Its address: what is known of another place is worth nothing.
    pub address: String,
    /// The rest.
    pub health: Memory,
}

/// What the old process has to say at last. It only adds to what [`Take`] has said.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Last {
    /// What it has counted in all.
    pub counted: Carried,
    /// The drains as they stand here: what they have closed since counts, and nothing else. Where [`Hello::settles`] is
    /// not said, they have not been named before.
    pub drains: Vec<Drained>,
    /// The rebalances that were under way when the other took over, where it was not [`Ready`] to hear of them before.
    pub rebalances: Vec<Unfinished>,
}

/// A drain under way.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Drained {
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
