//! What the connections of one server share.

use std::sync::atomic::AtomicBool;

use tokio_util::task::TaskTracker;

use crate::engine_io::session::counters::EngineCounters;
use crate::engine_io::session::heartbeat::HeartbeatTimes;
use crate::engine_io::session::sid::Sid;
use crate::engine_io::session::table::SessionTable;
use crate::engine_io::session::timer_wheel::TimerWheel;
use crate::engine_io::settings::EngineSettings;

/// What the sessions share; `S` is a session.
pub(crate) struct EngineContext<S> {
    /// As they were given.
    pub(crate) settings: EngineSettings,
    /// The heartbeat's share of the settings, in milliseconds.
    pub(crate) times: HeartbeatTimes,
    /// The clock, and whoever waits for it.
    pub(crate) timer_wheel: TimerWheel<S>,
    /// The open sessions.
    pub(crate) sessions: SessionTable<S>,
    /// What has happened so far.
    pub(crate) counters: EngineCounters,
    /// Owns every WebSocket's task and the wheel's.
    pub(crate) tasks: TaskTracker,
    /// No new session is opened any more.
    pub(crate) is_stopping: AtomicBool,
}

impl<S> EngineContext<S> {
    /// The context of a server with these settings.
    pub(crate) fn new(settings: EngineSettings) -> Self {
        let millis = |time: std::time::Duration| time.as_millis() as u64;
        let times = HeartbeatTimes {
            interval: millis(settings.ping_interval),
            timeout: millis(settings.ping_timeout),
            idle: settings.idle.map_or(u64::MAX, millis),
        };
        let heartbeat = settings.ping_interval.min(settings.ping_timeout);
        let shortest = settings.idle.map_or(heartbeat, |idle| idle.min(heartbeat));
        Self {
            times,
            timer_wheel: TimerWheel::new(shortest),
            sessions: SessionTable::new(settings.sessions),
            counters: EngineCounters::default(),
            tasks: TaskTracker::new(),
            is_stopping: AtomicBool::new(false),
            settings,
        }
    }

    /// The open packet's text, with its keys in Node's order.
    pub(crate) fn open_packet(&self, sid: Sid, is_websocket: bool) -> String {
        let upgrades =
            if is_websocket || !self.settings.transports.websocket { "[]" } else { r#"["websocket"]"# };
        format!(
            r#"{{"sid":"{sid}","upgrades":{upgrades},"pingInterval":{},"pingTimeout":{},"maxPayload":{}}}"#,
            self.times.interval, self.times.timeout, self.settings.max_payload,
        )
    }

    /// Has the session checked at `due`, or soon when that has passed.
    pub(crate) fn schedule_check(&self, sid: Sid, due: u64) {
        if let Some(session) = self.sessions.find(sid) {
            self.timer_wheel.insert(&session, due);
        }
    }
}
