//! A WebSocket that carries a session: one task, one poll function, no buffer while idle.
//!
//! 1. write what waits, many frames in one write; bytes that many connections share are written from where they are.
//! 2. read into a buffer that the thread has, and deliver each whole message from there.
//! 3. nothing to write and nothing to read: sleep until the socket or a sender wakes the task.
//! 4. the end: tell the layer above, write the Close, and read until the client has answered it, so that the kernel
//!    does not reset what is still on its way to the client.
//!
//! A session that opened on a WebSocket is live from the start; one that polls is first probed (`2probe`, `3probe`,
//! `5`) and lives on here only then.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tracing::debug;

use crate::engine_io::session::connection::{Connection, WriteStep};
use crate::engine_io::session::ending::{CloseReason, PendingClose};
use crate::engine_io::session::frame::Frame;
use crate::engine_io::session::message_handler::MessageHandler;
use crate::engine_io::session::packet::EnginePacket;
use crate::engine_io::session::state::{BATCH, WriteBatch};
use crate::engine_io::transport::websocket::reader::{
    FramingError, IncomingMessage, MessageReader, WantsMore,
};
use mainstay_core::ws::frame::{encode_control, opcode};

/// The most that one read takes.
const READ_SIZE: usize = 16 * 1024;

/// How long the client has to answer the Close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

