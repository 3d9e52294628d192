//! Who owns a batch of tunnels while it goes from the old process to the new one; no I/O.
//!
//! The old process owns its tunnels until it has heard that the new one holds them; the new one owns what it holds from
//! the old one's word on, or from its end. Some things make that enough, and whoever runs these machines has to keep
//! them:
//!
//! - The old process, once it has offered a batch, takes it back only in one of these cases. The new process has refused
//!   it. It is dead: killed and waited for, which a parent can. The batch is not whole in the socket, and nothing more of
//!   it ever will be. Or the word that takes it back is in the socket: the new one reads it behind the batch and before
//!   the end of the socket, whoever lives then. So it does not matter what the new one heard, or said too late.
//! - The old process never closes the socket while it may still use an offered batch. So to the new one the end of the
//!   socket means that nobody else is left who could use what came.
//! - The new process never closes the socket with a batch offered and not refused, as long as it lives. So to the old
//!   one the end of the socket means that the new one is dying, and to kill it costs nothing.
//! - Once the new process carries a batch it is killed for no delay: what it is late with is taken back.
//!
//! The test explores every order of steps, deaths and messages of the two.

/// What the old process is to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Giver {
    /// It carries the tunnels.
    Owns,
    /// They are frozen and on their way; nobody carries them. They are the first, so the new process has none.
    Offered,
    /// The same, and the new process carries others, which its end would close.
    OfferedMore,
    /// The same, and the new process is being killed.
    Revoking,
    /// It has let go of them for ever.
    Gave,
}

/// What the old process hears of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heard {
    /// The new process holds the whole batch.
    Held,
    /// The new process says that it holds nothing of the batch and never will.
    Refused,
    /// The new process is late.
    Late,
    /// It is late with reading the batch, which is not whole in the socket.
    Stuck,
    /// The word that takes the batch back is in the socket.
    Revoked,
    /// The new process has closed the socket, or cannot be reached.
    Broken,
    /// The new process has ended, for certain.
    Dead,
}

/// What the old process has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Give {
    /// Nothing.
    Nothing,
    /// Kill the new process, wait for its end, and say that it is dead.
    Kill,
    /// Say that the batch is taken back, and then that this has been said. Where the socket does not take the word, go on
    /// waiting.
    Revoke,
    /// Carry the tunnels again.
    Resume,
    /// Close its descriptors, forget the keys, and then say go.
    LetGo,
}

impl Giver {
    /// A batch that has been frozen and is being sent.
    pub fn offering(is_first: bool) -> Self {
        if is_first { Self::Offered } else { Self::OfferedMore }
    }

    /// Something was heard.
    pub fn hear(&mut self, heard: Heard) -> Give {
        let (next, give) = match (*self, heard) {
            (Self::Offered | Self::OfferedMore, Heard::Held) => (Self::Gave, Give::LetGo),
            (Self::Offered | Self::OfferedMore, Heard::Refused) => (Self::Owns, Give::Resume),
            (Self::Offered, Heard::Late | Heard::Stuck) => (Self::Revoking, Give::Kill),
            // The socket may be full: that is tried first, and until it has worked an answer counts.
            (Self::OfferedMore, Heard::Late) => (Self::OfferedMore, Give::Revoke),
            (Self::OfferedMore, Heard::Stuck | Heard::Revoked) => (Self::Owns, Give::Resume),
            (Self::Offered | Self::OfferedMore, Heard::Broken) => (Self::Revoking, Give::Kill),
            (Self::Offered | Self::OfferedMore | Self::Revoking, Heard::Dead) => (Self::Owns, Give::Resume),
            // Too late: the new one is being killed, or has been told that the batch is not its own.
            (same, _) => (same, Give::Nothing),
        };
        *self = next;
        give
    }
}

/// What the new process is to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Taker {
    /// Not all of it is here.
    Waits,
    /// All of it is here, and no byte of it is touched.
    Holds,
    /// It carries the tunnels.
    Owns,
    /// It does not get them.
    Without,
}

