//! The bundled application for clients of the JSON protocol: they are sockets of `/`, beside the Socket.IO clients.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::app::application::ChatApp;
use crate::app::request::AppRequest;
use crate::hub::{Hub, NewSocket, Socket};
use crate::ws_json::{ReplyFuture, WsJsonClient, WsJsonHandler};
use socketio_redis::value::Value;

/// The clients of the JSON protocol, in the node's hub.
pub(crate) struct WsJsonApp {
    hub: Arc<Hub>,
    application: Arc<ChatApp>,
    /// By the client's id.
    sockets: Mutex<HashMap<Arc<str>, Arc<Socket>>>,
}

impl WsJsonApp {
    /// The clients come into `/` of this hub.
    pub(crate) fn new(hub: &Arc<Hub>, application: &Arc<ChatApp>) -> Self {
        Self { hub: Arc::clone(hub), application: Arc::clone(application), sockets: Mutex::default() }
    }
}

impl WsJsonHandler for WsJsonApp {
    fn connected(&self, client: &Arc<WsJsonClient>) {
        let user = client.identity.user.clone();
        let data = self.application.socket_data(user.as_ref());
        let arrival =
            NewSocket { id: Arc::clone(&client.id), pid: None, client: Arc::clone(client) as _, user, data };
        let socket = self.hub.main().connect(arrival, |_| {});
        self.application.connected(&socket);
        self.sockets.lock().insert(Arc::clone(&client.id), socket);
    }

    fn request(&self, client: &Arc<WsJsonClient>, word: &str, fields: &[(Box<str>, Value)]) -> ReplyFuture {
        let request = AppRequest::read(word, fields);
        let socket = self.sockets.lock().get(&client.id).cloned();
        let application = Arc::clone(&self.application);
        Box::pin(async move {
            match socket {
                Some(socket) => application.execute(&socket, request?).await,
                None => Err("the connection has ended".into()),
            }
        })
    }

    fn disconnected(&self, client: &WsJsonClient) {
        let socket = self.sockets.lock().remove(&client.id);
        if let Some(socket) = socket {
            self.hub.main().disconnect(&socket, false);
            self.application.disconnected(&socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;
    use crate::ws_json::SCHEMA;

    #[test]
    fn every_request_of_the_schema_is_one_that_the_application_reads() {
        let schema: Json = serde_json::from_str(SCHEMA).unwrap();
        let examples = schema["examples"].as_array().unwrap();
        assert!(examples.len() >= 6);
        for example in examples {
            let fields = Value::from_json(&example.to_string()).unwrap();
            let request = AppRequest::read(example["type"].as_str().unwrap(), fields.as_map().unwrap());
            assert!(request.is_ok(), "{example}: {request:?}");
        }
    }
}
