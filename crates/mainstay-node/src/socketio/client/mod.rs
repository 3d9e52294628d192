//! One connection: what it may do next, and the namespaces that it is in.
//!
//! Rules: the state is locked for a look or a change only, never while the hub, the connection or the application is
//! called. A namespace that is being entered counts as one: a second CONNECT for it is against the protocol.

use std::borrow::Cow;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::task::AbortHandle;
use tracing::debug;

use super::application::{Admission, ConnectError, ConnectRequest, Reply};
use super::context::SocketIoContext;
use super::handshake_facts;
use crate::engine_io::{CloseKind, CloseReason, Connection, Message, MessageHandler, Revision, Sid};
use crate::hub::{ClientConnection, Event, Namespace, NewSocket, SessionRecovery, Socket};
use crate::limits::{AT_CAPACITY, ClientRateLimiter, ConnectionPermit};
use crate::metrics::{ForcedCloseReason, RefusalReason};
use socketio_redis::packet::{self, Packet, PacketBody, PacketError, PartialPacket};
use socketio_redis::value::Value;

mod admission;

/// One client's connection, in one or more namespaces.
pub struct SocketIoClient {
    weak_self: Weak<SocketIoClient>,
    context: Arc<SocketIoContext<SocketIoClient>>,
    connection: Arc<Connection>,
    state: Mutex<ClientState>,
}

/// What changes.
struct ClientState {
    /// The namespaces that it is in; mostly one.
    joined: SmallVec<[JoinedNamespace; 1]>,
    /// Those that it is about to be in, by an earlier session.
    entering: Vec<Arc<str>>,
    /// A packet whose attachments are on their way.
    partial: Option<Box<PartialPacket>>,
    /// What it may still say.
    rate_limiter: Option<Box<ClientRateLimiter>>,
    /// What ends it when its token expires.
    expiry: Option<(SystemTime, AbortHandle)>,
    /// From its first admission to its end.
    permit: Option<ConnectionPermit>,
    /// Its number among those that were not admitted yet.
    pending: Option<u64>,
    /// The connection has ended.
    is_over: bool,
}

/// A namespace that a client is in.
struct JoinedNamespace {
    namespace: Arc<Namespace>,
    socket: Arc<Socket>,
    /// What it sent to authenticate itself.
    auth: Option<Box<Value>>,
}

impl SocketIoClient {
    pub(super) fn open(
        shared: &Arc<SocketIoContext<SocketIoClient>>,
        connection: &Arc<Connection>,
    ) -> Arc<Self> {
        let state = ClientState {
            joined: SmallVec::new(),
            entering: Vec::new(),
            partial: None,
            rate_limiter: shared.settings.rates.limiter(),
            expiry: None,
            permit: None,
            pending: None,
            is_over: false,
        };
        Arc::new_cyclic(|me| Self {
            weak_self: me.clone(),
            context: shared.clone(),
            connection: connection.clone(),
            state: Mutex::new(state),
        })
    }

    /// The client broke the protocol. Its session is kept, as Node does.
    fn close_for_violation(&self, why: &'static str) {
        debug!(sid = %self.connection.sid(), why, "socket.io protocol error");
        self.context.settings.metrics.count_forced_close(ForcedCloseReason::Broken);
        self.connection.close(CloseKind::Orderly);
    }