thread_local! {
    /// The thread's read buffer. Taken out for a read and put back, so a read within a read would only make another.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A socket and the session that it carries.
pub(crate) struct WebSocketTransport<S> {
    /// The bytes, after the handshake.
    stream: S,
    /// The incoming half of the framing.
    reader: MessageReader,
    /// Who hears the messages.
    listener: FrameListener,
    /// Bytes of the first queued frame that are already written.
    offset: usize,
}

/// The session's side of what is read.
struct FrameListener {
    connection: Arc<Connection>,
    /// Where the messages go.
    handler: Arc<dyn MessageHandler>,
    /// The client said Close.
    has_closed: bool,
    /// Whether the session is on this socket yet.
    stage: UpgradeStage,
    /// A probe has come that has not been answered.
    owes_probe_answer: bool,
}

/// How far a socket has come to carry its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UpgradeStage {
    /// Nothing was said yet.
    Silent,
    /// The client has probed it.
    Probed,
    /// The session is here.
    Live,
    /// The client said something else than it should.
    Failed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketTransport<S> {
    /// A session that is open on `stream`; `handler` hears it.
    pub(crate) fn new(stream: S, connection: Arc<Connection>, handler: Arc<dyn MessageHandler>) -> Self {
        Self::with_stage(UpgradeStage::Live, stream, connection, handler)
    }

    /// A socket that probes: the session is elsewhere still.
    pub(crate) fn probing(stream: S, connection: Arc<Connection>, handler: Arc<dyn MessageHandler>) -> Self {
        Self::with_stage(UpgradeStage::Silent, stream, connection, handler)
    }

    fn with_stage(
        stage: UpgradeStage,
        stream: S,
        connection: Arc<Connection>,
        handler: Arc<dyn MessageHandler>,
    ) -> Self {
        let reader = MessageReader::new(connection.context.settings.max_payload);
        let listener =
            FrameListener { connection, handler, has_closed: false, stage, owes_probe_answer: false };
        Self { stream, reader, listener, offset: 0 }
    }

    /// Takes part in the probe to its end; whether the session is here then. `early` is what the client sent right
    /// behind its request.
    pub(crate) async fn run_probe(&mut self, early: &mut [u8]) -> bool {
        self.read_frames(early);
        loop {
            if std::mem::take(&mut self.listener.owes_probe_answer) {
                let answer = Frame::packet(b'3', "probe");
                if self.stream.write_all(answer.wire()).await.is_err() {
                    return false;
                }
                self.listener.connection.set_probe(true);
            }
            match self.listener.stage {
                UpgradeStage::Live => return true,
                UpgradeStage::Failed => return false,
                UpgradeStage::Silent | UpgradeStage::Probed => {}
            }
            if std::future::poll_fn(|cx| self.read(cx)).await.is_err() {
                return false;
            }
        }
    }

    /// Closes a socket whose probe came to nothing.
    pub(crate) async fn close_unused(self) {
        if let Some(close) = PendingClose::with_empty_close(CloseReason::TransportClose).close_frame() {
            close_handshake(self.stream, close, self.listener.has_closed).await;
        }
    }

    /// The task that carries the session to its end.
    pub(crate) fn into_task(self) -> WebSocketTask<S> {
        WebSocketTask(TaskState::Running(self))
    }

    /// Takes in what the client sent right behind its request.
    pub(crate) fn with_early_bytes(mut self, mut early: Vec<u8>) -> Self {
        self.read_frames(&mut early);
        self
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<PendingClose> {
        self.listener.connection.clear_waker();
        loop {
            let is_blocked = match self.write(cx) {
                Ok(is_blocked) => is_blocked,
                Err(ending) => return Poll::Ready(ending),
            };
            match self.read(cx) {
                Poll::Ready(Ok(())) => continue,
                Poll::Ready(Err(ending)) => return Poll::Ready(ending),
                Poll::Pending => {}
            }
            if self.listener.connection.try_sleep(cx.waker(), is_blocked) {
                return Poll::Pending;
            }
        }
    }

    /// Writes until nothing waits (`Ok(false)`) or the socket takes no more (`Ok(true)`).
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, PendingClose> {
        loop {
            let mut batch = WriteBatch::new();
            match self.listener.connection.next_write(&mut batch, self.offset == 0) {
                WriteStep::Idle => return Ok(false),
                WriteStep::Close(ending) => return Err(ending),
                WriteStep::Write => {}
            }
            match self.write_batch(cx, &batch) {
                Poll::Pending => return Ok(true),
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.offset = self.listener.connection.consume_written(count, self.offset);
                }
                Poll::Ready(_) => return Err(PendingClose::without_frame(CloseReason::TransportError)),
            }
        }
    }

    fn write_batch(&mut self, cx: &mut Context<'_>, batch: &WriteBatch) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        if let [only] = &batch[..] {
            return stream.poll_write(cx, &only[self.offset..]);
        }
        let mut slices: SmallVec<[IoSlice<'_>; BATCH]> =
            batch.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let mut slices = &mut slices[..];
        IoSlice::advance_slices(&mut slices, self.offset);
        stream.poll_write_vectored(cx, slices)
    }

    /// Reads once and delivers what is whole.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PendingClose>> {
        let mut scratch = BUFFER.take();
        scratch.resize(READ_SIZE, 0);
        let mut buffer = ReadBuf::new(&mut scratch);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
        let result = match read {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(_)) => Poll::Ready(Err(PendingClose::without_frame(CloseReason::TransportError))),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                Poll::Ready(Err(PendingClose::without_frame(CloseReason::TransportClose)))
            }
            Poll::Ready(Ok(())) => {
                self.read_frames(buffer.filled_mut());
                Poll::Ready(Ok(()))
            }
        };
        BUFFER.set(scratch);
        result
    }

    /// Delivers what is whole of `bytes`. A fault of the client closes the connection with the code that names it;
    /// what waits still goes out first.
    fn read_frames(&mut self, bytes: &mut [u8]) {
        let Self { reader, listener: ear, .. } = self;
        if let Err(fault) = reader.feed(bytes, |incoming| ear.receive(incoming)) {
            debug!(sid = %ear.connection.sid(), %fault, "websocket framing error");
            match ear.stage {
                UpgradeStage::Live => ear.connection.begin_close(fault.pending_close()),
                _ => ear.stage = UpgradeStage::Failed,
            }
        }
    }
}

/// The task of a [`WebSocketTransport`]: written out as a future, because its size is what an idle connection costs.
pub(crate) struct WebSocketTask<S>(TaskState<S>);

