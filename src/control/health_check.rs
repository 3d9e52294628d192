//! One health check: the request to a node, and what its response says.
//!
//! One deadline covers all of it. What a node sends is not trusted: the head and what is read of the body are bounded, and
//! a malformed response is a failed check. Whether a node is up is not decided here: [`crate::pool::health`] counts the
//! results.

use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE, USER_AGENT,
};
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

use crate::config::Probe;
use crate::net::dial::DialError;
use crate::net::stream::Stream;
use crate::net::tls::client::CertificateRefusal;
use crate::pool::NodeAddress;
use crate::ws::close::encode_close;
use crate::ws::handshake::{self, UpgradeResponseError};

/// The most bytes of a body that is read for `{"status":"draining"}`.
const MAX_BODY_SIZE: usize = 64 << 10;
/// The most bytes of a response's head.
const MAX_HEAD_SIZE: usize = 64 << 10;
/// The longest release that a node may report, in bytes.
const MAX_RELEASE_LENGTH: usize = 64;
/// The User-Agent of a check.
const PROBE_USER_AGENT: &str = concat!("mainstay/", env!("CARGO_PKG_VERSION"));
/// The path where the config names none.
pub(crate) const DEFAULT_PATH: &str = "/health";
/// The statuses of servers that have nothing at a path, or nothing for a plain GET.
const UNSUPPORTED_STATUSES: [u16; 7] = [400, 401, 403, 404, 405, 426, 501];
/// RFC 6455, section 7.4.1: normal closure.
const NORMAL_CLOSURE: u16 = 1000;

/// What a healthy node says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct HealthReport {
    /// The status; `None` where only a connection was made.
    pub status: Option<u16>,
    /// The node asks to be drained.
    pub draining: bool,
    /// Its connections and the most that it takes, all balancers together (`X-Mainstay-Load: 1234/50000`).
    pub load: Option<(u64, u64)>,
    /// The release that it runs (`X-Mainstay-Release: v7`).
    pub release: Option<String>,
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HealthCheckError {
    /// There is no connection.
    #[error(transparent)]
    Dial(DialError),
    /// The node asks for a client certificate, and none is configured.
    #[error("the node asks for a client certificate; write `cert:` and `key:` in the `tls` of the pool")]
    NoCertificate,
    /// The node does not trust the client certificate.
    #[error(
        "the node refuses the client certificate that it is shown; write one in the `tls` of the pool that its authority \
         signed"
    )]
    Certificate,
    /// The node aborts the TLS handshake without a reason.
    #[error(
        "the node refuses the TLS handshake: with TLS 1.2 that is also how it asks for a client certificate (`cert:` and \
         `key:` in the `tls` of the pool); else it has no version or cipher in common with the balancer"
    )]
    TlsHandshake,
    /// There is a connection, and no whole answer within this time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Another status than the one that is good.
    #[error("{asked} answered {got}{}", advice(*.expected, *.got))]
    Status {
        /// What was asked, in words.
        asked: String,
        /// The status of a good answer; `None` where many are good.
        expected: Option<u16>,
        /// The status of this one.
        got: u16,
    },
    /// The response is no valid HTTP.
    #[error("the answer is no valid HTTP: {0}")]
    Http(hyper::Error),
    /// The node's 101 is not the answer to the handshake.
    #[error("{0}")]
    Handshake(#[from] UpgradeResponseError),
    /// The request cannot be built: a path that is none, which no config has, or no randomness.
    #[error("the probe cannot be sent: {0}")]
    Request(String),
}

impl HealthCheckError {
    /// The error, where it is about the client certificate.
    fn from_certificate_error(error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        CertificateRefusal::find_in(error).map(|refusal| match refusal {
            CertificateRefusal::Missing => Self::NoCertificate,
            CertificateRefusal::Untrusted => Self::Certificate,
            CertificateRefusal::Unspecified => Self::TlsHandshake,
        })
    }
}

impl From<hyper::Error> for HealthCheckError {
    fn from(error: hyper::Error) -> Self {
        Self::from_certificate_error(&error).unwrap_or(Self::Http(error))
    }
}

