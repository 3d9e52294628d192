//! The border between a client's byte stream and hyper's HTTP/1 server.
//!
//! A [`RequestStream`] wraps the stream and follows its framing, so that hyper sees whole, sound request heads and nothing
//! else, one at a time: the next head waits until the answer to the last one is done ([`InFlightRequest`]). In place of a
//! faulty head hyper gets a small sound one, so that the service is called in its turn and learns the fault from
//! [`RequestTracker::begin_request`]. It is not a parser for anyone else, and it decides no status.
//!
//! Rules:
//! - Nothing at or behind a faulty head, and nothing behind a head that asks for an upgrade, is released (behind
//!   an upgrade, a head's length at most is read ahead); the end of the stream is reported once that request is answered. So an answer that keeps such a
//!   connection open cannot exist.
//! - The clocks are here: leave hyper's `header_read_timeout` off (it cuts keep-alive), and give hyper a
//!   `max_buf_size` of at least `request_head`. No clock runs while a request is being answered, but for its body.
//! - An idle connection has no buffer here, only one timer.

mod request_tracker;
mod write_timeout;
mod write;

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::http::framing::{Framer, FramingStep, HeadError};

use write_timeout::{WriteTimeout, earned_time, time_left};

pub use request_tracker::{InFlightRequest, RequestTracker};

/// What hyper gets in place of a faulty head.
const PLACEHOLDER_HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: -\r\n\r\n";

/// Bytes that one read of the stream may bring into the guard.
const READ_SIZE: usize = 8 * 1024;

/// The limits that a guard keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes that one request head may have; also what may be read ahead while a request is being answered.
    pub request_head: usize,
    /// From the beginning to the first whole head; for a later head, from its first byte.
    pub head_time: Duration,
    /// How long a connection that was answered may be silent.
    pub keep_alive: Duration,
    /// How long a client may keep the guard waiting in one request, for its body or to take its answer. What passes
    /// buys more time, so that one that is steady is never cut, however much it has to send.
    pub stall_time: Duration,
}

/// A client's stream that yields only sound requests.
#[derive(Debug)]
pub struct RequestStream<S> {
    stream: S,
    limits: RequestLimits,
    tracker: Arc<RequestTracker>,
    framer: Framer,
    /// Bytes that were read and not yet given to hyper; no allocation while it is empty.
    held: BytesMut,
    /// How many bytes at the front of `held` hyper may have.
    released: usize,
    /// Present while something is awaited against the clock.
    timer: Option<(TimeoutKind, Pin<Box<Sleep>>)>,
    /// What is left to the body of the request of its time to stall.
    body_time_left: Duration,
    /// The clock of the answer.
    write_timeout: WriteTimeout,
    /// No head has been released yet.
    is_first: bool,
    /// What has become of the read side.
    read_state: ReadState,
    /// The last answer on a sealed read side has left hyper, which forgets what it has not written when it sees the
    /// end of the stream.
    is_flushed: bool,
}

/// The read side of a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    Open,
    /// Nothing more is read: a fault. It ends when the last request has been answered.
    Sealed,
    /// Nothing more is released, because of an upgrade; a little is read ahead, so that a client that leaves is
    /// noticed. It ends as a sealed one does.
    Upgrading,
    /// The end has been reported, because the client was done or took too long.
    Ended,
}

/// What a guard waits for against the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimeoutKind {
    /// The first head, whole.
    FirstHead,
    /// The first byte of a later head.
    NextByte,
    /// The rest of a later head.
    NextHead,
    /// The next byte of a body.
    Body,
}

impl<S> RequestStream<S> {
    /// Guards a stream that has just been accepted; see [`RequestStream::with_start`].
    pub fn new(stream: S, rules: RequestLimits) -> (Self, Arc<RequestTracker>) {
        Self::with_start(Instant::now(), stream, rules)
    }