/// What the new process hears of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Came {
    /// The whole batch.
    Whole,
    /// Something of the batch that cannot be taken, or not all of something.
    Unfit,
    /// The old process's word that it has let go.
    Go,
    /// Its word that it has taken the batch back.
    Back,
    /// The end of the socket.
    End,
}

/// What the new process has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Take {
    /// Nothing.
    Nothing,
    /// Say that it holds the batch.
    SayHeld,
    /// Close what came of it, and then say that it holds nothing.
    Refuse,
    /// Carry the tunnels.
    Carry,
    /// Close what came of it.
    Discard,
}

impl Taker {
    /// Nothing has come yet.
    pub fn waiting() -> Self {
        Self::Waits
    }

    /// Something came.
    pub fn hear(&mut self, came: Came) -> Take {
        let (next, take) = match (*self, came) {
            (Self::Waits, Came::Whole) => (Self::Holds, Take::SayHeld),
            (Self::Waits, Came::Unfit) => (Self::Without, Take::Refuse),
            (Self::Waits, Came::End) => (Self::Without, Take::Discard),
            (Self::Holds, Came::Go | Came::End) => (Self::Owns, Take::Carry),
            (Self::Waits | Self::Holds, Came::Back) => (Self::Without, Take::Discard),
            (same, _) => (same, Take::Nothing),
        };
        *self = next;
        take
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use super::*;

    /// One step that a process has decided on and not done yet: it can die before each.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum Todo {
        Freeze,
        SendBatch,
        Kill,
        Revoke,
        Resume,
        CloseDescriptors,
        SayGo,
        CloseSocket,
        SayHeld,
        SayRefused,
        Carry,
        Discard,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum Life {
        Lives,
        /// It has been killed, and may do some steps yet before it feels it.
        Dying,
        Dead,
    }

    /// The two processes and the socket between them. `carries` is the truth about who touches the sockets, apart from
    /// what the machines believe.
    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    struct World {
        giver: Giver,
        taker: Taker,
        old: Life,
        new: Life,
        old_todo: VecDeque<Todo>,
        new_todo: VecDeque<Todo>,
        to_new: VecDeque<Came>,
        to_old: VecDeque<Heard>,
        /// The old process has not closed its end of the socket.
        is_open: bool,
        old_carries: bool,
        new_carries: bool,
        /// The new process has carried the batch, alive or dying: what the old one knows of it is past.
        is_touched: bool,
        /// The old process has its descriptors still, so it could carry again.
        old_has: bool,
        /// Faults that the old process may imagine: a late or lost answer.
        late: u8,
        /// Batches that have still to move.
        left: u8,
        /// The new process carries a batch that moved before.
        carries_others: bool,
        /// Deaths that nobody in the game caused.
        crashes: u8,
    }

    /// Takes each step that a world may make.
    type On<'a> = &'a mut dyn FnMut(&dyn Fn(&mut World));

    impl World {
        fn start() -> Self {
            Self {
                giver: Giver::Owns,
                taker: Taker::Waits,
                old: Life::Lives,
                new: Life::Lives,
                old_todo: [Todo::Freeze, Todo::SendBatch].into(),
                new_todo: VecDeque::new(),
                to_new: VecDeque::new(),
                to_old: VecDeque::new(),
                is_open: true,
                old_carries: true,
                new_carries: false,
                is_touched: false,
                old_has: true,
                late: 1,
                left: 1,
                carries_others: false,
                crashes: 2,
            }
        }

        /// Every world that one step makes of this one.
        fn next(&self) -> Vec<Self> {
            let mut next = Vec::new();
            let mut on = |step: &dyn Fn(&mut Self)| {
                let mut world = self.clone();
                step(&mut world);
                next.push(world);
            };
            if self.old == Life::Lives {
                self.old_steps(&mut on);
                // The socket is full, and takes no more of the batch.
                if self.old_todo.front() == Some(&Todo::SendBatch) && self.late > 0 {
                    on(&|world| {
                        world.late -= 1;
                        world.old_todo.pop_front();
                        world.old_hears(Heard::Stuck);
                    });
                }
                // Nor the word that takes it back.
                if self.old_todo.front() == Some(&Todo::Revoke) {
                    on(&|world| _ = world.old_todo.pop_front());
                }
            }
            if self.new != Life::Dead {
                self.new_steps(&mut on);
            }
            if self.new == Life::Dying {
                on(&Self::new_dies);
            }
            if self.crashes > 0 {
                if self.old == Life::Lives {
                    on(&|world| {
                        world.crashes -= 1;
                        world.old = Life::Dead;
                        (world.old_carries, world.old_has) = (false, false);
                        world.old_todo.clear();
                        world.to_old.clear();
                    });
                }
                if self.new != Life::Dead {
                    on(&|world| {
                        world.crashes -= 1;
                        world.new_dies();
                    });
                }
            }
            next
        }

        fn new_dies(&mut self) {
            self.new = Life::Dead;
            (self.new_carries, self.carries_others) = (false, false);
            self.new_todo.clear();
            self.to_new.clear();
        }

        fn old_steps(&self, on: On<'_>) {
            if !self.old_todo.is_empty() {
                on(&Self::old_does);
                return;
            }
            if !self.to_old.is_empty() {
                on(&|world| {
                    let heard = world.to_old.pop_front().unwrap();
                    world.old_hears(heard);
                });
            }
            // It sees the end of the socket only behind all that came before, and then makes sure of the death.
            let offers = matches!(self.giver, Giver::Offered | Giver::OfferedMore);
            if self.new == Life::Dead && self.to_old.is_empty() && offers {
                on(&|world| world.old_hears(Heard::Broken));
            }
            if self.late > 0 && offers {
                on(&|world| {
                    world.late -= 1;
                    world.old_hears(Heard::Late);
                });
            }
            if self.giver == Giver::Revoking && self.new == Life::Dead {
                on(&|world| world.old_hears(Heard::Dead));
            }
        }

        fn old_hears(&mut self, heard: Heard) {
            match self.giver.hear(heard) {
                Give::Nothing => {}
                Give::Kill => self.old_todo.push_back(Todo::Kill),
                Give::Revoke => self.old_todo.push_back(Todo::Revoke),
                // It gives no more, and lives on.
                Give::Resume => self.old_todo.extend([Todo::Resume, Todo::CloseSocket]),
                Give::LetGo => self.old_todo.extend([Todo::CloseDescriptors, Todo::SayGo]),
            }
        }

        fn old_does(&mut self) {
            match self.old_todo.pop_front().unwrap() {
                Todo::Freeze => {
                    self.old_carries = false;
                    self.giver = Giver::offering(!self.carries_others);
                }
                Todo::SendBatch if self.new != Life::Dead => self.to_new.push_back(Came::Whole),
                Todo::SayGo if self.new != Life::Dead => self.to_new.push_back(Came::Go),
                Todo::SendBatch | Todo::SayGo => {}
                Todo::Revoke => {
                    if self.new != Life::Dead {
                        self.to_new.push_back(Came::Back);
                    }
                    self.old_hears(Heard::Revoked);
                }
                Todo::Kill if self.new == Life::Lives => {
                    assert!(!self.carries_others, "it kills who carries others: {self:?}");
                    self.new = Life::Dying;
                }
                Todo::Kill => {}
                Todo::Resume => {
                    assert!(self.old_has, "it carries what it has closed: {self:?}");
                    assert!(!self.is_touched, "it carries what another has carried: {self:?}");
                    self.old_carries = true;
                }
                Todo::CloseDescriptors => self.old_has = false,
                Todo::CloseSocket => self.is_open = false,
                todo => unreachable!("{todo:?}"),
            }
        }

        fn new_steps(&self, on: On<'_>) {
            if !self.new_todo.is_empty() {
                on(&Self::new_does);
                return;
            }
            if !self.to_new.is_empty() {
                on(&|world| {
                    let came = world.to_new.pop_front().unwrap();
                    world.new_hears(came);
                });
                if self.to_new[0] == Came::Whole {
                    on(&|world| {
                        world.to_new.pop_front();
                        world.new_hears(Came::Unfit);
                    });
                }
            } else if self.is_ended() && matches!(self.taker, Taker::Waits | Taker::Holds) {
                on(&|world| world.new_hears(Came::End));
            }
        }

        /// The socket has ended for the new process, behind all that came before.
        fn is_ended(&self) -> bool {
            self.old == Life::Dead || !self.is_open
        }

        fn new_hears(&mut self, came: Came) {
            match self.taker.hear(came) {
                Take::Nothing => {}
                Take::SayHeld => self.new_todo.push_back(Todo::SayHeld),
                Take::Carry => self.new_todo.push_back(Todo::Carry),
                Take::Discard => self.new_todo.push_back(Todo::Discard),
                Take::Refuse => self.new_todo.extend([Todo::Discard, Todo::SayRefused, Todo::CloseSocket]),
            }
        }

        fn new_does(&mut self) {
            match self.new_todo.pop_front().unwrap() {
                Todo::SayHeld if self.old == Life::Lives => self.to_old.push_back(Heard::Held),
                Todo::SayRefused if self.old == Life::Lives => self.to_old.push_back(Heard::Refused),
                Todo::CloseSocket if self.old == Life::Lives => self.to_old.push_back(Heard::Broken),
                Todo::SayHeld | Todo::SayRefused | Todo::CloseSocket | Todo::Discard => {}
                Todo::Carry => (self.new_carries, self.is_touched) = (true, true),
                todo => unreachable!("{todo:?}"),
            }
        }

        /// Whether a batch has moved, and the two begin with another.
        fn moved(&self) -> Option<Self> {
            let is_done = self.old_todo.is_empty() && self.new_todo.is_empty() && self.new_carries;
            (is_done && self.left > 0 && self.old == Life::Lives && self.new == Life::Lives).then(|| Self {
                left: self.left - 1,
                carries_others: true,
                late: self.late,
                crashes: self.crashes,
                ..Self::start()
            })
        }
    }

    /// Every world that can come about.
    fn worlds() -> HashSet<World> {
        let (mut seen, mut todo) = (HashSet::new(), vec![World::start()]);
        while let Some(world) = todo.pop() {
            if seen.contains(&world) {
                continue;
            }
            todo.extend(world.next());
            todo.extend(world.moved());
            seen.insert(world);
        }
        seen
    }

    #[test]
    fn there_are_never_two_owners_of_a_tunnel() {
        let worlds = worlds();
        assert!(worlds.len() > 200, "{} worlds are too few to be all", worlds.len());
        for world in &worlds {
            assert!(!(world.old_carries && world.new_carries), "{world:?}");
            let will = |todo: &VecDeque<Todo>, step| todo.contains(&step);
            assert!(!(world.new_carries && will(&world.old_todo, Todo::Resume)), "{world:?}");
            assert!(!(world.old_carries && will(&world.new_todo, Todo::Carry)), "{world:?}");
        }
    }

    #[test]
    fn there_is_never_none_while_one_lives_who_had_it() {
        let (mut ends, mut carried) = (0, 0);
        for world in
            worlds().iter().filter(|world| world.next().iter().all(|next| next.crashes < world.crashes))
        {
            // Nothing happens any more by itself.
            ends += 1;
            let (old, new) = (world.old == Life::Lives, world.new == Life::Lives);
            match (old, new) {
                // The one that is left has it, or the other took it along when it was its own.
                (true, true) => assert!(world.old_carries != world.new_carries, "{world:?}"),
                (true, false) => assert!(world.old_carries || !world.old_has, "{world:?}"),
                (false, true) => assert!(world.new_carries || world.taker == Taker::Without, "{world:?}"),
                (false, false) => continue,
            }
            carried += usize::from(world.old_carries || world.new_carries);
        }
        assert!(ends > 5 && carried > 5, "{ends} ends, {carried} with an owner");
    }

    #[test]
    fn nobody_takes_the_end_of_a_living_old_process_for_its_death() {
        let closes = |world: &&World| world.old == Life::Lives && !world.is_open && world.new == Life::Lives;
        let worlds = worlds();
        assert!(worlds.iter().any(|world| closes(&world)), "it lives on behind a refusal");
        for world in worlds.iter().filter(closes) {
            let has_whole = world.taker == Taker::Holds || world.to_new.contains(&Came::Whole);
            let is_decided = matches!(world.taker, Taker::Owns | Taker::Without);
            // What was taken back it hears before the end, and of what is not whole it can hold nothing.
            assert!(is_decided || !has_whole || world.to_new.contains(&Came::Back), "{world:?}");
        }
    }

    #[test]
    fn a_new_process_that_carries_others_is_not_killed_by_the_old_one() {
        let others = |world: &&World| world.carries_others || world.left == 0;
        let worlds = worlds();
        assert!(
            worlds.iter().filter(others).any(|world| world.giver == Giver::OfferedMore && world.late == 0)
        );
        // One that is late with them loses no tunnel that it carries, and the old one goes on with what it had offered.
        let is_back = |world: &&World| world.to_new.contains(&Came::Back) && world.old_carries;
        assert!(worlds.iter().filter(others).any(|world| is_back(&world)));
        // That one is late and is killed: the first batch only.
        assert!(worlds.iter().any(|world| world.new == Life::Dying));
        for world in worlds.iter().filter(others) {
            assert_ne!(world.new, Life::Dying, "{world:?}");
        }
    }

    #[test]
    fn a_new_process_that_dies_before_it_heard_go_costs_nothing() {
        for world in worlds().iter().filter(|world| world.old == Life::Lives && world.new == Life::Dead) {
            let said_go = !world.old_has && !world.old_todo.contains(&Todo::SayGo);
            let letting_go = world.giver == Giver::Gave;
            assert!(said_go || letting_go || world.old_has, "{world:?}");
        }
    }

    #[test]
    fn an_old_process_that_dies_with_the_batch_sent_costs_nothing() {
        for world in worlds().iter().filter(|world| world.new == Life::Lives && world.old == Life::Dead) {
            let is_here = world.to_new.contains(&Came::Whole) || world.taker == Taker::Holds;
            let gets_it = world.new_carries || world.new_todo.contains(&Todo::Carry);
            assert!(is_here || gets_it || matches!(world.taker, Taker::Waits | Taker::Without), "{world:?}");
        }
    }

    #[test]
    fn a_batch_that_was_taken_back_is_carried_by_the_old_process_alone_whoever_dies_then() {
        let taken_back = |world: &&World| world.to_new.contains(&Came::Back);
        let worlds = worlds();
        assert!(worlds.iter().filter(taken_back).any(|world| world.old == Life::Dead));
        for world in worlds.iter().filter(taken_back) {
            assert!(!world.is_touched, "{world:?}");
            let will = world.new_todo.contains(&Todo::Carry);
            assert!(!will && world.taker != Taker::Owns, "{world:?}");
        }
    }

    #[test]
    fn a_word_that_comes_too_late_changes_nothing() {
        let mut giver = Giver::offering(true);
        assert_eq!(giver.hear(Heard::Late), Give::Kill);
        assert_eq!(giver.hear(Heard::Held), Give::Nothing);
        assert_eq!(giver.hear(Heard::Dead), Give::Resume);
        assert_eq!(giver.hear(Heard::Held), Give::Nothing);
        assert_eq!(giver, Giver::Owns);
    }
}
