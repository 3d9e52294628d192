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

impl To {
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
pub struct Wish {
    /// How a line looks.
    pub format: Format,
    /// Where the lines go.
    pub to: To,
}

/// What both lines of a session say about it.
#[derive(Debug, Clone)]
pub struct Session {
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
pub struct Open {
    /// When it opened.
    pub at: SystemTime,
    /// Whose line this is.
    pub session: Session,
}

/// A session's tunnel ended.
#[derive(Debug, Clone)]
pub struct Close {
    /// When it ended.
    pub at: SystemTime,
    /// Whose line this is.
    pub session: Session,
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
pub(super) enum Event {
    Open(Open),
    Close(Close),
    /// Nothing to write: there is a [`Page`] to turn to.
    Turn,
}

/// The access log. Shared by reference; the last to drop it, or [`AccessLog::finish`], writes what is queued.
pub struct AccessLog {
    /// The way to the writer; `None` when the log is off or finished. Boxed events, so that the queue stays small.
    queue: RwLock<Option<SyncSender<Box<Event>>>>,
    /// What is written now, and by whom. Locked while a page is turned, never by a session.
    desk: Mutex<Desk>,
    /// The page that the writer has to turn to.
    next: Arc<Next>,
    /// Events that were not written.
    dropped: IntCounter,
}

/// Who writes what.
struct Desk {
    /// As the log was told last; `None` when it is off.
    wish: Option<Wish>,
    /// The writer, once there was something to write; `None` again when the log is finished.
    writer: Option<Writer>,
}

/// The thread that formats and writes.
struct Writer {
    thread: JoinHandle<()>,
    /// The way to it, also while the log is off.
    queue: SyncSender<Box<Event>>,
    /// Hangs up when the thread is done.
    done: Receiver<()>,
}

/// What lines are written to.
struct Page {
    sink: Box<dyn Write + Send>,
    format: Format,
}

/// A place for one page. A later one takes the place of one that the writer has not turned to yet.
#[derive(Default)]
struct Next {
    page: Mutex<Option<Page>>,
    /// There is one: looked at for every event, so it is no lock. Set before an event of the new page is queued,
    /// and seen by whoever takes that event out of the queue.
    is_there: AtomicBool,
}

impl Next {
    fn put(&self, page: Page) {
        let old = self.page.lock().replace(page);
        self.is_there.store(true, Ordering::Release);
        drop(old);
    }

    fn take(&self) -> Option<Page> {
        if !self.is_there.load(Ordering::Acquire) {
            return None;
        }
        let mut page = self.page.lock();
        self.is_there.store(false, Ordering::Release);
        page.take()
    }
}

impl AccessLog {
    /// A log that writes nothing, until it is told something else. What does not get written then is counted in
    /// `dropped`.
    pub fn off(dropped: IntCounter) -> Self {
        let desk = Mutex::new(Desk { wish: None, writer: None });
        Self { queue: RwLock::new(None), desk, next: Arc::default(), dropped }
    }

    /// A log that writes what is wished for. Fails as [`AccessLog::change`] does.
    pub fn start(wish: Option<Wish>, dropped: IntCounter) -> io::Result<Self> {
        let log = Self::off(dropped);
        log.change(wish)?;
        Ok(log)
    }

    /// Writes what is wished for from now on; `None` is nothing. Does not wait for the writer. A wish that is
    /// granted already changes nothing.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or no thread can be had; the log then goes on as before.
    pub fn change(&self, wish: Option<Wish>) -> io::Result<()> {
        let mut desk = self.desk.lock();
        if desk.wish == wish {
            return Ok(());
        }
        match &wish {
            Some(Wish { format, to }) => self.turn(&mut desk, Page { sink: to.open()?, format: *format })?,
            None => drop(self.queue.write().take()),
        }
        desk.wish = wish;
        Ok(())
    }

    /// Opens the file anew, by its name: the old one has been moved away by now. Does not wait for the writer.
    ///
    /// # Errors
    ///
    /// The file cannot be opened; the log then goes on in the old one.
    pub fn reopen(&self) -> io::Result<()> {
        let mut desk = self.desk.lock();
        let Some(Wish { format, to: to @ To::File(_) }) = &desk.wish else { return Ok(()) };
        let page = Page { sink: to.open()?, format: *format };
        self.turn(&mut desk, page)
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
        // Without its senders the queue ends after what is in it.
        self.queue.write().take();
        let Some(Writer { thread, queue, done }) = self.desk.lock().writer.take() else { return };
        drop(queue);
        match done.recv_timeout(PATIENCE) {
            Err(mpsc::RecvTimeoutError::Timeout) => warn!("access log is not read, its last lines are lost"),
            // A panic of the writer has been said by the thread itself.
            _ => drop(thread.join()),
        }
    }

