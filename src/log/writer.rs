//! The thread of the access log: it formats what is queued and writes it in batches.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use prometheus::IntCounter;
use tracing::warn;

use super::Format;
use super::event::AccessEvent;
use super::line::write_line;

/// Bytes that are handed to the system at once; a page or two more than a line always fits.
const BATCH_SIZE: usize = 64 * 1024;

/// The thread that formats and writes.
pub(super) struct WriterThread {
    pub thread: JoinHandle<()>,
    /// The way to it, also while the log is off.
    pub queue: SyncSender<Box<AccessEvent>>,
    /// Hangs up when the thread is done.
    pub done: Receiver<()>,
}

/// What lines are written to.
pub(super) struct LogOutput {
    pub sink: Box<dyn Write + Send>,
    pub format: Format,
}

/// Holds one output. A later one replaces one that the writer has not switched to yet.
#[derive(Default)]
pub(super) struct PendingOutput {
    output: Mutex<Option<LogOutput>>,
    /// An output is set. It is read for every event, so it is no lock. It is set before an event for the new output is
    /// queued, so whoever takes that event out of the queue sees it.
    is_set: AtomicBool,
}

impl PendingOutput {
    pub(super) fn put(&self, output: LogOutput) {
        let old = self.output.lock().replace(output);
        self.is_set.store(true, Ordering::Release);
        drop(old);
    }

    fn take(&self) -> Option<LogOutput> {
        if !self.is_set.load(Ordering::Acquire) {
            return None;
        }
        let mut output = self.output.lock();
        self.is_set.store(false, Ordering::Release);
        output.take()
    }
}

impl WriterThread {
    pub(super) fn start(
        output: LogOutput,
        next: Arc<PendingOutput>,
        dropped: IntCounter,
        capacity: usize,
    ) -> io::Result<Self> {
        let (queue, events) = mpsc::sync_channel(capacity);
        let (running, done) = mpsc::channel();
        let pages = BatchWriter {
            output,
            pending: next,
            batch: Vec::with_capacity(BATCH_SIZE),
            lines: 0,
            dropped,
            is_failing: false,
        };
        let thread = thread::Builder::new().name("access-log".into()).spawn(move || {
            pages.write_all(&events);
            drop(running);
        })?;
        Ok(Self { thread, queue, done })
    }
}

/// The lines that are formatted and not yet written.
struct BatchWriter {
    output: LogOutput,
    pending: Arc<PendingOutput>,
    /// Whole lines.
    batch: Vec<u8>,
    /// How many lines `batch` has.
    lines: u64,
    dropped: IntCounter,
    /// The last batch could not be written, and this was logged.
    is_failing: bool,
}

impl BatchWriter {
    /// Writes until the queue ends.
    fn write_all(mut self, events: &Receiver<Box<AccessEvent>>) {
        while let Ok(event) = events.recv() {
            self.add(&event);
            while self.batch.len() < BATCH_SIZE {
                let Ok(event) = events.try_recv() else { break };
                self.add(&event);
            }
            self.flush();
        }
    }

    fn add(&mut self, event: &AccessEvent) {
        if let Some(output) = self.pending.take() {
            self.flush();
            self.output = output;
        }
        if write_line(&mut self.batch, self.output.format, event) {
            self.lines += 1;
        }
    }

    fn flush(&mut self) {
        let lines = mem::take(&mut self.lines);
        let written = self.output.sink.write_all(&self.batch).and_then(|()| self.output.sink.flush());
        self.batch.clear();
        if let Err(fault) = &written {
            self.dropped.inc_by(lines);
            if !self.is_failing {
                warn!(%fault, "access log cannot be written, its lines are dropped and counted");
            }
        }
        self.is_failing = written.is_err();
    }
}
