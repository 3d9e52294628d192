//! Replacing the binary with every connection kept: the old process gives, the new one takes.
//!
//! 1. The old process starts the program that stands at its own path now, with its own arguments, and the new process
//!    reads and checks its config. The standard input of the new one is a socket to the old one that has no name.
//! 2. Old: the listening sockets, and where it stands ([`words::Hello`]). New: asks every node once, and is ready. Reloads
//!    of the old one go on meanwhile; after one, another new process is started.
//! 3. Old: accepts no more (clients wait in the kernel's queue), and says what it has counted, what it knows of its nodes,
//!    and all that governs live tunnels: drains, rebalances, who is leaving ([`words::Take`]). From here on nothing of
//!    that is changed here; what is said later only adds to the counts.
//! 4. The tunnels, batch by batch ([`steps`]): frozen, sent, held untouched, let go, gone on with. Behind the first the
//!    new process accepts clients and speaks for the service.
//! 5. When all have gone over the old process settles: it closes its listeners, for good. It finishes the handshakes and
//!    requests that it has begun, gives the tunnels that come of them and those that its own predecessor gives it, says
//!    what it has counted last, and ends.
//!
//! Until it settles, the old process takes clients again with what it has when the new one fails or dies. Up to the first
//! batch that costs nothing; behind it, what the new one carried has ended with it.

mod batch;
mod coming;
mod giver;
mod handing;
mod link;
mod offer;
mod program;
pub mod steps;
mod successor;
mod taker;
pub mod words;

/// For the fuzz targets.
#[cfg(debug_assertions)]
#[doc(hidden)]
pub use link::{TalkFault, arrivals};

pub use giver::{Replaced, UpgradeFault, Upgrader};
pub use program::Program;
pub use taker::{Succession, Taking};
