//! As much Socket.IO as the recorded Engine.IO exchanges need above them: one namespace, events that echo.

use std::borrow::Cow;
use std::sync::Arc;

use mainstay_node::engine_io::{
    CloseKind, CloseReason, Connection, ConnectionHandler, Frame, Handshake, Message, MessageHandler,
    Revision, Sid,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The layer above the server of a replay.
pub struct StandIn(pub mpsc::UnboundedSender<Arc<Connection>>);

impl ConnectionHandler for StandIn {
    fn admit(&self, handshake: &Handshake) -> Result<(), Cow<'static, str>> {
        super::admits(handshake)
    }

    fn opened(&self, connection: &Arc<Connection>) -> Arc<dyn MessageHandler> {
        if connection.revision() == Revision::Three {
            connection.send(&Frame::text("0"));
        }
        let _ = self.0.send(connection.clone());
        Arc::new(Talk { connection: connection.clone(), begun: Mutex::default(), missing: Mutex::default() })
    }
}

/// One client: a packet whose attachments are still on their way.
struct Talk {
    connection: Arc<Connection>,
    begun: Mutex<Vec<Frame>>,
    missing: Mutex<usize>,
}

impl MessageHandler for Talk {
    fn message(&self, message: Message<'_>) {
        let connection = &self.connection;
        match message {
            Message::Text("0") => {
                connection.send(&Frame::text(&format!("0{{\"sid\":\"{}\"}}", Sid::new())));
            }
            Message::Text(text) if text.starts_with('5') => {
                *self.missing.lock() = text[1..].split('-').next().unwrap().parse().unwrap();
                *self.begun.lock() = vec![Frame::text(&echo_of_binary(text))];
            }
            Message::Text(text) => event(connection, text),
            Message::Binary(data) => {
                self.begun.lock().push(Frame::binary(data));
                *self.missing.lock() -= 1;
                if *self.missing.lock() == 0 {
                    connection.send_all(&std::mem::take(&mut *self.begun.lock()));
                }
            }
        }
    }

    fn closed(&self, _: CloseReason) {}
}

/// `452-["echo",..]` as it is, `452-9["echo",..]` as the ack `462-9[..]`.
fn echo_of_binary(text: &str) -> String {
    let (head, args) = text.split_at(text.find('[').unwrap());
    if head.ends_with('-') {
        text.to_owned()
    } else {
        format!("6{}{}", &head[1..], args.replacen("\"echo\",", "", 1))
    }
}

fn event(connection: &Connection, text: &str) {
    let Some(packet) = text.strip_prefix('2') else { return };
    let Some(at) = packet.find('[') else { return };
    let (id, args) = packet.split_at(at);
    let args: Vec<Value> = serde_json::from_str(args).unwrap();
    let emit = |args: &[Value]| connection.send(&Frame::text(&format!("2{}", json!(args))));
    match args[0].as_str() {
        Some("echo") if id.is_empty() => emit(&args),
        Some("echo") => connection.send(&Frame::text(&format!("3{id}{}", json!(args[1..])))),
        Some("two") => {
            emit(&[json!("a"), json!(1)]);
            emit(&[json!("b"), json!(2)]);
        }
        Some("big") => emit(&[json!("big"), json!("x".repeat(args[1].as_u64().unwrap() as usize))]),
        Some("boom") => connection.send(&Frame::text("1")),
        Some("kick") => {
            connection.send(&Frame::text("1"));
            connection.close(CloseKind::Orderly);
        }
        _ => {}
    }
}
