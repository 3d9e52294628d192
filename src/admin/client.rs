//! The client of the admin API, for the commands.
//!
//! One request on one connection, with a deadline over all of it and a limit on the size of the response. Errors say what
//! an operator can do about them.

use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;

use http::header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{runtime, time};

use crate::config::ListenAddress;
use crate::net::dial::{DialTarget, dial};

/// The most bytes of an answer: a page of a thousand sessions has half a megabyte.
const MAX_RESPONSE_SIZE: usize = 16 << 20;
/// The time to connect.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// The time for a whole answer; a reload checks files and binds sockets in it.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// The address of an admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// A host name or an IP address (IPv6 without brackets), and a port.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl AdminAddress {
    /// The address of what listens on `address`; `None` for port 0, where the system chose the port.
    pub fn of(address: &ListenAddress) -> Option<Self> {
        match address {
            ListenAddress::Tcp(address) if address.port() == 0 => None,
            // What listens on all addresses listens on this machine's own.
            ListenAddress::Tcp(address) if address.ip().is_unspecified() => {
                let host = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
                Some(Self::Tcp(host.into(), address.port()))
            }
            ListenAddress::Tcp(address) => Some(Self::Tcp(address.ip().to_string(), address.port())),
            ListenAddress::Unix(path) => Some(Self::Unix(path.clone())),
        }
    }

    /// The `Host` of a request. No browser is near a Unix socket, so any name will do there.
    fn host(&self) -> String {
        match self {
            Self::Tcp(..) => self.to_string(),
            Self::Unix(_) => "localhost".into(),
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no admin address; write HOST:PORT, [IPV6]:PORT or unix:/path");
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|inside| inside.strip_suffix(']'));
        let is_host = |host: &str| {
            !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        match bare {
            Some(inside) if inside.parse::<std::net::Ipv6Addr>().is_ok() => {
                Ok(Self::Tcp(inside.into(), port))
            }
            None if is_host(host) => Ok(Self::Tcp(host.into(), port)),
            _ => Err(wrong()),
        }
    }
}

/// A client of one admin API.
pub struct AdminClient {
    /// The address of the API.
    pub address: AdminAddress,
    /// Sent with each request.
    pub token: Option<String>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error(
        "nobody answers at {0}: {1}; is mainstay running? -c FILE names the config of the one that is, --admin ADDRESS \
         its admin address"
    )]
    Unreachable(AdminAddress, String),
    /// A connection, and no answer of an admin API.
    #[error("{0} gives no answer of a mainstay: {1}; does something else listen there?")]
    Unexpected(AdminAddress, String),
    /// No answer in time.
    #[error("{0} gave no answer within {1:?}")]
    TimedOut(AdminAddress, Duration),
    /// The token is missing or wrong.
    #[error("{address} wants {}; --token-file FILE names the file with it", if *.shown { "another token" } else { "a token" })]
    Token {
        /// Who was asked.
        address: AdminAddress,
        /// Whether one was shown.
        shown: bool,
    },
    /// The answer is an error; its `faults` come as lines.
    #[error("{what}{}", lines(.faults))]
    Refused {
        /// The status.
        status: StatusCode,
        /// What is wrong.
        what: String,
        /// `FILE:LINE:COLUMN: what` each.
        faults: Vec<String>,
        /// The same as they came.
        json: Vec<Value>,
    },
    /// The request cannot be sent.
    #[error("the request cannot be sent: {0}")]
    Request(String),
}

fn lines(faults: &[String]) -> String {
    faults.iter().map(|fault| format!("\n{fault}")).collect()
}

impl AdminClient {
    /// Sends a request, and gives the JSON of a successful response.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub async fn request(&self, method: Method, path: &str) -> Result<Value, ClientError> {
        self.request_with(method, path, None).await
    }

    /// The same with a body.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub async fn request_with(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let request = self.build_request(method, path, body)?;
        match time::timeout(ANSWER_TIME, self.exchange(request)).await {
            Ok(answer) => {
                let (status, body) = answer?;
                self.parse(status, &body)
            }
            Err(_) => Err(ClientError::TimedOut(self.address.clone(), ANSWER_TIME)),
        }
    }

    /// The same for callers without a runtime.
    ///
    /// # Errors
    ///
    /// See [`ClientError`].
    pub fn request_blocking(&self, method: Method, path: &str) -> Result<Value, ClientError> {
        block_on(self.request(method, path))
    }

    /// Sends a health check, of which only the status counts; for callers without a runtime.
    ///
    /// # Errors
    ///
    /// See [`ClientError`]; [`ClientError::Refused`] for every status but that of a success.
    pub fn check_blocking(&self, path: &str) -> Result<(), ClientError> {
        let request = self.build_request(Method::GET, path, None)?;
        block_on(async {
            let answer = time::timeout(ANSWER_TIME, self.exchange(request)).await;
            let (status, body) =
                answer.map_err(|_| ClientError::TimedOut(self.address.clone(), ANSWER_TIME))??;
            if status.is_success() {
                return Ok(());
            }
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            Err(refused(status, &body))
        })
    }

    fn build_request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.host())
            .header(USER_AGENT, concat!("mainstay/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value =
                value.map_err(|_| ClientError::Request("no header can carry the token".into()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        request.body(Full::new(body.into())).map_err(|fault| ClientError::Request(fault.to_string()))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ClientError> {
        let target = match &self.address {
            AdminAddress::Tcp(host, port) => DialTarget::Tcp { host, port: *port },
            AdminAddress::Unix(path) => DialTarget::Unix(path),
        };
        let stream = dial(target, CONNECT_TIME).await;
        let stream =
            stream.map_err(|fault| ClientError::Unreachable(self.address.clone(), fault.to_string()))?;
        let strange =
            |fault: &dyn fmt::Display| ClientError::Unexpected(self.address.clone(), fault.to_string());
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|fault| strange(&fault))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|fault| strange(&fault))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_RESPONSE_SIZE).collect().await;
            Ok((status, body.map_err(|fault| strange(&fault))?.to_bytes()))
        };
        let mut answer = pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The end of the connection may be the end of an answer; what is there of one is read.
            _ = connection => answer.await,
        }
    }

    fn parse(&self, status: StatusCode, body: &[u8]) -> Result<Value, ClientError> {
        let address = || self.address.clone();
        if status == StatusCode::UNAUTHORIZED {
            return Err(ClientError::Token { address: address(), shown: self.token.is_some() });
        }
        let body: Value = serde_json::from_slice(body).map_err(|_| {
            ClientError::Unexpected(address(), format!("status {} without JSON", status.as_u16()))
        })?;
        if status.is_success() {
            return Ok(body);
        }
        Err(refused(status, &body))
    }
}

