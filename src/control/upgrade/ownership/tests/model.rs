//! The model: the two processes, each of which performs what its machine says, and the socket between them.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::*;
use super::step::{Batch, Life, ModelMessage, NewStep, OldStep};

/// Batches that go over.
pub(super) const BATCHES: usize = 2;

/// The two processes and the socket between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct UpgradeModel {
    pub(super) old: OldOwnership,
    pub(super) new: NewOwnership,
    pub(super) old_step: OldStep,
    pub(super) new_step: NewStep,
    pub(super) old_life: Life,
    pub(super) new_life: Life,
    pub(super) to_new: VecDeque<ModelMessage>,
    pub(super) to_old: VecDeque<OldEvent>,
    /// The old process has not closed its end of the socket.
    pub(super) is_open: bool,
    /// The new process has closed its end.
    pub(super) is_finished: bool,
    pub(super) is_serving: bool,
    pub(super) batches: [Batch; BATCHES],
    /// The batch that the old process offers.
    pub(super) at: usize,
    /// The batch that the new process has.
    pub(super) arrived: Option<usize>,
    /// A whole batch was written to the socket and not revoked since.
    pub(super) is_sent: bool,
    /// The new process has refused a batch.
    pub(super) is_refused: bool,
    /// The old process has revoked the batch that is offered now.
    pub(super) is_revoked: bool,
    /// Delays that may still happen.
    pub(super) delays: u8,
    /// Deaths that nobody here caused and that may still happen.
    pub(super) crashes: u8,
}

impl UpgradeModel {
    pub(super) fn start(can_revoke: bool) -> Self {
        let mut old = OldOwnership::new(can_revoke);
        let first = old.on(OldEvent::Offer);
        Self {
            old,
            new: NewOwnership::new(),
            old_step: OldStep::Perform(first),
            new_step: NewStep::Perform(NewAction::Receive),
            old_life: Life::Lives,
            new_life: Life::Lives,
            to_new: VecDeque::new(),
            to_old: VecDeque::new(),
            is_open: true,
            is_finished: false,
            is_serving: false,
            batches: [Batch { old_carries: true, old_has: true, ..Batch::default() }; BATCHES],
            at: 0,
            arrived: None,
            is_sent: false,
            is_refused: false,
            is_revoked: false,
            delays: 2,
            crashes: 2,
        }
    }

    /// Every world that one step makes of this one.
    pub(super) fn next(&self) -> Vec<Self> {
        let mut next = Vec::new();
        if self.old_life == Life::Lives {
            next.extend(self.old_steps());
        }
        if self.new_life != Life::Dead {
            next.extend(self.new_steps());
        }
        if self.new_life == Life::Dying {
            next.push(self.with(Self::new_dies));
        }
        if self.crashes > 0 && self.old_life == Life::Lives {
            next.push(self.with(|world| {
                world.crashes -= 1;
                world.old_dies();
            }));
        }
        if self.crashes > 0 && self.new_life != Life::Dead {
            next.push(self.with(|world| {
                world.crashes -= 1;
                world.new_dies();
            }));
        }
        next
    }

    fn with(&self, step: impl FnOnce(&mut Self)) -> Self {
        let mut world = self.clone();
        step(&mut world);
        world
    }

    fn old_dies(&mut self) {
        self.old_life = Life::Dead;
        self.to_old.clear();
        for batch in &mut self.batches {
            (batch.old_carries, batch.old_has) = (false, false);
        }
    }

    fn new_dies(&mut self) {
        self.new_life = Life::Dead;
        self.to_new.clear();
        self.batches.iter_mut().for_each(|batch| batch.new_carries = false);
    }

    fn batch(&mut self) -> &mut Batch {
        &mut self.batches[self.at]
    }

    pub(super) fn is_with_new(&self) -> bool {
        self.batches.iter().any(|batch| batch.new_carries)
    }

    fn old_on(&mut self, event: OldEvent) {
        self.old_step = OldStep::Perform(self.old.on(event));
    }

    fn new_on(&mut self, event: NewEvent) {
        self.new_step = NewStep::Perform(self.new.on(event));
    }

    /// This event of the old process.
    fn old_event(&self, event: OldEvent) -> Self {
        self.with(|world| world.old_on(event))
    }

