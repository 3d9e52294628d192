//! The access log: one line when a session opens and one when it ends.
//!
//! Whoever reports an event pays one small allocation and a push to a bounded queue. A thread of the log's own
//! formats and writes, and hands to the system what it has as soon as the queue is empty. When the queue is full,
//! because a disk or a reader is slow, the event is dropped and counted: sessions never wait for their log.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::mem;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use prometheus::IntCounter;
use tracing::warn;

use super::{Format, line};

/// Events that may wait: the burst of a drain. The queue holds pointers, 16 bytes each.
const QUEUE: usize = 16 * 1024;

/// Bytes that are handed to the system at once; a page or two more than a line always fits.
const BATCH: usize = 64 * 1024;

/// How long the end of the process waits for a reader who does not read.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// Standard output.
    Stdout,
    /// Appended to this file, which is made when it is not there (readable by owner and group: it names clients).
    File(PathBuf),
}

/// A session has a tunnel.
#[derive(Debug, Clone)]
pub struct Open {
    /// The session's number in this process.
    pub id: u64,
    /// When it opened.
    pub at: SystemTime,
    /// The client's address, as far as it is believed; `None` behind a Unix socket that says none.
    pub client: Option<IpAddr>,
    /// The route that took it.
    pub route: Arc<str>,
    /// The pool.
    pub pool: Arc<str>,
    /// The node.
    pub node: Arc<str>,
    /// Which affinity source placed it.
    pub affinity_source: &'static str,
    /// How that went.
    pub affinity_outcome: &'static str,
}

/// A session's tunnel ended.
#[derive(Debug, Clone)]
pub struct Close {
    /// The session's number in this process.
    pub id: u64,
    /// When it ended.
    pub at: SystemTime,
    /// The client's address, as far as it is believed; `None` behind a Unix socket that says none.
    pub client: Option<IpAddr>,
    /// The route that took it.
    pub route: Arc<str>,
    /// The pool.
    pub pool: Arc<str>,
    /// The node.
    pub node: Arc<str>,
    /// Which affinity source placed it.
    pub affinity_source: &'static str,
    /// How that went.
    pub affinity_outcome: &'static str,
    /// Who ended it: client, node or balancer.
    pub side: &'static str,
    /// The close code; 1006 when there was none.
    pub code: u16,
    /// Why, in a word.
    pub why: &'static str,
    /// How long the tunnel was open.
    pub duration: Duration,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes from the node.
    pub bytes_out: u64,
    /// Messages from the client.
    pub messages_in: u64,
    /// Messages from the node.
    pub messages_out: u64,
}

/// What the queue holds.
pub(super) enum Event {
    Open(Open),
    Close(Close),
}

/// The access log. Shared by reference; the last to drop it, or [`AccessLog::finish`], writes what is queued.
pub struct AccessLog {
    /// The way to the writer; `None` when the log is off or finished. Boxed events, so that the queue stays small.
    queue: RwLock<Option<SyncSender<Box<Event>>>>,
    /// The writer; `None` when the log is off or finished.
    writer: Mutex<Option<Writer>>,
    /// Events that were not written.
    dropped: IntCounter,
}

/// The thread that formats and writes.
struct Writer {
    thread: JoinHandle<()>,
    /// Hangs up when the thread is done.
    done: Receiver<()>,
}

impl AccessLog {
    /// A log that writes nothing.
    pub fn off() -> Self {
        let dropped =
            IntCounter::new("dropped", "events").expect("a literal without a space is a metric name");
        Self::silent(dropped)
    }

    /// A log that writes nothing, until it goes on as another: what that does not write is counted in `dropped`.
    pub fn silent(dropped: IntCounter) -> Self {
        Self { queue: RwLock::new(None), writer: Mutex::new(None), dropped }
    }

