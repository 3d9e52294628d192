//! The client's byte stream as hyper's HTTP/1 server reads it: whole, valid requests, one at a time.
//!
//! A [`RequestStream`] wraps the stream and follows its framing. The next head waits until the answer to the last request
//! is complete ([`InFlightRequest`]). In place of a faulty head hyper gets a placeholder, so that the service is called
//! in its turn and learns the error from [`RequestTracker::begin_request`]. No status is decided here.
//!
//! Rules:
//! - Nothing at or behind a faulty head is released, nor is anything behind a head that asks for an upgrade; there, a
//!   head's length at most is read ahead. The end of the stream is reported once that request is answered, so no answer
//!   can keep such a connection open.
//! - The timeouts are here: leave hyper's `header_read_timeout` off (it cuts keep-alive), and give hyper a
//!   `max_buf_size` of at least `request_head`. While a request is being answered, only the timeout of its body runs.
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

/// The most bytes that one read of the stream brings into the buffer.
const READ_SIZE: usize = 8 * 1024;

/// The limits on the requests of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes that one request head may have; also what may be read ahead while a request is being answered.
    pub request_head: usize,
    /// From the beginning to the first whole head; for a later head, from its first byte.
    pub head_time: Duration,
    /// How long a connection that was answered may be silent.
    pub keep_alive: Duration,
    /// How long a client may stall in one request, while it sends its body or reads its response. Every byte that
    /// passes adds time, so a steady client is never cut off, however much it has to send.
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
    /// The timeout that runs.
    timer: Option<(TimeoutKind, Pin<Box<Sleep>>)>,
    /// The time that the body of the request has left to stall.
    body_time_left: Duration,
    /// The timeout of the response.
    write_timeout: WriteTimeout,
    /// No head has been released yet.
    is_first: bool,
    /// The state of the read side.
    read_state: ReadState,
    /// Hyper has written the last answer on a sealed read side. Hyper drops what it has not written when it sees the end
    /// of the stream.
    is_flushed: bool,
}

/// The state of the read side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    Open,
    /// Nothing more is read after an error. It ends when the last request has been answered.
    Sealed,
    /// Nothing more is released, because of an upgrade; a little is read ahead, so that a client that leaves is
    /// noticed. It ends as a sealed one does.
    Upgrading,
    /// The end has been reported: the client has ended its stream, or a timeout has expired.
    Ended,
}

