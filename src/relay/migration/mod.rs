//! Tunnels on their way to another process, and who owns them at every step.
//!
//! 1. The old process freezes a batch ([`Relay::freeze`](super::Relay::freeze)). Each relay thread removes the sockets
//!    from its epoll first and then from the tunnel: a tunnel without sockets cannot be served by anything. It is
//!    still listed and counted; a close that becomes due waits for its return.
//! 2. The [`FrozenBatch`] lends each [`FrozenTunnel`] and its sockets to the sender.
//! 3. The new process stages them ([`StagedTunnels::new`]): it builds every tunnel and touches no socket.
//! 4. The old process releases them ([`FrozenBatch::release`]): its copies are wiped, its descriptors are closed, and
//!    there is no session end, because nothing has ended. Or it resumes them ([`FrozenBatch::resume`]), as if nothing
//!    had happened.
//! 5. The new process activates them ([`Relay::activate`](super::Relay::activate)) or discards them
//!    ([`StagedTunnels::discard`]): it closes its descriptors, which changes nothing for a connection that another
//!    process has open, too.
//!
//! Without a decision the old process keeps its tunnels and the new one discards its copies: dropping a batch resumes
//! or discards it. The callers see to it, between steps 3 and 5, that no two processes ever send: the old process
//! releases before the new one activates.

mod batch;
pub(super) mod frozen;
pub(super) mod staged;

pub use batch::FrozenBatch;
pub use frozen::FrozenTunnel;
pub use staged::{ReceivedTunnel, StageError, StagedTunnels};

#[cfg(test)]
mod tests;
