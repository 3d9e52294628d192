//! The replay of what went over one WebSocket.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::http::bytes;
use super::{equal, whole};

/// A frame that does not come by then does not come.
const LATE: Duration = Duration::from_secs(10);

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Says the client's frames and compares the server's.
pub async fn replay(case: &Value, address: SocketAddr) -> Result<(), String> {
    let query = case["query"].as_str().unwrap();
    let mut request = format!("ws://{address}/socket.io/?{query}").into_client_request().unwrap();
    if case["case"] == "error.ws-forbidden" {
        request.headers_mut().insert("x-bad", "thou shall not pass".parse().unwrap());
    }
    let frames = case["frames"].as_array().unwrap();
    let (mut client, response) = match connect_async(request).await {
        Ok(connected) => connected,
        Err(Error::Http(refused)) => return refusal(&frames[0]["http"], &refused),
        Err(error) => return Err(error.to_string()),
    };
    if !frames[0]["http"].is_null() {
        return Err("opened, where Node refuses".into());
    }
    for (name, value) in case["upgradeResponseHeaders"].as_object().into_iter().flatten() {
        // The key was another.
        if name != "sec-websocket-accept" {
            let ours = response.headers().get(name).map_or("", |value| value.to_str().unwrap());
            equal(name, value.as_str().unwrap(), ours)?;
        }
    }
    let opens = frames[0]["s2c"].as_str().is_some_and(|text| text.starts_with("0{"));
    if query.contains("transport=websocket") && !opens {
        hear(&mut client).await?;
    }
    for (index, frame) in frames.iter().enumerate() {
        step(&mut client, frame).await.map_err(|fault| format!("frame {index}: {fault}"))?;
    }
    if case["stillOpen"] == true { still_open(&mut client).await } else { Ok(()) }
}

async fn step(client: &mut Client, frame: &Value) -> Result<(), String> {
    if let Some(said) = frame.get("c2s") {
        let message = match said {
            Value::String(text) => Message::text(whole(text)),
            binary => Message::binary(bytes(binary["$bin"].as_str().unwrap())),
        };
        // The server may have closed already, which the next step sees.
        let _ = client.send(message).await;
        return Ok(());
    }
    if let Some(said) = frame.get("s2c") {
        let heard = hear(client).await?;
        return match (said, heard) {
            (Value::String(text), Message::Text(ours)) => equal("text", text, ours.as_str()),
            (binary, Message::Binary(ours)) if bytes(binary["$bin"].as_str().unwrap()) == ours => Ok(()),
            (said, heard) => Err(format!("recorded {said}, ours {heard:?}")),
        };
    }
    let Some(code) = frame.get("closed").and_then(Value::as_u64) else { return Ok(()) };
    match hear(client).await? {
        Message::Close(close) => {
            let ours = close.map_or(1005, |close| u64::from(u16::from(close.code)));
            if ours == code { Ok(()) } else { Err(format!("recorded close {code}, ours {ours}")) }
        }
        heard => Err(format!("recorded close {code}, ours {heard:?}")),
    }
}

async fn hear(client: &mut Client) -> Result<Message, String> {
    let heard = timeout(LATE, client.next()).await.map_err(|_| "nothing came")?;
    heard.ok_or("the end came")?.map_err(|error| error.to_string())
}

/// The server answers a ping, and says nothing else before it.
async fn still_open(client: &mut Client) -> Result<(), String> {
    client.send(Message::Ping("there?".into())).await.map_err(|error| error.to_string())?;
    match hear(client).await? {
        Message::Pong(_) => Ok(()),
        heard => Err(format!("recorded silence, ours {heard:?}")),
    }
}

fn refusal(recorded: &Value, ours: &http::Response<Option<Vec<u8>>>) -> Result<(), String> {
    if recorded["status"].as_u64() != Some(u64::from(ours.status().as_u16())) {
        return Err(format!("recorded {}, ours {}", recorded["status"], ours.status()));
    }
    for (name, value) in recorded["headers"].as_object().into_iter().flatten() {
        let given = ours.headers().get(name).map_or("", |value| value.to_str().unwrap());
        equal(name, value.as_str().unwrap(), given)?;
    }
    let body = ours.body().as_deref().unwrap_or_default();
    equal("body", recorded["body"].as_str().unwrap(), &String::from_utf8_lossy(body))
}
