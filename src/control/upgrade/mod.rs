//! Replacing the binary without closing a connection: the old process hands over, the new one takes over.
//!
//! 1. The old process starts the program that is at its own path now, with its own arguments, and the new process reads
//!    and checks its config. The standard input of the new one is an unnamed socket to the old one.
//! 2. Old: sends the listening sockets ([`protocol::Hello`]). New: probes every node once, and is ready. Reloads of the
//!    old process go on meanwhile; after one, another new process is started.
//! 3. Old: stops accepting (clients wait in the kernel's queue), and sends what it has counted, what it knows of its nodes,
//!    and all that governs live tunnels: drains, rebalances, removals ([`protocol::HandedState`]). From here on nothing of
//!    that is changed here; what is sent later only adds to the counts.
//! 4. The tunnels go over batch by batch (`ownership`): frozen, sent, held untouched, released, carried. After the first
//!    batch the new process accepts clients and reports to the service manager.
//! 5. When all have gone over the old process settles: it closes its listeners, for good. It finishes the handshakes and
//!    requests that it has begun, hands over the tunnels that come of them and those that its own predecessor hands to it,
//!    sends its last counts, and ends.
//!
//! Until it settles, the old process accepts clients again with what it has when the new one fails or dies. Up to the first
//! batch that costs nothing; after it, what the new one carried has ended with it.

// Every action of the two machines is performed.
#![deny(unused_must_use)]

mod batch_receiver;
mod batch_sender;
mod batch_size;
#[cfg_attr(
    not(debug_assertions),
    expect(unreachable_pub, reason = "a release has no fuzz targets, which reach it")
)]
mod channel;
mod child;
mod control_state;
mod new_process;
mod old_process;
mod outcome;
mod ownership;
mod program;
pub mod protocol;
mod upgrader;

/// For the fuzz targets.
#[cfg(debug_assertions)]
#[doc(hidden)]
pub use channel::{ChannelError, decode_piece};

pub(crate) use new_process::Takeover;
pub use new_process::UpgradeChannel;
pub(crate) use program::Program;
pub(crate) use upgrader::Upgrader;
