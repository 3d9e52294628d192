//! Replacing the binary with every connection kept: the old process gives, the new one takes.
//!
//! 1. The old process starts the program that stands at its own path now, with its own arguments, and the new process
//!    reads and checks its config. The standard input of the new one is a socket to the old one that has no name.
//! 2. Old: the listening sockets, and where it stands ([`words::Hello`]). New: asks every node once, and is ready.
//! 3. Old: accepts no more (clients wait in the kernel's queue), and says what it has counted and knows of its nodes
//!    ([`words::Take`]).
//! 4. The tunnels, batch by batch ([`steps`]): frozen, sent, held untouched, let go, gone on with. The first batch is
//!    the point of no return: behind it the new process accepts clients and speaks for the service.
//! 5. The old process finishes the handshakes and requests that it has begun, gives the tunnels that come of them, says
//!    what it has counted last, and ends.
//!
//! Up to the point of no return every fault leaves the old process serving as before; the new one is killed.

mod batch;
mod giver;
mod link;
mod program;
pub mod steps;
mod taker;
pub mod words;

/// For the fuzz targets.
#[cfg(debug_assertions)]
#[doc(hidden)]
pub use link::{TalkFault, arrivals};

pub use giver::{Replaced, UpgradeFault, Upgrader};
pub use program::Program;
pub use taker::{Succession, Taking};
