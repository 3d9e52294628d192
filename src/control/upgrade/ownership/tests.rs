//! Explores every order of steps, delays and deaths of the two processes, each of which performs what its machine says.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::*;

/// Batches that go over.
const BATCHES: usize = 2;

/// What the old process writes. A piece and the end of a batch have the number of its attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Word {
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
enum OldStep {
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
enum NewStep {
    Perform(NewAction),
    SayRefused,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Life {
    Lives,
    /// It has been killed, and may do some steps before it feels it.
    Dying,
    Dead,
}

/// The truth about the sockets of a batch, apart from what the machines believe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Batch {
    old_carries: bool,
    /// The old process has its descriptors, so it could carry them again.
    old_has: bool,
    new_carries: bool,
    /// The new process has carried the batch, alive or dying: what the old one knows of it is out of date.
    is_touched: bool,
    is_released: bool,
    is_forfeited: bool,
}

/// The two processes and the socket between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    old: OldOwnership,
    new: NewOwnership,
    old_step: OldStep,
    new_step: NewStep,
    old_life: Life,
    new_life: Life,
    to_new: VecDeque<Word>,
    to_old: VecDeque<OldEvent>,
    /// The old process has not closed its end of the socket.
    is_open: bool,
    /// The new process has closed its end.
    is_finished: bool,
    is_serving: bool,
    batches: [Batch; BATCHES],
    /// The batch that the old process offers.
    at: usize,
    /// The batch that the new process has.
    arrived: Option<usize>,
    /// A whole batch was written to the socket and not revoked since.
    is_sent: bool,
    /// The new process has refused a batch.
    is_refused: bool,
    /// The old process has revoked the batch that is offered now.
    is_revoked: bool,
    /// Delays that may still happen.
    delays: u8,
    /// Deaths that nobody here caused and that may still happen.
    crashes: u8,
}

