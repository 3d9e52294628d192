//! Engine.IO and Socket.IO over real sockets, byte by byte as the clients of Node.js see them.

mod engine_io;
mod listening;
mod socketio;
mod wire;

use std::time::Duration;

/// No test waits longer than this for anything.
const DEADLINE: Duration = Duration::from_secs(20);

/// What `event` comes to, within the deadline.
async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, event).await.expect("it did not happen within the deadline")
}
