//! Tunnels that come to a relay thread and leave it alive: adopted, frozen, resumed, let go, landed.

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;

use rustix::event::epoll;
use zeroize::Zeroizing;

use super::EventLoop;
use crate::relay::close_share::CloseTask;
use crate::relay::migration::{FreezeRequest, FrozenTunnel, KeptTunnel, RestoredTunnels};
use crate::relay::tunnel::ActiveTunnel;
use crate::relay::{CloseReason, SessionEnd, SessionInfo, Tunnel};
use crate::ws::close;

impl EventLoop {
    pub(super) fn adopt(&mut self, tunnel: Tunnel) {
        let (tunnel, early) = match ActiveTunnel::new(tunnel, self.now) {
            Ok((tunnel, early)) => (Box::new(tunnel), early),
            Err(info) => return self.refuse_panicked(&info),
        };
        if let Some(slot) = self.insert(tunnel) {
            self.with_tunnel(slot, |tunnel, tick| {
                tunnel.relay_early(&early, tick);
                tunnel.pump_both(tick)
            });
        }
    }

    /// Gives the tunnel a place, which it has as long as it is polled.
    fn insert(&mut self, tunnel: Box<ActiveTunnel>) -> Option<usize> {
        let id = tunnel.info.id;
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.tunnels.push(None);
            self.tunnels.len() - 1
        });
        self.tunnels[slot] = Some(tunnel);
        if !self.poll(slot) {
            return None;
        }
        self.join_closes(slot, id);
        Some(slot)
    }

    /// A tunnel that has come belongs to the closings that take it in.
    fn join_closes(&mut self, slot: usize, id: u64) {
        let Some(Some(tunnel)) = self.tunnels.get(slot) else { return };
        for share in self.closes.iter_mut().filter(|share| share.includes(&tunnel.info)) {
            share.add_late(slot, id, self.now);
        }
    }

    /// A tunnel that could not be taken over for a panic has its one outcome all the same.
    #[cold]
    fn refuse_panicked(&mut self, info: &SessionInfo) {
        tracing::error!(id = info.id, "a tunnel panicked as it came, it ends");
        self.forget_session(info.id);
        (self.observer)(info, &SessionEnd::without_traffic(close::ABNORMAL, CloseReason::Panicked));
    }

    /// Has the sockets polled; false when that is not possible, and then the tunnel has ended.
    fn poll(&mut self, slot: usize) -> bool {
        let Some(Some(tunnel)) = self.tunnels.get(slot) else { return false };
        let Err(error) = self.register(slot, tunnel) else { return true };
        tracing::error!(%error, "a socket could not be polled, its tunnel ends");
        self.end_tunnel(slot);
        false
    }

    fn register(&self, slot: usize, tunnel: &ActiveTunnel) -> io::Result<()> {
        use epoll::EventFlags as Flags;
        for (index, endpoint) in tunnel.endpoints().iter().enumerate() {
            let Some(socket) = endpoint.socket() else { continue };
            let token = (slot as u64) << 1 | index as u64;
            let flags = Flags::IN | Flags::PRI | Flags::OUT | Flags::RDHUP | Flags::ET;
            epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), flags)?;
        }
        Ok(())
    }

    /// Has the sockets no longer polled.
    pub(super) fn unregister(&self, tunnel: &ActiveTunnel) {
        unregister(&self.epoll, tunnel);
    }

    /// Freezes what there is, as long as the budget of all threads lasts.
    pub(super) fn freeze(&mut self, request: FreezeRequest) {
        self.freeze_with(request, ActiveTunnel::encode);
    }

    /// The same with `pack` to write each tunnel down. One that breaks off in a panic ends, and no other.
    pub(super) fn freeze_with(
        &mut self,
        request: FreezeRequest,
        pack: impl Fn(&ActiveTunnel, u64) -> Zeroizing<Vec<u8>>,
    ) {
        let (mut batch, mut broken) = (request.empty_batch(), Vec::new());
        for (slot, tunnel) in self.tunnels.iter_mut().enumerate() {
            let Some(tunnel) = tunnel.as_mut().filter(|tunnel| !tunnel.is_frozen()) else { continue };
            let id = tunnel.info.id;
            if let Some(reason) = tunnel.freeze_refusal() {
                batch.kept.push(KeptTunnel { id, reason });
                continue;
            }
            if !request.try_reserve() {
                break;
            }
            let Ok(bytes) = catch_unwind(AssertUnwindSafe(|| pack(tunnel, self.now))) else {
                broken.push(slot);
                continue;
            };
            unregister(&self.epoll, tunnel);
            if let Some(sockets) = tunnel.take_sockets() {
                batch.tunnels.push(FrozenTunnel::new(id, slot, bytes, sockets));
            }
        }
        request.reply(batch);
        broken.into_iter().for_each(|slot| self.end_panicked(slot));
    }

    /// Goes on with tunnels that were frozen. Each has a turn for what it has; a socket that is polled anew, edges or
    /// not, is reported with all that has come to it meanwhile.
    pub(super) fn resume(&mut self, parcels: Vec<FrozenTunnel>) {
        for FrozenTunnel { slot, sockets, .. } in parcels {
            let Some(Some(tunnel)) = self.tunnels.get_mut(slot) else { continue };
            tunnel.restore_sockets(sockets);
            if self.poll(slot) {
                self.enqueue(slot);
            }
        }
    }

    /// Drops tunnels that are another process's now. They have not ended: there is no outcome.
    pub(super) fn release(&mut self, slots: Vec<usize>) {
        for slot in slots {
            if let Some(tunnel) = self.tunnels.get_mut(slot).and_then(Option::take) {
                self.free_slots.push(slot);
                self.forget_migrated(tunnel.info.id);
            }
        }
    }

    /// The session `id` is another process's: of no closing here it is one that has ended.
    fn forget_migrated(&mut self, id: u64) {
        self.tunnel_count.fetch_sub(1, Relaxed);
        self.closes.iter_mut().for_each(|share| share.remove_migrated(id));
    }

    /// Goes on with tunnels that another process has let go. None has its turn here, so that a panic in one would
    /// not be the others' end.
    pub(super) fn restore(&mut self, mut restored: RestoredTunnels) {
        for mut tunnel in mem::take(&mut restored.tunnels) {
            tunnel.shift_clock(self.now);
            if let Some(slot) = self.insert(Box::new(tunnel)) {
                self.enqueue(slot);
            }
        }
    }

    fn enqueue(&mut self, slot: usize) {
        if let Some(Some(tunnel)) = self.tunnels.get_mut(slot)
            && !tunnel.is_queued
        {
            tunnel.is_queued = true;
            self.ready.push_back(slot);
        }
    }

    /// A closing's task whose tunnel is frozen comes again later.
    pub(super) fn postpone_if_frozen(&mut self, share: usize, task: &CloseTask) -> bool {
        let (CloseTask::SendClose(slot, _) | CloseTask::Abort(slot)) = *task;
        let Some(Some(tunnel)) = self.tunnels.get(slot) else { return false };
        if tunnel.is_frozen() {
            self.closes[share].postpone(task, tunnel.info.id, self.now);
        }
        tunnel.is_frozen()
    }
}

/// Takes the sockets out of the epoll, before they are anyone else's and before they are closed: closing a socket that
/// another process has open, too, does not, and the place would go on to be called.
fn unregister(epoll: &OwnedFd, tunnel: &ActiveTunnel) {
    for socket in tunnel.endpoints().iter().filter_map(|endpoint| endpoint.socket()) {
        if let Err(error) = epoll::delete(epoll, socket) {
            tracing::error!(%error, "a socket could not be taken out of its epoll");
        }
    }
}