/// What a timeout waits for.
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
    /// The requests of a stream that has just been accepted. Must be called within a tokio runtime with time enabled.
    pub fn new(stream: S, limits: RequestLimits) -> (Self, Arc<RequestTracker>) {
        Self::with_start(Instant::now(), stream, limits)
    }

    /// The requests of a stream whose first head is awaited since `begun`.
    pub(crate) fn with_start(
        begun: Instant,
        stream: S,
        limits: RequestLimits,
    ) -> (Self, Arc<RequestTracker>) {
        let tracker = Arc::new(RequestTracker::default());
        let requests = Self {
            stream,
            limits,
            tracker: Arc::clone(&tracker),
            framer: Framer::new(limits.request_head),
            held: BytesMut::new(),
            released: 0,
            timer: Some((
                TimeoutKind::FirstHead,
                Box::pin(tokio::time::sleep_until(begun + limits.head_time)),
            )),
            body_time_left: limits.stall_time,
            write_timeout: WriteTimeout::new(limits.stall_time),
            is_first: true,
            read_state: ReadState::Open,
            is_flushed: false,
        };
        (requests, tracker)
    }

    /// Bytes that one request head may have.
    pub(super) fn max_head(&self) -> usize {
        self.limits.request_head
    }

    /// The stream, and the bytes that were read behind the last head and never released: what a client sent early, behind
    /// its upgrade request.
    pub(crate) fn into_parts(mut self) -> (S, Bytes) {
        self.held.advance(self.released);
        (self.stream, self.held.freeze())
    }

    /// Does what the framer decides about the held bytes, until some are released or more are needed.
    fn apply_framing(&mut self) -> io::Result<()> {
        while self.released == 0 && self.read_state == ReadState::Open {
            match self.framer.next(&self.held) {
                FramingStep::More => break,
                FramingStep::Skip(length) => self.drop_front(length),
                FramingStep::Head(length) => self.release_head(length),
                FramingStep::Body(length) => self.release_body(length),
                FramingStep::HeadError(error) => self.refuse_head(error),
                FramingStep::BodyError(error) => {
                    self.seal();
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
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

    /// Bytes of a body have come: its timeout stops, and has more time when it goes on.
    fn extend_body_time(&mut self, length: usize) {
        if let Some((TimeoutKind::Body, sleep)) = self.timer.take() {
            self.body_time_left = time_left(&sleep);
        }
        self.body_time_left = (self.body_time_left + earned_time(length)).min(self.limits.stall_time);
    }

    fn refuse_head(&mut self, error: HeadError) {
        self.held = BytesMut::from(PLACEHOLDER_HEAD);
        self.released = PLACEHOLDER_HEAD.len();
        self.tracker.record_head(Some(error));
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

    /// Polls the timeout of what is awaited now; one of another kind is replaced.
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

    /// After silence the stream ends; half a head is a head error, half a body an error of the stream.
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
    /// Waits for the first head, or its placeholder; false where the stream ends without one. Before that, hyper and its
    /// buffers need not exist.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub(crate) async fn first_head(&mut self) -> io::Result<bool> {
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

    /// Reads on, or expires.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_fill(cx) {
            Poll::Ready(Ok(0)) => self.end(),
            Poll::Ready(read) => drop(read?),
            Poll::Pending => {
                let expired = ready!(self.poll_timer(cx));
                self.on_timeout(expired)?;
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

    /// While the next head waits for the last answer, reads a little ahead, so that the end of the stream is noticed.
    fn poll_read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while ready!(self.poll_fill(cx))? > 0 {}
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RequestStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let requests = self.get_mut();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if requests.released > 0 {
                requests.release_into(out);
                return Poll::Ready(Ok(()));
            }
            match requests.read_state {
                ReadState::Ended => return Poll::Ready(Ok(())),
                ReadState::Sealed | ReadState::Upgrading => {
                    if requests.read_state == ReadState::Upgrading && requests.poll_read_ahead(cx)?.is_ready()
                    {
                        continue;
                    }
                    ready!(requests.tracker.poll_answered(cx));
                    return if requests.is_flushed { Poll::Ready(Ok(())) } else { Poll::Pending };
                }
                ReadState::Open => {}
            }
            if requests.framer.is_at_head() && requests.tracker.poll_answered(cx).is_pending() {
                ready!(requests.poll_read_ahead(cx))?;
                continue;
            }
            requests.apply_framing()?;
            if requests.released > 0 || requests.read_state != ReadState::Open {
                continue;
            }
            if requests.framer.body_left() < out.remaining() as u64 {
                ready!(requests.poll_more(cx))?;
                continue;
            }
            match requests.poll_read_direct(cx, out) {
                Poll::Ready(Ok(0)) => requests.end(),
                Poll::Ready(read) => return Poll::Ready(read.map(drop)),
                Poll::Pending => {
                    let expired = ready!(requests.poll_timer(cx));
                    requests.on_timeout(expired)?;
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

    const LIMITS: RequestLimits = RequestLimits {
        request_head: 1024,
        head_time: Duration::from_secs(10),
        keep_alive: Duration::from_secs(60),
        stall_time: Duration::from_secs(20),
    };
    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const UPGRADE: &str =
        "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    const HOUR: Duration = Duration::from_secs(3600);

    /// A client, and hyper behind a request stream on the other end.
    struct TestConnection {
        client: DuplexStream,
        /// What the service has seen, one word a call.
        seen: mpsc::UnboundedReceiver<String>,
        server: JoinHandle<hyper::Result<()>>,
    }

    impl TestConnection {
        fn new(pipe: usize) -> Self {
            let (client, stream) = duplex(pipe);
            let (requests, tracker) = RequestStream::new(stream, LIMITS);
            let (sender, seen) = mpsc::unbounded_channel();
            let service = service_fn(move |request| answer(request, tracker.clone(), sender.clone()));
            let server = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(requests), service)
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

    type TestResponse = Response<BoxBody<Bytes, Infallible>>;

    /// Says at its end whether the answer came that far.
    struct DropWitness(mpsc::UnboundedSender<String>, &'static str);

    impl Drop for DropWitness {
        fn drop(&mut self) {
            self.0.send(self.1.into()).ok();
        }
    }

    async fn answer(
        request: Request<Incoming>,
        tracker: Arc<RequestTracker>,
        seen: mpsc::UnboundedSender<String>,
    ) -> Result<TestResponse, Infallible> {
        let (error, in_flight) = tracker.begin_request();
        if let Some(error) = error {
            seen.send(format!("{error:?}")).ok();
            let status = match error {
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
                let mut witness = DropWitness(seen, "cancelled");
                sleep(HOUR).await;
                witness.1 = "done";
                reply(StatusCode::OK, Bytes::new(), in_flight)
            }
            "/events" => {
                let events = futures_util::stream::unfold(0, |count| async move {
                    sleep(HOUR).await;
                    (count < 3).then(|| (Ok(Frame::data(Bytes::from_static(b"event"))), count + 1))
                });
                Response::new(BodyExt::boxed(TrackedBody(StreamBody::new(Box::pin(events)), in_flight)))
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
                let mut reply = Response::new(BodyExt::boxed(TrackedBody(Empty::new(), in_flight)));
                *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                reply.headers_mut().insert("upgrade", "x".parse().expect("a token"));
                reply
            }
            _ => reply(StatusCode::OK, Bytes::new(), in_flight),
        })
    }

    fn reply(status: StatusCode, body: Bytes, in_flight: InFlightRequest) -> TestResponse {
        let mut reply = Response::new(BodyExt::boxed(TrackedBody(Full::new(body), in_flight)));
        *reply.status_mut() = status;
        if !status.is_success() {
            reply.headers_mut().insert("connection", "close".parse().expect("a token"));
        }
        reply
    }

    /// A body that keeps its request in flight until it is dropped.
    struct TrackedBody<B>(B, #[expect(dead_code, reason = "it lives as long as the body")] InFlightRequest);

    impl<B: http_body::Body + Unpin> http_body::Body for TrackedBody<B> {
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
        let mut connection = TestConnection::new(64);
        for _ in 0..3 {
            connection.send(GET).await;
            assert!(connection.head().await.starts_with("HTTP/1.1 200 "));
        }
        connection.send(post("/echo", "Content-Length: 5\r\nConnection: close", "hello")).await;
        assert!(connection.rest().await.ends_with("\r\n\r\nhello"));
        assert_eq!(connection.calls(), ["/", "/", "/", "/echo"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_in_single_bytes_is_served_as_well() {
        let mut connection = TestConnection::new(1);
        let chunked = post(
            "/echo",
            "Transfer-Encoding: chunked\r\nConnection: close",
            "2;x\r\nhe\r\n3\r\nllo\r\n0\r\nt: v\r\n\r\n",
        );
        let (mut reader, mut writer) = tokio::io::split(connection.client);
        let writing = async {
            writer.write_all(post("/echo", "Content-Length: 3", "abc").as_bytes()).await.expect("open");
            writer.write_all(chunked.as_bytes()).await.expect("open");
        };
        let mut answers = String::new();
        let (_, read) = tokio::join!(writing, reader.read_to_string(&mut answers));
        read.expect("answers are text");
        assert!(answers.contains("\r\n\r\nabcHTTP/1.1 200"), "{answers}");
        assert!(answers.ends_with("\r\n\r\nhello"), "{answers}");
        assert_eq!(connection.seen.recv().await.as_deref(), Some("/echo"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_arrives_whole() {
        let connection = TestConnection::new(10_000);
        let body = "0123456789".repeat(100_000);
        let request = post("/echo", &format!("Content-Length: {}\r\nConnection: close", body.len()), &body);
        let (mut reader, mut writer) = tokio::io::split(connection.client);
        let mut answer = String::new();
        let (wrote, read) =
            tokio::join!(writer.write_all(request.as_bytes()), reader.read_to_string(&mut answer));
        wrote.expect("all is read");
        read.expect("an answer comes");
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_head_behind_a_good_one_is_answered_in_its_turn() {
        let mut connection = TestConnection::new(4096);
        connection.send([GET, GET, "GET /bad HTTP/1.1\r\n\r\n", GET].concat()).await;
        let answers = connection.rest().await;
        let statuses: Vec<_> = answers.lines().filter(|line| line.starts_with("HTTP/1.1 ")).collect();
        assert_eq!(statuses, ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK", "HTTP/1.1 400 Bad Request"]);
        assert_eq!(connection.calls(), ["/", "/", "NoHost"]);
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
            (post("/", &format!("x: {}", "y".repeat(2000)), ""), TooLarge(LIMITS.request_head)),
            (post("/", &"a:\r\n".repeat(100), ""), TooManyFields(100)),
        ];
        for (input, error) in table {
            let mut connection = TestConnection::new(8192);
            connection.send(input.clone() + smuggled).await;
            let answers = connection.rest().await;
            assert!(answers.starts_with("HTTP/1.1 400 "), "{input:?}: {answers}");
            assert_eq!(answers.matches("HTTP/1.1").count(), 1, "{input:?}: {answers}");
            assert_eq!(connection.calls(), [format!("{error:?}")], "{input:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_is_begun_and_not_finished_is_too_slow() {
        let mut connection = TestConnection::new(64);
        let start = Instant::now();
        connection.send("GET / HT").await;
        sleep(LIMITS.head_time / 2).await;
        connection.send("TP/1.1\r\n").await;
        assert!(connection.rest().await.starts_with("HTTP/1.1 408 "));
        assert!(start.elapsed().abs_diff(LIMITS.head_time) < Duration::from_millis(10));
        assert_eq!(connection.calls(), ["TooSlow"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_gets_no_answer() {
        for blank in ["", "\r\n"] {
            let mut connection = TestConnection::new(64);
            let start = Instant::now();
            connection.send(blank).await;
            assert_eq!(connection.rest().await, "");
            assert!(start.elapsed().abs_diff(LIMITS.head_time) < Duration::from_millis(10));
            assert!(connection.server.await.expect("no panic").is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_after_keep_alive() {
        let mut connection = TestConnection::new(64);
        connection.send(GET).await;
        connection.head().await;
        sleep(LIMITS.keep_alive / 2).await;
        connection.send(GET).await;
        connection.head().await;
        let start = Instant::now();
        assert_eq!(connection.rest().await, "");
        assert!(start.elapsed().abs_diff(LIMITS.keep_alive) < Duration::from_millis(10));
        assert_eq!(connection.calls(), ["/", "/"]);
        assert!(connection.server.await.expect("no panic").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_head_has_its_time_from_its_first_byte() {
        let mut connection = TestConnection::new(64);
        connection.send(GET).await;
        connection.head().await;
        sleep(LIMITS.keep_alive - Duration::from_secs(1)).await;
        let start = Instant::now();
        connection.send("G").await;
        assert!(connection.rest().await.starts_with("HTTP/1.1 408 "));
        assert!(start.elapsed().abs_diff(LIMITS.head_time) < Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_answer_is_not_cut() {
        let mut connection = TestConnection::new(64);
        connection.send("GET /long HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(connection.head().await.starts_with("HTTP/1.1 200 "));
        connection.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let start = Instant::now();
        let answer = connection.rest().await;
        assert_eq!(answer.matches("event").count(), 3, "{answer}");
        // The clock for the next head runs again from the end of the answer.
        assert!(start.elapsed().abs_diff(HOUR * 4 + LIMITS.keep_alive) < Duration::from_secs(1));
        assert_eq!(connection.calls(), ["/long", "done", "/events"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_read_slowly_is_not_cut() {
        let mut connection = TestConnection::new(1000);
        connection.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut got = Vec::new();
        while got.iter().filter(|&&byte| byte == b'x').count() < 100_000 {
            sleep(Duration::from_millis(1900)).await;
            let mut some = [0; 1000];
            let length = connection.client.read(&mut some).await.expect("the connection is open");
            assert!(length > 0, "cut after {}", got.len());
            got.extend_from_slice(&some[..length]);
        }
        connection.send(GET).await;
        assert!(connection.head().await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_taken_byte_by_byte_or_not_at_all_is_cut() {
        for some in [0, 1] {
            let mut connection = TestConnection::new(1000);
            connection.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let start = Instant::now();
            let mut taken = vec![0; some];
            while !connection.server.is_finished() {
                sleep(Duration::from_secs(1)).await;
                connection.client.read_exact(&mut taken).await.expect("there is more");
                assert!(start.elapsed() < 2 * LIMITS.stall_time, "{some} bytes a second keep it for ever");
            }
            assert!(start.elapsed() >= LIMITS.stall_time, "{some}");
            assert!(connection.server.await.expect("no panic").is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_while_its_upgrade_is_being_served_is_noticed() {
        for early in ["", "early bytes"] {
            let mut connection = TestConnection::new(64);
            connection.send(UPGRADE.replace("/upgrade", "/long")).await;
            connection.send(early).await;
            assert_eq!(connection.seen.recv().await.as_deref(), Some("/long"));
            let start = Instant::now();
            drop(connection.client);
            assert_eq!(connection.seen.recv().await.as_deref(), Some("cancelled"));
            assert!(start.elapsed() < Duration::from_secs(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_ends_its_request() {
        let mut connection = TestConnection::new(64);
        connection.send("GET /long HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(connection.seen.recv().await.as_deref(), Some("/long"));
        let start = Instant::now();
        drop(connection.client);
        assert_eq!(connection.seen.recv().await.as_deref(), Some("cancelled"));
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_ahead_is_bounded() {
        let mut connection = TestConnection::new(64);
        connection.send("GET /long HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut taken = 0;
        while timeout(Duration::from_secs(1), connection.client.write_all(GET.as_bytes())).await.is_ok() {
            taken += GET.len();
        }
        assert!((LIMITS.request_head - GET.len()..=LIMITS.request_head + 64).contains(&taken), "{taken}");
        assert_eq!(connection.calls(), ["/long"]);
        connection.head().await;
        assert!(
            connection.head().await.starts_with("HTTP/1.1 200 "),
            "the pipelined requests are served in the end"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn early_bytes_behind_an_upgrade_come_out_in_order() {
        let mut connection = TestConnection::new(4096);
        connection.send([UPGRADE, "early GET / HTTP/1.1\r\n\r\n"].concat()).await;
        assert!(connection.head().await.starts_with("HTTP/1.1 101 "));
        connection.send("later").await;
        assert_eq!(connection.rest().await, "early GET / HTTP/1.1\r\n\r\nlater");
        assert_eq!(connection.calls(), ["/upgrade"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_upgrade_gets_its_answer_and_the_end() {
        for path in ["/", "/big"] {
            let mut connection = TestConnection::new(1000);
            connection.send(UPGRADE.replace("/upgrade", path)).await;
            connection.send(GET).await;
            let answer = connection.rest().await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(path == "/" || answer.matches('x').count() == 100_000, "the answer is whole");
            assert_eq!(connection.calls(), [path]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_must_make_progress() {
        let mut connection = TestConnection::new(64);
        connection.send(post("/echo", "Content-Length: 50", "")).await;
        connection.send("x").await;
        let start = Instant::now();
        assert_eq!(connection.seen.recv().await.as_deref(), Some("/echo"));
        assert_eq!(connection.seen.recv().await.as_deref(), Some("broken after x"));
        assert!(start.elapsed().abs_diff(LIMITS.stall_time) < Duration::from_secs(1));
        assert!(connection.rest().await.starts_with("HTTP/1.1 "));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_cut_as_a_silent_one_is() {
        for (framing, begun) in [("Content-Length: 50", ""), ("Transfer-Encoding: chunked", "32\r\n")] {
            let mut connection = TestConnection::new(64);
            connection.send(post("/echo", framing, begun)).await;
            let (start, mut sent) = (Instant::now(), 0);
            // One byte a second.
            while connection.client.write_all(b"0").await.is_ok() && sent < 40 {
                sleep(Duration::from_secs(1)).await;
                sent += 1;
                if connection.seen.try_recv().is_ok_and(|word| word.starts_with("broken")) {
                    break;
                }
            }
            assert!((19..=21).contains(&sent), "{framing}: cut after {sent} bytes");
            assert!(start.elapsed() < LIMITS.stall_time + Duration::from_secs(2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_500_bytes_a_second_is_never_cut_and_may_pause() {
        let mut connection = TestConnection::new(64);
        connection.send(post("/echo", "Content-Length: 100000", "")).await;
        for _ in 0..200 {
            connection.send([b'x'; 500]).await;
            sleep(Duration::from_millis(990)).await;
        }
        assert!(connection.head().await.starts_with("HTTP/1.1 200 "));
        let mut connection = TestConnection::new(64);
        connection.send(post("/echo", "Content-Length: 20000", "")).await;
        connection.send(vec![b'x'; 10_000]).await;
        sleep(LIMITS.stall_time - Duration::from_secs(1)).await;
        connection.send(vec![b'x'; 10_000]).await;
        assert!(connection.head().await.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test(start_paused = true)]
    async fn a_chunk_that_breaks_its_framing_breaks_the_body() {
        let mut connection = TestConnection::new(4096);
        connection.send(post("/echo", "Transfer-Encoding: chunked", "5\r\nhello\n0\r\n\r\n") + GET).await;
        connection.rest().await;
        assert_eq!(connection.calls(), ["/echo", "broken after hello"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_has_no_buffer_and_a_busy_one_no_timer() {
        let (mut client, stream) = duplex(4096);
        let (mut requests, tracker) = RequestStream::new(stream, LIMITS);
        client.write_all(GET.as_bytes()).await.expect("it is open");
        let mut head = [0; 100];
        let length = requests.read(&mut head).await.expect("a head is there");
        assert_eq!(&head[..length], GET.as_bytes());
        let (error, in_flight) = tracker.begin_request();
        assert_eq!(error, None);
        let poll = async |requests: &mut RequestStream<DuplexStream>| {
            poll_fn(|cx| {
                let mut out = [0; 100];
                let read = Pin::new(&mut *requests).poll_read(cx, &mut ReadBuf::new(&mut out));
                Poll::Ready(read.is_pending())
            })
            .await
        };
        assert!(poll(&mut requests).await);
        assert_eq!((requests.held.capacity(), requests.timer.is_none()), (0, true));
        drop(in_flight);
        assert!(poll(&mut requests).await);
        assert_eq!((requests.held.capacity(), requests.timer.is_some()), (0, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_client_learns_its_error() {
        let mut connection = TestConnection::new(4096);
        connection.send("GET / HTTP/1.1\r\n\r\n").await;
        connection.client.shutdown().await.expect("a duplex can be half closed");
        assert!(connection.rest().await.starts_with("HTTP/1.1 400 "));
        assert!(connection.server.await.expect("no panic").is_ok());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_that_end_on_another_thread_let_the_next_one_in() {
        let (client, stream) = duplex(100_000);
        let (requests, tracker) = RequestStream::new(stream, LIMITS);
        let service = service_fn(move |_| {
            let (_, in_flight) = tracker.begin_request();
            tokio::spawn(async move { drop(in_flight) });
            async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
        });
        let server =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(requests), service);
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
