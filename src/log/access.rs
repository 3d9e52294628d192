//! The access log: one line when a session opens and one when it ends.
//!
//! Whoever reports an event pays one small allocation and a push to a bounded queue. A thread of the log's own
//! formats and writes, and hands to the system what it has as soon as the queue is empty. When the queue is full,
//! because a disk or a reader is slow, the event is dropped and counted: sessions never wait for their log.
//!
//! [`AccessLog::change`] and [`AccessLog::reopen`] turn the page: what is reported after they return is written to
//! the new file, and nothing that was reported before is lost, though it may be written to either.
//!
//! Of a person, a line says the client's address and nothing else: no path, query, header or cookie, and nothing of
//! what was sent. The fields are in `line`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::mem;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use prometheus::IntCounter;
use tracing::warn;

use super::{Format, line};

/// Events that may wait: the burst of a drain. The queue holds pointers, 16 bytes each.
const QUEUE_CAPACITY: usize = 16 * 1024;

/// Bytes that are handed to the system at once; a page or two more than a line always fits.
const BATCH_SIZE: usize = 64 * 1024;

/// How long the end of the process waits for a reader who does not read.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Appended to this file, which is made when it is not there (readable by owner and group: it names clients).
    File(PathBuf),
}

impl LogTarget {
    fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Self::Stdout => Box::new(io::stdout()),
            Self::File(path) => {
                Box::new(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?)
            }
        })
    }
}

/// What is written, and where; a log without one is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogSettings {
    /// How a line looks.
    pub format: Format,
    /// Where the lines go.
    pub target: LogTarget,
}

/// What both lines of a session say about it.
#[derive(Debug, Clone)]
pub struct AccessSession {
    /// The session's number in this process.
    pub id: u64,
    /// The trace that it is part of (W3C Trace Context, `trace-id`), which its node was told, too.
    pub trace: [u8; 16],
    /// The client's address, as far as it is believed; `None` behind a Unix socket that says none.
    pub client: Option<IpAddr>,
    /// The route that took it.
    pub route: Arc<str>,
    /// The pool.
    pub pool: Arc<str>,
    /// The node.
    pub node: Arc<str>,
    /// Which affinity source placed it, and how that went.
    pub affinity: (&'static str, &'static str),
}

/// A session has a tunnel.
#[derive(Debug, Clone)]
pub struct SessionOpened {
    /// When it opened.
    pub at: SystemTime,
    /// Whose line this is.
    pub session: AccessSession,
}

/// A session's tunnel ended.
#[derive(Debug, Clone)]
pub struct SessionClosed {
    /// When it ended.
    pub at: SystemTime,
    /// Whose line this is.
    pub session: AccessSession,
    /// Who ended it: client, node or balancer.
    pub side: &'static str,
    /// The close code; 1006 when there was none.
    pub code: u16,
    /// Why, in a word.
    pub why: &'static str,
    /// How long the tunnel was open.
    pub duration: Duration,
    /// Bytes from the client and from the node.
    pub bytes: [u64; 2],
    /// Messages from the client and from the node.
    pub messages: [u64; 2],
}

/// What the queue holds.
pub(super) enum AccessEvent {
    Opened(SessionOpened),
    Closed(SessionClosed),
    /// Nothing to write: there is a [`Page`] to turn to.
    SwitchOutput,
}

/// The access log. Shared by reference; the last to drop it, or [`AccessLog::finish`], writes what is queued.
pub struct AccessLog {
    /// The way to the writer; `None` when the log is off or finished. Boxed events, so that the queue stays small.
    queue: RwLock<Option<SyncSender<Box<AccessEvent>>>>,
    /// What is written now, and by whom. Locked while a page is turned, never by a session.
    state: Mutex<WriterState>,
    /// The page that the writer has to turn to.
    pending: Arc<PendingOutput>,
    /// Events that were not written.
    dropped: IntCounter,
}

/// Who writes what.
struct WriterState {
    /// As the log was told last; `None` when it is off.
    settings: Option<AccessLogSettings>,
    /// The writer, once there was something to write; `None` again when the log is finished.
    writer: Option<WriterThread>,
}

/// The thread that formats and writes.
struct WriterThread {
    thread: JoinHandle<()>,
    /// The way to it, also while the log is off.
    queue: SyncSender<Box<AccessEvent>>,
    /// Hangs up when the thread is done.
    done: Receiver<()>,
}

/// What lines are written to.
struct LogOutput {
    sink: Box<dyn Write + Send>,
    format: Format,
}

