//! What a relay thread does with tunnels that move: freezes, resumes, lets go, takes.

use rustix::event::epoll;

use super::Engine;
use crate::relay::moving::{Freezing, Landing, Parcel, Stays};
use crate::relay::round::Task;
use crate::relay::tunnel::Live;

impl Engine {
    /// Freezes what there is, as long as the budget of all threads lasts.
    pub(super) fn freeze(&mut self, freezing: Freezing) {
        let mut batch = freezing.batch();
        for (place, live) in self.tunnels.iter_mut().enumerate() {
            let Some(live) = live else { continue };
            if live.is_frozen() {
                continue;
            }
            let id = live.record.id;
            if let Some(why) = live.stays() {
                batch.stays.push(Stays { id, why });
                continue;
            }
            if !freezing.takes_one() {
                break;
            }
            // First of all: closing a socket that another process has open, too, does not take it out of an epoll.
            unregister(&self.epoll, live);
            let bytes = live.pack(self.now);
            if let Some(sockets) = live.take_sockets() {
                batch.parcels.push(Parcel::new(id, place, bytes, sockets));
            }
        }
        freezing.finish(batch);
    }

    /// Goes on with tunnels that were frozen: each has a turn, which finds what has arrived.
    pub(super) fn resume(&mut self, parcels: Vec<Parcel>) {
        for Parcel { place, sockets, .. } in parcels {
            let Some(Some(live)) = self.tunnels.get_mut(place) else { continue };
            live.put_sockets(sockets);
            if !live.queued {
                live.queued = true;
                self.ready.push_back(place);
            }
            if let Some(Some(live)) = self.tunnels.get(place)
                && let Err(error) = self.register(place, live)
            {
                tracing::error!(%error, "a socket could not be polled, its tunnel ends");
                self.end(place);
            }
        }
    }

    /// Drops tunnels that are another process's now. They have not ended: there is no outcome.
    pub(super) fn let_go(&mut self, places: Vec<usize>) {
        for place in places {
            if let Some(live) = self.tunnels.get_mut(place).and_then(Option::take) {
                self.vacate(place, live);
            }
        }
    }

    /// Goes on with tunnels that another process has let go.
    pub(super) fn land(&mut self, mut landing: Landing) {
        for mut live in std::mem::take(&mut landing.lives) {
            live.shift(self.now);
            self.settle_in(Box::new(live));
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

fn unregister(epoll: &std::os::fd::OwnedFd, live: &Live) {
    for socket in live.ends().iter().filter_map(|end| end.socket()) {
        if let Err(error) = epoll::delete(epoll, socket) {
            tracing::error!(%error, "a socket that is polled could not be taken out of its epoll");
        }
    }
}