impl From<DialError> for HealthCheckError {
    fn from(fault: DialError) -> Self {
        match &fault {
            DialError::Tls(error) => Self::from_certificate_error(error).unwrap_or(Self::Dial(fault)),
            _ => Self::Dial(fault),
        }
    }
}

/// What is wrong with a status, with advice where the node has nothing at the path.
fn advice(expected: Option<u16>, got: u16) -> String {
    match expected {
        Some(expected) if expected != handshake::YES.as_u16() && UNSUPPORTED_STATUSES.contains(&got) => {
            format!(", not {expected}; `health: {{ tcp: {{}} }}` asks for no path")
        }
        Some(expected) => format!(", not {expected}"),
        None => String::new(),
    }
}

/// What a probe sends, in words: `GET /health`.
pub(crate) fn asked(probe: &Probe) -> String {
    match probe {
        Probe::Auto => format!("GET {DEFAULT_PATH}"),
        Probe::Http { path, .. } => format!("GET {path}"),
        Probe::WebSocket { path } => format!("a WebSocket handshake at {path}"),
        Probe::Tcp | Probe::Off => "a connection".to_owned(),
    }
}

/// Checks the node at `address` on the connection that `dial` makes; the response must be complete within `timeout`.
/// [`Probe::Off`] sends nothing.
///
/// A node that asks to be drained is healthy, whatever its status is.
///
/// # Errors
///
/// See [`HealthCheckError`]; all but the last are the node's.
pub(crate) async fn check_health(
    dial: impl Future<Output = Result<Stream, DialError>>,
    address: &NodeAddress,
    probe: &Probe,
    timeout: Duration,
) -> Result<HealthReport, HealthCheckError> {
    if *probe == Probe::Off {
        return Ok(HealthReport::default());
    }
    let begun = Instant::now();
    let stream = dial.await?;
    let asked = async {
        match probe {
            Probe::Auto => check_http(stream, request(address, DEFAULT_PATH)?, None).await,
            Probe::Http { path, status } => check_http(stream, request(address, path)?, Some(*status)).await,
            Probe::WebSocket { path } => check_websocket(stream, request(address, path)?).await,
            Probe::Tcp | Probe::Off => Ok(HealthReport::default()),
        }
    };
    let left = timeout.saturating_sub(begun.elapsed());
    tokio::time::timeout(left, asked).await.unwrap_or(Err(HealthCheckError::Timeout(timeout)))
}

type HealthRequest = Request<Empty<Bytes>>;

fn request(address: &NodeAddress, path: &str) -> Result<HealthRequest, HealthCheckError> {
    let host = match address {
        NodeAddress::Tcp { .. } => address.to_string(),
        // A path is no host (RFC 9110, section 7.2).
        NodeAddress::Unix(_) => "localhost".to_owned(),
    };
    let request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, PROBE_USER_AGENT)
        .header(CONNECTION, "close");
    request.body(Empty::new()).map_err(|error| HealthCheckError::Request(error.to_string()))
}

/// Without an expected status, every one but 5xx is good.
async fn check_http(
    stream: Stream,
    question: HealthRequest,
    expected: Option<u16>,
) -> Result<HealthReport, HealthCheckError> {
    let asked = format!("GET {}", question.uri());
    let (mut sender, connection) = builder().handshake(TokioIo::new(stream)).await?;
    let answered = async {
        let response = sender.send_request(question).await?;
        let got = response.status().as_u16();
        let is_good = expected.map_or(got < 500, |expected| got == expected);
        let fault = HealthCheckError::Status { asked, expected, got };
        let mut answer = read_head(&response);
        if !answer.draining && may_be_json(response.headers()) {
            match read_body(response).await {
                Ok(body) => answer.draining = says_draining(&body),
                // A wrong status says more than a body that is cut.
                Err(_) if !is_good => {}
                Err(error) => return Err(error.into()),
            }
        }
        if is_good || answer.draining { Ok(answer) } else { Err(fault) }
    };
    drive_connection(connection, answered).await
}