fn block_on<T>(request: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|fault| ClientError::Request(fault.to_string()))?;
    let answer = runtime.block_on(request);
    // A resolver that hangs is not waited for.
    runtime.shutdown_background();
    answer
}

fn refused(status: StatusCode, body: &Value) -> ClientError {
    let what = match body["error"].as_str() {
        Some(what) => printable(what),
        None => format!("it answers with status {}", status.as_u16()),
    };
    let json = body["faults"].as_array().cloned().unwrap_or_default();
    ClientError::Refused { status, what, faults: json.iter().map(fault_line).collect(), json }
}

/// `FILE:LINE:COLUMN: what`, as `mainstay check` says it.
fn fault_line(fault: &Value) -> String {
    let text = |key: &str| fault[key].as_str().unwrap_or_default();
    let place = match (fault["line"].as_u64(), fault["column"].as_u64()) {
        (Some(line), Some(column)) => format!("{}:{line}:{column}", text("file")),
        _ => text("file").to_owned(),
    };
    printable(&format!("{place}: {}", text("message")))
}

/// Text that cannot break a line or speak to a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn an_address_reads_back_as_it_is_shown() {
        for text in ["127.0.0.1:9090", "[::1]:9090", "admin.example:1", "localhost:65535", "unix:/run/a.sock"]
        {
            assert_eq!(text.parse::<AdminAddress>().unwrap().to_string(), text);
        }
        for text in
            ["", "9090", ":9090", "::1:9090", "a:0", "a:65536", "http://a:9090", "a b:1", "[a]:1", "unix:"]
        {
            assert!(text.parse::<AdminAddress>().unwrap_err().contains("write HOST:PORT"), "{text}");
        }
    }

    #[test]
    fn what_listens_everywhere_is_asked_on_this_machine() {
        for (listening, expected) in [
            ("0.0.0.0:9090", Some("127.0.0.1:9090")),
            ("[::]:9090", Some("[::1]:9090")),
            ("192.0.2.1:1", Some("192.0.2.1:1")),
            ("unix:/run/a.sock", Some("unix:/run/a.sock")),
            ("127.0.0.1:0", None),
        ] {
            let found = AdminAddress::of(&listening.parse().unwrap()).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{listening}");
        }
    }

    /// Asks somebody who answers with `answer`, and gives what was asked and what came of it.
    async fn asked(answer: &str, token: Option<&str>) -> (String, Result<Value, ClientError>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let client = AdminClient { address, token: token.map(str::to_owned) };
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let len = stream.read(&mut head).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&head[..len]).into_owned()
        };
        tokio::join!(server, client.request(Method::GET, "/api/status"))
    }

    #[tokio::test]
    async fn a_good_answer_is_its_json_and_the_token_is_shown() {
        let (request, answer) =
            asked("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}", Some("t")).await;
        assert!(request.starts_with("GET /api/status HTTP/1.1\r\nhost: 127.0.0.1:"), "{request}");
        assert!(request.contains("authorization: Bearer t\r\n"), "{request}");
        assert_eq!(answer.unwrap()["a"], 1);
        let (_, until_end) = asked("HTTP/1.0 200 OK\r\n\r\n[]", None).await;
        assert_eq!(until_end.unwrap(), serde_json::json!([]));
    }

    #[tokio::test]
    async fn each_bad_answer_says_what_to_do() {
        let refused =
            r#"{"error":"faults","faults":[{"file":"b.yaml","line":3,"column":5,"message":"bad\u001b[2J"}]}"#;
        let head = "HTTP/1.1 422 Unprocessable Entity\r\nContent-Length";
        let cases = [
            (format!("{head}: {}\r\n\r\n{refused}", refused.len()), "faults\nb.yaml:3:5: bad\u{fffd}[2J"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".into(), "does something else listen there?"),
            ("SSH-2.0-OpenSSH_9.9\r\n".into(), "does something else listen there?"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{".into(), "does something else listen there?"),
            ("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n".into(), "--token-file FILE"),
            (String::new(), "does something else listen there?"),
        ];
        for (answer, said) in cases {
            let fault = asked(&answer, None).await.1.unwrap_err().to_string();
            assert!(fault.contains(said), "{answer}: {fault}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_the_address() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let client = AdminClient { address: address.parse().unwrap(), token: None };
        let fault = client.request(Method::GET, "/").await.unwrap_err().to_string();
        assert!(fault.starts_with(&format!("nobody answers at {address}: connection refused")), "{fault}");
    }
}