    /// The same, after a delay.
    fn delayed(&self, event: OldEvent) -> Option<Self> {
        (self.delays > 0).then(|| {
            self.with(|world| {
                world.delays -= 1;
                world.old_on(event);
            })
        })
    }

    /// Writes a word; a dead process is not reached.
    fn write(&mut self, word: ModelMessage) {
        if self.new_life != Life::Dead {
            self.to_new.push_back(word);
        }
    }

    /// What the old process can do next.
    fn old_steps(&self) -> Vec<Self> {
        let mut next = Vec::new();
        match self.old_step {
            OldStep::Perform(OldAction::Revoke) if self.new_life == Life::Dead => {
                next.push(self.old_event(OldEvent::Broken));
            }
            OldStep::Perform(action) => {
                next.push(self.with(|world| world.perform_old(action)));
                if action == OldAction::Revoke {
                    next.push(self.old_event(OldEvent::NoRoom));
                }
            }
            OldStep::SendWhole { is_limited } => {
                next.push(self.with(|world| {
                    let at = world.at;
                    world.write(ModelMessage::Whole(at));
                    (world.is_sent, world.old_step) = (true, OldStep::Await { is_limited });
                }));
                if is_limited {
                    next.extend(self.delayed(OldEvent::Stuck));
                }
            }
            OldStep::Await { is_limited } => next.extend(self.awaits(is_limited)),
            OldStep::AwaitDeath => {
                if self.new_life == Life::Dead {
                    next.push(self.old_event(OldEvent::Dead));
                }
                next.extend(self.delayed(OldEvent::Undead));
            }
            OldStep::SayGo => next.push(self.with(Self::say_go)),
            OldStep::SayLast => next.push(self.with(|world| {
                world.write(ModelMessage::Last);
                world.old_step = OldStep::Ending;
            })),
            OldStep::Stopped if self.is_open => next.push(self.with(|world| world.is_open = false)),
            OldStep::Stopped => {}
            OldStep::Ending => next.push(self.with(Self::old_dies)),
        }
        next
    }

    /// What can come of a wait for an answer.
    fn awaits(&self, is_limited: bool) -> Vec<Self> {
        let mut next = Vec::new();
        if let Some(&event) = self.to_old.front() {
            next.push(self.with(|world| {
                world.to_old.pop_front();
                world.old_on(event);
            }));
        } else if self.new_life == Life::Dead || self.is_finished {
            next.push(self.old_event(OldEvent::Broken));
        }
        if is_limited {
            next.extend(self.delayed(OldEvent::Late));
        }
        next.extend(self.delayed(OldEvent::ShuttingDown).map(|mut world| {
            if world.old_step == OldStep::Perform(OldAction::Stop) {
                world.old_step = OldStep::Ending;
            }
            world
        }));
        next
    }

    fn say_go(&mut self) {
        let event = if self.new_life == Life::Dead { OldEvent::Broken } else { OldEvent::Released };
        self.write(ModelMessage::Go);
        (self.is_sent, self.is_revoked) = (false, false);
        self.at += 1;
        self.old_on(event);
    }

    fn perform_old(&mut self, action: OldAction) {
        match action {
            OldAction::Ping => {
                self.write(ModelMessage::Ping);
                self.old_step = OldStep::Await { is_limited: false };
            }
            OldAction::SendBatch { within } => {
                let at = self.at;
                self.batch().old_carries = false;
                self.write(ModelMessage::Piece(at));
                (self.is_sent, self.is_revoked) = (false, false);
                self.old_step = OldStep::SendWhole { is_limited: within != Duration::MAX };
            }
            OldAction::AwaitAnswer | OldAction::AwaitFreed => {
                self.old_step = OldStep::Await { is_limited: false };
            }
            OldAction::Revoke => {
                self.write(ModelMessage::Revoke);
                (self.is_sent, self.is_revoked) = (false, true);
                self.old_on(OldEvent::Revoked);
            }
            OldAction::Kill => {
                if self.new_life == Life::Lives {
                    assert!(!self.is_with_new(), "it kills a process that carries others: {self:?}");
                    self.new_life = Life::Dying;
                }
                self.old_step = OldStep::AwaitDeath;
            }
            OldAction::Resume => {
                assert!(self.batch().old_has, "it carries what it has closed: {self:?}");
                assert!(!self.batch().is_touched, "it carries what another has carried: {self:?}");
                self.batch().old_carries = true;
                self.is_sent = false;
                self.old_on(OldEvent::Resumed);
            }
            OldAction::Release => {
                (self.batch().old_has, self.batch().is_released) = (false, true);
                self.old_step = OldStep::SayGo;
            }
            OldAction::Forfeit => {
                (self.batch().old_has, self.batch().is_forfeited) = (false, true);
                self.old_on(OldEvent::Released);
            }
            OldAction::Done if self.at < BATCHES => self.old_on(OldEvent::Offer),
            OldAction::Done => {
                self.write(ModelMessage::Settled);
                self.old_step = OldStep::SayLast;
            }
            OldAction::Stop => self.old_step = OldStep::Stopped,
        }
    }

