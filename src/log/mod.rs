//! What the process says: its own log on standard error, and the access log with two lines per session.
//!
//! The own log is `tracing`'s: `RUST_LOG` chooses what is said, `info` and above unless told. Peers' faults are
//! `debug` there and a metric. The access log ([`access`]) is data for other programs, with a queue and a thread
//! of its own; nothing of it goes through `tracing`.

pub mod access;
pub mod event;
mod line;
mod writer;

pub use access::AccessLog;
pub use access::AccessLogSettings;
pub use access::LogTarget;
pub use event::AccessSession;
pub use event::AffinityLabels;
pub(crate) use event::{SessionClosed, SessionOpened};
pub(crate) use line::format_time;
pub use mainstay_core::log::{Format, init, panics};
