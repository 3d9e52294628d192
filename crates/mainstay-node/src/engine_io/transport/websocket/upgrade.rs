//! The upgrade of a polling session: a WebSocket with its sid, which is probed before it takes over.
//!
//! 1. the client says `2probe` and hears `3probe`; anything else closes the WebSocket, and polling goes on.
//! 2. from then on the waiting GET is released with a noop every 100 ms, so that the client can stop polling.
//! 3. the client says `5`: the session moves, and what waits goes out on the WebSocket.

use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

use crate::engine_io::session::connection::Connection;
use crate::engine_io::session::ending::{CloseReason, PendingClose};
use crate::engine_io::transport::websocket::accept::reregister;
use crate::engine_io::transport::websocket::socket::{WebSocketTransport, close_handshake};

/// How often a waiting GET is released.
const RELEASE_INTERVAL: Duration = Duration::from_millis(100);

/// Carries a probe, and the session if it comes to that. The session's [`Connection::begin_probe`] has said yes.
pub(crate) async fn run_upgrade(upgrade: OnUpgrade, connection: Arc<Connection>) {
    let Ok(upgraded) = upgrade.await else {
        return connection.set_probe(false); // The client left before it read the 101.
    };
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => match reregister(parts.io.into_inner()) {
            Ok(stream) => run(stream, parts.read_buf.into(), connection).await,
            Err(_) => connection.set_probe(false),
        },
        Err(upgraded) => run(TokioIo::new(upgraded), Vec::new(), connection).await,
    }
}

/// A WebSocket that has nothing to take over: it is opened and closed, as Node does.
pub(crate) async fn close_refused(upgrade: OnUpgrade) {
    if let Ok(upgraded) = upgrade.await
        && let Some(close) = PendingClose::with_empty_close(CloseReason::TransportClose).close_frame()
    {
        close_handshake(TokioIo::new(upgraded), close, false).await;
    }
}

async fn run<S>(stream: S, mut early: Vec<u8>, connection: Arc<Connection>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(handler) = connection.handler() else { return };
    let mut socket = WebSocketTransport::probing(stream, connection.clone(), handler);
    let probed = timeout(connection.context.settings.upgrade_timeout, async {
        tokio::select! {
            lives = socket.run_probe(&mut early) => lives,
            () = release_polls(&connection) => false,
        }
    });
    if probed.await == Ok(true) {
        connection.context.tasks.spawn(socket.into_task());
    } else {
        connection.set_probe(false);
        socket.close_unused().await;
    }
}

/// Releases polls until the session has moved or ended.
async fn release_polls(connection: &Connection) {
    let mut ticks = interval(RELEASE_INTERVAL);
    ticks.tick().await;
    while connection.release_get() || connection.is_websocket() {
        ticks.tick().await;
    }
}
