//! The commands that a relay thread runs.

use super::EventLoop;
use crate::relay::command::RelayCommand;

/// The most commands of one tick: a storm of handshakes does not delay the messages of established tunnels.
const MAX_COMMANDS: usize = 128;

impl EventLoop {
    /// Runs the commands that have arrived.
    pub(super) fn run_commands(&mut self) {
        self.waker.clear();
        self.has_more_commands = true;
        for _ in 0..MAX_COMMANDS {
            let Ok(command) = self.commands.try_recv() else {
                self.has_more_commands = false;
                return;
            };
            self.run_command(command);
        }
    }

    fn run_command(&mut self, command: RelayCommand) {
        match command {
            // The asker may have given up meanwhile.
            RelayCommand::Acknowledge(reply) => drop(reply.send(())),
            RelayCommand::Adopt(mut adoption) => {
                if let Some(tunnel) = adoption.take() {
                    self.adopt(tunnel);
                }
            }
            RelayCommand::Close(mut share) => {
                share.receive(self.clock_at(share.shared().begun), self.now);
                self.closes.push(*share);
            }
            RelayCommand::List(job) => self.list_jobs.push_back(*job),
            RelayCommand::Freeze(request) => self.freeze(request),
            RelayCommand::Resume(tunnels) => self.resume(tunnels),
            RelayCommand::Release(slots) => self.release(slots),
            RelayCommand::Restore(mut restored) => self.restore(restored.take()),
        }
    }
}
