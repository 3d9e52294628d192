//! The request stream in front of hyper: it yields what the framer releases, whatever the pieces, with the placeholder
//! in place of a faulty head.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mainstay::http::framing::{Framer, FramingStep};
use mainstay::http::request_stream::{RequestLimits, RequestStream, RequestTracker};
use tokio::io::{AsyncRead, ReadBuf};

use super::input::{Input, Pieces};

const LIMITS: RequestLimits = RequestLimits {
    request_head: 256,
    head_time: Duration::from_secs(3600),
    keep_alive: Duration::from_secs(3600),
    stall_time: Duration::from_secs(3600),
};

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime can be had");
}

/// One input: how the stream is cut, how much hyper reads at once, then the stream.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (seed, room) = (input.byte(), 1 + usize::from(input.byte()));
    let stream = input.rest();
    let (released, stop) = frame(stream);
    let yielded = RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        read_all(stream, seed, room)
    });
    let (whole, fault) = yielded;
    let is_body_fault = matches!(stop, FramingStep::BodyError(_));
    assert_eq!(fault, is_body_fault.then_some(io::ErrorKind::InvalidData), "{}", stream.escape_ascii());
    match stop {
        FramingStep::HeadError(_) => {
            let behind = whole.strip_prefix(&released[..]).expect("what is sound before a fault goes on");
            assert_eq!(behind, b"GET / HTTP/1.1\r\nhost: -\r\n\r\n");
        }
        _ => assert_eq!(whole, released, "{}", stream.escape_ascii()),
    }
}

/// What the framer releases of a stream, and why it stops.
fn frame(stream: &[u8]) -> (Vec<u8>, FramingStep) {
    let mut framer = Framer::new(LIMITS.request_head);
    let (mut released, mut at) = (Vec::new(), 0);
    loop {
        match framer.next(&stream[at..]) {
            FramingStep::Skip(length) => at += length,
            FramingStep::Head(length) | FramingStep::Body(length) => {
                released.extend_from_slice(&stream[at..at + length]);
                at += length;
            }
            stop => return (released, stop),
        }
    }
}

/// What a request stream yields when each request is answered at once.
fn read_all(stream: &[u8], seed: u8, room: usize) -> (Vec<u8>, Option<io::ErrorKind>) {
    let source = Source { stream, pieces: Pieces::new(seed, stream.len()), piece: 0..0, is_pending: false };
    let (mut requests, tracker) = RequestStream::new(source, LIMITS);
    let (mut out, mut quiet) = (Vec::new(), 0);
    let mut buffer = vec![0; room];
    let mut cx = Context::from_waker(Waker::noop());
    // The source is pending between two pieces, and once more at its end.
    while quiet < 2 * stream.len() + 8 {
        let mut part = ReadBuf::new(&mut buffer);
        match Pin::new(&mut requests).poll_read(&mut cx, &mut part) {
            Poll::Ready(Ok(())) if part.filled().is_empty() => return (out, None),
            Poll::Ready(Ok(())) => {
                out.extend_from_slice(part.filled());
                quiet = 0;
            }
            Poll::Ready(Err(error)) => return (out, Some(error.kind())),
            Poll::Pending => {
                quiet += 1;
                answer(&tracker);
            }
        }
    }
    (out, None)
}

fn answer(tracker: &std::sync::Arc<RequestTracker>) {
    if !tracker.is_idle() {
        drop(tracker.begin_request());
    }
}

/// A client that sends its stream in pieces and then says nothing more.
struct Source<'a> {
    stream: &'a [u8],
    pieces: Pieces,
    /// What is left of the present piece.
    piece: Range<usize>,
    is_pending: bool,
}

impl AsyncRead for Source<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.piece.is_empty() {
            self.is_pending = !self.is_pending;
            let next = if self.is_pending { None } else { self.pieces.next() };
            let Some(piece) = next else { return Poll::Pending };
            self.piece = piece;
        }
        let length = self.piece.len().min(out.remaining());
        out.put_slice(&self.stream[self.piece.start..self.piece.start + length]);
        self.piece.start += length;
        Poll::Ready(Ok(()))
    }
}
