//! The new process's side of a batch: received, held untouched, and then carried or discarded.

/// What happened to the new process: what came of the action before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum NewEvent {
    /// The old process asks whether this one is alive.
    Pinged,
    /// A piece of a batch.
    Piece,
    /// The whole batch is here and can be carried.
    Whole,
    /// Something that cannot be taken or read.
    Unfit,
    /// The old process has let go of the batch.
    Go,
    /// The old process has revoked the batch.
    Revoked,
    /// All tunnels have come that were there, and the old process has no listener any more.
    Settled,
    /// The last word of the old process.
    LastWord,
    /// The end of the socket.
    End,
    /// What was to be said has been said; where it did not get through, the end of the socket comes next.
    Said,
    /// The batch is carried here.
    Carried,
    /// What came of the batch is closed here.
    Discarded,
    /// This process accepts clients.
    Serving,
    /// What waited for the last of the tunnels goes on.
    Resumed,
}

/// What the new process has to do next. It performs each one and reports the event that came of it.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum NewAction {
    /// Wait for the next word of the old process.
    Receive,
    /// Answer the ping.
    SayAlive,
    /// Say that the batch is held.
    SayHeld,
    /// Say that nothing is held of the revoked batch.
    SayFreed,
    /// Carry the tunnels of the batch.
    Carry,
    /// Close what came of the batch.
    Discard,
    /// Close what came of the batch, and then say why it is not taken and never will be.
    Refuse,
    /// Accept clients: the old process does so no more.
    Serve,
    /// Go on with what waits for the last of the tunnels.
    Resume,
    /// Close the socket: nothing comes any more.
    Finish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum NewState {
    /// Not all of a batch is here, and what is here is not touched.
    Receiving,
    /// A batch is here, and no byte of it is touched.
    Holding,
    /// A batch has been revoked.
    Revoked,
    /// The old process has ended, or has nothing more to say.
    Ended,
    /// A batch has been refused: no other is taken.
    Refused,
}

/// What the new process owns.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct NewOwnership {
    state: NewState,
    /// This process accepts clients, or is about to: the first batch is carried, or the old process has ended.
    serves: bool,
}

impl NewOwnership {
    /// Nothing has come yet; the action to begin with is [`NewAction::Receive`].
    pub(crate) fn new() -> Self {
        Self { state: NewState::Receiving, serves: false }
    }

    /// The next action, after this event.
    pub(crate) fn on(&mut self, event: NewEvent) -> NewAction {
        use {NewAction as Action, NewEvent as Event};
        let (next, action) = match (self.state, event) {
            (NewState::Receiving, Event::Pinged) => (NewState::Receiving, Action::SayAlive),
            (NewState::Receiving, Event::Piece) => (NewState::Receiving, Action::Receive),
            (NewState::Receiving, Event::Whole) => (NewState::Holding, Action::SayHeld),
            (NewState::Receiving | NewState::Holding, Event::Revoked) => (NewState::Revoked, Action::Discard),
            (NewState::Receiving, Event::Settled) if self.serves => (NewState::Receiving, Action::Resume),
            (NewState::Receiving, Event::LastWord) if self.serves => (NewState::Ended, Action::Finish),
            (NewState::Receiving, Event::End) => (NewState::Ended, Action::Discard),
            (NewState::Holding, Event::Said) => (NewState::Holding, Action::Receive),
            (NewState::Holding, Event::Go) => (NewState::Receiving, Action::Carry),
            (NewState::Holding, Event::End) => (NewState::Ended, Action::Carry),
            (NewState::Receiving | NewState::Ended, Event::Carried | Event::Discarded) if !self.serves => {
                (self.state, Action::Serve)
            }
            (NewState::Receiving, Event::Said | Event::Carried | Event::Serving | Event::Resumed) => {
                (NewState::Receiving, Action::Receive)
            }
            (NewState::Revoked, Event::Discarded) => (NewState::Revoked, Action::SayFreed),
            (NewState::Revoked, _) => (NewState::Receiving, Action::Receive),
            // Nothing else is said by a process that keeps to the protocol.
            (NewState::Receiving | NewState::Holding, _) => (NewState::Refused, Action::Refuse),
            (NewState::Ended | NewState::Refused, _) => (self.state, Action::Finish),
        };
        self.serves |= action == Action::Serve;
        self.state = next;
        action
    }
}
