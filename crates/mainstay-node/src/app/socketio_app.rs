//! Socket.IO clients of the bundled application: who is let in, and what becomes of their events.
//!
//! A client shows its token as `auth.token`, as `?token=` (Engine.IO 3 has no auth) or in its handshake's
//! `Authorization: Bearer`; the first of these that is there counts. Where no token is asked for, it names itself as
//! `auth.user` or `?user=`. An event is a request of [`crate::app::request`], its one argument an object with
//! the fields; the acknowledgement is `{"ok":true, …}` or `{"ok":false,"error":…}`. What is wrong with a request that wants no
//! acknowledgement comes as the event `error` with `{"error":…}`, in the words of the JSON protocol. Requests are for
//! the namespace `/`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio_util::task::TaskTracker;

use crate::app::application::{ChatApp, RequestResult};
use crate::app::request::AppRequest;
use crate::auth::Authenticator;
use crate::bearer;
use crate::engine_io::Handshake;
use crate::hub::{Namespace, Socket};
use crate::metrics::{Metrics, RefusalReason};
use crate::socketio::{self, Admission, ConnectError, ConnectRequest, Reply};
use socketio_redis::value::Value;

/// The bundled application for Socket.IO clients.
pub(crate) struct SocketIoApp {
    auth: Arc<Authenticator>,
    application: Arc<ChatApp>,
    metrics: Metrics,
    /// Requests that wait for the other nodes.
    tasks: TaskTracker,
}

impl SocketIoApp {
    /// Socket.IO clients talk to this application.
    pub(crate) fn new(auth: &Arc<Authenticator>, application: &Arc<ChatApp>, metrics: &Metrics) -> Self {
        Self {
            auth: Arc::clone(auth),
            application: Arc::clone(application),
            metrics: metrics.clone(),
            tasks: TaskTracker::new(),
        }
    }

    /// Returns when the last request that was under way has its answer.
    pub(crate) async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl socketio::Application for SocketIoApp {
    fn admit(&self, asking: &ConnectRequest<'_>) -> Result<Admission, ConnectError> {
        let said = |name: &str| {
            let shown =
                asking.auth.and_then(|auth| auth.get(name)).and_then(Value::as_text).map(str::to_owned);
            shown.or_else(|| single_query_value(asking.handshake, name))
        };
        let token = said("token").or_else(|| bearer::of_value(asking.handshake.header("authorization")?));
        let identity = self.auth.identify(token.as_deref(), said("user").as_deref());
        let identity = identity.map_err(|fault| {
            self.metrics.count_refusal(RefusalReason::Auth);
            ConnectError::new(fault.to_string())
        })?;
        let data = self.application.socket_data(identity.user.as_ref());
        Ok(Admission { user: identity.user, expires: identity.expires, data })
    }

    fn connected(&self, namespace: &Arc<Namespace>, socket: &Arc<Socket>, _is_recovered: bool) {
        if is_main(namespace) {
            self.application.connected(socket);
        }
    }

    fn event(
        &self,
        namespace: &Arc<Namespace>,
        socket: &Arc<Socket>,
        data: Vec<Value>,
        reply: Option<Reply>,
    ) {
        let request = match read_request(namespace, &data) {
            Ok(request) => request,
            Err(words) => return send_reply(namespace, socket, reply, Err(words)),
        };
        let (application, asker) = (Arc::clone(&self.application), Arc::clone(socket));
        let mut carried = Box::pin(async move { application.execute(&asker, request).await });
        // A request takes effect at its first step, so the client's order is kept; what waits is only the answer.
        match Pin::new(&mut carried).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => send_reply(namespace, socket, reply, outcome),
            Poll::Pending => {
                let (namespace, socket) = (Arc::clone(namespace), Arc::clone(socket));
                self.tasks.spawn(async move { send_reply(&namespace, &socket, reply, carried.await) });
            }
        }
    }

    fn disconnected(&self, namespace: &Arc<Namespace>, socket: &Arc<Socket>, _reason: &'static str) {
        if is_main(namespace) {
            self.application.disconnected(socket);
        }
    }
}

fn is_main(namespace: &Namespace) -> bool {
    **namespace.name() == *"/"
}

/// The value of `name` in the query of the handshake, when it is there once.
fn single_query_value(handshake: &Handshake, name: &str) -> Option<String> {
    let mut values = handshake.query().filter(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    values.next().filter(|_| values.next().is_none())
}

fn read_request(namespace: &Namespace, data: &[Value]) -> Result<AppRequest, String> {
    if !is_main(namespace) {
        return Err("requests are for the namespace /".into());
    }
    match data {
        [Value::Text(word), Value::Map(fields)] => AppRequest::read(word, fields),
        [Value::Text(word), ..] => {
            AppRequest::read(word, &[]).and(Err("a request has one argument, an object".into()))
        }
        _ => Err("an event has a name, which is text".into()),
    }
}

/// Answers where an answer is wanted. Elsewhere the client hears of faults alone.
fn send_reply(namespace: &Namespace, socket: &Arc<Socket>, reply: Option<Reply>, outcome: RequestResult) {
    let (reply, fields) = match (reply, outcome) {
        (Some(reply), Ok(facts)) => {
            (reply, [("ok", Value::Bool(true))].into_iter().chain(facts).collect::<Vec<_>>())
        }
        (Some(reply), Err(words)) => (reply, vec![("ok", Value::Bool(false)), ("error", words.into())]),
        (None, Ok(_)) => return,
        (None, Err(words)) => {
            return namespace.emit_to_unlogged(socket, "error", [Value::map([("error", words.into())])]);
        }
    };
    reply.send(&[Value::Map(fields.into_iter().map(|(name, value)| (name.into(), value)).collect())]);
}