/// A place for one page. A later one takes the place of one that the writer has not turned to yet.
#[derive(Default)]
struct PendingOutput {
    output: Mutex<Option<LogOutput>>,
    /// There is one: looked at for every event, so it is no lock. Set before an event of the new page is queued,
    /// and seen by whoever takes that event out of the queue.
    is_set: AtomicBool,
}

impl PendingOutput {
    fn put(&self, page: LogOutput) {
        let old = self.output.lock().replace(page);
        self.is_set.store(true, Ordering::Release);
        drop(old);
    }

    fn take(&self) -> Option<LogOutput> {
        if !self.is_set.load(Ordering::Acquire) {
            return None;
        }
        let mut page = self.output.lock();
        self.is_set.store(false, Ordering::Release);
        page.take()
    }
}

impl AccessLog {
    /// A log that writes nothing, until it is told something else. What does not get written then is counted in
    /// `dropped`.
    pub fn disabled(dropped: IntCounter) -> Self {
        let state = Mutex::new(WriterState { settings: None, writer: None });
        Self { queue: RwLock::new(None), state, pending: Arc::default(), dropped }
    }

    /// A log that writes what is wished for. Fails as [`AccessLog::change`] does.
    pub fn start(wish: Option<AccessLogSettings>, dropped: IntCounter) -> io::Result<Self> {
        let log = Self::disabled(dropped);
        log.reconfigure(wish)?;
        Ok(log)
    }

    /// Writes what is wished for from now on; `None` is nothing. Does not wait for the writer. A wish that is
    /// granted already changes nothing.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or no thread can be had; the log then goes on as before.
    pub fn reconfigure(&self, wish: Option<AccessLogSettings>) -> io::Result<()> {
        let mut desk = self.state.lock();
        if desk.settings == wish {
            return Ok(());
        }
        match &wish {
            Some(AccessLogSettings { format, target }) => {
                self.switch_output(&mut desk, LogOutput { sink: target.open()?, format: *format })?
            }
            None => drop(self.queue.write().take()),
        }
        desk.settings = wish;
        Ok(())
    }

    /// Opens the file anew, by its name: the old one has been moved away by now. Does not wait for the writer.
    ///
    /// # Errors
    ///
    /// The file cannot be opened; the log then goes on in the old one.
    pub fn reopen(&self) -> io::Result<()> {
        let mut desk = self.state.lock();
        let Some(AccessLogSettings { format, target: target @ LogTarget::File(_) }) = &desk.settings else {
            return Ok(());
        };
        let page = LogOutput { sink: target.open()?, format: *format };
        self.switch_output(&mut desk, page)
    }

    /// Logs that a session has a tunnel. Never waits.
    pub fn log_opened(&self, event: SessionOpened) {
        self.push(AccessEvent::Opened(event));
    }

    /// Logs that a session's tunnel ended. Never waits.
    pub fn log_closed(&self, event: SessionClosed) {
        self.push(AccessEvent::Closed(event));
    }

    /// Events that were not written so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Writes what is queued and ends the writer; waits for a reader who does not read for five seconds at most.
    /// What is logged afterwards is lost.
    pub fn finish(&self) {
        // Without its senders the queue ends after what is in it.
        self.queue.write().take();
        let Some(WriterThread { thread, queue, done }) = self.state.lock().writer.take() else { return };
        drop(queue);
        match done.recv_timeout(FINISH_TIMEOUT) {
            Err(mpsc::RecvTimeoutError::Timeout) => warn!("access log is not read, its last lines are lost"),
            // A panic of the writer has been said by the thread itself.
            _ => drop(thread.join()),
        }
    }

    /// Gives the page to the writer, which is started when there is none.
    fn switch_output(&self, desk: &mut WriterState, page: LogOutput) -> io::Result<()> {
        let queue = match &desk.writer {
            Some(writer) => {
                self.pending.put(page);
                // It wakes a writer that waits; in a full queue there is no room, and no need.
                let _ = writer.queue.try_send(Box::new(AccessEvent::SwitchOutput));
                writer.queue.clone()
            }
            None => {
                let writer = WriterThread::start(
                    page,
                    Arc::clone(&self.pending),
                    self.dropped.clone(),
                    QUEUE_CAPACITY,
                )?;
                desk.writer.insert(writer).queue.clone()
            }
        };
        *self.queue.write() = Some(queue);
        Ok(())
    }