async fn check_websocket(
    stream: Stream,
    mut question: HealthRequest,
) -> Result<HealthReport, HealthCheckError> {
    let asked = format!("a WebSocket handshake at {}", question.uri());
    let headers = question.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_KEY, websocket_key()?);
    let offer = handshake::check_request(&Method::GET, Version::HTTP_11, headers)
        .map_err(|fault| HealthCheckError::Request(fault.to_string()))?;
    let (mut sender, connection) = builder().handshake(TokioIo::new(stream)).await?;
    let answered = async {
        let mut response = sender.send_request(question).await?;
        let answer = read_head(&response);
        if response.status() != handshake::YES {
            let (expected, got) = (Some(handshake::YES.as_u16()), response.status().as_u16());
            return if answer.draining {
                Ok(answer)
            } else {
                Err(HealthCheckError::Status { asked, expected, got })
            };
        }
        offer.check_response(response.headers())?;
        let mut tunnel = TokioIo::new(hyper::upgrade::on(&mut response).await?);
        // The handshake was good, whether or not the node can still take the Close.
        let _ = tunnel.write_all(&encode_close(NORMAL_CLOSURE, "", Some(random_bytes()?))).await;
        let _ = tunnel.shutdown().await;
        Ok(answer)
    };
    drive_connection(connection.with_upgrades(), answered).await
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD_SIZE);
    builder
}

/// The result of `work`, while `connection` moves its bytes. A connection may end before its answer is read.
async fn drive_connection<T>(connection: impl Future, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        result = &mut work => return result,
        _ = connection => {}
    }
    work.await
}

/// What the head of a response says, whatever its status.
fn read_head(response: &Response<Incoming>) -> HealthReport {
    let headers = response.headers();
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let release = |text: &&str| (1..=MAX_RELEASE_LENGTH).contains(&text.len());
    HealthReport {
        status: Some(response.status().as_u16()),
        draining: text("x-mainstay-state").is_some_and(|state| state.eq_ignore_ascii_case("draining")),
        load: text("x-mainstay-load").and_then(parse_load),
        release: text("x-mainstay-release").filter(release).map(str::to_owned),
    }
}

/// `1234/50000`; a maximum of 0 is not valid.
fn parse_load(text: &str) -> Option<(u64, u64)> {
    let number = |text: &str| {
        let text = text.trim();
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
    };
    let (connections, max) = text.split_once('/')?;
    Some((number(connections)?, number(max).filter(|max| *max > 0)?))
}

/// Whether a body may be JSON; one of another declared type is not read.
fn may_be_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_none_or(|kind| {
        kind.to_str().is_ok_and(|kind| kind.to_ascii_lowercase().split(';').any(|part| part.contains("json")))
    })
}

/// The body, or nothing when it is longer than [`MAX_BODY_SIZE`].
async fn read_body(response: Response<Incoming>) -> Result<Vec<u8>, hyper::Error> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BODY_SIZE {
            return Ok(Vec::new());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn says_draining(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|body| body["status"] == "draining")
}

/// A Sec-WebSocket-Key: 16 random bytes in base64 (RFC 6455, section 4.1).
fn websocket_key() -> Result<HeaderValue, HealthCheckError> {
    let key = STANDARD.encode(random_bytes::<16>()?);
    HeaderValue::try_from(key).map_err(|error| HealthCheckError::Request(error.to_string()))
}

