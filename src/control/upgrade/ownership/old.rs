//! The old process's side of a batch: offered, held by the new process or taken back.

use std::time::Duration;

/// The new process answers a batch within this; it takes some milliseconds. A batch that it does not get is frozen no
/// longer.
const ANSWER_TIME: Duration = Duration::from_millis(900);

/// What happened to the old process: what came of the action before, or that it has tunnels to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum OldEvent {
    /// There may be tunnels to hand over.
    Offer,
    /// The new process answered the ping.
    Alive,
    /// The new process holds the whole batch.
    Held,
    /// The new process says that it holds nothing of the batch and never will.
    Refused,
    /// The batch is whole in the socket, and the new process did not answer in time.
    Late,
    /// The new process did not read in time, and the batch is not whole in the socket.
    Stuck,
    /// The word that revokes the batch is in the socket.
    Revoked,
    /// The socket has no room for that word.
    NoRoom,
    /// The new process says that it holds nothing of the revoked batch.
    Freed,
    /// The new process has closed the socket, cannot be reached, or does not keep to the protocol.
    Broken,
    /// The new process has ended, for certain.
    Dead,
    /// The new process was killed, and its end was not seen in time.
    Undead,
    /// The tunnels of the batch are carried here again.
    Resumed,
    /// The descriptors and keys of the batch are gone here, and the new process was told so.
    Released,
    /// This process is ending.
    ShuttingDown,
}

/// What the old process has to do next. It performs each one and reports the event that came of it.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum OldAction {
    /// Ask whether the new process is alive, and wait for its answer. Nothing is frozen meanwhile.
    Ping,
    /// Freeze a batch, send it, and wait for the answer.
    SendBatch {
        /// How long sending and waiting may take.
        within: Duration,
    },
    /// Wait for the answer to the batch without a time limit.
    AwaitAnswer,
    /// Say that the batch is taken back.
    Revoke,
    /// Wait until the new process says that it freed the revoked batch.
    AwaitFreed,
    /// Kill the new process and wait for its end.
    Kill,
    /// Carry the tunnels of the batch again.
    Resume,
    /// Close the descriptors of the batch, wipe the keys, and then tell the new process to go on with it.
    Release,
    /// Give the tunnels of the batch up: a process that cannot be seen dead may carry them.
    Forfeit,
    /// Nothing: the next batch may be offered.
    Done,
    /// Nothing: no batch can be offered any more.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum OldState {
    /// Every tunnel that has not gone over is carried here.
    Idle,
    /// The same; the new process has been asked whether it is alive.
    Pinged,
    /// A batch is frozen and on its way: no process carries it.
    Offered,
    /// The same, and the word that revokes it is being written.
    Revoking,
    /// The batch has been revoked and is carried here; the new process has not confirmed that yet.
    Revoked,
    /// A batch is frozen, and the new process is being killed.
    Killing,
    /// The new process holds the batch, which is being closed here.
    Releasing,
    /// No more goes over.
    Closed,
}

/// What the old process owns.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct OldOwnership {
    state: OldState,
    /// The new process carries tunnels, which its end would close.
    has_given: bool,
    /// The new process knows [ping](OldAction::Ping) and [revoke](OldAction::Revoke). One that does not is waited for
    /// without a limit once it carries tunnels.
    can_revoke: bool,
}

impl OldOwnership {
    /// Everything is carried here.
    pub(crate) fn new(can_revoke: bool) -> Self {
        Self { state: OldState::Idle, has_given: false, can_revoke }
    }

    /// Whether the new process can be told more.
    pub(crate) fn is_open(&self) -> bool {
        self.state != OldState::Closed
    }

    /// The next action, after this event.
    pub(crate) fn on(&mut self, event: OldEvent) -> OldAction {
        use {OldAction as Action, OldEvent as Event};
        let (next, action) = match (self.state, event) {
            (OldState::Idle, Event::Offer) if self.has_given && self.can_revoke => {
                (OldState::Pinged, Action::Ping)
            }
            (OldState::Idle, Event::Offer) | (OldState::Pinged, Event::Alive) => {
                (OldState::Offered, Action::SendBatch { within: self.answer_time() })
            }
            (OldState::Offered, Event::Held) => (OldState::Releasing, Action::Release),
            (OldState::Offered, Event::Refused) => (OldState::Closed, Action::Resume),
            (OldState::Offered, Event::Late) if self.has_given => (OldState::Revoking, Action::Revoke),
            (OldState::Offered, Event::Stuck) if self.has_given => (OldState::Closed, Action::Resume),
            // The batch stays frozen to the end of this process; then it is the new one's.
            (OldState::Offered, Event::ShuttingDown) if self.has_given => (OldState::Closed, Action::Stop),
            (OldState::Revoking, Event::Revoked) => (OldState::Revoked, Action::Resume),
            // An answer counts until the word is in the socket.
            (OldState::Revoking, Event::NoRoom) => (OldState::Offered, Action::AwaitAnswer),
            (OldState::Offered | OldState::Revoking, _) => (OldState::Killing, Action::Kill),
            // It may have said that it holds the batch before it read that it was revoked.
            (OldState::Revoked, Event::Resumed | Event::Held) => (OldState::Revoked, Action::AwaitFreed),
            (OldState::Revoked, Event::Freed) => (OldState::Idle, Action::Done),
            (OldState::Killing, Event::Dead) => (OldState::Closed, Action::Resume),
            (OldState::Killing, _) => (OldState::Closed, Action::Forfeit),
            (OldState::Releasing, Event::Released) => (OldState::Idle, Action::Done),
            (
                OldState::Idle
                | OldState::Pinged
                | OldState::Revoked
                | OldState::Releasing
                | OldState::Closed,
                _,
            ) => (OldState::Closed, Action::Stop),
        };
        self.has_given |= action == Action::Release;
        self.state = next;
        action
    }

    fn answer_time(&self) -> Duration {
        if self.has_given && !self.can_revoke { Duration::MAX } else { ANSWER_TIME }
    }
}
