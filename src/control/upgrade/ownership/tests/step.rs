//! What each of the two processes can do next, and the truth about a batch.

use super::super::{NewAction, OldAction};

/// What the old process writes. A piece and the end of a batch have the number of its attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ModelMessage {
    Ping,
    Piece(usize),
    Whole(usize),
    Go,
    Revoke,
    Settled,
    Last,
}

/// What the old process does next. It can die before each step, and an action of more than one effect has more steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum OldStep {
    Perform(OldAction),
    SendWhole {
        is_limited: bool,
    },
    Await {
        is_limited: bool,
    },
    AwaitDeath,
    SayGo,
    SayLast,
    /// It offers no more and lives on.
    Stopped,
    /// It ends by itself.
    Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum NewStep {
    Perform(NewAction),
    SayRefused,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Life {
    Lives,
    /// It has been killed, and may do some steps before it feels it.
    Dying,
    Dead,
}

/// The truth about the sockets of a batch, apart from what the machines believe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Batch {
    pub old_carries: bool,
    /// The old process has its descriptors, so it could carry them again.
    pub old_has: bool,
    pub new_carries: bool,
    /// The new process has carried the batch, alive or dying: what the old one knows of it is out of date.
    pub is_touched: bool,
    pub is_released: bool,
    pub is_forfeited: bool,
}
