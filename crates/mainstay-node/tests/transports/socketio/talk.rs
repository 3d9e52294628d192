//! The application of the recorded Node.js server, on ours.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use mainstay_node::auth::User;
use mainstay_node::hub::{Hub, Namespace, Socket};
use mainstay_node::socketio::{Admission, Application, ConnectError, ConnectRequest, Reply};
use socketio_redis::value::Value;
use tokio::task::JoinSet;

pub struct Talk {
    hub: Weak<Hub>,
    /// Questions to clients that are under way.
    asking: parking_lot::Mutex<JoinSet<()>>,
}

impl Talk {
    pub fn new(hub: &Arc<Hub>) -> Arc<Self> {
        Arc::new(Self { hub: Arc::downgrade(hub), asking: parking_lot::Mutex::default() })
    }

    /// Asks the client, and tells it what it answered.
    fn ask(&self, namespace: &Arc<Namespace>, socket: &Arc<Socket>, question: Value) {
        let (namespace, socket) = (namespace.clone(), socket.clone());
        self.asking.lock().spawn(async move {
            let answer =
                namespace.emit_to_with_ack(&socket, Duration::from_secs(5), "q", [question]).await.unwrap();
            let shown = answer.into_iter().map(|value| match value {
                Value::Binary(bytes) => Value::from(bytes.len() as u64),
                value => value,
            });
            namespace.emit_to(&socket, "acked", shown);
        });
    }
}

impl Application for Talk {
    fn admit(&self, asking: &ConnectRequest<'_>) -> Result<Admission, ConnectError> {
        let token = asking.auth.and_then(|auth| auth.get("token")).and_then(Value::as_text);
        let is_three = asking.handshake.query().any(|(key, value)| key == "EIO" && value == "3");
        let code = |key: &str, value: Value| Some(Value::map([(key, value)]));
        match (asking.namespace, token) {
            ("/auth", _) if is_three => Err(ConnectError::new("nope")),
            ("/auth2", _) => Err(ConnectError { message: "x".into(), data: code("c", Value::from(1u64)) }),
            ("/auth", Some("ok")) => Ok(Admission::default()),
            ("/auth", _) => Err(ConnectError {
                message: "not authorized".into(),
                data: code("code", Value::from("E_AUTH")),
            }),
            ("/plain", _) => Err(ConnectError::new("plain")),
            ("/" | "/admin", Some(name)) => Ok(Admission { user: User::parse(name), ..Admission::default() }),
            _ => Ok(Admission { data: Value::Map(Vec::new()), ..Admission::default() }),
        }
    }

    fn connected(&self, namespace: &Arc<Namespace>, socket: &Arc<Socket>, is_recovered: bool) {
        if &**namespace.name() == "/dyn-7" {
            namespace.emit_to(socket, "dyn", [Value::from("/dyn-7")]);
        }
        assert!(!is_recovered || self.hub.upgrade().is_none_or(|hub| hub.recovers()));
    }

    fn event(
        &self,
        namespace: &Arc<Namespace>,
        socket: &Arc<Socket>,
        data: Vec<Value>,
        reply: Option<Reply>,
    ) {
        let arguments = data[1..].iter().cloned();
        match (data[0].as_text(), reply) {
            (Some("echo"), Some(reply)) => reply.send(&data[1..]),
            (Some("echo"), None) => namespace.emit_to(socket, "echo", arguments),
            (Some("two"), _) => {
                namespace.emit_to(socket, "a", [Value::from(1u64)]);
                namespace.emit_to(socket, "b", [Value::from(2u64)]);
            }
            (Some("big"), _) => {
                let length = data[1].as_u64().unwrap() as usize;
                namespace.emit_to(socket, "big", [Value::from("x".repeat(length))]);
            }
            (Some("hs"), Some(reply)) => reply.send(&[shown(&socket.client().handshake(socket))]),
            (Some("boom"), _) => socket.client().disconnect(socket, false),
            (Some("kick"), _) => socket.client().disconnect(socket, true),
            (Some("askme"), _) => self.ask(namespace, socket, Value::from("x")),
            (Some("askbin"), _) => self.ask(namespace, socket, Value::Binary(Bytes::from_static(&[9]))),
            (Some("join"), _) => {
                let room = socketio_redis::adapter::Room::text(data[1].as_text().unwrap());
                drop(namespace.join(socket, &[room]));
            }
            _ => {}
        }
    }
}

/// What the recorded server told of a handshake.
fn shown(handshake: &Value) -> Value {
    let part = |key: &str| handshake.get(key).cloned().unwrap();
    let keys = handshake.as_map().unwrap().iter().map(|(key, _)| Value::from(&**key)).collect();
    Value::map([
        ("auth", part("auth")),
        ("query", part("query")),
        ("keys", Value::List(keys)),
        ("url", part("url")),
    ])
}