    /// Reads a message; `None`: attachments are still to come.
    fn read<'a>(&self, message: Message<'a>) -> Result<Option<(Cow<'a, str>, PacketBody)>, PacketError> {
        let mut state = self.state.lock();
        match (message, state.partial.take()) {
            (Message::Text(text), None) => {
                let packet = Packet::read(text)?;
                if packet.attachments == 0 {
                    return Ok(Some((Cow::Borrowed(packet.namespace), packet.body)));
                }
                state.partial = Some(Box::new(PartialPacket::new(packet)));
                Ok(None)
            }
            (Message::Binary(bytes), Some(mut partial)) => {
                if partial.push_attachment(bytes) {
                    let (namespace, body) = partial.finish()?;
                    return Ok(Some((Cow::Owned(namespace.into()), body)));
                }
                state.partial = Some(partial);
                Ok(None)
            }
            _ => Err(PacketError::Attachments),
        }
    }

    /// Does what a packet says.
    fn execute(&self, namespace: &str, body: PacketBody) {
        if let PacketBody::Connect(auth) = body {
            return self.connect(namespace, auth);
        }
        let Some((namespace, socket)) = self.find(namespace) else {
            return self.close_for_violation("a packet for a namespace that it is not in");
        };
        let application = &self.context.application;
        match body {
            PacketBody::Event(number, Some(data)) => {
                let reply = number.map(|number| self.reply(&namespace, number));
                application.event(&namespace, &socket, data, reply);
            }
            PacketBody::Ack(Some(number), data) => namespace.answer(&socket, number, data),
            PacketBody::Disconnect => self.leave(&socket, "client namespace disconnect"),
            PacketBody::Event(_, None) | PacketBody::Ack(None, _) | PacketBody::Connect(_) => {}
        }
    }

    fn reply(&self, namespace: &Namespace, number: u64) -> Reply {
        Reply { connection: self.connection.clone(), namespace: namespace.name().clone(), number }
    }

    fn find(&self, namespace: &str) -> Option<(Arc<Namespace>, Arc<Socket>)> {
        let state = self.state.lock();
        let place = state.joined.iter().find(|place| **place.namespace.name() == *namespace)?;
        Some((place.namespace.clone(), place.socket.clone()))
    }

    /// CONNECT.
    pub(super) fn connect(&self, name: &str, auth: Option<Value>) {
        let name = match self.connection.revision() {
            // There the query is not part of the name.
            Revision::Three => name.split('?').next().unwrap_or(name),
            Revision::Four => name,
        };
        let is_there = {
            let state = self.state.lock();
            state.joined.iter().any(|place| **place.namespace.name() == *name)
                || state.entering.iter().any(|entering| **entering == *name)
        };
        if is_there {
            return self.close_for_violation("a second CONNECT");
        }
        let Some(namespace) = self.context.hub.namespace(name).cloned() else {
            let words = Value::map([("message", Value::from("Invalid namespace"))]);
            return self.connection.send(&packet::encode_connect_error(name, &words));
        };
        let handshake = self.connection.handshake();
        match self.context.application.admit(&ConnectRequest {
            namespace: name,
            auth: auth.as_ref(),
            handshake,
        }) {
            Ok(_) if !self.acquire_permit() => {
                self.context.settings.metrics.count_refusal(RefusalReason::Capacity);
                self.send_connect_error(name, ConnectError::new(AT_CAPACITY));
                self.connection.close(CloseKind::AtCapacity);
            }
            Ok(admission) => self.enter(namespace, auth, admission),
            Err(refusal) => self.send_connect_error(name, refusal),
        }
    }

    fn send_connect_error(&self, namespace: &str, refusal: ConnectError) {
        let ConnectError { message, data } = refusal;
        let payload = match (self.connection.revision(), data) {
            (Revision::Three, Some(data)) => data,
            (Revision::Three, None) => Value::from(&*message),
            (Revision::Four, Some(data)) => Value::map([("message", Value::from(&*message)), ("data", data)]),
            (Revision::Four, None) => Value::map([("message", Value::from(&*message))]),
        };
        self.connection.send(&packet::encode_connect_error(namespace, &payload));
    }

    fn enter(&self, namespace: Arc<Namespace>, auth: Option<Value>, admission: Admission) {
        if let Some(expires) = admission.expires {
            self.expire_at(expires);
        }
        let claim = |key| auth.as_ref()?.get(key)?.as_text();
        match (claim("pid"), claim("offset")) {
            (Some(pid), Some(offset)) if self.context.hub.recovers() => {
                let (pid, offset) = (pid.into(), offset.into());
                self.recover(namespace, (pid, offset), auth, admission);
            }
            _ => self.connect_new(&namespace, auth, admission),
        }
    }

    /// A client without an earlier session.
    fn connect_new(&self, namespace: &Arc<Namespace>, auth: Option<Value>, admission: Admission) {
        let Some(client) = self.weak_self.upgrade() else { return };
        let is_three = self.connection.revision() == Revision::Three;
        let id: Arc<str> = match (is_three, &**namespace.name()) {
            (false, _) => Sid::new().as_str().into(),
            // Its client takes the sid for its id, but whoever knows a sid may speak for the client: others get a hash.
            (true, "/") => self.connection.sid().public().into(),
            (true, name) => format!("{name}#{}", self.connection.sid().public()).into(),
        };
        let pid = (self.context.hub.recovers() && !is_three).then(|| Sid::new().as_str().into());
        let arrival = NewSocket { id, pid, client, user: admission.user, data: admission.data };
        let socket = namespace.connect(arrival, |socket| self.confirm_connect(namespace, socket, auth));
        self.notify_connected(namespace, &socket, false);
    }

    /// A client that claims an earlier session; without it, it is a new one.
    fn recover(
        &self,
        namespace: Arc<Namespace>,
        (pid, offset): (Box<str>, Box<str>),
        auth: Option<Value>,
        admission: Admission,
    ) {
        let Some(me) = self.weak_self.upgrade() else { return };
        self.state.lock().entering.push(namespace.name().clone());
        self.context.tasks.spawn(async move {
            let back = SessionRecovery { pid, offset, client: me.clone(), user: admission.user.clone() };
            let shown = auth.clone();
            let socket = back.run(&namespace, |socket| me.confirm_connect(&namespace, socket, shown)).await;
            me.state.lock().entering.retain(|entering| entering != namespace.name());
            match socket {
                Some(socket) => me.notify_connected(&namespace, &socket, true),
                None => me.connect_new(&namespace, auth, admission),
            }
        });
    }

    /// Answers CONNECT. The hub calls it before the socket gets an event of its own.
    fn confirm_connect(&self, namespace: &Arc<Namespace>, socket: &Arc<Socket>, auth: Option<Value>) {
        let mut state = self.state.lock();
        if state.is_over {
            return;
        }
        let auth = auth.filter(|auth| auth.as_map().is_some_and(|entries| !entries.is_empty())).map(Box::new);
        state.joined.push(JoinedNamespace { namespace: namespace.clone(), socket: socket.clone(), auth });
        drop(state);
        let ids = (self.connection.revision() == Revision::Four).then(|| (&**socket.id(), socket.pid()));
        self.connection.send(&packet::encode_connect(namespace.name(), ids));
    }

    /// Tells the application of a client, unless its connection ended before it was greeted: then it has gone again.
    fn notify_connected(&self, namespace: &Arc<Namespace>, socket: &Arc<Socket>, is_recovered: bool) {
        if self.find(namespace.name()).is_some_and(|(_, there)| Arc::ptr_eq(&there, socket)) {
            self.context.application.connected(namespace, socket, is_recovered);
        } else if self.state.lock().is_over {
            namespace.disconnect(socket, true);
        }
    }

    /// Takes the client out of one namespace for good.
    fn leave(&self, socket: &Arc<Socket>, reason: &'static str) {
        let place = {
            let mut state = self.state.lock();
            let place = state.joined.iter().position(|place| Arc::ptr_eq(&place.socket, socket));
            place.map(|place| state.joined.remove(place))
        };
        if let Some(place) = place {
            place.namespace.disconnect(socket, false);
            self.context.application.disconnected(&place.namespace, socket, reason);
        }
    }

    /// The server takes the client out of one namespace, and tells it.
    fn disconnect_socket(&self, socket: &Arc<Socket>) {
        let name = {
            let state = self.state.lock();
            let place = state.joined.iter().find(|place| Arc::ptr_eq(&place.socket, socket));
            place.map(|place| place.namespace.name().clone())
        };
        if let Some(name) = name {
            self.connection.send(&packet::encode_disconnect(&name));
            self.leave(socket, "server namespace disconnect");
        }
    }

    /// The connection ends when its token does. The earliest end counts where several namespaces were entered.
    fn expire_at(&self, expires: SystemTime) {
        let mut state = self.state.lock();
        if state.is_over || state.expiry.as_ref().is_some_and(|(earlier, _)| *earlier <= expires) {
            return;
        }
        let left = expires.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        let (me, end) = (self.weak_self.clone(), self.context.end.clone());
        let timer = self.context.tasks.spawn(async move {
            let over = end.run_until_cancelled(tokio::time::sleep(left)).await;
            if let (Some(()), Some(session)) = (over, me.upgrade()) {
                session.context.settings.metrics.count_forced_close(ForcedCloseReason::Expired);
                session.connection.close(CloseKind::Policy("token expired"));
            }
        });
        if let Some((_, later)) = state.expiry.replace((expires, timer.abort_handle())) {
            later.abort();
        }
    }
}

