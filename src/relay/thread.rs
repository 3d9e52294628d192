//! A relay thread as the rest of the process sees it: where to send commands, and how many tunnels it has.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::command::{CommandSender, PendingAdoption, RelayCommand};
use super::event_loop::EventLoop;
use super::migration::staged::RestoredTunnels;
use super::session::{CloseObserver, Tunnel};
use super::thread_waker::ThreadWaker;
use super::tunnel::ActiveTunnel;

/// A handle to a relay thread.
pub(super) struct RelayThread {
    /// Where it takes commands.
    pub sender: CommandSender,
    /// Its tunnels, including those on their way to it.
    tunnels: Arc<AtomicUsize>,
    /// For tunnels that it does not take any more.
    observer: CloseObserver,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl RelayThread {
    /// Starts the thread.
    pub(super) fn start(index: usize, observer: CloseObserver) -> io::Result<Self> {
        let (waker, tunnels) = (ThreadWaker::new()?, Arc::default());
        let (commands, inbox) = channel();
        let event_loop =
            EventLoop::new(index, waker.clone(), inbox, Arc::clone(&tunnels), Arc::clone(&observer))?;
        let name = format!("relay-{index}");
        let handle = std::thread::Builder::new().name(name).spawn(move || event_loop.run())?;
        let sender = CommandSender::new(commands, waker);
        Ok(Self { sender, tunnels, observer, handle: Mutex::new(Some(handle)) })
    }

    /// How many tunnels it has, including those on their way to it.
    pub(super) fn tunnel_count(&self) -> usize {
        self.tunnels.load(Relaxed)
    }

    /// Gives it a tunnel. Returns false when the thread has ended: the tunnel has its end then.
    pub(super) fn adopt(&self, tunnel: Tunnel) -> bool {
        let adoption = PendingAdoption::new(tunnel, Arc::clone(&self.observer));
        self.send_tunnels(1, RelayCommand::Adopt(Box::new(adoption)))
    }

    /// Gives it tunnels of another process. When the thread has ended, they have their ends.
    pub(super) fn restore(&self, tunnels: Vec<ActiveTunnel>) {
        let count = tunnels.len();
        let restored = RestoredTunnels::new(tunnels, Arc::clone(&self.observer));
        self.send_tunnels(count, RelayCommand::Restore(restored));
    }

    fn send_tunnels(&self, count: usize, command: RelayCommand) -> bool {
        self.tunnels.fetch_add(count, Relaxed);
        let is_sent = self.sender.send(command);
        if !is_sent {
            self.tunnels.fetch_sub(count, Relaxed);
        }
        is_sent
    }

    /// Waits for the thread to end. Blocks.
    pub(super) fn join(&self) {
        if let Some(handle) = self.handle.lock().take()
            && handle.join().is_err()
        {
            tracing::error!("a relay thread panicked");
        }
    }
}
