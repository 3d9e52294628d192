//! The bundled application: what a request does, whichever protocol it came by.
//!
//! Both kinds of client are sockets of the namespace `/`, share its rooms and get the same events: `message` for what
//! was published to a room and `direct` for what was sent to a user, each with one object. A user's connections are in
//! the room `user:{id}`, on every node; a Node.js server of the fleet reaches a user by that room, too.
//!
//! Rules: a request gets one answer; what did not reach the other nodes is said in it. What a client may know of others
//! is who is in a room that it is in, and where a user is.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tracing::debug;

use crate::app::presence_queries::PresenceQueries;
use crate::app::publication::{Publication, PublishTarget};
use crate::app::request::{AppRequest, USER_ROOM_PREFIX};
use crate::auth::User;
use crate::hub::{Hub, Socket};
use crate::presence::{Presence, UserConnection};
use socketio_redis::adapter::{RemoteSocket, Room};
use socketio_redis::value::Value;

/// The most members of a room in one answer: some 100 KiB.
const PAGE_SIZE: usize = 1000;

/// The facts of an answer, or what is wrong with the request.
pub(super) type RequestResult = Result<Vec<(&'static str, Value)>, String>;

/// The bundled application, for clients of both protocols.
pub(crate) struct ChatApp {
    /// The node's name.
    node: Arc<str>,
    hub: Arc<Hub>,
    presence: Arc<Presence>,
    queries: PresenceQueries,
    /// The most rooms of one client, its user's not among them.
    max_rooms: usize,
}

impl ChatApp {
    /// The application of a node.
    pub(crate) fn new(node: &Arc<str>, hub: &Arc<Hub>, presence: &Arc<Presence>, max_rooms: usize) -> Self {
        Self {
            node: Arc::clone(node),
            hub: Arc::clone(hub),
            presence: Arc::clone(presence),
            queries: PresenceQueries::default(),
            max_rooms,
        }
    }

    /// What the application keeps with a socket; other nodes see it.
    pub(crate) fn socket_data(&self, user: Option<&User>) -> Value {
        Value::map([
            ("user", user.map_or(Value::Null, |user| user.as_str().into())),
            ("node", (&*self.node).into()),
        ])
    }

    /// A socket has come into `/`; also one that was taken up again.
    pub(crate) fn connected(&self, socket: &Arc<Socket>) {
        socket.set_data(self.socket_data(socket.user()));
        if let Some(user) = socket.user() {
            let room = Room::text(&user_room(user));
            // Awaited by nobody: a direct message of the next moment may miss the socket on a sharded bus.
            drop(self.hub.main().join(socket, &[room]));
            self.presence.add(user, socket.id());
        }
    }

    /// A socket has left `/`.
    pub(crate) fn disconnected(&self, socket: &Socket) {
        if let Some(user) = socket.user() {
            self.presence.remove(user, socket.id());
        }
    }

    /// Does what a client asks.
    ///
    /// # Errors
    ///
    /// What is wrong, for the client.
    pub(crate) async fn execute(&self, socket: &Arc<Socket>, request: AppRequest) -> RequestResult {
        let main = self.hub.main();
        match request {
            AppRequest::Join(room) => {
                self.check_join(socket, &room)?;
                main.join(socket, &[Room::text(&room)]).await;
                Ok(vec![("room", room.into())])
            }
            AppRequest::Leave(room) => {
                main.leave(socket, &[Room::text(&room)]);
                Ok(vec![("room", room.into())])
            }
            AppRequest::Publish(room, data) => self.publish(socket, &room, data).await,
            AppRequest::Direct(user, data) => {
                let delivered = self.send_to_user(Some(socket), &user, "direct", data).await?;
                match delivered {
                    0 => Err(format!("{user} is not connected")),
                    delivered => Ok(vec![("delivered", Value::Uint(delivered))]),
                }
            }
            AppRequest::RoomPresence { room, after } => {
                self.room_members(socket, &room, after.as_deref()).await
            }
            AppRequest::UserPresence(user) => {
                let _permit = self.queries.acquire(socket.id()).await?;
                let connections = self.connections(&user).await?;
                let list = connections.iter().map(connection_value).collect();
                let online = Value::Bool(!connections.is_empty());
                Ok(vec![
                    ("user", user.as_str().into()),
                    ("online", online),
                    ("connections", Value::List(list)),
                ])
            }
            AppRequest::Status(status) => self.set_status(socket, status),
        }
    }

    async fn publish(&self, socket: &Arc<Socket>, room: &str, data: Value) -> RequestResult {
        if !socket.is_in(room) {
            return Err(format!("join {room} before you publish to it"));
        }
        let fields = [
            ("room", room.into()),
            ("from", sender_value(Some(socket))),
            ("data", data),
            ("node", (&*self.node).into()),
        ];
        let sent = self.hub.main().to(room).except(socket.id()).emit("message", [Value::map(fields)]);
        sent.await.map_err(|fault| format!("{fault}; the clients of this node have it"))?;
        Ok(vec![("room", room.into())])
    }

    /// Sends to every connection of a user, and says how many there are.
    async fn send_to_user(
        &self,
        socket: Option<&Arc<Socket>>,
        user: &User,
        event: &str,
        data: Value,
    ) -> Result<u64, String> {
        let mut connections = self.presence.connections_of(user).await.map_err(|away| away.to_string())?;
        if connections.is_empty() {
            // Servers of another kind are asked only where nobody else has the user; what is sent reaches them always.
            let _permit = match socket {
                Some(socket) => Some(self.queries.acquire(socket.id()).await?),
                None => None,
            };
            connections = self.find_on_other_servers(user).await?;
        }
        if connections.is_empty() {
            return Ok(0);
        }
        let fields = [("from", sender_value(socket)), ("data", data), ("node", (&*self.node).into())];
        // Back-end code that names an event of its own means its data to be the argument.
        let argument = match event {
            "direct" | "message" => Value::map(fields),
            _ => fields.into_iter().nth(1).map(|(_, data)| data).unwrap_or_default(),
        };
        let sent = self.hub.main().to(&user_room(user)).emit(event, [argument]);
        sent.await.map_err(|fault| format!("{fault}; the user's connections to this node have it"))?;
        Ok(connections.len() as u64)
    }

    /// The connections of a user, the newest first: what nodes of this kind keep, and who is in the user's room on any
    /// other server.
    ///
    /// # Errors
    ///
    /// What cannot be known now.
    pub(crate) async fn connections(&self, user: &User) -> Result<Vec<UserConnection>, String> {
        let (kept, elsewhere) =
            tokio::join!(self.presence.connections_of(user), self.find_on_other_servers(user));
        let mut connections = kept.map_err(|away| away.to_string())?;
        match elsewhere {
            Ok(others) => {
                let is_new =
                    |one: &UserConnection| connections.iter().all(|kept| kept.socket_id != one.socket_id);
                let others: Vec<_> = others.into_iter().filter(is_new).collect();
                connections.extend(others);
            }
            // That somebody is there is known all the same.
            Err(fault) if !connections.is_empty() => {
                debug!(fault, "presence query incomplete: not every server answered")
            }
            Err(fault) => return Err(fault),
        }
        connections.sort_by(|a, b| b.connected_at.cmp(&a.connected_at));
        Ok(connections)
    }

    /// Who is in a user's room, on servers of every kind. Without Redis there are no others.
    async fn find_on_other_servers(&self, user: &User) -> Result<Vec<UserConnection>, String> {
        if !self.presence.is_shared() {
            return Ok(Vec::new());
        }
        let (main, room) = (self.hub.main(), user_room(user));
        let fetch = || async {
            let sockets = main.to(&room).fetch_sockets().await;
            sockets.map_err(|fault| fault.to_string())
        };
        Ok(self.queries.room_members(&room, fetch).await?.iter().map(foreign_connection).collect())
    }

    fn set_status(&self, socket: &Socket, status: String) -> RequestResult {
        let user = socket.user().ok_or("only a user has a status; this connection has no name")?;
        self.presence.set_status(user, socket.id(), &status);
        Ok(vec![("status", status.into())])
    }

    /// Whether a client may come into one more room.
    fn check_join(&self, socket: &Socket, room: &str) -> Result<(), String> {
        let most = self.max_rooms + usize::from(socket.user().is_some());
        if socket.room_count() < most || socket.is_in(room) {
            return Ok(());
        }
        Err(format!("this client is in {} rooms, the most that it may join; leave one first", self.max_rooms))
    }

    /// Who is in a room, on all nodes: those whose ids come behind `after`, at most [`PAGE_SIZE`].
    async fn room_members(&self, socket: &Socket, room: &str, after: Option<&str>) -> RequestResult {
        if !socket.is_in(room) {
            return Err(format!("join {room} to see who is in it"));
        }
        let _permit = self.queries.acquire(socket.id()).await?;
        let main = self.hub.main();
        let fetch = || async {
            let sockets = main.to(room).fetch_sockets().await;
            sockets.map_err(|fault| fault.to_string())
        };
        let sockets = self.queries.room_members(room, fetch).await?;
        let from = after.map_or(0, |after| sockets.partition_point(|one| *one.id <= *after));
        let page = &sockets[from..sockets.len().min(from + PAGE_SIZE)];
        let members = page.iter().map(member_value).collect();
        let mut facts = vec![("room", room.into()), ("members", Value::List(members))];
        if from + page.len() < sockets.len() {
            facts.push(("count", Value::Uint(sockets.len() as u64)));
            facts.push(("next", page.last().map_or(Value::Null, |last| (&*last.id).into())));
        }
        Ok(facts)
    }

    /// Publishes for back-end code. Gives the number of a user's connections.
    ///
    /// # Errors
    ///
    /// What did not reach the other nodes, or cannot be known.
    pub(crate) async fn publish_from_api(&self, publication: Publication) -> Result<Option<u64>, String> {
        let Publication { target, event, data } = publication;
        match target {
            PublishTarget::User(user) => {
                let event = if event == "message" { "direct" } else { &event };
                self.send_to_user(None, &user, event, data).await.map(Some)
            }
            PublishTarget::Room(room) => {
                let argument = match &*event {
                    "message" => {
                        let room = (&*room).into();
                        Value::map([
                            ("room", room),
                            ("from", Value::Null),
                            ("data", data),
                            ("node", (&*self.node).into()),
                        ])
                    }
                    _ => data,
                };
                let sent = self.hub.main().to(&room).emit(&event, [argument]);
                sent.await.map_err(|fault| format!("{fault}; the clients of this node have it"))?;
                Ok(None)
            }
        }
    }
}

/// The room of a user's connections.
fn user_room(user: &User) -> String {
    format!("{USER_ROOM_PREFIX}{user}")
}

/// Who sent something; `Null` for back-end code.
fn sender_value(socket: Option<&Arc<Socket>>) -> Value {
    socket.map_or(Value::Null, |socket| {
        let user = socket.user().map_or(Value::Null, |user| user.as_str().into());
        Value::map([("user", user), ("id", (&**socket.id()).into())])
    })
}

fn connection_value(connection: &UserConnection) -> Value {
    Value::map([
        ("socketId", (&*connection.socket_id).into()),
        ("nodeId", (&*connection.node_id).into()),
        ("connectedAt", (&*connection.connected_at).into()),
        ("status", (&*connection.status).into()),
    ])
}

/// A socket of a server that keeps no presence as nodes of this kind do.
fn foreign_connection(facts: &RemoteSocket) -> UserConnection {
    let node = facts.data.get("node").and_then(Value::as_text).unwrap_or_default();
    let issued = facts.handshake.get("issued").and_then(Value::as_u64).unwrap_or_default();
    let since = UNIX_EPOCH.checked_add(Duration::from_millis(issued)).unwrap_or(UNIX_EPOCH);
    UserConnection {
        socket_id: (&*facts.id).into(),
        node_id: node.into(),
        connected_at: humantime::format_rfc3339_millis(since).to_string(),
        status: "online".into(),
    }
}

/// A member of a room; user and node are those that a node of this kind keeps with its sockets.
fn member_value(facts: &RemoteSocket) -> Value {
    let kept = |name| facts.data.get(name).cloned().unwrap_or_default();
    Value::map([("id", (&*facts.id).into()), ("user", kept("user")), ("node", kept("node"))])
}