    /// Gives the page to the writer, which is started when there is none.
    fn turn(&self, desk: &mut Desk, page: Page) -> io::Result<()> {
        let queue = match &desk.writer {
            Some(writer) => {
                self.next.put(page);
                // It wakes a writer that waits; in a full queue there is no room, and no need.
                let _ = writer.queue.try_send(Box::new(Event::Turn));
                writer.queue.clone()
            }
            None => {
                let writer = Writer::start(page, Arc::clone(&self.next), self.dropped.clone(), QUEUE)?;
                desk.writer.insert(writer).queue.clone()
            }
        };
        *self.queue.write() = Some(queue);
        Ok(())
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

impl Writer {
    fn start(page: Page, next: Arc<Next>, dropped: IntCounter, capacity: usize) -> io::Result<Self> {
        let (queue, events) = mpsc::sync_channel(capacity);
        let (running, done) = mpsc::channel();
        let pages = Pages { page, next, batch: Vec::with_capacity(BATCH), lines: 0, dropped, failing: false };
        let thread = thread::Builder::new().name("access-log".into()).spawn(move || {
            pages.write_all(&events);
            drop(running);
        })?;
        Ok(Self { thread, queue, done })
    }
}

/// What the writer has formatted and not yet written.
struct Pages {
    page: Page,
    next: Arc<Next>,
    /// Whole lines.
    batch: Vec<u8>,
    /// How many lines `batch` has.
    lines: u64,
    dropped: IntCounter,
    /// The last batch could not be written, which has been said.
    failing: bool,
}

impl Pages {
    /// Writes until the queue ends.
    fn write_all(mut self, events: &Receiver<Box<Event>>) {
        while let Ok(event) = events.recv() {
            self.add(&event);
            while self.batch.len() < BATCH {
                let Ok(event) = events.try_recv() else { break };
                self.add(&event);
            }
            self.flush();
        }
    }

    fn add(&mut self, event: &Event) {
        if let Some(page) = self.next.take() {
            self.flush();
            self.page = page;
        }
        if line::write(&mut self.batch, self.page.format, event) {
            self.lines += 1;
        }
    }

    fn flush(&mut self) {
        let lines = mem::take(&mut self.lines);
        let written = self.page.sink.write_all(&self.batch).and_then(|()| self.page.sink.flush());
        self.batch.clear();
        if let Err(fault) = &written {
            self.dropped.inc_by(lines);
            if !self.failing {
                warn!(%fault, "access log cannot be written, its lines are dropped and counted");
            }
        }
        self.failing = written.is_err();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::UNIX_EPOCH;

    use super::*;

    pub(in crate::log) fn opened(id: u64) -> Open {
        let session = Session {
            id,
            trace: *b"0123456789abcdef",
            client: Some("203.0.113.7".parse().unwrap()),
            route: "chat.example.com/socket.io/".into(),
            pool: "chat".into(),
            node: "ws1".into(),
            affinity: ("cookie", "kept"),
        };
        Open { at: UNIX_EPOCH + Duration::from_millis(1_795_515_630_045), session }
    }

    pub(in crate::log) fn closed(id: u64) -> Close {
        let Open { at, session } = opened(id);
        Close {
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

    fn to_file(format: Format, path: &Path) -> Option<Wish> {
        Some(Wish { format, to: To::File(path.to_owned()) })
    }

    /// A log on this sink whose queue has this room.
    fn log_on(sink: impl Write + Send + 'static, capacity: usize) -> AccessLog {
        let log = AccessLog::off(counter());
        let page = Page { sink: Box::new(sink), format: Format::Text };
        let writer = Writer::start(page, Arc::clone(&log.next), log.dropped.clone(), capacity).unwrap();
        *log.queue.write() = Some(writer.queue.clone());
        log.desk.lock().writer = Some(writer);
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
        let path = directory.path().join("access.log");
        for id in 0..2 {
            let log = AccessLog::start(to_file(Format::Text, &path), counter()).unwrap();
            log.open(opened(id));
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
        let log = log_on(Full, 64);
        for id in 0..20 {
            log.open(opened(id));
        }
        log.finish();
        assert_eq!(log.dropped(), 20);
    }

    #[test]
    fn a_finished_log_and_one_that_is_off_take_events_and_write_nothing() {
        let log = log_on(Full, 64);
        log.finish();
        log.finish();
        log.open(opened(1));
        let off = AccessLog::off(counter());
        off.close(closed(1));
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
            (0..10).for_each(|at| log.open(opened(turn * 10 + at)));
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
        log.desk.lock().wish = to_file(Format::Text, &path);
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
        log.open(opened(0));
        is_waiting.recv().unwrap();
        (1..=3).for_each(|id| log.open(opened(id)));
        log.change(to_file(Format::Text, &directory.path().join("never turned to"))).unwrap();
        log.change(to_file(Format::Text, &path)).unwrap();
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
        let log = AccessLog::off(counter());
        log.open(opened(0));
        log.change(to_file(Format::Text, &a)).unwrap();
        log.open(opened(1));
        log.change(to_file(Format::Json, &b)).unwrap();
        log.open(opened(2));
        log.change(None).unwrap();
        log.open(opened(3));
        log.change(to_file(Format::Text, &a)).unwrap();
        log.open(opened(4));
        log.change(to_file(Format::Text, &a)).unwrap();
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
        assert!(log.change(to_file(Format::Json, directory.path())).is_err(), "a directory is no file");
        fs::rename(&path, directory.path().join("moved")).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(log.reopen().is_err());
        log.open(opened(1));
        log.finish();
        assert_eq!(ids(&directory.path().join("moved")), [id(1)]);
    }

    #[test]
    fn there_is_nothing_to_reopen_on_standard_output_or_off() {
        let log = AccessLog::start(Some(Wish { format: Format::Text, to: To::Stdout }), counter()).unwrap();
        log.reopen().unwrap();
        log.change(None).unwrap();
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
                scope.spawn(|| (0..500).for_each(|id| log.close(closed(id))));
            }
        });
        log.finish();
        let lines = fs::read_to_string(path).unwrap().lines().count() as u64;
        assert_eq!(lines + log.dropped(), 2000);
    }
}
