//! Who owns a batch of tunnels while it goes from the old process to the new one: two state machines without I/O.
//!
//! Each process runs one of them for the whole upgrade. The process performs an action, reports the one event that came
//! of it, and gets the next action; it decides nothing itself. The test explores every order of events, delays and
//! deaths of the two machines.
//!
//! The old process owns its tunnels until the new one says that it holds them. The new one owns what it holds once the
//! old one has said that it let go, or has ended. That is enough because of four rules:
//!
//! - Once the old process has offered a batch, it takes it back only in one of these cases. The new process has refused
//!   it. The new process is dead: killed and waited for, which a parent can do. The batch is not whole in the socket, and
//!   no more of it will ever be written. The word that revokes it is in the socket: the new process reads it behind the
//!   batch and before the end of the socket, whichever of the two still lives. So it does not matter what the new one
//!   read, or said too late.
//! - The old process never closes the socket while it may still use an offered batch. So to the new one the end of the
//!   socket means that no other process can use what arrived.
//! - The new process never closes the socket with a batch offered and not refused, as long as it lives. So to the old
//!   one the end of the socket means that the new one is dying, and killing it costs nothing.
//! - Once the new process carries a batch it is killed for no delay: a batch that it is late with is revoked.

mod new;
mod old;

pub(super) use new::{NewAction, NewEvent, NewOwnership};
pub(super) use old::{OldAction, OldEvent, OldOwnership};

#[cfg(test)]
mod tests;