    /// Guards a stream whose first head is awaited since `begun`. Must be called within a tokio runtime with time
    /// enabled.
    pub fn with_start(begun: Instant, stream: S, rules: RequestLimits) -> (Self, Arc<RequestTracker>) {
        let link = Arc::new(RequestTracker::default());
        let guard = Self {
            stream,
            limits: rules,
            tracker: link.clone(),
            framer: Framer::new(rules.request_head),
            held: BytesMut::new(),
            released: 0,
            timer: Some((
                TimeoutKind::FirstHead,
                Box::pin(tokio::time::sleep_until(begun + rules.head_time)),
            )),
            body_time_left: rules.stall_time,
            write_timeout: WriteTimeout::new(rules.stall_time),
            is_first: true,
            read_state: ReadState::Open,
            is_flushed: false,
        };
        (guard, link)
    }

    /// Bytes that one request head may have.
    pub(super) fn max_head(&self) -> usize {
        self.limits.request_head
    }

    /// The stream, and the bytes that were read behind the last head and never released: what a client sent early,
    /// behind its request for an upgrade.
    pub fn into_parts(mut self) -> (S, Bytes) {
        self.held.advance(self.released);
        (self.stream, self.held.freeze())
    }

    /// Does what the framer says about the held bytes, until some are released or more are needed.
    fn apply_framing(&mut self) -> io::Result<()> {
        while self.released == 0 && self.read_state == ReadState::Open {
            match self.framer.next(&self.held) {
                FramingStep::More => break,
                FramingStep::Skip(length) => self.drop_front(length),
                FramingStep::Head(length) => self.release_head(length),
                FramingStep::Body(length) => self.release_body(length),
                FramingStep::HeadError(fault) => self.refuse_head(fault),
                FramingStep::BodyError(fault) => {
                    self.seal();
                    return Err(io::Error::new(io::ErrorKind::InvalidData, fault));
                }
                FramingStep::Hold => {
                    self.seal();
                    self.read_state = ReadState::Upgrading;
                }
            }
        }
        Ok(())
    }

    fn release_head(&mut self, length: usize) {
        self.released = length;
        self.is_first = false;
        self.timer = None;
        self.body_time_left = self.limits.stall_time;
        self.write_timeout = WriteTimeout::new(self.limits.stall_time);
        self.tracker.record_head(None);
    }

    fn release_body(&mut self, length: usize) {
        self.released = length;
        self.extend_body_time(length);
    }

    /// Bytes of a body have come: the clock stops, and has more time when it goes on.
    fn extend_body_time(&mut self, length: usize) {
        if let Some((TimeoutKind::Body, sleep)) = self.timer.take() {
            self.body_time_left = time_left(&sleep);
        }
        self.body_time_left = (self.body_time_left + earned_time(length)).min(self.limits.stall_time);
    }

    fn refuse_head(&mut self, fault: HeadError) {
        self.held = BytesMut::from(PLACEHOLDER_HEAD);
        self.released = PLACEHOLDER_HEAD.len();
        self.tracker.record_head(Some(fault));
        self.seal();
    }

    fn seal(&mut self) {
        self.read_state = ReadState::Sealed;
        self.timer = None;
    }

    fn end(&mut self) {
        self.read_state = ReadState::Ended;
        self.timer = None;
        self.held = BytesMut::new();
    }