impl MessageHandler for SocketIoClient {
    fn message(&self, message: Message<'_>) {
        let settings = &self.context.settings;
        settings.metrics.messages_in.inc();
        let size = match message {
            Message::Text(text) => text.len(),
            Message::Binary(bytes) => bytes.len(),
        };
        if self.state.lock().rate_limiter.as_mut().is_some_and(|left| !left.allows(size)) {
            settings.metrics.count_forced_close(ForcedCloseReason::Rate);
            return self.connection.close(CloseKind::Policy("too many messages"));
        }
        match self.read(message) {
            Ok(Some((namespace, body))) => self.execute(&namespace, body),
            Ok(None) => {}
            Err(_) => self.close_for_violation("a packet that cannot be read"),
        }
    }

    fn closed(&self, reason: CloseReason) {
        let (places, expiry, pending) = {
            let mut state = self.state.lock();
            state.is_over = true;
            (state.partial, state.permit) = (None, None);
            let pending = state.pending.take();
            (std::mem::take(&mut state.joined), state.expiry.take(), pending)
        };
        if let Some(number) = pending {
            self.context.pending.remove(number);
        }
        if let Some((_, expiry)) = expiry {
            expiry.abort();
        }
        if reason == CloseReason::SlowConsumer {
            self.context.settings.metrics.count_forced_close(ForcedCloseReason::Slow);
        }
        for place in places {
            place.namespace.disconnect(&place.socket, true);
            self.context.application.disconnected(&place.namespace, &place.socket, reason.as_str());
        }
    }
}

impl ClientConnection for SocketIoClient {
    fn event(&self, event: &Event<'_>) {
        self.connection.send_all(event.frames());
    }

    fn is_ready(&self) -> bool {
        self.connection.is_ready()
    }

    fn is_gone(&self) -> bool {
        self.state.lock().is_over
    }

    fn can_answer(&self) -> bool {
        true
    }

    fn disconnect(&self, socket: &Arc<Socket>, close: bool) {
        self.disconnect_socket(socket);
        if close {
            let others: Vec<_> = self.state.lock().joined.iter().map(|place| place.socket.clone()).collect();
            others.iter().for_each(|socket| self.disconnect_socket(socket));
            self.connection.close(CloseKind::Orderly);
        }
    }

    fn handshake(&self, socket: &Socket) -> Value {
        let state = self.state.lock();
        let place = state.joined.iter().find(|place| std::ptr::eq(&*place.socket, socket));
        handshake_facts::of(self.connection.handshake(), place.and_then(|place| place.auth.as_deref()))
    }
}
