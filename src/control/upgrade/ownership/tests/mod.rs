//! Explores every order of steps, delays and deaths of the two processes.

mod model;
mod step;

use std::collections::HashSet;
use std::time::Duration;

use super::*;
use model::{BATCHES, UpgradeModel};
use step::{Life, NewStep, OldStep};

/// Every world that can come about, with a new process that knows how to revoke a batch and with one that does not.
fn worlds() -> HashSet<UpgradeModel> {
    let (mut seen, mut todo) = (HashSet::new(), vec![UpgradeModel::start(true), UpgradeModel::start(false)]);
    while let Some(world) = todo.pop() {
        if seen.insert(world.clone()) {
            todo.extend(world.next());
        }
    }
    seen
}

/// The worlds in which nothing happens any more by itself.
fn ends(worlds: &HashSet<UpgradeModel>) -> Vec<&UpgradeModel> {
    let is_end = |world: &&UpgradeModel| {
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
    let sent = |world: &&&UpgradeModel| {
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
    let closes = |world: &&UpgradeModel| {
        world.old_life == Life::Lives && !world.is_open && world.new_life == Life::Lives
    };
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
    let revoked = |world: &&UpgradeModel| world.is_revoked && world.at < BATCHES;
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
    let is_late = |world: &&UpgradeModel| world.at == 1 && world.is_revoked && world.batches[1].old_carries;
    assert!(worlds.iter().filter(is_late).any(UpgradeModel::is_with_new), "it lives");
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