fn random_bytes<const N: usize>() -> Result<[u8; N], HealthCheckError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes)
        .map_err(|_| HealthCheckError::Request("the system has no randomness".to_owned()))?;
    Ok(bytes)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test ends with its runtime, which ends its tasks")]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
    use tokio::net::{TcpListener, UnixListener};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::net::dial::{DialTarget, dial};
    use crate::ws::frame;

    /// Longer than any answer takes.
    const SOON: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(100);

    /// As it is asked in real life, on a plain connection.
    async fn ask(
        address: &NodeAddress,
        probe: &Probe,
        timeout: Duration,
    ) -> Result<HealthReport, HealthCheckError> {
        let target = match address {
            NodeAddress::Tcp { host, port } => DialTarget::Tcp { host, port: *port },
            NodeAddress::Unix(path) => DialTarget::Unix(path),
        };
        let answer = super::check_health(dial(target, timeout), address, probe, timeout).await;
        // What most tests ask is what the answer says; one asks for the status.
        answer.map(|answer| HealthReport { status: None, ..answer })
    }

    fn http() -> Probe {
        Probe::Http { path: "/health?deep=1".into(), status: 200 }
    }

    fn websocket() -> Probe {
        Probe::WebSocket { path: "/ws".into() }
    }

    async fn listener() -> (TcpListener, NodeAddress) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        (listener, address)
    }

    async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    fn field<'a>(head: &'a str, name: &str) -> &'a str {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|line| line.0.eq_ignore_ascii_case(name)).unwrap_or_else(|| panic!("{name} in {head}")).1
    }

    /// A node that answers one question with `answer` and then closes; it gives the head of the question.
    async fn node(answer: impl Into<Vec<u8>>) -> (NodeAddress, JoinHandle<String>) {
        let (listener, address) = listener().await;
        let answer = answer.into();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = head(&mut stream).await;
            // The balancer may have seen enough before the end.
            let _ = stream.write_all(&answer).await;
            head
        });
        (address, task)
    }

    async fn asked_of(answer: impl Into<Vec<u8>>) -> Result<HealthReport, HealthCheckError> {
        let (address, task) = node(answer).await;
        let result = ask(&address, &http(), SOON).await;
        task.await.unwrap();
        result
    }

    async fn fault_of(answer: &[u8]) -> String {
        asked_of(answer).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_good_answer_is_good_and_the_question_says_who_asks() {
        let (address, task) = node("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(ask(&address, &http(), SOON).await.unwrap(), HealthReport::default());
        let head = task.await.unwrap();
        assert!(head.starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{head}");
        assert_eq!(field(&head, "host"), address.to_string());
        assert_eq!(field(&head, "connection"), "close");
        assert_eq!(field(&head, "user-agent"), PROBE_USER_AGENT);
    }

    #[tokio::test]
    async fn every_way_to_end_a_body_is_understood() {
        for answer in [
            "HTTP/1.0 200 OK\r\n\r\nuntil the end",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        ] {
            assert_eq!(asked_of(answer).await.unwrap(), HealthReport::default(), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_wrong_status_is_a_fault_that_names_both() {
        let fault = fault_of(b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\nno").await;
        assert_eq!(fault, "GET /health?deep=1 answered 503, not 200");
        let fault = fault_of(b"HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(fault, "GET /health?deep=1 answered 302, not 200");
        let cut = fault_of(b"HTTP/1.1 500 Oh\r\ncontent-length: 20\r\n\r\ncut").await;
        assert_eq!(cut, "GET /health?deep=1 answered 500, not 200", "even when its body breaks off");
    }

    #[tokio::test]
    async fn a_server_that_knows_nothing_of_the_path_is_told_from_one_that_is_unwell() {
        for status in [400, 401, 403, 404, 405, 426, 501] {
            let fault =
                fault_of(format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
            let advice = "`health: { tcp: {} }` asks for no path";
            assert_eq!(fault, format!("GET /health?deep=1 answered {status}, not 200; {advice}"));
        }
    }

    #[tokio::test]
    async fn without_an_expected_status_every_answer_is_good_that_owns_up_to_no_error() {
        for status in [200, 204, 302, 404, 426, 499] {
            let (address, task) = node(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")).await;
            let NodeAddress::Tcp { host, port } = &address else { panic!() };
            let dialled = dial(DialTarget::Tcp { host, port: *port }, SOON);
            let answer = super::check_health(dialled, &address, &Probe::Auto, SOON).await.unwrap();
            assert_eq!(answer.status, Some(status));
            assert!(task.await.unwrap().starts_with("GET /health HTTP/1.1\r\n"));
        }
        for (fields, is_good) in [("", false), ("X-Mainstay-State: draining\r\n", true)] {
            let text = format!("HTTP/1.1 503 Busy\r\n{fields}content-length: 0\r\n\r\n");
            let (address, task) = node(text).await;
            let answer = ask(&address, &Probe::Auto, SOON).await;
            assert_eq!(answer.as_ref().map(|answer| answer.draining).ok(), is_good.then_some(true));
            if let Err(fault) = answer {
                assert_eq!(fault.to_string(), "GET /health answered 503");
            }
            task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_expected_status_can_be_another_one() {
        let (address, task) = node("HTTP/1.1 204 No Content\r\n\r\n").await;
        let probe = Probe::Http { path: "/".into(), status: 204 };
        assert!(ask(&address, &probe, SOON).await.is_ok());
        task.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_is_no_http_or_not_whole_is_a_fault() {
        let mut endless_head = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
        endless_head.resize(1 << 20, b'a');
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(1000));
        for answer in [
            b"".as_slice(),
            b"\0\xff\xfe garbage\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.9\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-le",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"HTTP/2.0 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfour",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            &endless_head,
            many.as_bytes(),
        ] {
            let fault = fault_of(answer).await;
            let shown = String::from_utf8_lossy(&answer[..answer.len().min(80)]);
            assert!(fault.starts_with("the answer is no valid HTTP: "), "{shown:?}: {fault}");
        }
    }

    #[tokio::test]
    async fn a_101_to_a_plain_question_is_a_fault() {
        let answer = b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nmore";
        assert!(asked_of(answer).await.is_err());
    }

    /// A node that sends `start`, then `again` for ever.
    async fn endless(start: &'static [u8], again: &'static [u8]) -> (NodeAddress, JoinHandle<()>) {
        let (listener, address) = listener().await;
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            head(&mut stream).await;
            let mut sent = stream.write_all(start).await;
            while sent.is_ok() && !again.is_empty() {
                sent = stream.write_all(again).await;
            }
            // Until the balancer hangs up.
            let _ = stream.read(&mut [0; 1]).await;
        });
        (address, task)
    }

    #[tokio::test]
    async fn an_endless_body_is_not_read_to_its_end() {
        static BLOCK: [u8; 16 << 10] = [b'['; 16 << 10];
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n";
        let (address, task) = endless(head, &BLOCK).await;
        assert_eq!(ask(&address, &http(), SOON).await.unwrap(), HealthReport::default());
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_body_that_is_not_json_is_not_waited_for() {
        let (address, task) =
            endless(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", b"").await;
        assert_eq!(ask(&address, &http(), SOON).await.unwrap(), HealthReport::default());
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_node_that_hangs_anywhere_is_a_timeout() {
        for start in [b"".as_slice(), b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhal"] {
            let (address, task) = endless(start, b"").await;
            let fault = ask(&address, &http(), SHORT).await.unwrap_err();
            assert!(matches!(fault, HealthCheckError::Timeout(SHORT)), "{fault:?}");
            assert_eq!(fault.to_string(), "no answer within 100ms");
            task.await.unwrap();
        }
        let (address, task) = endless(b"HTTP/1.1 101 Swi", b"").await;
        assert!(matches!(ask(&address, &websocket(), SHORT).await, Err(HealthCheckError::Timeout(SHORT))));
        task.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_drips_is_a_timeout() {
        let (address, task) = endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n").await;
        assert!(matches!(ask(&address, &http(), SHORT).await, Err(HealthCheckError::Timeout(_))));
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_node_asks_to_be_drained_by_header_with_any_status() {
        for status in ["200 OK", "503 Busy", "404 Not Found"] {
            let answer =
                format!("HTTP/1.1 {status}\r\nX-Mainstay-State: Draining\r\ncontent-length: 2\r\n\r\nno");
            assert!(asked_of(answer).await.unwrap().draining, "{status}");
        }
        for state in ["up", "", "draining, up", "not draining"] {
            let answer =
                format!("HTTP/1.1 503 Busy\r\nX-Mainstay-State: {state}\r\ncontent-length: 0\r\n\r\n");
            assert_eq!(
                fault_of(answer.as_bytes()).await,
                "GET /health?deep=1 answered 503, not 200",
                "{state}"
            );
        }
    }

    fn json(kind: &str, body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\n{kind}content-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_node_asks_to_be_drained_by_json() {
        let body = r#"{"id":"ws1","status":"draining"}"#;
        for kind in ["", "content-type: application/json; charset=utf-8\r\n", "content-type: a/b+JSON\r\n"] {
            assert!(asked_of(json(kind, body)).await.unwrap().draining, "{kind}");
        }
        assert!(!asked_of(json("content-type: text/plain\r\n", body)).await.unwrap().draining);
        assert!(asked_of(json("", body).replace("200 OK", "503 Busy")).await.unwrap().draining);
    }

    #[tokio::test]
    async fn a_body_that_does_not_say_draining_plainly_says_nothing() {
        let deep = "[".repeat(MAX_BODY_SIZE);
        let long = format!("{{\"status\":\"draining\",\"x\":\"{}\"}}", "y".repeat(MAX_BODY_SIZE));
        for body in [
            "",
            "draining",
            "\"draining\"",
            "[\"draining\"]",
            "{\"status\":\"ok\"}",
            "{\"status\":[\"draining\"]}",
            "{\"status\":\"draining\"",
            "{\"a\":{\"status\":\"draining\"}}",
            "{\"status\":\"draining\"} x",
            &deep,
            &long,
        ] {
            let shown = &body[..body.len().min(40)];
            assert_eq!(asked_of(json("", body)).await.unwrap(), HealthReport::default(), "{shown}");
        }
    }

    #[tokio::test]
    async fn load_and_release_are_read_from_a_good_answer() {
        let answer = "HTTP/1.1 200 OK\r\nX-Mainstay-Load: 1234/50000\r\nX-Mainstay-Release: v7\r\n\r\n";
        let (load, release) = (Some((1234, 50000)), Some("v7".into()));
        let expected = HealthReport { load, release, ..HealthReport::default() };
        assert_eq!(asked_of(answer).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn load_and_release_that_make_no_sense_are_left_out() {
        let long = "v".repeat(MAX_RELEASE_LENGTH + 1);
        for (load, release) in [("12", ""), ("a/b", " "), ("-1/5", &long), ("1/0", "v\u{e9}")] {
            let answer = format!(
                "HTTP/1.1 200 OK\r\nX-Mainstay-Load: {load}\r\nX-Mainstay-Release: {release}\r\n\r\n"
            );
            assert_eq!(asked_of(answer).await.unwrap(), HealthReport::default(), "{load} {release}");
        }
    }

    #[test]
    fn a_load_is_two_numbers_of_which_the_second_is_not_0() {
        assert_eq!(parse_load("0/1"), Some((0, 1)));
        assert_eq!(parse_load(" 7 / 5 "), Some((7, 5)));
        assert_eq!(parse_load(&format!("{0}/{0}", u64::MAX)), Some((u64::MAX, u64::MAX)));
        let beyond = format!("1{}/5", u64::MAX);
        for bad in ["", "/", "1/", "/1", "1/2/3", "+1/2", "1/+2", "1/0", "1.5/2", "0x1/2", &beyond] {
            assert_eq!(parse_load(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_body_and_any_load_is_read_without_a_panic(body: Vec<u8>, text: String) {
            prop_assert!(!says_draining(&body) || body.contains(&123));
            prop_assert!(parse_load(&text).is_none_or(|load| load.1 > 0));
        }
    }

    #[tokio::test]
    async fn a_connection_is_all_that_tcp_asks() {
        let (listener, address) = listener().await;
        assert_eq!(ask(&address, &Probe::Tcp, SOON).await.unwrap(), HealthReport::default());
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "nothing is sent");
    }

    #[tokio::test]
    async fn a_node_that_refuses_the_connection_fails_every_probe() {
        // Bound and not listening: nobody else can have the port.
        let holder = tokio::net::TcpSocket::new_v4().unwrap();
        holder.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = holder.local_addr().unwrap().to_string().parse().unwrap();
        for probe in [Probe::Tcp, http(), websocket()] {
            assert_eq!(ask(&address, &probe, SOON).await.unwrap_err().to_string(), "connection refused");
        }
        assert_eq!(ask(&address, &Probe::Off, SOON).await.unwrap(), HealthReport::default());
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_sent_is_a_fault() {
        let (_listener, address) = listener().await;
        for path in ["", "a b", "/a b", "/\r\nx: y", "/<"] {
            for probe in
                [Probe::Http { path: path.into(), status: 200 }, Probe::WebSocket { path: path.into() }]
            {
                let fault = ask(&address, &probe, SOON).await.unwrap_err();
                assert!(matches!(fault, HealthCheckError::Request(_)), "{path:?}: {fault:?}");
            }
        }
    }

    const YES: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";

    /// Answers one handshake with what `answer` makes of the right accept; gives what came after the head.
    async fn shake<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answer: fn(&str) -> String) -> Vec<u8> {
        let head = head(&mut stream).await;
        assert!(head.starts_with("GET /ws HTTP/1.1\r\n"), "{head}");
        assert_eq!(field(&head, "sec-websocket-version"), "13");
        let accept = handshake::accept(field(&head, "sec-websocket-key"));
        stream.write_all(answer(&accept).as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        rest
    }

    async fn shaken(answer: fn(&str) -> String) -> (Result<HealthReport, HealthCheckError>, Vec<u8>) {
        let (listener, address) = listener().await;
        let task = tokio::spawn(async move { shake(listener.accept().await.unwrap().0, answer).await });
        let result = ask(&address, &websocket(), SOON).await;
        (result, task.await.unwrap())
    }

    fn assert_is_normal_close(bytes: &[u8]) {
        let frame::DecodedHeader::Header(header) = frame::decode_header(bytes) else { panic!("{bytes:?}") };
        assert_eq!((header.opcode, header.len), (frame::opcode::CLOSE, 2));
        let mask = header.mask.expect("a client's frames are masked");
        let payload = &bytes[usize::from(header.size)..];
        assert_eq!(payload, [0x03 ^ mask[0], 0xe8 ^ mask[1]]);
    }

    #[tokio::test]
    async fn a_valid_handshake_is_good_and_ends_with_a_close() {
        let (result, rest) =
            shaken(|accept| format!("{YES}X-Mainstay-Load: 1/2\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"))
                .await;
        assert_eq!(result.unwrap(), HealthReport { load: Some((1, 2)), ..HealthReport::default() });
        assert_is_normal_close(&rest);
    }

    #[tokio::test]
    async fn a_node_that_speaks_first_is_good_too() {
        let (result, rest) =
            shaken(|accept| format!("{YES}Sec-WebSocket-Accept: {accept}\r\n\r\n\u{1}\u{2}hi")).await;
        assert_eq!(result.unwrap(), HealthReport::default());
        assert_is_normal_close(&rest);
    }

    #[tokio::test]
    async fn a_101_that_does_not_answer_the_key_is_a_fault() {
        let (result, rest) = shaken(|_| format!("{YES}Sec-WebSocket-Accept: AAAA\r\n\r\n")).await;
        assert_eq!(result.unwrap_err().to_string(), "the node's 101 has a wrong Sec-WebSocket-Accept");
        assert_eq!(rest, b"", "nothing is sent on a tunnel that is none");
        let (result, _) = shaken(|_| format!("{YES}\r\n")).await;
        assert!(
            matches!(result, Err(HealthCheckError::Handshake(UpgradeResponseError::Accept))),
            "{result:?}"
        );
        let (result, _) = shaken(|accept| {
            format!("{YES}Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n")
        })
        .await;
        assert!(
            matches!(result, Err(HealthCheckError::Handshake(UpgradeResponseError::Protocol))),
            "{result:?}"
        );
    }

    #[tokio::test]
    async fn a_refused_handshake_is_a_fault_unless_the_node_asks_to_be_drained() {
        let (result, _) = shaken(|_| "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".into()).await;
        assert_eq!(result.unwrap_err().to_string(), "a WebSocket handshake at /ws answered 400, not 101");
        let (result, _) =
            shaken(|_| "HTTP/1.1 503 Busy\r\nX-Mainstay-State: draining\r\ncontent-length: 0\r\n\r\n".into())
                .await;
        assert!(result.unwrap().draining);
    }

    #[tokio::test]
    async fn a_node_on_a_unix_socket_is_asked_as_localhost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let address = NodeAddress::Unix(path);
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let answer = |accept: &str| format!("{YES}Sec-WebSocket-Accept: {accept}\r\n\r\n");
            (head, shake(stream, answer).await)
        });
        assert!(ask(&address, &http(), SOON).await.is_ok());
        assert!(ask(&address, &websocket(), SOON).await.is_ok());
        let (head, rest) = task.await.unwrap();
        assert_eq!(field(&head, "host"), "localhost");
        assert_is_normal_close(&rest);
        assert_eq!(ask(&address, &Probe::Tcp, SOON).await.unwrap_err().to_string(), "connection refused");
    }
}