    /// Goes on as `next`: what is logged from now on is written there. Gives what it was before, to be finished.
    pub fn replace(&self, next: Self) -> Self {
        let queue = mem::replace(&mut *self.queue.write(), next.queue.write().take());
        let writer = mem::replace(&mut *self.writer.lock(), next.writer.lock().take());
        Self { queue: RwLock::new(queue), writer: Mutex::new(writer), dropped: self.dropped.clone() }
    }

    /// Opens the file, where there is one, and starts the writer. What does not get written is counted in
    /// `dropped`. Fails when the file cannot be opened or no thread can be had.
    pub fn start(format: Format, to: &To, dropped: IntCounter) -> io::Result<Self> {
        let sink: Box<dyn Write + Send> = match to {
            To::Stdout => Box::new(io::stdout()),
            To::File(path) => Box::new(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?),
        };
        Self::start_on(sink, format, dropped, QUEUE)
    }

    fn start_on(
        sink: Box<dyn Write + Send>,
        format: Format,
        dropped: IntCounter,
        capacity: usize,
    ) -> io::Result<Self> {
        let (queue, events) = mpsc::sync_channel(capacity);
        let (running, done) = mpsc::channel();
        let pages =
            Pages { sink, format, batch: Vec::with_capacity(BATCH), lines: 0, dropped: dropped.clone() };
        let thread = thread::Builder::new().name("access-log".into()).spawn(move || {
            pages.write_all(&events);
            drop(running);
        })?;
        let writer = Mutex::new(Some(Writer { thread, done }));
        Ok(Self { queue: RwLock::new(Some(queue)), writer, dropped })
    }

    /// Logs that a session has a tunnel. Never waits.
    pub fn open(&self, event: Open) {
        self.push(Event::Open(event));
    }

    /// Logs that a session's tunnel ended. Never waits.
    pub fn close(&self, event: Close) {
        self.push(Event::Close(event));
    }

    /// Events that were not written so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Writes what is queued and ends the writer; waits for a reader who does not read for five seconds at most.
    /// What is logged afterwards is lost.
    pub fn finish(&self) {
        // Without its sender the queue ends after what is in it.
        self.queue.write().take();
        let Some(writer) = self.writer.lock().take() else { return };
        match writer.done.recv_timeout(PATIENCE) {
            Err(mpsc::RecvTimeoutError::Timeout) => warn!("access log is not read, its last lines are lost"),
            // A panic of the writer has been said by the thread itself.
            _ => drop(writer.thread.join()),
        }
    }

