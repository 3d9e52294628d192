//! Tunnels that leave a relay thread alive or come from another process: frozen, resumed, released, restored.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;

use zeroize::Zeroizing;

use super::EventLoop;
use super::slab::unregister;
use crate::relay::command::FreezeRequest;
use crate::relay::migration::frozen::FrozenTunnel;
use crate::relay::tunnel::ActiveTunnel;

impl EventLoop {
    /// Freezes the thread's tunnels, as far as the budget of all threads allows.
    pub(super) fn freeze(&mut self, request: FreezeRequest) {
        self.freeze_with(request, ActiveTunnel::encode);
    }

    /// Freezes tunnels with `encode` for their states. A tunnel whose encoding panics ends, and no other.
    pub(super) fn freeze_with(
        &mut self,
        request: FreezeRequest,
        encode: impl Fn(&ActiveTunnel, u64) -> Zeroizing<Vec<u8>>,
    ) {
        let (mut batch, mut panicked) = (request.empty_batch(), Vec::new());
        for (slot, tunnel) in self.tunnels.iter_mut().enumerate() {
            let Some(tunnel) = tunnel.as_mut().filter(|tunnel| tunnel.can_freeze()) else { continue };
            let id = tunnel.info.id;
            if !request.try_reserve() {
                break;
            }
            let Ok(state) = catch_unwind(AssertUnwindSafe(|| encode(tunnel, self.now))) else {
                panicked.push(slot);
                continue;
            };
            unregister(&self.epoll, tunnel);
            if let Some(sockets) = tunnel.take_sockets() {
                batch.tunnels.push(FrozenTunnel::new(id, slot, state, sockets));
            }
        }
        request.reply(batch);
        panicked.into_iter().for_each(|slot| self.end_panicked(slot));
    }

    /// Continues with frozen tunnels. Each is served once for what it holds; a socket that is registered anew is
    /// reported with everything that has come to it meanwhile, edge-triggered or not.
    pub(super) fn resume(&mut self, tunnels: Vec<FrozenTunnel>) {
        for FrozenTunnel { slot, sockets, .. } in tunnels {
            let Some(Some(tunnel)) = self.tunnels.get_mut(slot) else { continue };
            tunnel.restore_sockets(sockets);
            if self.register(slot) {
                self.enqueue(slot);
            }
        }
    }

    /// Drops tunnels that are another process's now. They have not ended: there is no session end.
    pub(super) fn release(&mut self, slots: Vec<usize>) {
        for slot in slots {
            if let Some(tunnel) = self.tunnels.get_mut(slot).and_then(Option::take) {
                self.free_slots.push(slot);
                self.forget_migrated(tunnel.info.id);
            }
        }
    }

    /// The session is another process's: no close counts it as ended.
    fn forget_migrated(&mut self, id: u64) {
        self.tunnel_count.fetch_sub(1, Relaxed);
        self.closes.iter_mut().for_each(|close| close.remove_migrated(id));
    }

    /// Carries tunnels that another process has released. They are only queued here, so that a panic in one does not
    /// end the others.
    pub(super) fn restore(&mut self, tunnels: Vec<ActiveTunnel>) {
        for mut tunnel in tunnels {
            tunnel.shift_clock(self.now);
            if let Some(slot) = self.insert(Box::new(tunnel)) {
                self.enqueue(slot);
            }
        }
    }
}
