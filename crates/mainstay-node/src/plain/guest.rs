//! Plain clients as sockets of the hub: they are in `/`, beside the Socket.IO clients.
//!
//! A plain client cannot answer an event, so it is not asked; a recovery is not for it either, since it has no offsets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Request;
use http::header::ORIGIN;
use parking_lot::Mutex;

use crate::application::Application;
use crate::hub::{self, Arrival, Event, Hub, Socket};
use crate::request;
use crate::value::Value;

use super::{Client, Pending, Stage, message};

/// The plain clients of a node, in its hub.
pub struct Guests {
    hub: Arc<Hub>,
    application: Arc<Application>,
    /// By the client's id.
    sockets: Mutex<HashMap<Arc<str>, Arc<Socket>>>,
}

impl Guests {
    /// Plain clients go into `/` of this hub.
    pub fn new(hub: &Arc<Hub>, application: &Arc<Application>) -> Self {
        Self { hub: Arc::clone(hub), application: Arc::clone(application), sockets: Mutex::default() }
    }
}

impl Stage for Guests {
    fn arrived(&self, client: &Arc<Client>) {
        let user = client.identity.user.clone();
        let data = self.application.data(user.as_ref());
        let (id, way) = (Arc::clone(&client.id), Arc::new(Way(Arc::clone(client))));
        let socket = self.hub.main().connect(Arrival { id, pid: None, client: way, user, data }, |_| {});
        self.application.arrived(&socket);
        self.sockets.lock().insert(Arc::clone(&client.id), socket);
    }

    fn asked(&self, client: &Arc<Client>, request: request::Request) -> Pending {
        let socket = self.sockets.lock().get(&client.id).cloned();
        let application = Arc::clone(&self.application);
        Box::pin(async move {
            match socket {
                Some(socket) => application.carry_out(&socket, request).await,
                None => Err("the connection has ended".into()),
            }
        })
    }

    fn left(&self, client: &Client) {
        let socket = self.sockets.lock().remove(&client.id);
        if let Some(socket) = socket {
            self.hub.main().disconnect(&socket, false);
            self.application.left(&socket);
        }
    }
}

/// The hub's way to a plain client.
struct Way(Arc<Client>);

impl hub::Client for Way {
    fn event(&self, event: &Event<'_>) {
        let text = event.text(|data| message::event(data).map(Bytes::from).unwrap_or_default());
        if !text.is_empty() {
            self.0.send(text);
        }
    }

    fn is_ready(&self) -> bool {
        self.0.is_ready()
    }

    fn answers(&self) -> bool {
        false
    }

    fn disconnect(&self, _: &Arc<Socket>, _close: bool) {
        // Without `/` a plain client has nothing left.
        self.0.end("disconnected");
    }

    fn handshake(&self, _: &Socket) -> Value {
        self.0.handshake.clone()
    }
}

/// What other servers are told of a client's handshake, with Node's keys. Tokens do not travel: neither the query nor
/// the fields that can carry one.
pub(super) fn handshake<B>(request: &Request<B>, peer: SocketAddr) -> Value {
    let named = ["host", "user-agent", "origin", "x-forwarded-for", "x-forwarded-proto"];
    let headers = named.iter().filter_map(|name| {
        let value = request.headers().get(*name)?.to_str().ok()?;
        Some(((*name).into(), Value::from(value)))
    });
    let user = crate::bearer::of_query(request.uri().query().unwrap_or_default(), "user");
    let asked = user.into_iter().map(|user| ("user".into(), Value::from(&*user))).collect();
    let now = SystemTime::now();
    let issued = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Value::map([
        ("headers", Value::Map(headers.collect())),
        ("time", Value::from(&*humantime::format_rfc3339_seconds(now).to_string())),
        ("address", Value::from(&*peer.ip().to_string())),
        ("xdomain", Value::Bool(request.headers().contains_key(ORIGIN))),
        ("secure", Value::Bool(false)),
        ("issued", Value::Uint(u64::try_from(issued).unwrap_or(u64::MAX))),
        ("url", Value::from(request.uri().path())),
        ("query", Value::Map(asked)),
        ("auth", Value::Map(Vec::new())),
    ])
}
