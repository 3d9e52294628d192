//! The border between a client's byte stream and hyper's HTTP/1 server.
//!
//! A [`Guard`] wraps the stream and follows its framing, so that hyper sees whole, sound request heads and nothing
//! else, one at a time: the next head waits until the answer to the last one is done ([`InFlight`]). In place of a
//! faulty head hyper gets a small sound one, so that the service is called in its turn and learns the fault from
//! [`Link::begin_request`]. It is not a parser for anyone else, and it decides no status.
//!
//! Rules:
//! - Nothing at or behind a faulty head, and nothing behind a head that asks for an upgrade, is released or even
//!   read on; the end of the stream is reported once that request is answered. So an answer that keeps such a
//!   connection open cannot exist.
//! - The clocks are here: leave hyper's `header_read_timeout` off (it cuts keep-alive), and give hyper a
//!   `max_buf_size` of at least `request_head`. No clock runs while a request is being answered, but for its body.
//! - An idle connection has no buffer here, only one timer.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::http::framing::{Framer, HeadFault, Step};

/// What hyper gets in place of a faulty head.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: -\r\n\r\n";

/// Bytes that one read of the stream may bring into the guard.
const READ: usize = 8 * 1024;

/// The limits that a guard keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Bytes that one request head may have; also what may be read ahead while a request is being answered.
    pub request_head: usize,
    /// From accept to the first whole head; for a later head, from its first byte.
    pub head_time: Duration,
    /// How long a connection that was answered may be silent.
    pub keep_alive: Duration,
    /// How long a request's body may be silent.
    pub body_time: Duration,
}

/// A client's stream that yields only sound requests.
#[derive(Debug)]
pub struct Guard<S> {
    stream: S,
    rules: Rules,
    link: Arc<Link>,
    framer: Framer,
    /// Bytes that were read and not yet given to hyper; no allocation while it is empty.
    held: BytesMut,
    /// How many bytes at the front of `held` hyper may have.
    released: usize,
    /// Present while something is awaited against the clock.
    timer: Option<(Wait, Pin<Box<Sleep>>)>,
    /// No head has been released yet.
    is_first: bool,
    /// What has become of the read side.
    side: Side,
}

/// The read side of a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Open,
    /// Nothing more is read: a fault, or an upgrade. It ends when the last request has been answered.
    Sealed,
    /// The end has been reported, because the client was done or took too long.
    Ended,
}

/// What a guard waits for against the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The first head, whole.
    FirstHead,
    /// The first byte of a later head.
    NextByte,
    /// The rest of a later head.
    NextHead,
    /// The next byte of a body.
    Body,
}

impl<S> Guard<S> {
    /// Guards a stream that has just been accepted. Must be called within a tokio runtime with time enabled.
    pub fn new(stream: S, rules: Rules) -> (Self, Arc<Link>) {
        let link = Arc::new(Link::default());
        let guard = Self {
            stream,
            rules,
            link: link.clone(),
            framer: Framer::new(rules.request_head),
            held: BytesMut::new(),
            released: 0,
            timer: Some((Wait::FirstHead, Box::pin(tokio::time::sleep(rules.head_time)))),
            is_first: true,
            side: Side::Open,
        };
        (guard, link)
    }

    /// The stream, and the bytes that were read behind the last head and never released: what a client sent early,
    /// behind its request for an upgrade.
    pub fn into_parts(mut self) -> (S, Bytes) {
        self.held.advance(self.released);
        (self.stream, self.held.freeze())
    }

    /// Does what the framer says about the held bytes, until some are released or more are needed.
    fn frame(&mut self) -> io::Result<()> {
        while self.released == 0 && self.side == Side::Open {
            match self.framer.next(&self.held) {
                Step::More => break,
                Step::Skip(length) => self.drop_front(length),
                Step::Head(length) => self.release_head(length),
                Step::Body(length) => self.release_body(length),
                Step::HeadFault(fault) => self.refuse(fault),
                Step::BodyFault(fault) => {
                    self.seal();
                    return Err(io::Error::new(io::ErrorKind::InvalidData, fault));
                }
                Step::Hold => self.seal(),
            }
        }
        Ok(())
    }

    fn release_head(&mut self, length: usize) {
        self.released = length;
        self.is_first = false;
        self.timer = None;
        self.link.note_head(None);
    }

    fn release_body(&mut self, length: usize) {
        self.released = length;
        self.timer = None;
    }

    fn refuse(&mut self, fault: HeadFault) {
        self.held = BytesMut::from(STAND_IN);
        self.released = STAND_IN.len();
        self.link.note_head(Some(fault));
        self.seal();
    }

    fn seal(&mut self) {
        self.side = Side::Sealed;
        self.timer = None;
    }

    fn end(&mut self) {
        self.side = Side::Ended;
        self.timer = None;
        self.held = BytesMut::new();
    }

    /// Gives released bytes to hyper.
    fn hand_out(&mut self, out: &mut ReadBuf<'_>) {
        let length = self.released.min(out.remaining());
        out.put_slice(&self.held[..length]);
        self.released -= length;
        self.drop_front(length);
    }

    fn drop_front(&mut self, length: usize) {
        self.held.advance(length);
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
    }

