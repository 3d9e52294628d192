//! The access log: one line when a session opens and one when it ends.
//!
//! Whoever reports an event pays one small allocation and a push to a bounded queue. A thread of the log's own
//! formats and writes, and hands to the system what it has as soon as the queue is empty. When the queue is full,
//! because a disk or a reader is slow, the event is dropped and counted: sessions never wait for their log.
//!
//! `AccessLog::reconfigure` and `AccessLog::reopen` switch the output: what is reported after they return is written
//! to the new file. Nothing that was reported before is lost, though it may be written to either file.
//!
//! Of a person, a line says the client's address and nothing else: no path, query, header or cookie, and nothing of
//! what was sent. The fields are in `line`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prometheus::IntCounter;
use tracing::warn;

use super::Format;
use super::event::{AccessEvent, SessionClosed, SessionOpened};
use super::writer::{LogOutput, PendingOutput, WriterThread};

/// Events that may wait: the burst of a drain. The queue holds pointers, 16 bytes each.
const QUEUE_CAPACITY: usize = 16 * 1024;

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

/// The access log. Shared by reference; the last to drop it, or `AccessLog::finish`, writes what is queued.
pub struct AccessLog {
    /// The way to the writer; `None` when the log is off or finished. Boxed events, so that the queue stays small.
    queue: RwLock<Option<SyncSender<Box<AccessEvent>>>>,
    /// What is written, and by which thread. Locked while the output is switched, never by a session.
    state: Mutex<WriterState>,
    /// The output that the writer has to switch to.
    pending: Arc<PendingOutput>,
    /// Events that were not written.
    dropped: IntCounter,
}

/// What is written, and by which thread.
struct WriterState {
    /// The settings of now; `None` when the log is off.
    settings: Option<AccessLogSettings>,
    /// The writer, once there was something to write; `None` again when the log is finished.
    writer: Option<WriterThread>,
}

impl AccessLog {
    /// A log that writes nothing until it is reconfigured. What cannot be written then is counted in `dropped`.
    pub fn disabled(dropped: IntCounter) -> Self {
        let state = Mutex::new(WriterState { settings: None, writer: None });
        Self { queue: RwLock::new(None), state, pending: Arc::default(), dropped }
    }

    /// A log with these settings. Fails as `AccessLog::reconfigure` does.
    pub(crate) fn start(settings: Option<AccessLogSettings>, dropped: IntCounter) -> io::Result<Self> {
        let log = Self::disabled(dropped);
        log.reconfigure(settings)?;
        Ok(log)
    }

    /// Writes by these settings from now on; `None` turns the log off. Does not wait for the writer. Settings that are in
    /// force change nothing.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or no thread can be had; the log then goes on as before.
    pub(crate) fn reconfigure(&self, settings: Option<AccessLogSettings>) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.settings == settings {
            return Ok(());
        }
        match &settings {
            Some(AccessLogSettings { format, target }) => {
                self.switch_output(&mut state, LogOutput { sink: target.open()?, format: *format })?
            }
            None => drop(self.queue.write().take()),
        }
        state.settings = settings;
        Ok(())
    }

    /// Opens the file anew, by its name: the old one has been moved away by now. Does not wait for the writer.
    ///
    /// # Errors
    ///
    /// The file cannot be opened; the log then goes on in the old one.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let Some(AccessLogSettings { format, target: target @ LogTarget::File(_) }) = &state.settings else {
            return Ok(());
        };
        let output = LogOutput { sink: target.open()?, format: *format };
        self.switch_output(&mut state, output)
    }

    /// Logs that a session has a tunnel. Never waits.
    pub(crate) fn log_opened(&self, event: SessionOpened) {
        self.push(AccessEvent::Opened(event));
    }

    /// Logs that a session's tunnel ended. Never waits.
    pub(crate) fn log_closed(&self, event: SessionClosed) {
        self.push(AccessEvent::Closed(event));
    }

    /// Writes what is queued and ends the writer; waits for a reader who does not read for five seconds at most.
    /// What is logged afterwards is lost.
    pub(crate) fn finish(&self) {
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

    /// Gives the output to the writer thread, which is started when there is none.
    fn switch_output(&self, state: &mut WriterState, output: LogOutput) -> io::Result<()> {
        let queue = match &state.writer {
            Some(writer) => {
                self.pending.put(output);
                // It wakes a writer that waits; in a full queue there is no room, and no need.
                let _ = writer.queue.try_send(Box::new(AccessEvent::SwitchOutput));
                writer.queue.clone()
            }
            None => {
                let writer = WriterThread::start(
                    output,
                    Arc::clone(&self.pending),
                    self.dropped.clone(),
                    QUEUE_CAPACITY,
                )?;
                state.writer.insert(writer).queue.clone()
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::mpsc::Receiver;
    use std::thread;

    use super::*;
    use crate::log::event::fixtures::{closed, opened};

    fn to_file(format: Format, path: &Path) -> Option<AccessLogSettings> {
        Some(AccessLogSettings { format, target: LogTarget::File(path.to_owned()) })
    }

    /// A log on this sink whose queue has this room.
    fn log_on(sink: impl Write + Send + 'static, capacity: usize) -> AccessLog {
        let log = AccessLog::disabled(counter());
        let output = LogOutput { sink: Box::new(sink), format: Format::Text };
        let writer =
            WriterThread::start(output, Arc::clone(&log.pending), log.dropped.clone(), capacity).unwrap();
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
        assert_eq!((lines.len(), log.dropped.get()), (2000, 0));
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
        assert_eq!(log.dropped.get(), 6, "one is being written and four have room");
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
        assert_eq!(log.dropped.get(), 20);
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
        assert_eq!((log.dropped.get(), off.dropped.get()), (0, 0));
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
        assert_eq!(log.dropped.get(), 0);
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
        assert_eq!(log.dropped.get(), 1);
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
        assert_eq!(lines + log.dropped.get(), 2000);
    }
}
