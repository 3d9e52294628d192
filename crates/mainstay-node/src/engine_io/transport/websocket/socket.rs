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

use crate::engine_io::session::connection::{Connection, Outgoing};
use crate::engine_io::session::ending::{Ending, Reason};
use crate::engine_io::session::frame::Frame;
use crate::engine_io::session::handler::Inbox;
use crate::engine_io::session::packet::Packet;
use crate::engine_io::session::state::{BATCH, Batch};
use crate::engine_io::transport::websocket::reader::{Fault, Incoming, More, Reader};
use mainstay_core::ws::frame::{encode_control, opcode};

/// The most that one read takes.
const SCRATCH: usize = 16 * 1024;

/// How long the client has to answer the Close.
const LINGER: Duration = Duration::from_secs(2);

thread_local! {
    /// The thread's read buffer. Taken out for a read and put back, so a read within a read would only make another.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A socket and the session that it carries.
pub(crate) struct Socket<S> {
    /// The bytes, after the handshake.
    stream: S,
    /// The incoming half of the framing.
    reader: Reader,
    /// Who hears the messages.
    ear: Ear,
    /// Bytes of the first queued frame that are already written.
    offset: usize,
}

/// The session's side of what is read.
struct Ear {
    connection: Arc<Connection>,
    /// Where the messages go.
    inbox: Arc<dyn Inbox>,
    /// The client said Close.
    has_closed: bool,
    /// Whether the session is on this socket yet.
    stage: Stage,
    /// A probe has come that has not been answered.
    owes_probe: bool,
}

/// How far a socket has come to carry its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was said yet.
    Silent,
    /// The client has probed it.
    Probed,
    /// The session is here.
    Live,
    /// The client said something else than it should.
    Failed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// A session that is open on `stream`; `inbox` hears it.
    pub(crate) fn new(stream: S, connection: Arc<Connection>, inbox: Arc<dyn Inbox>) -> Self {
        Self::at(Stage::Live, stream, connection, inbox)
    }

    /// A socket that probes: the session is elsewhere still.
    pub(crate) fn probing(stream: S, connection: Arc<Connection>, inbox: Arc<dyn Inbox>) -> Self {
        Self::at(Stage::Silent, stream, connection, inbox)
    }

    fn at(stage: Stage, stream: S, connection: Arc<Connection>, inbox: Arc<dyn Inbox>) -> Self {
        let reader = Reader::new(connection.shared.settings.max_payload);
        let ear = Ear { connection, inbox, has_closed: false, stage, owes_probe: false };
        Self { stream, reader, ear, offset: 0 }
    }

    /// Takes part in the probe to its end; whether the session is here then. `early` is what the client sent right
    /// behind its request.
    pub(crate) async fn probed(&mut self, early: &mut [u8]) -> bool {
        self.take_in(early);
        loop {
            if std::mem::take(&mut self.ear.owes_probe) {
                let answer = Frame::packet(b'3', "probe");
                if self.stream.write_all(answer.wire()).await.is_err() {
                    return false;
                }
                self.ear.connection.probe(true);
            }
            match self.ear.stage {
                Stage::Live => return true,
                Stage::Failed => return false,
                Stage::Silent | Stage::Probed => {}
            }
            if std::future::poll_fn(|cx| self.read(cx)).await.is_err() {
                return false;
            }
        }
    }

    /// Closes a socket whose probe came to nothing.
    pub(crate) async fn turn_away(self) {
        if let Some(close) = Ending::empty(Reason::TransportClose).close_frame() {
            part(self.stream, close, self.ear.has_closed).await;
        }
    }

    /// The task that carries the session to its end.
    pub(crate) fn live(self) -> Live<S> {
        Live(Life::Carrying(self))
    }

    /// Takes in what the client sent right behind its request.
    pub(crate) fn with(mut self, mut early: Vec<u8>) -> Self {
        self.take_in(&mut early);
        self
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        self.ear.connection.awake();
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
            if self.ear.connection.sleep(cx.waker(), is_blocked) {
                return Poll::Pending;
            }
        }
    }

    /// Writes until nothing waits (`Ok(false)`) or the socket takes no more (`Ok(true)`).
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, Ending> {
        loop {
            let mut batch = Batch::new();
            match self.ear.connection.outgoing(&mut batch, self.offset == 0) {
                Outgoing::Rest => return Ok(false),
                Outgoing::End(ending) => return Err(ending),
                Outgoing::Write => {}
            }
            match self.write_batch(cx, &batch) {
                Poll::Pending => return Ok(true),
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.offset = self.ear.connection.written(count, self.offset);
                }
                Poll::Ready(_) => return Err(Ending::silent(Reason::TransportError)),
            }
        }
    }

    fn write_batch(&mut self, cx: &mut Context<'_>, batch: &Batch) -> Poll<io::Result<usize>> {
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
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ending>> {
        let mut scratch = BUFFER.take();
        scratch.resize(SCRATCH, 0);
        let mut buffer = ReadBuf::new(&mut scratch);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
        let result = match read {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(_)) => Poll::Ready(Err(Ending::silent(Reason::TransportError))),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                Poll::Ready(Err(Ending::silent(Reason::TransportClose)))
            }
            Poll::Ready(Ok(())) => {
                self.take_in(buffer.filled_mut());
                Poll::Ready(Ok(()))
            }
        };
        BUFFER.set(scratch);
        result
    }

    /// Delivers what is whole of `bytes`. A fault of the client closes the connection with the code that names it;
    /// what waits still goes out first.
    fn take_in(&mut self, bytes: &mut [u8]) {
        let Self { reader, ear, .. } = self;
        if let Err(fault) = reader.feed(bytes, |incoming| ear.hear(incoming)) {
            debug!(sid = %ear.connection.sid(), %fault, "client broke the websocket");
            match ear.stage {
                Stage::Live => ear.connection.end(fault.ending()),
                _ => ear.stage = Stage::Failed,
            }
        }
    }
}