    /// Waits for a deadline of the wanted kind; one of another kind gives way to it.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Wait> {
        let (wait, time) = match () {
            () if self.framer.is_in_body() => (Wait::Body, self.rules.body_time),
            () if self.is_first => (Wait::FirstHead, self.rules.head_time),
            () if self.held.is_empty() => (Wait::NextByte, self.rules.keep_alive),
            () => (Wait::NextHead, self.rules.head_time),
        };
        if self.timer.as_ref().is_none_or(|(kind, _)| *kind != wait) {
            self.timer = Some((wait, Box::pin(tokio::time::sleep(time))));
        }
        match &mut self.timer {
            Some((_, sleep)) => sleep.as_mut().poll(cx).map(|()| wait),
            None => Poll::Pending,
        }
    }

    /// What a missed deadline means: silence ends the stream, half a head is a fault, half a body an error.
    fn expire(&mut self, wait: Wait) -> io::Result<()> {
        match wait {
            Wait::Body => {
                self.seal();
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped sending its body"));
            }
            Wait::FirstHead | Wait::NextByte | Wait::NextHead if self.held.is_empty() => self.end(),
            Wait::FirstHead | Wait::NextByte | Wait::NextHead => self.refuse(HeadFault::TooSlow),
        }
        Ok(())
    }

    /// A client that takes what is written is not silent: an answer may still be on its way to it when the request
    /// counts as answered.
    fn note_written(&mut self) {
        if let Some((Wait::NextByte, sleep)) = &mut self.timer {
            sleep.as_mut().reset(Instant::now() + self.rules.keep_alive);
        }
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    /// Reads behind what is held, up to one head's length. Ready(0) is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let room = self.rules.request_head.saturating_sub(self.held.len()).min(READ);
        if room == 0 {
            return Poll::Pending;
        }
        // Read beside the buffer first, so that waiting costs no allocation.
        let mut scratch = [const { MaybeUninit::<u8>::uninit() }; READ];
        let mut read = ReadBuf::uninit(&mut scratch[..room]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        self.held.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Reads straight into hyper's buffer, when all that fits there belongs to a body. Ready(0) is the end.
    fn poll_straight(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
        let fresh = &out.filled()[before..];
        if !fresh.is_empty() {
            self.framer.next(fresh);
            self.timer = None;
        }
        Poll::Ready(Ok(fresh.len()))
    }

    /// The next head waits for the last answer; meanwhile the client's end must be seen, and a little read ahead.
    fn poll_behind_request(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while ready!(self.poll_fill(cx))? > 0 {}
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if guard.released > 0 {
                guard.hand_out(out);
                return Poll::Ready(Ok(()));
            }
            match guard.side {
                Side::Ended => return Poll::Ready(Ok(())),
                Side::Sealed => {
                    ready!(guard.link.poll_answered(cx));
                    return Poll::Ready(Ok(()));
                }
                Side::Open => {}
            }
            if guard.framer.is_at_head() && guard.link.poll_answered(cx).is_pending() {
                ready!(guard.poll_behind_request(cx))?;
                continue;
            }
            guard.frame()?;
            if guard.released > 0 || guard.side != Side::Open {
                continue;
            }
            let is_straight = guard.framer.body_left() >= out.remaining() as u64;
            let read = if is_straight { guard.poll_straight(cx, out) } else { guard.poll_fill(cx) };
            match read {
                Poll::Ready(Ok(0)) => guard.end(),
                Poll::Ready(Ok(_)) if is_straight => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    let missed = ready!(guard.poll_timer(cx));
                    guard.expire(missed)?;
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        let written = ready!(Pin::new(&mut guard.stream).poll_write(cx, bytes));
        guard.note_written();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        let written = ready!(Pin::new(&mut guard.stream).poll_write_vectored(cx, slices));
        guard.note_written();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// What a guard and the service behind hyper know of each other.
#[derive(Debug, Default)]
pub struct Link(Mutex<Heads>);

/// Heads are counted, so that a fault meets the call that it belongs to.
#[derive(Debug, Default)]
struct Heads {
    /// Heads given to hyper, stand-ins too.
    released: u64,
    /// Calls of the service.
    begun: u64,
    /// Answers that are done.
    answered: u64,
    /// What was wrong with the last released head. There is none behind a faulty one.
    fault: Option<HeadFault>,
    /// The connection's task, while the guard waits for an answer to be done.
    waker: Option<Waker>,
}

impl Link {
    /// Begins the service of the next request: call it first in each call of the service. With a fault the request
    /// is a stand-in, to be answered with an error and `Connection: close`. Keep the [`InFlight`] until the body of
    /// the answer has been sent or dropped.
    pub fn begin_request(self: &Arc<Self>) -> (Option<HeadFault>, InFlight) {
        let mut heads = self.0.lock();
        heads.begun += 1;
        let fault = if heads.begun == heads.released { heads.fault } else { None };
        (fault, InFlight(self.clone()))
    }

    fn note_head(&self, fault: Option<HeadFault>) {
        let mut heads = self.0.lock();
        heads.released += 1;
        heads.fault = fault;
    }

    /// Ready when every released head has been answered.
    fn poll_answered(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut heads = self.0.lock();
        if heads.answered >= heads.released {
            heads.waker = None;
            return Poll::Ready(());
        }
        match &mut heads.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

/// A request that is being answered. Dropping it lets the guard go on to the next head.
#[derive(Debug)]
pub struct InFlight(Arc<Link>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let waker = {
            let mut heads = self.0.0.lock();
            heads.answered += 1;
            heads.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