    fn push(&self, event: Event) {
        if let Some(queue) = &*self.queue.read()
            && queue.try_send(Box::new(event)).is_err()
        {
            self.dropped.inc();
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What the writer has formatted and not yet written.
struct Pages {
    sink: Box<dyn Write + Send>,
    format: Format,
    /// Whole lines.
    batch: Vec<u8>,
    /// How many lines `batch` has.
    lines: u64,
    dropped: IntCounter,
}

impl Pages {
    /// Writes until the queue ends.
    fn write_all(mut self, events: &Receiver<Box<Event>>) {
        let mut failing = false;
        while let Ok(event) = events.recv() {
            self.add(&event);
            while self.batch.len() < BATCH {
                let Ok(event) = events.try_recv() else { break };
                self.add(&event);
            }
            let written = self.flush();
            if let (Err(fault), false) = (&written, failing) {
                warn!(%fault, "access log cannot be written, its lines are dropped and counted");
            }
            failing = written.is_err();
        }
    }

    fn add(&mut self, event: &Event) {
        line::write(&mut self.batch, self.format, event);
        self.lines += 1;
    }

    fn flush(&mut self) -> io::Result<()> {
        let lines = mem::take(&mut self.lines);
        let written = self.sink.write_all(&self.batch).and_then(|()| self.sink.flush());
        self.batch.clear();
        if written.is_err() {
            self.dropped.inc_by(lines);
        }
        written
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::time::UNIX_EPOCH;

    use super::*;

    pub(in crate::log) fn opened(id: u64) -> Open {
        Open {
            id,
            at: UNIX_EPOCH + Duration::from_millis(1_795_515_630_045),
            client: Some("203.0.113.7".parse().unwrap()),
            route: "chat.example.com/socket.io/".into(),
            pool: "chat".into(),
            node: "ws1".into(),
            affinity_source: "cookie",
            affinity_outcome: "pinned",
        }
    }

    pub(in crate::log) fn closed(id: u64) -> Close {
        let Open { id, at, client, route, pool, node, affinity_source, affinity_outcome } = opened(id);
        Close {
            id,
            at,
            client,
            route,
            pool,
            node,
            affinity_source,
            affinity_outcome,
            side: "client",
            code: 1001,
            why: "close frame",
            duration: Duration::from_micros(1_234_567),
            bytes_in: 10,
            bytes_out: 20,
            messages_in: 1,
            messages_out: 2,
        }
    }

    fn counter() -> IntCounter {
        IntCounter::new("dropped", "events").unwrap()
    }

    /// A sink whose reader reads only when it is told to, and that says when a write waits for it.
    struct Slow {
        waiting: mpsc::Sender<()>,
        read: Receiver<()>,
        seen: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.waiting.send(());
            let _ = self.read.recv();
            self.seen.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sink on a full disk.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_that_was_queued_is_written_at_the_end_in_its_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::start(Format::Json, &To::File(path.clone()), counter()).unwrap();
        for id in 0..1000 {
            log.open(opened(id));
            log.close(closed(id));
        }
        log.finish();
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), log.dropped()), (2000, 0));
        for (index, line) in lines.iter().enumerate() {
            assert_eq!(line["id"], format!("{:016x}", index / 2));
            assert_eq!(line["event"], ["open", "close"][index % 2]);
        }
    }

    #[test]
    fn a_log_is_continued_and_not_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let to = To::File(directory.path().join("access.log"));
        for id in 0..2 {
            let log = AccessLog::start(Format::Text, &to, counter()).unwrap();
            log.open(opened(id));
        }
        let text = fs::read_to_string(directory.path().join("access.log")).unwrap();
        assert_eq!(text.lines().count(), 2, "dropping a log writes what it has: {text}");
    }

    #[test]
    fn who_reports_never_waits_and_what_finds_no_room_is_counted() {
        let (waiting, is_waiting) = mpsc::channel();
        let (reads, read) = mpsc::channel();
        let seen = Arc::default();
        let sink = Slow { waiting, read, seen: Arc::clone(&seen) };
        let log = AccessLog::start_on(Box::new(sink), Format::Text, counter(), 4).unwrap();
        log.open(opened(0));
        is_waiting.recv().unwrap();
        for id in 1..=10 {
            log.open(opened(id));
        }
        assert_eq!(log.dropped(), 6, "one is being written and four have room");
        drop(reads);
        log.finish();
        assert_eq!(seen.lock().iter().filter(|b| **b == b'\n').count(), 5);
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted() {
        let log = AccessLog::start_on(Box::new(Full), Format::Json, counter(), 64).unwrap();
        for id in 0..20 {
            log.open(opened(id));
        }
        log.finish();
        assert_eq!(log.dropped(), 20);
    }

    #[test]
    fn a_finished_log_and_one_that_is_off_take_events_and_write_nothing() {
        let log = AccessLog::start_on(Box::new(Full), Format::Json, counter(), 64).unwrap();
        log.finish();
        log.finish();
        log.open(opened(1));
        let off = AccessLog::off();
        off.close(closed(1));
        off.finish();
        assert_eq!((log.dropped(), off.dropped()), (0, 0));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let fault = AccessLog::start(Format::Json, &To::File(directory.path().into()), counter()).err();
        assert!(fault.is_some(), "a directory is no file");
    }

    #[test]
    fn many_threads_share_one_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::start(Format::Json, &To::File(path.clone()), counter()).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|id| log.close(closed(id))));
            }
        });
        log.finish();
        let lines = fs::read_to_string(path).unwrap().lines().count() as u64;
        assert_eq!(lines + log.dropped(), 2000);
    }
}