impl World {
    fn start(can_revoke: bool) -> Self {
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
    fn next(&self) -> Vec<Self> {
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

    fn is_with_new(&self) -> bool {
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
    fn write(&mut self, word: Word) {
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
                    world.write(Word::Whole(at));
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
                world.write(Word::Last);
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
        self.write(Word::Go);
        (self.is_sent, self.is_revoked) = (false, false);
        self.at += 1;
        self.old_on(event);
    }

    fn perform_old(&mut self, action: OldAction) {
        match action {
            OldAction::Ping => {
                self.write(Word::Ping);
                self.old_step = OldStep::Await { is_limited: false };
            }
            OldAction::SendBatch { within } => {
                let at = self.at;
                self.batch().old_carries = false;
                self.write(Word::Piece(at));
                (self.is_sent, self.is_revoked) = (false, false);
                self.old_step = OldStep::SendWhole { is_limited: within != Duration::MAX };
            }
            OldAction::AwaitAnswer | OldAction::AwaitFreed => {
                self.old_step = OldStep::Await { is_limited: false };
            }
            OldAction::Revoke => {
                self.write(Word::Revoke);
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
                self.write(Word::Settled);
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
                    Some(Word::Piece(at) | Word::Whole(at)) => world.arrived = Some(at),
                    Some(Word::Ping | Word::Go | Word::Revoke | Word::Settled | Word::Last) | None => {}
                }
                world.new_on(event);
            })
        };
        match self.to_new.front() {
            None if is_ended => vec![read(NewEvent::End)],
            None => Vec::new(),
            Some(Word::Ping) => vec![read(NewEvent::Pinged)],
            Some(Word::Piece(_)) => vec![read(NewEvent::Piece), read(NewEvent::Unfit)],
            Some(Word::Whole(_)) => vec![read(NewEvent::Whole), read(NewEvent::Unfit)],
            Some(Word::Go) => vec![read(NewEvent::Go)],
            Some(Word::Revoke) => vec![read(NewEvent::Revoked)],
            Some(Word::Settled) => vec![read(NewEvent::Settled)],
            Some(Word::Last) => vec![read(NewEvent::LastWord)],
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

/// Every world that can come about, with a new process that knows how to revoke a batch and with one that does not.
fn worlds() -> HashSet<World> {
    let (mut seen, mut todo) = (HashSet::new(), vec![World::start(true), World::start(false)]);
    while let Some(world) = todo.pop() {
        if seen.insert(world.clone()) {
            todo.extend(world.next());
        }
    }
    seen
}

/// The worlds in which nothing happens any more by itself.
fn ends(worlds: &HashSet<World>) -> Vec<&World> {
    let is_end = |world: &&World| {
        world.next().iter().all(|next| next.crashes < world.crashes || next.delays < world.delays)
    };
    worlds.iter().filter(is_end).collect()
}

#[test]
fn there_are_never_two_owners_of_a_tunnel() {
    let worlds = worlds();
    assert!(worlds.len() > 2_000, "{} worlds are too few to be all", worlds.len());
    for world in &worlds {
        for batch in &world.batches {
            assert!(!(batch.old_carries && batch.new_carries), "{world:?}");
        }
        let resumes = world.old_step == OldStep::Perform(OldAction::Resume);
        assert!(!(resumes && world.batches[world.at].new_carries), "{world:?}");
        if world.new_step == NewStep::Perform(NewAction::Carry) {
            let at = world.arrived.expect("it has what it is to carry");
            assert!(!world.batches[at].old_carries, "{world:?}");
        }
    }
}

#[test]
fn there_is_never_none_while_one_lives_who_had_it() {
    let worlds = worlds();
    let (mut count, mut carried) = (0, 0);
    for world in ends(&worlds) {
        count += 1;
        let (old, new) = (world.old_life == Life::Lives, world.new_life == Life::Lives);
        for batch in world.batches.iter().filter(|batch| !batch.is_forfeited) {
            match (old, new) {
                (true, true) => assert!(batch.old_carries != batch.new_carries, "{world:?}"),
                // The new process took along only what was its own.
                (true, false) => assert!(batch.old_carries || batch.is_released, "{world:?}"),
                (false, true) => assert!(batch.new_carries || !batch.is_released, "{world:?}"),
                (false, false) => continue,
            }
            carried += usize::from(batch.old_carries || batch.new_carries);
        }
    }
    assert!(count > 50 && carried > 50, "{count} ends, {carried} with an owner");
}

#[test]
fn an_old_process_that_dies_with_the_batch_sent_costs_nothing() {
    let worlds = worlds();
    // Neither refused nor revoked.
    let sent = |world: &&&World| {
        let is_alone = world.old_life == Life::Dead && world.new_life == Life::Lives;
        is_alone && world.is_sent && !world.is_refused
    };
    let ends = ends(&worlds);
    assert!(ends.iter().any(|world| sent(&world)));
    for world in ends.iter().filter(sent) {
        assert!(world.batches[world.at].new_carries, "{world:?}");
    }
}

#[test]
fn a_new_process_that_dies_before_the_batch_was_released_costs_nothing() {
    for world in &worlds() {
        let batch = &world.batches[world.at.min(BATCHES - 1)];
        if world.old_life == Life::Lives && world.new_life == Life::Dead && !batch.is_forfeited {
            assert!(batch.is_released || batch.old_has, "{world:?}");
        }
    }
}

#[test]
fn nobody_takes_the_end_of_a_living_old_process_for_its_death() {
    let closes =
        |world: &&World| world.old_life == Life::Lives && !world.is_open && world.new_life == Life::Lives;
    let worlds = worlds();
    assert!(worlds.iter().any(|world| closes(&world)), "it lives on behind a refusal");
    for world in worlds.iter().filter(closes) {
        let carries = world.new_step == NewStep::Perform(NewAction::Carry);
        // What was revoked is read before the end, and of what is not whole nothing can be held.
        assert!(!carries || world.batches[world.at.min(BATCHES - 1)].is_released, "{world:?}");
    }
}

#[test]
fn a_batch_that_was_revoked_is_carried_by_the_old_process_alone_whoever_dies_then() {
    let worlds = worlds();
    let revoked = |world: &&World| world.is_revoked && world.at < BATCHES;
    assert!(worlds.iter().filter(revoked).any(|world| world.old_life == Life::Dead));
    for world in worlds.iter().filter(revoked) {
        let batch = &world.batches[world.at];
        let carries = world.new_step == NewStep::Perform(NewAction::Carry) && world.arrived == Some(world.at);
        assert!(!batch.is_touched && !carries, "{world:?}");
    }
}

#[test]
fn a_new_process_that_carries_others_is_late_without_being_killed() {
    let worlds = worlds();
    // That it is killed is an assertion of the model.
    let is_late = |world: &&World| world.at == 1 && world.is_revoked && world.batches[1].old_carries;
    assert!(worlds.iter().filter(is_late).any(World::is_with_new), "it lives");
    assert!(worlds.iter().any(|world| world.new_life == Life::Dying), "the first batch kills");
}

#[test]
fn every_action_is_performed_by_some_world() {
    let worlds = worlds();
    let name = |action: String| action.split(' ').next().unwrap_or_default().to_owned();
    let old: HashSet<_> = worlds
        .iter()
        .filter_map(|world| match world.old_step {
            OldStep::Perform(action) => Some(name(format!("{action:?}"))),
            _ => None,
        })
        .collect();
    let new: HashSet<_> = worlds
        .iter()
        .filter_map(|world| match world.new_step {
            NewStep::Perform(action) => Some(name(format!("{action:?}"))),
            _ => None,
        })
        .collect();
    assert_eq!((old.len(), new.len()), (11, 10), "{old:?} {new:?}");
}

#[test]
fn an_answer_that_comes_too_late_changes_nothing() {
    let mut old = OldOwnership::new(true);
    let actions = [OldEvent::Offer, OldEvent::Late, OldEvent::Dead, OldEvent::Resumed, OldEvent::Held]
        .map(|event| old.on(event));
    let first = OldAction::SendBatch { within: Duration::from_millis(900) };
    assert_eq!(actions, [first, OldAction::Kill, OldAction::Resume, OldAction::Stop, OldAction::Stop]);
    assert!(!old.is_open());
}