    /// Gives released bytes to hyper.
    fn release_into(&mut self, out: &mut ReadBuf<'_>) {
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
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<TimeoutKind> {
        let (wait, time) = match () {
            () if self.framer.is_in_body() => (TimeoutKind::Body, self.body_time_left),
            () if self.is_first => (TimeoutKind::FirstHead, self.limits.head_time),
            () if self.held.is_empty() => (TimeoutKind::NextByte, self.limits.keep_alive),
            () => (TimeoutKind::NextHead, self.limits.head_time),
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
    fn on_timeout(&mut self, wait: TimeoutKind) -> io::Result<()> {
        match wait {
            TimeoutKind::Body => {
                self.tracker.record_slow_body();
                self.seal();
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped sending its body"));
            }
            TimeoutKind::FirstHead | TimeoutKind::NextByte | TimeoutKind::NextHead
                if self.held.is_empty() =>
            {
                self.end()
            }
            TimeoutKind::FirstHead | TimeoutKind::NextByte | TimeoutKind::NextHead => {
                self.refuse_head(HeadError::TooSlow)
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> RequestStream<S> {
    /// Waits until there is something to read: the first head, or a stand-in for it. False where the stream has ended
    /// before. So hyper and its buffers need not be there earlier.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub async fn first_head(&mut self) -> io::Result<bool> {
        poll_fn(|cx| self.poll_first_head(cx)).await?;
        Ok(self.released > 0)
    }

    fn poll_first_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.released == 0 && self.read_state == ReadState::Open {
            ready!(self.poll_more(cx))?;
            self.apply_framing()?;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads on, or does what a missed deadline means.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_fill(cx) {
            Poll::Ready(Ok(0)) => self.end(),
            Poll::Ready(read) => drop(read?),
            Poll::Pending => {
                let missed = ready!(self.poll_timer(cx));
                self.on_timeout(missed)?;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads behind what is held, up to one head's length. Ready(0) is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let room = self.limits.request_head.saturating_sub(self.held.len()).min(READ_SIZE);
        if room == 0 {
            return Poll::Pending;
        }
        // Read beside the buffer first, so that waiting costs no allocation.
        let mut scratch = [const { MaybeUninit::<u8>::uninit() }; READ_SIZE];
        let mut read = ReadBuf::uninit(&mut scratch[..room]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        self.held.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Reads straight into hyper's buffer, when all that fits there belongs to a body. Ready(0) is the end.
    fn poll_read_direct(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
        let fresh = &out.filled()[before..];
        let length = fresh.len();
        if length > 0 {
            self.framer.next(fresh);
            self.extend_body_time(length);
        }
        Poll::Ready(Ok(length))
    }

    /// The next head waits for the last answer; meanwhile the client's end must be seen, and a little read ahead.
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while ready!(self.poll_fill(cx))? > 0 {}
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RequestStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if guard.released > 0 {
                guard.release_into(out);
                return Poll::Ready(Ok(()));
            }
            match guard.read_state {
                ReadState::Ended => return Poll::Ready(Ok(())),
                ReadState::Sealed | ReadState::Upgrading => {
                    if guard.read_state == ReadState::Upgrading && guard.poll_read_ahead(cx)?.is_ready() {
                        continue;
                    }
                    ready!(guard.tracker.poll_answered(cx));
                    return if guard.is_flushed { Poll::Ready(Ok(())) } else { Poll::Pending };
                }
                ReadState::Open => {}
            }
            if guard.framer.is_at_head() && guard.tracker.poll_answered(cx).is_pending() {
                ready!(guard.poll_read_ahead(cx))?;
                continue;
            }
            guard.apply_framing()?;
            if guard.released > 0 || guard.read_state != ReadState::Open {
                continue;
            }
            if guard.framer.body_left() < out.remaining() as u64 {
                ready!(guard.poll_more(cx))?;
                continue;
            }
            match guard.poll_read_direct(cx, out) {
                Poll::Ready(Ok(0)) => guard.end(),
                Poll::Ready(read) => return Poll::Ready(read.map(drop)),
                Poll::Pending => {
                    let missed = ready!(guard.poll_timer(cx));
                    guard.on_timeout(missed)?;
                }
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test ends with its runtime, which ends its tasks")]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response, StatusCode};
    use http_body_util::combinators::BoxBody;
    use http_body_util::{BodyExt, Empty, Full, StreamBody};
    use hyper::body::{Frame, Incoming};
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;
    use tokio::time::{sleep, timeout};

    use super::*;

    const RULES: RequestLimits = RequestLimits {
        request_head: 1024,
        head_time: Duration::from_secs(10),
        keep_alive: Duration::from_secs(60),
        stall_time: Duration::from_secs(20),
    };
    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const UPGRADE: &str =
        "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    const HOUR: Duration = Duration::from_secs(3600);

    /// A client, and hyper behind a guard on the other end.
    struct Front {
        client: DuplexStream,
        /// What the service has seen, one word a call.
        seen: mpsc::UnboundedReceiver<String>,
        server: JoinHandle<hyper::Result<()>>,
    }

    impl Front {
        fn new(pipe: usize) -> Self {
            let (client, stream) = duplex(pipe);
            let (guard, link) = RequestStream::new(stream, RULES);
            let (sender, seen) = mpsc::unbounded_channel();
            let service = service_fn(move |request| answer(request, link.clone(), sender.clone()));
            let server = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(guard), service)
                .with_upgrades();
            Self { client, seen, server: tokio::spawn(server) }
        }

        async fn send(&mut self, bytes: impl AsRef<[u8]>) {
            self.client.write_all(bytes.as_ref()).await.expect("the connection is open");
        }

        /// What comes until the connection is closed.
        async fn rest(&mut self) -> String {
            let mut rest = Vec::new();
            self.client.read_to_end(&mut rest).await.expect("a duplex ends without an error");
            String::from_utf8_lossy(&rest).into_owned()
        }

        /// One answer without a body.
        async fn head(&mut self) -> String {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.client.read_u8().await.expect("an answer comes"));
            }
            String::from_utf8_lossy(&head).into_owned()
        }

        fn calls(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.seen.try_recv().ok()).collect()
        }
    }

    type Answer = Response<BoxBody<Bytes, Infallible>>;

    /// Says at its end whether the answer came that far.
    struct Witness(mpsc::UnboundedSender<String>, &'static str);

    impl Drop for Witness {
        fn drop(&mut self) {
            self.0.send(self.1.into()).ok();
        }
    }

    async fn answer(
        request: Request<Incoming>,
        link: Arc<RequestTracker>,
        seen: mpsc::UnboundedSender<String>,
    ) -> Result<Answer, Infallible> {
        let (fault, in_flight) = link.begin_request();
        if let Some(fault) = fault {
            seen.send(format!("{fault:?}")).ok();
            let status = match fault {
                HeadError::TooSlow => StatusCode::REQUEST_TIMEOUT,
                _ => StatusCode::BAD_REQUEST,
            };
            return Ok(reply(status, Bytes::new(), in_flight));
        }
        let path = request.uri().path().to_owned();
        seen.send(path.clone()).ok();
        Ok(match path.as_str() {
            "/echo" => {
                let mut body = request.into_body();
                let mut whole = Vec::new();
                while let Some(frame) = body.frame().await {
                    match frame.map(|frame| frame.into_data().unwrap_or_default()) {
                        Ok(data) => whole.extend_from_slice(&data),
                        Err(_) => {
                            let got = String::from_utf8_lossy(&whole).into_owned();
                            seen.send(format!("broken after {got}")).ok();
                            break;
                        }
                    }
                }
                reply(StatusCode::OK, whole.into(), in_flight)
            }
            "/long" => {
                let mut witness = Witness(seen, "cancelled");
                sleep(HOUR).await;
                witness.1 = "done";
                reply(StatusCode::OK, Bytes::new(), in_flight)
            }
            "/events" => {
                let events = futures_util::stream::unfold(0, |count| async move {
                    sleep(HOUR).await;
                    (count < 3).then(|| (Ok(Frame::data(Bytes::from_static(b"event"))), count + 1))
                });
                Response::new(BodyExt::boxed(KeepFlight(StreamBody::new(Box::pin(events)), in_flight)))
            }
            "/big" => reply(StatusCode::OK, Bytes::from(vec![b'x'; 100_000]), in_flight),
            "/upgrade" => {
                tokio::spawn(async move {
                    let upgraded = hyper::upgrade::on(request).await.expect("it is upgraded");
                    let parts =
                        upgraded.downcast::<TokioIo<RequestStream<DuplexStream>>>().expect("it is ours");
                    assert!(parts.read_buf.is_empty(), "hyper never sees an early byte");
                    let (mut stream, early) = parts.io.into_inner().into_parts();
                    stream.write_all(&early).await.expect("the client is there");
                    let mut later = [0; 5];
                    stream.read_exact(&mut later).await.expect("the client sends more");
                    stream.write_all(&later).await.expect("the client is there");
                });
                let mut reply = Response::new(BodyExt::boxed(KeepFlight(Empty::new(), in_flight)));
                *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                reply.headers_mut().insert("upgrade", "x".parse().expect("a token"));
                reply
            }
            _ => reply(StatusCode::OK, Bytes::new(), in_flight),
        })
    }

    fn reply(status: StatusCode, body: Bytes, in_flight: InFlightRequest) -> Answer {
        let mut reply = Response::new(BodyExt::boxed(KeepFlight(Full::new(body), in_flight)));
        *reply.status_mut() = status;
        if !status.is_success() {
            reply.headers_mut().insert("connection", "close".parse().expect("a token"));
        }
        reply
    }

    /// A body that keeps its request in flight until it is dropped.
    struct KeepFlight<B>(B, #[expect(dead_code, reason = "it lives as long as the body")] InFlightRequest);

    impl<B: http_body::Body + Unpin> http_body::Body for KeepFlight<B> {
        type Data = B::Data;
        type Error = B::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_end_stream()
        }

        fn size_hint(&self) -> http_body::SizeHint {
            self.0.size_hint()
        }
    }

    fn post(path: &str, framing: &str, body: &str) -> String {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}")
    }

    #[tokio::test(start_paused = true)]
    async fn sound_requests_are_served_one_after_the_other() {
        let mut front = Front::new(64);
        for _ in 0..3 {
            front.send(GET).await;
            assert!(front.head().await.starts_with("HTTP/1.1 200 "));
        }
        front.send(post("/echo", "Content-Length: 5\r\nConnection: close", "hello")).await;
        assert!(front.rest().await.ends_with("\r\n\r\nhello"));
        assert_eq!(front.calls(), ["/", "/", "/", "/echo"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_in_single_bytes_is_served_as_well() {
        let mut front = Front::new(1);
        let chunked = post(
            "/echo",
            "Transfer-Encoding: chunked\r\nConnection: close",
            "2;x\r\nhe\r\n3\r\nllo\r\n0\r\nt: v\r\n\r\n",
        );
        let (mut reader, mut writer) = tokio::io::split(front.client);
        let writing = async {
            writer.write_all(post("/echo", "Content-Length: 3", "abc").as_bytes()).await.expect("open");
            writer.write_all(chunked.as_bytes()).await.expect("open");
        };
        let mut answers = String::new();
        let (_, read) = tokio::join!(writing, reader.read_to_string(&mut answers));
        read.expect("answers are text");
        assert!(answers.contains("\r\n\r\nabcHTTP/1.1 200"), "{answers}");
        assert!(answers.ends_with("\r\n\r\nhello"), "{answers}");
        assert_eq!(front.seen.recv().await.as_deref(), Some("/echo"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_arrives_whole() {
        let front = Front::new(10_000);
        let body = "0123456789".repeat(100_000);
        let request = post("/echo", &format!("Content-Length: {}\r\nConnection: close", body.len()), &body);
        let (mut reader, mut writer) = tokio::io::split(front.client);
        let mut answer = String::new();
        let (wrote, read) =
            tokio::join!(writer.write_all(request.as_bytes()), reader.read_to_string(&mut answer));
        wrote.expect("all is read");
        read.expect("an answer comes");
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_head_behind_a_good_one_is_answered_in_its_turn() {
        let mut front = Front::new(4096);
        front.send([GET, GET, "GET /bad HTTP/1.1\r\n\r\n", GET].concat()).await;
        let answers = front.rest().await;
        let statuses: Vec<_> = answers.lines().filter(|line| line.starts_with("HTTP/1.1 ")).collect();
        assert_eq!(statuses, ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK", "HTTP/1.1 400 Bad Request"]);
        assert_eq!(front.calls(), ["/", "/", "NoHost"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_hyper_lets_through_is_refused() {
        use HeadError::*;
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        let chunked = "Transfer-Encoding: chunked";
        let table = [
            (post("/", &format!("{chunked}\r\nContent-Length: 5"), "0\r\n\r\n"), EncodingAndLength),
            (post("/", &format!("Content-Length: 5\r\n{chunked}"), "0\r\n\r\n"), EncodingAndLength),
            (post("/", "Transfer-Encoding: gzip, chunked", "0\r\n\r\n"), TransferEncoding),
            (post("/", "Transfer-Encoding: xchunked", "0\r\n\r\n"), TransferEncoding),
            (post("/", &format!("{chunked}\r\nTransfer-Encoding: identity"), "0\r\n\r\n"), TransferEncoding),
            (format!("POST / HTTP/1.0\r\n{chunked}\r\n\r\n0\r\n\r\n"), EncodingInHttp10),
            (post("/", "Content-Length: 5, 5", "hello"), ContentLength),
            (post("/", "Content-Length: +5", "hello"), ContentLength),
            (post("/", "Content-Length: 5\r\nContent-Length: 6", "hello"), TwoLengths),
            (post("/", "Content-Length: 5\r\nContent-Length: 5", "hello"), TwoLengths),
            (post("/", "Content-Length : 5", "hello"), FieldName),
            (post("/", "x: y\r\n z", ""), ObsFold),
            (post("/", "x: \0", ""), Control(0)),
            ("GET / HTTP/1.1\nHost: a\n\n".into(), BareLf),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), TwoHosts),
            ("GET / HTTP/1.1\r\n\r\n".into(), NoHost),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), HostDiffers),
            ("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n".into(), TargetNotAscii),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), Http2Preface),
            (post("/", &format!("x: {}", "y".repeat(2000)), ""), TooLarge(RULES.request_head)),
            (post("/", &"a:\r\n".repeat(100), ""), TooManyFields(100)),
        ];
        for (input, fault) in table {
            let mut front = Front::new(8192);
            front.send(input.clone() + smuggled).await;
            let answers = front.rest().await;
            assert!(answers.starts_with("HTTP/1.1 400 "), "{input:?}: {answers}");
            assert_eq!(answers.matches("HTTP/1.1").count(), 1, "{input:?}: {answers}");
            assert_eq!(front.calls(), [format!("{fault:?}")], "{input:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_is_begun_and_not_finished_is_too_slow() {
        let mut front = Front::new(64);
        let start = Instant::now();
        front.send("GET / HT").await;
        sleep(RULES.head_time / 2).await;
        front.send("TP/1.1\r\n").await;
        assert!(front.rest().await.starts_with("HTTP/1.1 408 "));
        assert!(start.elapsed().abs_diff(RULES.head_time) < Duration::from_millis(10));
        assert_eq!(front.calls(), ["TooSlow"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_let_go_in_silence() {
        for blank in ["", "\r\n"] {
            let mut front = Front::new(64);
            let start = Instant::now();
            front.send(blank).await;
            assert_eq!(front.rest().await, "");
            assert!(start.elapsed().abs_diff(RULES.head_time) < Duration::from_millis(10));
            assert!(front.server.await.expect("no panic").is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_after_keep_alive() {
        let mut front = Front::new(64);
        front.send(GET).await;
        front.head().await;
        sleep(RULES.keep_alive / 2).await;
        front.send(GET).await;
        front.head().await;
        let start = Instant::now();
        assert_eq!(front.rest().await, "");
        assert!(start.elapsed().abs_diff(RULES.keep_alive) < Duration::from_millis(10));
        assert_eq!(front.calls(), ["/", "/"]);
        assert!(front.server.await.expect("no panic").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_head_has_its_time_from_its_first_byte() {
        let mut front = Front::new(64);
        front.send(GET).await;
        front.head().await;
        sleep(RULES.keep_alive - Duration::from_secs(1)).await;
        let start = Instant::now();
        front.send("G").await;
        assert!(front.rest().await.starts_with("HTTP/1.1 408 "));
        assert!(start.elapsed().abs_diff(RULES.head_time) < Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_answer_is_not_cut() {
        let mut front = Front::new(64);
        front.send("GET /long HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(front.head().await.starts_with("HTTP/1.1 200 "));
        front.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let start = Instant::now();
        let answer = front.rest().await;
        assert_eq!(answer.matches("event").count(), 3, "{answer}");
        // The clock for the next head runs again from the end of the answer.
        assert!(start.elapsed().abs_diff(HOUR * 4 + RULES.keep_alive) < Duration::from_secs(1));
        assert_eq!(front.calls(), ["/long", "done", "/events"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_read_slowly_is_not_cut() {
        let mut front = Front::new(1000);
        front.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut got = Vec::new();
        while got.iter().filter(|&&byte| byte == b'x').count() < 100_000 {
            sleep(Duration::from_millis(1900)).await;
            let mut some = [0; 1000];
            let length = front.client.read(&mut some).await.expect("the connection is open");
            assert!(length > 0, "cut after {}", got.len());
            got.extend_from_slice(&some[..length]);
        }
        front.send(GET).await;
        assert!(front.head().await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_taken_byte_by_byte_or_not_at_all_is_cut() {
        for some in [0, 1] {
            let mut front = Front::new(1000);
            front.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let start = Instant::now();
            let mut taken = vec![0; some];
            while !front.server.is_finished() {
                sleep(Duration::from_secs(1)).await;
                front.client.read_exact(&mut taken).await.expect("there is more");
                assert!(start.elapsed() < 2 * RULES.stall_time, "{some} bytes a second keep it for ever");
            }
            assert!(start.elapsed() >= RULES.stall_time, "{some}");
            assert!(front.server.await.expect("no panic").is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_while_its_upgrade_is_being_served_is_noticed() {
        for early in ["", "early bytes"] {
            let mut front = Front::new(64);
            front.send(UPGRADE.replace("/upgrade", "/long")).await;
            front.send(early).await;
            assert_eq!(front.seen.recv().await.as_deref(), Some("/long"));
            let start = Instant::now();
            drop(front.client);
            assert_eq!(front.seen.recv().await.as_deref(), Some("cancelled"));
            assert!(start.elapsed() < Duration::from_secs(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_ends_its_request() {
        let mut front = Front::new(64);
        front.send("GET /long HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(front.seen.recv().await.as_deref(), Some("/long"));
        let start = Instant::now();
        drop(front.client);
        assert_eq!(front.seen.recv().await.as_deref(), Some("cancelled"));
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_ahead_is_bounded() {
        let mut front = Front::new(64);
        front.send("GET /long HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut taken = 0;
        while timeout(Duration::from_secs(1), front.client.write_all(GET.as_bytes())).await.is_ok() {
            taken += GET.len();
        }
        assert!((RULES.request_head - GET.len()..=RULES.request_head + 64).contains(&taken), "{taken}");
        assert_eq!(front.calls(), ["/long"]);
        front.head().await;
        assert!(
            front.head().await.starts_with("HTTP/1.1 200 "),
            "the pipelined requests are served in the end"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn early_bytes_behind_an_upgrade_come_out_in_order() {
        let mut front = Front::new(4096);
        front.send([UPGRADE, "early GET / HTTP/1.1\r\n\r\n"].concat()).await;
        assert!(front.head().await.starts_with("HTTP/1.1 101 "));
        front.send("later").await;
        assert_eq!(front.rest().await, "early GET / HTTP/1.1\r\n\r\nlater");
        assert_eq!(front.calls(), ["/upgrade"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_upgrade_gets_its_answer_and_the_end() {
        for path in ["/", "/big"] {
            let mut front = Front::new(1000);
            front.send(UPGRADE.replace("/upgrade", path)).await;
            front.send(GET).await;
            let answer = front.rest().await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(path == "/" || answer.matches('x').count() == 100_000, "the answer is whole");
            assert_eq!(front.calls(), [path]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_must_make_progress() {
        let mut front = Front::new(64);
        front.send(post("/echo", "Content-Length: 50", "")).await;
        front.send("x").await;
        let start = Instant::now();
        assert_eq!(front.seen.recv().await.as_deref(), Some("/echo"));
        assert_eq!(front.seen.recv().await.as_deref(), Some("broken after x"));
        assert!(start.elapsed().abs_diff(RULES.stall_time) < Duration::from_secs(1));
        assert!(front.rest().await.starts_with("HTTP/1.1 "));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_cut_as_a_silent_one_is() {
        for (framing, begun) in [("Content-Length: 50", ""), ("Transfer-Encoding: chunked", "32\r\n")] {
            let mut front = Front::new(64);
            front.send(post("/echo", framing, begun)).await;
            let (start, mut sent) = (Instant::now(), 0);
            // One byte a second.
            while front.client.write_all(b"0").await.is_ok() && sent < 40 {
                sleep(Duration::from_secs(1)).await;
                sent += 1;
                if front.seen.try_recv().is_ok_and(|word| word.starts_with("broken")) {
                    break;
                }
            }
            assert!((19..=21).contains(&sent), "{framing}: cut after {sent} bytes");
            assert!(start.elapsed() < RULES.stall_time + Duration::from_secs(2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_500_bytes_a_second_is_never_cut_and_may_pause() {
        let mut front = Front::new(64);
        front.send(post("/echo", "Content-Length: 100000", "")).await;
        for _ in 0..200 {
            front.send([b'x'; 500]).await;
            sleep(Duration::from_millis(990)).await;
        }
        assert!(front.head().await.starts_with("HTTP/1.1 200 "));
        let mut front = Front::new(64);
        front.send(post("/echo", "Content-Length: 20000", "")).await;
        front.send(vec![b'x'; 10_000]).await;
        sleep(RULES.stall_time - Duration::from_secs(1)).await;
        front.send(vec![b'x'; 10_000]).await;
        assert!(front.head().await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test(start_paused = true)]
    async fn a_chunk_that_breaks_its_framing_breaks_the_body() {
        let mut front = Front::new(4096);
        front.send(post("/echo", "Transfer-Encoding: chunked", "5\r\nhello\n0\r\n\r\n") + GET).await;
        front.rest().await;
        assert_eq!(front.calls(), ["/echo", "broken after hello"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_guard_has_no_buffer_and_a_busy_one_no_timer() {
        let (mut client, stream) = duplex(4096);
        let (mut guard, link) = RequestStream::new(stream, RULES);
        client.write_all(GET.as_bytes()).await.expect("it is open");
        let mut head = [0; 100];
        let length = guard.read(&mut head).await.expect("a head is there");
        assert_eq!(&head[..length], GET.as_bytes());
        let (fault, in_flight) = link.begin_request();
        assert_eq!(fault, None);
        let poll = async |guard: &mut RequestStream<DuplexStream>| {
            poll_fn(|cx| {
                let mut out = [0; 100];
                let read = Pin::new(&mut *guard).poll_read(cx, &mut ReadBuf::new(&mut out));
                Poll::Ready(read.is_pending())
            })
            .await
        };
        assert!(poll(&mut guard).await);
        assert_eq!((guard.held.capacity(), guard.timer.is_none()), (0, true));
        drop(in_flight);
        assert!(poll(&mut guard).await);
        assert_eq!((guard.held.capacity(), guard.timer.is_some()), (0, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_client_learns_its_fault() {
        let mut front = Front::new(4096);
        front.send("GET / HTTP/1.1\r\n\r\n").await;
        front.client.shutdown().await.expect("a duplex can be half closed");
        assert!(front.rest().await.starts_with("HTTP/1.1 400 "));
        assert!(front.server.await.expect("no panic").is_ok());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_that_end_on_another_thread_let_the_next_one_in() {
        let (client, stream) = duplex(100_000);
        let (guard, link) = RequestStream::new(stream, RULES);
        let service = service_fn(move |_| {
            let (_, in_flight) = link.begin_request();
            tokio::spawn(async move { drop(in_flight) });
            async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
        });
        let server =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(guard), service);
        let server = tokio::spawn(server);
        let (mut reader, mut writer) = tokio::io::split(client);
        let sending = async {
            writer.write_all(GET.repeat(1000).as_bytes()).await.expect("it is open");
            writer.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("it is open");
        };
        let mut answers = String::new();
        let (_, read) = tokio::join!(sending, reader.read_to_string(&mut answers));
        read.expect("answers are text");
        assert_eq!(answers.matches(" 200 OK").count(), 1001);
        assert!(server.await.expect("no panic").is_ok());
    }
}
