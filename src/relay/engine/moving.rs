//! Tunnels that come to a relay thread and leave it alive: adopted, frozen, resumed, let go, landed.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;

use rustix::event::epoll;
use zeroize::Zeroizing;

use super::Engine;
use crate::relay::moving::{Freezing, Landing, Parcel, Stays};
use crate::relay::round::Task;
use crate::relay::tunnel::Live;
use crate::relay::{Outcome, Record, Tunnel, Why};
use crate::ws::close;

impl Engine {
    pub(super) fn adopt(&mut self, tunnel: Tunnel) {
        let (live, early) = match Live::new(tunnel, self.now) {
            Ok((live, early)) => (Box::new(live), early),
            Err(record) => return self.turn_away(&record),
        };
        if let Some(place) = self.settle_in(live) {
            self.visit(place, |live, turn| {
                live.pass_early(&early, turn);
                live.turn(turn)
            });
        }
    }

    /// Gives the tunnel a place, which it has as long as it is polled.
    fn settle_in(&mut self, live: Box<Live>) -> Option<usize> {
        let id = live.record.id;
        let place = self.free.pop().unwrap_or_else(|| {
            self.tunnels.push(None);
            self.tunnels.len() - 1
        });
        self.tunnels[place] = Some(live);
        if !self.poll(place) {
            return None;
        }
        self.join_rounds(place, id);
        Some(place)
    }

    /// A tunnel that has come belongs to the closings that take it in.
    fn join_rounds(&mut self, place: usize, id: u64) {
        let Some(Some(live)) = self.tunnels.get(place) else { return };
        for round in self.rounds.iter_mut().filter(|round| round.welcomes(&live.record)) {
            round.join(place, id, self.now);
        }
    }

    /// A tunnel that could not be taken over for a panic has its one outcome all the same.
    #[cold]
    fn turn_away(&mut self, record: &Record) {
        tracing::error!(id = record.id, "a tunnel panicked as it came, it ends");
        self.forget(record.id);
        (self.ledger)(record, &Outcome::unborn(close::ABNORMAL, Why::Panicked));
    }

    /// Has the sockets polled; false when that is not possible, and then the tunnel has ended.
    fn poll(&mut self, place: usize) -> bool {
        let Some(Some(live)) = self.tunnels.get(place) else { return false };
        let Err(error) = self.register(place, live) else { return true };
        tracing::error!(%error, "a socket could not be polled, its tunnel ends");
        self.end(place);
        false
    }

    fn register(&self, place: usize, live: &Live) -> io::Result<()> {
        use epoll::EventFlags as Flags;
        for (index, end) in live.ends().iter().enumerate() {
            let Some(socket) = end.socket() else { continue };
            let token = (place as u64) << 1 | index as u64;
            let flags = Flags::IN | Flags::PRI | Flags::OUT | Flags::RDHUP | Flags::ET;
            epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), flags)?;
        }
        Ok(())
    }

    /// Has the sockets no longer polled.
    pub(super) fn unregister(&self, live: &Live) {
        unregister(&self.epoll, live);
    }

    /// Freezes what there is, as long as the budget of all threads lasts.
    pub(super) fn freeze(&mut self, freezing: Freezing) {
        self.freeze_with(freezing, Live::pack);
    }

    /// The same with `pack` to write each tunnel down. One that breaks off in a panic ends, and no other.
    pub(super) fn freeze_with(
        &mut self,
        freezing: Freezing,
        pack: impl Fn(&Live, u64) -> Zeroizing<Vec<u8>>,
    ) {
        let (mut batch, mut broken) = (freezing.batch(), Vec::new());
        for (place, live) in self.tunnels.iter_mut().enumerate() {
            let Some(live) = live.as_mut().filter(|live| !live.is_frozen()) else { continue };
            let id = live.record.id;
            if let Some(why) = live.stays() {
                batch.stays.push(Stays { id, why });
                continue;
            }
            if !freezing.takes_one() {
                break;
            }
            let Ok(bytes) = catch_unwind(AssertUnwindSafe(|| pack(live, self.now))) else {
                broken.push(place);
                continue;
            };
            unregister(&self.epoll, live);
            if let Some(sockets) = live.take_sockets() {
                batch.parcels.push(Parcel::new(id, place, bytes, sockets));
            }
        }
        freezing.finish(batch);
        broken.into_iter().for_each(|place| self.fail(place));
    }

    /// Goes on with tunnels that were frozen. Each has a turn for what it has; a socket that is polled anew, edges or
    /// not, is reported with all that has come to it meanwhile.
    pub(super) fn resume(&mut self, parcels: Vec<Parcel>) {
        for Parcel { place, sockets, .. } in parcels {
            let Some(Some(live)) = self.tunnels.get_mut(place) else { continue };
            live.put_sockets(sockets);
            if self.poll(place) {
                self.queue(place);
            }
        }
    }

    /// Drops tunnels that are another process's now. They have not ended: there is no outcome.
    pub(super) fn let_go(&mut self, places: Vec<usize>) {
        for place in places {
            if let Some(live) = self.tunnels.get_mut(place).and_then(Option::take) {
                self.free.push(place);
                self.give_away(live.record.id);
            }
        }
    }

    /// The session `id` is another process's: of no closing here it is one that has ended.
    fn give_away(&mut self, id: u64) {
        self.count.fetch_sub(1, Relaxed);
        self.rounds.iter_mut().for_each(|round| round.give_away(id));
    }

    /// Goes on with tunnels that another process has let go. None has its turn here, so that a panic in one would
    /// not be the others' end.
    pub(super) fn land(&mut self, mut landing: Landing) {
        for mut live in mem::take(&mut landing.lives) {
            live.shift(self.now);
            if let Some(place) = self.settle_in(Box::new(live)) {
                self.queue(place);
            }
        }
    }

    fn queue(&mut self, place: usize) {
        if let Some(Some(live)) = self.tunnels.get_mut(place)
            && !live.queued
        {
            live.queued = true;
            self.ready.push_back(place);
        }
    }

    /// A closing's task whose tunnel is frozen comes again later.
    pub(super) fn postpones(&mut self, round: usize, task: &Task) -> bool {
        let (Task::Close(place, _) | Task::Cut(place)) = *task;
        let Some(Some(live)) = self.tunnels.get(place) else { return false };
        if live.is_frozen() {
            self.rounds[round].postpone(task, live.record.id, self.now);
        }
        live.is_frozen()
    }
}

/// Takes the sockets out of the epoll, before they are anyone else's and before they are closed: closing a socket that
/// another process has open, too, does not, and the place would go on to be called.
fn unregister(epoll: &OwnedFd, live: &Live) {
    for socket in live.ends().iter().filter_map(|end| end.socket()) {
        if let Err(error) = epoll::delete(epoll, socket) {
            tracing::error!(%error, "a socket could not be taken out of its epoll");
        }
    }
}