    /// What the new process can do next.
    fn new_steps(&self) -> Vec<Self> {
        match self.new_step {
            NewStep::Perform(NewAction::Receive) => self.receive(),
            NewStep::Perform(action) => vec![self.with(|world| world.perform_new(action))],
            NewStep::SayRefused => vec![self.with(|world| world.say(OldEvent::Refused))],
            NewStep::Finished => Vec::new(),
        }
    }

    fn receive(&self) -> Vec<Self> {
        let is_ended = self.old_life == Life::Dead || !self.is_open;
        let read = |event| {
            self.with(|world| {
                match world.to_new.pop_front() {
                    Some(ModelMessage::Piece(at) | ModelMessage::Whole(at)) => world.arrived = Some(at),
                    Some(
                        ModelMessage::Ping
                        | ModelMessage::Go
                        | ModelMessage::Revoke
                        | ModelMessage::Settled
                        | ModelMessage::Last,
                    )
                    | None => {}
                }
                world.new_on(event);
            })
        };
        match self.to_new.front() {
            None if is_ended => vec![read(NewEvent::End)],
            None => Vec::new(),
            Some(ModelMessage::Ping) => vec![read(NewEvent::Pinged)],
            Some(ModelMessage::Piece(_)) => vec![read(NewEvent::Piece), read(NewEvent::Unfit)],
            Some(ModelMessage::Whole(_)) => vec![read(NewEvent::Whole), read(NewEvent::Unfit)],
            Some(ModelMessage::Go) => vec![read(NewEvent::Go)],
            Some(ModelMessage::Revoke) => vec![read(NewEvent::Revoked)],
            Some(ModelMessage::Settled) => vec![read(NewEvent::Settled)],
            Some(ModelMessage::Last) => vec![read(NewEvent::LastWord)],
        }
    }

    fn perform_new(&mut self, action: NewAction) {
        match action {
            NewAction::Receive => unreachable!("it has several outcomes"),
            NewAction::SayAlive => self.say(OldEvent::Alive),
            NewAction::SayHeld => self.say(OldEvent::Held),
            NewAction::SayFreed => self.say(OldEvent::Freed),
            NewAction::Carry => {
                let at = self.arrived.take().expect("it carries what arrived");
                (self.batches[at].new_carries, self.batches[at].is_touched) = (true, true);
                self.new_on(NewEvent::Carried);
            }
            NewAction::Discard => {
                self.arrived = None;
                self.new_on(NewEvent::Discarded);
            }
            NewAction::Refuse => {
                (self.arrived, self.is_refused) = (None, true);
                self.new_step = NewStep::SayRefused;
            }
            NewAction::Serve => {
                assert!(!self.is_serving, "it opens twice: {self:?}");
                self.is_serving = true;
                self.new_on(NewEvent::Serving);
            }
            NewAction::Resume => self.new_on(NewEvent::Resumed),
            NewAction::Finish => {
                (self.is_finished, self.new_step) = (true, NewStep::Finished);
                if !self.is_serving {
                    self.new_dies();
                }
            }
        }
    }

    /// Answers the old process, which may be reached no more.
    fn say(&mut self, answer: OldEvent) {
        if self.old_life == Life::Lives {
            self.to_old.push_back(answer);
        }
        self.new_on(NewEvent::Said);
    }
}
