//! The replay of plain HTTP exchanges, each on a connection of its own.

use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{equal, whole};

/// A GET that has no answer by then waits for what the next request does. Where the record's GET waits, ours must.
const WAITS: Duration = Duration::from_millis(300);

/// An answer that does not come by then does not come.
const LATE: Duration = Duration::from_secs(10);

/// One request, as it is to be sent.
pub struct Request {
    pub head: String,
    pub body: Vec<u8>,
}

/// One answer.
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> String {
        let values = self.headers.iter().filter(|(given, _)| given == name).map(|(_, value)| value.as_str());
        values.collect::<Vec<_>>().join(", ")
    }
}

impl Request {
    pub fn new(method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Self {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if method != "GET" {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        Self { head, body }
    }

    /// Sends the request on a connection of its own and reads the answer to the end.
    pub async fn send(self, address: SocketAddr) -> Result<Answer, String> {
        let fault = |error: std::io::Error| error.to_string();
        let mut stream = TcpStream::connect(address).await.map_err(fault)?;
        stream.write_all(format!("{}\r\n", self.head).as_bytes()).await.map_err(fault)?;
        // A server that refuses a long body may close before it has read it.
        let _ = stream.write_all(&self.body).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").ok_or("no answer")?;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status =
            lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Ok(Answer { status: status.ok_or("no status")?, headers, body: bytes.split_off(end + 4) })
    }
}

/// Replays the exchanges in order. A GET that waits in the record is left waiting, and compared when the rest is over.
pub async fn replay(case: &Value, address: SocketAddr) -> Result<(), String> {
    let name = case["case"].as_str().unwrap();
    let mut sid = String::new();
    let mut waiting = JoinSet::new();
    for (index, exchange) in case["exchange"].as_array().unwrap().iter().enumerate() {
        let request = request(&exchange["request"], &sid);
        let recorded = exchange["response"].clone();
        let what = format!("request {index}");
        if recorded.get("error").is_some() {
            let answered = timeout(WAITS, request.send(address)).await;
            answered.map_or(Ok(()), |_| Err(format!("{what}: an answer where Node gave none")))?;
            continue;
        }
        let mut answer = Box::pin(request.send(address));
        if waits(name, index) {
            match timeout(WAITS, &mut answer).await {
                Ok(answer) => compare(&what, &recorded, &answer?)?,
                Err(_) => drop(waiting.spawn(async move { compare(&what, &recorded, &answer.await?) })),
            }
            continue;
        }
        let answer = timeout(LATE, answer).await.map_err(|_| format!("{what}: no answer"))??;
        compare(&what, &recorded, &answer)?;
        if let Some((_, rest)) = answer.text().replace('\\', "").split_once("\"sid\":\"")
            && sid.is_empty()
        {
            sid = rest.chars().take(20).collect();
        }
    }
    while let Some(compared) = timeout(LATE, waiting.join_next()).await.map_err(|_| "a GET still waits")? {
        compared.unwrap()?;
    }
    Ok(())
}

/// The GETs that Node answered only because of the next request.
fn waits(case: &str, index: usize) -> bool {
    let waiting = [("polling.session", 8), ("polling.server-disconnect", 3), ("polling.overlapping-get", 3)];
    waiting.contains(&(case, index))
}

fn request(recorded: &Value, sid: &str) -> Request {
    let path = recorded["path"].as_str().unwrap().replace("$sid", sid);
    let body = match &recorded["body"] {
        Value::String(text) => whole(text).into_bytes(),
        Value::Object(binary) => bytes(binary["$bin"].as_str().unwrap()),
        _ => Vec::new(),
    };
    let no_headers = serde_json::Map::new();
    let headers = recorded["headers"].as_object().unwrap_or(&no_headers);
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect();
    Request::new(recorded["method"].as_str().unwrap(), &path, &headers, body)
}

/// The bytes of a hexadecimal text.
pub fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

fn compare(what: &str, recorded: &Value, ours: &Answer) -> Result<(), String> {
    let status = recorded["status"].as_u64().unwrap();
    if status != u64::from(ours.status) {
        return Err(format!("{what}: recorded status {status}, ours {} {}", ours.status, ours.text()));
    }
    for (name, value) in recorded["headers"].as_object().into_iter().flatten() {
        let value = value.as_str().or_else(|| value[0].as_str()).unwrap();
        equal(&format!("{what}, {name}"), value, &ours.header(name))?;
    }
    if recorded["headers"]["content-encoding"] == "gzip" {
        let mut text = String::new();
        let read = flate2::read::GzDecoder::new(&ours.body[..]).read_to_string(&mut text);
        read.map_err(|error| format!("{what}: {error}"))?;
        return if text.len() > 1024 { Ok(()) } else { Err(format!("{what}: {text}")) };
    }
    equal(what, recorded["body"].as_str().unwrap(), &ours.text())
}