enum TaskState<S> {
    /// The session lives.
    Running(WebSocketTransport<S>),
    /// The session is over, and its socket is parting.
    Closing(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// Nothing is left to do.
    Over,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Future for WebSocketTask<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let stage = &mut self.get_mut().0;
        loop {
            match stage {
                TaskState::Running(socket) => {
                    let ending = ready!(socket.poll(cx));
                    socket.listener.connection.finish(ending.reason);
                    *stage = match (std::mem::replace(stage, TaskState::Over), ending.close_frame()) {
                        (TaskState::Running(socket), Some(close)) => socket.closing(close),
                        _ => TaskState::Over,
                    };
                }
                TaskState::Closing(parting) => {
                    ready!(parting.as_mut().poll(cx));
                    *stage = TaskState::Over;
                }
                TaskState::Over => return Poll::Ready(()),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> WebSocketTransport<S> {
    fn closing(self, close: Frame) -> TaskState<S> {
        TaskState::Closing(Box::pin(close_handshake(self.stream, close, self.listener.has_closed)))
    }
}

impl FrameListener {
    fn receive(&mut self, incoming: IncomingMessage<'_>) -> WantsMore {
        if self.stage == UpgradeStage::Live {
            self.receive_live(incoming)
        } else {
            self.receive_probe(incoming)
        }
    }

    fn receive_probe(&mut self, incoming: IncomingMessage<'_>) -> WantsMore {
        let packet = match incoming {
            IncomingMessage::Text(text) => EnginePacket::text(text, self.connection.revision()),
            IncomingMessage::Ping(_) | IncomingMessage::Pong => return true,
            IncomingMessage::Binary(_) => None,
            IncomingMessage::Close(_) => {
                self.has_closed = true;
                None
            }
        };
        self.stage = match (packet, self.stage) {
            (Some(EnginePacket::Ping("probe")), UpgradeStage::Silent | UpgradeStage::Probed) => {
                self.owes_probe_answer = true;
                UpgradeStage::Probed
            }
            (Some(EnginePacket::Upgrade), UpgradeStage::Probed) if self.connection.switch_to_websocket() => {
                UpgradeStage::Live
            }
            _ => UpgradeStage::Failed,
        };
        self.stage != UpgradeStage::Failed
    }

    fn receive_live(&mut self, incoming: IncomingMessage<'_>) -> WantsMore {
        let revision = self.connection.revision();
        match incoming {
            IncomingMessage::Text(text) => {
                self.connection.receive(&self.handler, EnginePacket::text(text, revision))
            }
            IncomingMessage::Binary(data) => {
                self.connection.receive(&self.handler, EnginePacket::binary(data, revision))
            }
            IncomingMessage::Ping(data) => {
                self.connection.transport_alive();
                self.connection.send_control(Frame::control(encode_control(opcode::PONG, data, None)));
                true
            }
            IncomingMessage::Pong => {
                self.connection.transport_alive();
                true
            }
            IncomingMessage::Close(code) => {
                self.has_closed = true;
                self.connection.begin_close(match code {
                    Some(code) => PendingClose::with_code(CloseReason::TransportClose, code, ""),
                    None => PendingClose::with_empty_close(CloseReason::TransportClose),
                });
                false
            }
        }
    }
}

impl Drop for FrameListener {
    /// Whatever ends the task, a panic of the layer above as well, ends the session.
    fn drop(&mut self) {
        if self.stage == UpgradeStage::Live {
            self.connection.finish(CloseReason::TransportError);
        }
    }
}

impl FramingError {
    fn pending_close(self) -> PendingClose {
        PendingClose::with_code(CloseReason::TransportError, self.code(), "")
    }
}

/// Writes the last frame and reads until the client has closed, unless it already has. Whoever does not close is
/// dropped after [`CLOSE_TIMEOUT`].
pub(crate) async fn close_handshake<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    close: Frame,
    has_closed: bool,
) {
    let closing = async {
        stream.write_all(close.wire()).await?;
        stream.shutdown().await?;
        while !has_closed && std::future::poll_fn(|cx| discard(&mut stream, cx)).await? {}
        io::Result::Ok(())
    };
    // A client that is already gone is no fault of anybody's.
    let _ = timeout(CLOSE_TIMEOUT, closing).await;
}

/// Reads something and forgets it; `false` at the end of the stream.
fn discard<S: AsyncRead + Unpin>(stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
    let mut scratch = BUFFER.take();
    scratch.resize(READ_SIZE, 0);
    let mut buffer = ReadBuf::new(&mut scratch);
    let read = Pin::new(stream).poll_read(cx, &mut buffer);
    let has_more = !buffer.filled().is_empty();
    BUFFER.set(scratch);
    ready!(read)?;
    Poll::Ready(Ok(has_more))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::engine_io::session::state::ConnectionState;

    #[test]
    fn an_idle_connection_is_a_few_hundred_bytes() {
        // Task, record, and what changes in it. Measured as a whole, with the allocator and the runtime's share: 1.6 KiB.
        let sizes =
            [size_of::<WebSocketTask<TcpStream>>(), size_of::<Connection>(), size_of::<ConnectionState>()];
        assert!(sizes[0] <= 160 && sizes[1] <= 320 && sizes[2] <= 192, "{sizes:?}");
    }
}
