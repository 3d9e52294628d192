//! The slab of a relay thread: tunnels get a slot, and their sockets are registered with epoll.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::epoll;

use super::EventLoop;
use crate::relay::close_reason::CloseReason;
use crate::relay::session::{SessionEnd, SessionInfo, Tunnel};
use crate::relay::tunnel::ActiveTunnel;
use crate::ws::close;

impl EventLoop {
    /// Adopts a tunnel from the front desk.
    pub(super) fn adopt(&mut self, tunnel: Tunnel) {
        let (tunnel, early) = match ActiveTunnel::new(tunnel, self.now) {
            Ok((tunnel, early)) => (Box::new(tunnel), early),
            Err(info) => return self.refuse_panicked(&info),
        };
        if let Some(slot) = self.insert(tunnel) {
            self.serve(slot, |tunnel, tick| {
                tunnel.relay_early(&early, tick);
                tunnel.pump_both(tick)
            });
        }
    }

    /// A tunnel whose takeover panicked has its one end, too.
    #[cold]
    fn refuse_panicked(&mut self, info: &SessionInfo) {
        tracing::error!(id = info.id, "a tunnel panicked as it was adopted, it ends");
        self.forget_session(info.id);
        (self.observer)(info, &SessionEnd::without_traffic(close::ABNORMAL, CloseReason::Panicked));
    }

    /// Gives the tunnel a slot and registers its sockets. `None` when that fails: the tunnel has ended then.
    pub(super) fn insert(&mut self, tunnel: Box<ActiveTunnel>) -> Option<usize> {
        let id = tunnel.info.id;
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.tunnels.push(None);
            self.tunnels.len() - 1
        });
        self.tunnels[slot] = Some(tunnel);
        if !self.register(slot) {
            return None;
        }
        self.join_closes(slot, id);
        Some(slot)
    }

    /// Adds a new tunnel to the paced closes that include later ones.
    fn join_closes(&mut self, slot: usize, id: u64) {
        let Some(Some(tunnel)) = self.tunnels.get(slot) else { return };
        for close in self.closes.iter_mut().filter(|close| close.includes(&tunnel.info)) {
            close.add_late(slot, id, self.now);
        }
    }

    /// Registers the sockets of a tunnel with epoll. Returns false when that fails: the tunnel has ended then.
    pub(super) fn register(&mut self, slot: usize) -> bool {
        let Some(Some(tunnel)) = self.tunnels.get(slot) else { return false };
        let Err(error) = register(&self.epoll, slot, tunnel) else { return true };
        tracing::error!(%error, "a socket could not be registered with epoll, its tunnel ends");
        self.end_tunnel(slot);
        false
    }

    /// Removes the sockets of a tunnel from epoll.
    pub(super) fn unregister(&self, tunnel: &ActiveTunnel) {
        unregister(&self.epoll, tunnel);
    }

    /// Has the tunnel served in this tick or the next.
    pub(super) fn enqueue(&mut self, slot: usize) {
        if let Some(Some(tunnel)) = self.tunnels.get_mut(slot)
            && !tunnel.is_queued
        {
            tunnel.is_queued = true;
            self.ready.push_back(slot);
        }
    }
}

fn register(epoll: &OwnedFd, slot: usize, tunnel: &ActiveTunnel) -> io::Result<()> {
    use epoll::EventFlags as Flags;
    for (index, endpoint) in tunnel.endpoints().iter().enumerate() {
        let Some(socket) = endpoint.socket() else { continue };
        let token = (slot as u64) << 1 | index as u64;
        let flags = Flags::IN | Flags::PRI | Flags::OUT | Flags::RDHUP | Flags::ET;
        epoll::add(epoll, socket, epoll::EventData::new_u64(token), flags)?;
    }
    Ok(())
}

/// Removes the sockets from epoll, before they are another process's and before they are closed: closing a socket that
/// another process has open, too, does not remove it, and its slot would go on to be reported.
pub(super) fn unregister(epoll: &OwnedFd, tunnel: &ActiveTunnel) {
    for socket in tunnel.endpoints().iter().filter_map(|endpoint| endpoint.socket()) {
        if let Err(error) = epoll::delete(epoll, socket) {
            tracing::error!(%error, "a socket could not be removed from its epoll");
        }
    }
}