/// The task of a [`Socket`]: written out as a future, because its size is what an idle connection costs.
pub(crate) struct Live<S>(Life<S>);

enum Life<S> {
    /// The session lives.
    Carrying(Socket<S>),
    /// The session is over, and its socket is parting.
    Parting(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// Nothing is left to do.
    Over,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Future for Live<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let stage = &mut self.get_mut().0;
        loop {
            match stage {
                Life::Carrying(socket) => {
                    let ending = ready!(socket.poll(cx));
                    socket.ear.connection.finish(ending.reason);
                    *stage = match (std::mem::replace(stage, Life::Over), ending.close_frame()) {
                        (Life::Carrying(socket), Some(close)) => socket.parting(close),
                        _ => Life::Over,
                    };
                }
                Life::Parting(parting) => {
                    ready!(parting.as_mut().poll(cx));
                    *stage = Life::Over;
                }
                Life::Over => return Poll::Ready(()),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Socket<S> {
    fn parting(self, close: Frame) -> Life<S> {
        Life::Parting(Box::pin(part(self.stream, close, self.ear.has_closed)))
    }
}

impl Ear {
    fn hear(&mut self, incoming: Incoming<'_>) -> More {
        if self.stage == Stage::Live { self.hear_live(incoming) } else { self.hear_probe(incoming) }
    }

    fn hear_probe(&mut self, incoming: Incoming<'_>) -> More {
        let packet = match incoming {
            Incoming::Text(text) => Packet::text(text, self.connection.revision()),
            Incoming::Ping(_) | Incoming::Pong => return true,
            Incoming::Binary(_) => None,
            Incoming::Close(_) => {
                self.has_closed = true;
                None
            }
        };
        self.stage = match (packet, self.stage) {
            (Some(Packet::Ping("probe")), Stage::Silent | Stage::Probed) => {
                self.owes_probe = true;
                Stage::Probed
            }
            (Some(Packet::Upgrade), Stage::Probed) if self.connection.switch() => Stage::Live,
            _ => Stage::Failed,
        };
        self.stage != Stage::Failed
    }

    fn hear_live(&mut self, incoming: Incoming<'_>) -> More {
        let revision = self.connection.revision();
        match incoming {
            Incoming::Text(text) => self.connection.receive(&self.inbox, Packet::text(text, revision)),
            Incoming::Binary(data) => self.connection.receive(&self.inbox, Packet::binary(data, revision)),
            Incoming::Ping(data) => {
                self.connection.alive();
                self.connection.control(Frame::control(encode_control(opcode::PONG, data, None)));
                true
            }
            Incoming::Pong => {
                self.connection.alive();
                true
            }
            Incoming::Close(code) => {
                self.has_closed = true;
                self.connection.end(match code {
                    Some(code) => Ending::coded(Reason::TransportClose, code, ""),
                    None => Ending::empty(Reason::TransportClose),
                });
                false
            }
        }
    }
}

impl Drop for Ear {
    /// Whatever ends the task, a panic of the layer above as well, ends the session.
    fn drop(&mut self) {
        if self.stage == Stage::Live {
            self.connection.finish(Reason::TransportError);
        }
    }
}

impl Fault {
    fn ending(self) -> Ending {
        Ending::coded(Reason::TransportError, self.code(), "")
    }
}

/// Writes the last frame and reads until the client has closed, unless it already has. Whoever does not close is
/// dropped after [`LINGER`].
pub(crate) async fn part<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, close: Frame, has_closed: bool) {
    let farewell = async {
        stream.write_all(close.wire()).await?;
        stream.shutdown().await?;
        while !has_closed && std::future::poll_fn(|cx| skip(&mut stream, cx)).await? {}
        io::Result::Ok(())
    };
    // A client that is already gone is no fault of anybody's.
    let _ = timeout(LINGER, farewell).await;
}

/// Reads something and forgets it; `false` at the end of the stream.
fn skip<S: AsyncRead + Unpin>(stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
    let mut scratch = BUFFER.take();
    scratch.resize(SCRATCH, 0);
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
    use crate::engine_io::session::state::State;

    #[test]
    fn an_idle_connection_is_a_few_hundred_bytes() {
        // Task, record, and what changes in it. Measured as a whole, with the allocator and the runtime's share: 1.6 KiB.
        let sizes = [size_of::<Live<TcpStream>>(), size_of::<Connection>(), size_of::<State>()];
        assert!(sizes[0] <= 160 && sizes[1] <= 320 && sizes[2] <= 192, "{sizes:?}");
    }
}