    fn push(&self, event: AccessEvent) {
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

impl WriterThread {
    fn start(
        page: LogOutput,
        next: Arc<PendingOutput>,
        dropped: IntCounter,
        capacity: usize,
    ) -> io::Result<Self> {
        let (queue, events) = mpsc::sync_channel(capacity);
        let (running, done) = mpsc::channel();
        let pages = BatchWriter {
            output: page,
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

/// What the writer has formatted and not yet written.
struct BatchWriter {
    output: LogOutput,
    pending: Arc<PendingOutput>,
    /// Whole lines.
    batch: Vec<u8>,
    /// How many lines `batch` has.
    lines: u64,
    dropped: IntCounter,
    /// The last batch could not be written, which has been said.
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
        if let Some(page) = self.pending.take() {
            self.flush();
            self.output = page;
        }
        if line::write_line(&mut self.batch, self.output.format, event) {
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

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::UNIX_EPOCH;

    use super::*;

    pub(in crate::log) fn opened(id: u64) -> SessionOpened {
        let session = AccessSession {
            id,
            trace: *b"0123456789abcdef",
            client: Some("203.0.113.7".parse().unwrap()),
            route: "chat.example.com/socket.io/".into(),
            pool: "chat".into(),
            node: "ws1".into(),
            affinity: ("cookie", "kept"),
        };
        SessionOpened { at: UNIX_EPOCH + Duration::from_millis(1_795_515_630_045), session }
    }

    pub(in crate::log) fn closed(id: u64) -> SessionClosed {
        let SessionOpened { at, session } = opened(id);
        SessionClosed {
            at,
            session,
            side: "client",
            code: 1001,
            why: "close frame",
            duration: Duration::from_micros(1_234_567),
            bytes: [10, 20],
            messages: [1, 2],
        }
    }

    fn to_file(format: Format, path: &Path) -> Option<AccessLogSettings> {
        Some(AccessLogSettings { format, target: LogTarget::File(path.to_owned()) })
    }

    /// A log on this sink whose queue has this room.
    fn log_on(sink: impl Write + Send + 'static, capacity: usize) -> AccessLog {
        let log = AccessLog::disabled(counter());
        let page = LogOutput { sink: Box::new(sink), format: Format::Text };
        let writer =
            WriterThread::start(page, Arc::clone(&log.pending), log.dropped.clone(), capacity).unwrap();
        *log.queue.write() = Some(writer.queue.clone());
        log.state.lock().writer = Some(writer);
        log
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
        let log = AccessLog::start(to_file(Format::Json, &path), counter()).unwrap();
        for id in 0..1000 {
            log.log_opened(opened(id));
            log.log_closed(closed(id));
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
        let path = directory.path().join("access.log");
        for id in 0..2 {
            let log = AccessLog::start(to_file(Format::Text, &path), counter()).unwrap();
            log.log_opened(opened(id));
        }
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 2, "dropping a log writes what it has: {text}");
    }

    #[test]
    fn who_reports_never_waits_and_what_finds_no_room_is_counted() {
        let (waiting, is_waiting) = mpsc::channel();
        let (reads, read) = mpsc::channel();
        let seen = Arc::default();
        let sink = Slow { waiting, read, seen: Arc::clone(&seen) };
        let log = log_on(sink, 4);
        log.log_opened(opened(0));
        is_waiting.recv().unwrap();
        for id in 1..=10 {
            log.log_opened(opened(id));
        }
        assert_eq!(log.dropped(), 6, "one is being written and four have room");
        drop(reads);
        log.finish();
        assert_eq!(seen.lock().iter().filter(|b| **b == b'\n').count(), 5);
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted() {
        let log = log_on(Full, 64);
        for id in 0..20 {
            log.log_opened(opened(id));
        }
        log.finish();
        assert_eq!(log.dropped(), 20);
    }

    #[test]
    fn a_finished_log_and_one_that_is_off_take_events_and_write_nothing() {
        let log = log_on(Full, 64);
        log.finish();
        log.finish();
        log.log_opened(opened(1));
        let off = AccessLog::disabled(counter());
        off.log_closed(closed(1));
        off.finish();
        assert_eq!((log.dropped(), off.dropped()), (0, 0));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let fault = AccessLog::start(to_file(Format::Json, directory.path()), counter()).err();
        assert!(fault.is_some(), "a directory is no file");
    }

    fn ids(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.split_once(" id=").unwrap().1[..16].to_owned()).collect()
    }

    fn id(id: u64) -> String {
        format!("{id:016x}")
    }

    #[test]
    fn what_is_reported_after_a_reopen_is_in_the_new_file_and_nothing_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let moved = |turn: u64| directory.path().join(format!("access.log.{turn}"));
        let log = AccessLog::start(to_file(Format::Text, &path), counter()).unwrap();
        for turn in 0..50 {
            (0..10).for_each(|at| log.log_opened(opened(turn * 10 + at)));
            fs::rename(&path, moved(turn)).unwrap();
            log.reopen().unwrap();
        }
        log.finish();
        let mut seen: Vec<String> = Vec::new();
        for turn in 0..50 {
            let written = ids(&moved(turn));
            assert!(written.iter().all(|seen| *seen < id((turn + 1) * 10)), "{turn}: {written:?}");
            seen.extend(written);
        }
        seen.extend(ids(&path));
        assert_eq!(seen, (0..500).map(id).collect::<Vec<_>>());
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn an_idle_log_lets_go_of_a_file_that_was_moved() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let (closed, is_closed) = mpsc::channel();
        let log = log_on(Tells(closed), 4);
        log.state.lock().settings = to_file(Format::Text, &path);
        log.reopen().unwrap();
        assert!(matches!(is_closed.recv(), Err(mpsc::RecvError)), "without an event after it");
    }

    /// A sink that hangs up when it is closed.
    struct Tells(#[expect(dead_code, reason = "only its end matters")] mpsc::Sender<()>);

    impl Write for Tells {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn to_turn_the_page_waits_for_no_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let (waiting, is_waiting) = mpsc::channel();
        let (reads, read) = mpsc::channel();
        let seen = Arc::default();
        let log = log_on(Slow { waiting, read, seen: Arc::clone(&seen) }, 2);
        log.log_opened(opened(0));
        is_waiting.recv().unwrap();
        (1..=3).for_each(|id| log.log_opened(opened(id)));
        log.reconfigure(to_file(Format::Text, &directory.path().join("never turned to"))).unwrap();
        log.reconfigure(to_file(Format::Text, &path)).unwrap();
        assert_eq!(log.dropped(), 1);
        drop(reads);
        log.finish();
        assert_eq!(seen.lock().iter().filter(|b| **b == b'\n').count(), 1, "what was being written");
        assert_eq!(ids(&path), [id(1), id(2)]);
    }

    #[test]
    fn format_and_place_are_changed_while_it_runs() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        let log = AccessLog::disabled(counter());
        log.log_opened(opened(0));
        log.reconfigure(to_file(Format::Text, &a)).unwrap();
        log.log_opened(opened(1));
        log.reconfigure(to_file(Format::Json, &b)).unwrap();
        log.log_opened(opened(2));
        log.reconfigure(None).unwrap();
        log.log_opened(opened(3));
        log.reconfigure(to_file(Format::Text, &a)).unwrap();
        log.log_opened(opened(4));
        log.reconfigure(to_file(Format::Text, &a)).unwrap();
        log.finish();
        let json = fs::read_to_string(b).unwrap();
        let seen = [ids(&a), json.lines().map(|line| line.split('"').nth(11).unwrap().to_owned()).collect()];
        let mut seen = seen.concat();
        seen.sort();
        assert_eq!(seen, [id(1), id(2), id(4)], "and nothing while it is off");
        assert!(json.starts_with('{') || json.is_empty());
    }

    #[test]
    fn a_change_that_cannot_be_made_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::start(to_file(Format::Text, &path), counter()).unwrap();
        assert!(log.reconfigure(to_file(Format::Json, directory.path())).is_err(), "a directory is no file");
        fs::rename(&path, directory.path().join("moved")).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(log.reopen().is_err());
        log.log_opened(opened(1));
        log.finish();
        assert_eq!(ids(&directory.path().join("moved")), [id(1)]);
    }

    #[test]
    fn there_is_nothing_to_reopen_on_standard_output_or_off() {
        let log = AccessLog::start(
            Some(AccessLogSettings { format: Format::Text, target: LogTarget::Stdout }),
            counter(),
        )
        .unwrap();
        log.reopen().unwrap();
        log.reconfigure(None).unwrap();
        log.reopen().unwrap();
        assert!(log.queue.read().is_none());
    }

    #[test]
    fn many_threads_share_one_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::start(to_file(Format::Json, &path), counter()).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|id| log.log_closed(closed(id))));
            }
        });
        log.finish();
        let lines = fs::read_to_string(path).unwrap().lines().count() as u64;
        assert_eq!(lines + log.dropped(), 2000);
    }
}
