//! One namespace of this node: its sockets, and what is done to them here.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::RwLock;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use super::active_replays::ActiveReplays;
use super::context::HubContext;
use super::event::Event;
use super::pending_acks::PendingAcks;
use super::publish_future::PublishFuture;
use super::room_index::RoomIndex;
use super::session_checkpoint::{CHECKPOINT_INTERVAL, SessionCheckpoint};
use super::socket::{NewSocket, Socket};
use socketio_redis::adapter::{
    Adapter, BoxFuture, LocalNamespace, NamespaceAdapter, Operation, RequestError, Room, ServerAnswers,
    Session,
};
use socketio_redis::value::Value;

/// An event of another server.
pub struct ServerEvent {
    /// The event's name, then its arguments.
    pub data: Vec<Value>,
    /// Where the answer goes, when one is wanted.
    pub answer: Option<oneshot::Sender<Value>>,
}

/// Hears the events of other servers. Must not block.
pub type ServerEventListener = Arc<dyn Fn(ServerEvent) + Send + Sync>;

/// One namespace of one node.
pub struct Namespace {
    /// With its slash.
    name: Arc<str>,
    /// Itself, for what outlives a call.
    pub(super) weak_self: Weak<Namespace>,
    pub(super) room_index: RoomIndex,
    pub(super) pending_acks: PendingAcks,
    /// The other nodes.
    pub(super) adapter: Arc<dyn NamespaceAdapter>,
    pub(super) replays: RwLock<ActiveReplays>,
    /// Where the bus outlives the node.
    pub(super) checkpoint: Option<SessionCheckpoint>,
    /// Who hears the events of other servers.
    pub(super) listener: RwLock<Option<ServerEventListener>>,
    /// Of the next socket.
    serial: AtomicU64,
    pub(super) context: Arc<HubContext>,
}

impl Namespace {
    pub(super) fn open(name: Arc<str>, bus: &dyn Adapter, shared: Arc<HubContext>) -> Arc<Self> {
        let namespace = Arc::new_cyclic(|me: &Weak<Namespace>| Self {
            adapter: bus.namespace(&name, me.clone() as Weak<dyn LocalNamespace>),
            name,
            weak_self: me.clone(),
            room_index: RoomIndex::new(shared.metrics.rooms.clone()),
            pending_acks: PendingAcks::default(),
            replays: RwLock::default(),
            listener: RwLock::default(),
            serial: AtomicU64::new(0),
            checkpoint: bus.session_lifetime().map(SessionCheckpoint::new),
            context: shared,
        });
        namespace.spawn_checkpoints();
        namespace
    }

    /// Its name, with the slash.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// A client comes in. `greet` is called before it can get an event.
    pub fn connect(&self, arrival: NewSocket, greet: impl FnOnce(&Arc<Socket>)) -> Arc<Socket> {
        let socket = self.new_socket(arrival);
        greet(&socket);
        self.room_index.add(&socket);
        self.mark_changed(&socket);
        drop(self.open_rooms(&[Room { name: socket.id().clone(), numeric: false }]));
        socket
    }

    pub(super) fn new_socket(&self, arrival: NewSocket) -> Arc<Socket> {
        Socket::new(self.serial.fetch_add(1, Ordering::Relaxed), arrival)
    }

    /// A client goes. `keeps` says that its connection broke, so that it may come back for its session. Says whether
    /// it was there.
    pub fn disconnect(&self, socket: &Arc<Socket>, keeps: bool) -> bool {
        let rooms = socket.rooms();
        let Some(mut emptied) = self.room_index.remove(socket) else { return false };
        emptied.push(Room { name: socket.id().clone(), numeric: false });
        emptied.iter().for_each(|room| self.adapter.delete_room(room));
        match socket.pid().filter(|_| self.context.recovers) {
            Some(pid) if keeps => {
                self.save(Session { rooms, ..self.session_of(socket, pid) });
            }
            Some(_) => self.discard_checkpoint(socket),
            None => {}
        }
        true
    }

    /// What a socket that can be claimed by `pid` leaves behind.
    pub(super) fn session_of(&self, socket: &Socket, pid: &str) -> Session {
        Session {
            sid: (**socket.id()).into(),
            pid: pid.into(),
            rooms: socket.rooms(),
            data: socket.data(),
            user: socket.user().map(|user| user.as_str().into()),
            namespace: Some((**self.name()).into()),
        }
    }

    /// Writes sessions ahead until the hub closes.
    fn spawn_checkpoints(self: &Arc<Self>) {
        if self.checkpoint.is_none() {
            return;
        }
        let (me, end) = (self.weak_self.clone(), self.context.end.clone());
        let writing = async move {
            let mut ticks = interval(CHECKPOINT_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(namespace) = me.upgrade() else { return };
                namespace.write_checkpoints();
            }
        };
        self.context.tasks.spawn(async move { end.run_until_cancelled(writing).await });
    }

    fn write_checkpoints(&self) {
        for socket in self.checkpoint.iter().flat_map(SessionCheckpoint::take_due) {
            if let Some(pid) = socket.pid().filter(|_| !socket.state.lock().is_gone) {
                // What is not written now is when its time comes again.
                self.run_or_spawn(self.adapter.persist_session(self.session_of(&socket, pid)), drop);
            }
        }
    }

    /// A client has said good-bye: nobody is to take its session up.
    fn discard_checkpoint(&self, socket: &Socket) {
        if let Some(pid) = socket.pid().filter(|_| self.checkpoint.is_some()) {
            self.run_or_spawn(self.adapter.delete_session(pid), drop);
        }
    }

    /// What a socket would leave behind has changed.
    pub(super) fn mark_changed(&self, socket: &Arc<Socket>) {
        if let Some(ahead) = &self.checkpoint {
            ahead.mark_changed(socket);
        }
    }

    fn save(&self, session: Session) {
        let saving = self.adapter.persist_session(session);
        let unpublished = self.context.metrics.adapter.unpublished.clone();
        self.run_or_spawn(saving, move |saved| {
            if saved.is_err() {
                unpublished.inc();
            }
        });
    }

    /// Puts a socket of this node into rooms; awaited, what is sent to them from anywhere arrives.
    pub fn join(&self, socket: &Arc<Socket>, rooms: &[Room]) -> BoxFuture<()> {
        let opened = self.room_index.join(socket, rooms);
        self.mark_changed(socket);
        self.open_rooms(&opened)
    }

    fn open_rooms(&self, rooms: &[Room]) -> BoxFuture<()> {
        let opening: Vec<_> = rooms.iter().map(|room| self.adapter.create_room(room)).collect();
        Box::pin(async move {
            for one in opening {
                one.await;
            }
        })
    }

    /// Takes a socket of this node out of rooms.
    pub fn leave(&self, socket: &Arc<Socket>, rooms: &[Room]) {
        let emptied = self.room_index.leave(socket, rooms);
        self.mark_changed(socket);
        emptied.iter().for_each(|room| self.adapter.delete_room(room));
    }

    /// A client's answer to an event that wanted one.
    pub fn answer(&self, socket: &Socket, number: u64, data: Vec<Value>) {
        self.pending_acks.record_answer(socket, number, data);
    }

    /// The socket of that id, where it is one of this node's.
    pub fn find(&self, id: &str) -> Option<Arc<Socket>> {
        self.room_index.find(id)
    }

    /// How many sockets of this node are here.
    pub fn len(&self) -> usize {
        self.room_index.len()
    }

    /// Whether no socket of this node is here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many sockets of this node are in a room.
    pub fn count_in(&self, room: &str) -> usize {
        self.room_index.count_in(room)
    }

    /// From now on `listener` hears the events of other servers, and nobody else does.
    pub fn listen(&self, listener: ServerEventListener) {
        *self.listener.write() = Some(listener);
    }

    /// An event for the other servers.
    pub fn server_side_emit(&self, event: &str, arguments: impl IntoIterator<Item = Value>) -> PublishFuture {
        let data = std::iter::once(Value::from(event)).chain(arguments).collect();
        self.publish(Operation::ServerSideEmit { data }, None)
    }

    /// An event for the other servers, and their answers.
    pub async fn ask_servers(
        &self,
        event: &str,
        arguments: impl IntoIterator<Item = Value>,
    ) -> ServerAnswers {
        let data = std::iter::once(Value::from(event)).chain(arguments).collect();
        self.adapter.server_side_emit_with_ack(data).await
    }

    /// How many servers there are, this one included.
    pub async fn servers(&self) -> Result<usize, RequestError> {
        self.adapter.server_count().await
    }

    /// The rooms of all nodes, the sockets' own among them.
    pub async fn all_rooms(&self) -> Result<Vec<Room>, RequestError> {
        let mut rooms = self.adapter.all_rooms().await?;
        rooms.extend(LocalNamespace::rooms(self));
        rooms.sort_unstable();
        rooms.dedup();
        Ok(rooms)
    }

    /// Sends an operation to the other nodes. What cannot be sent is counted by the adapter, and `spare` is done here
    /// instead.
    pub(super) fn publish(&self, operation: Operation, spare: Option<Operation>) -> PublishFuture {
        let (told, waiting) = oneshot::channel();
        let me = self.weak_self.clone();
        self.run_or_spawn(self.adapter.send(operation), move |sent| {
            if let (Err(_), Some(namespace), Some(spare)) = (&sent, me.upgrade(), spare) {
                namespace.apply(&spare);
            }
            told.send(sent).ok();
        });
        PublishFuture::waiting(waiting)
    }

    /// Sends an event to sockets of this node, and counts them.
    pub(super) fn send(&self, sockets: &[Arc<Socket>], event: &Event<'_>, is_volatile: bool) {
        let mut sent = 0;
        for socket in sockets {
            if is_volatile && !socket.client().is_ready() {
                continue;
            }
            socket.client().event(event);
            sent += 1;
        }
        self.context.metrics.messages_out.inc_by(sent);
    }

    /// Lets a call to the other nodes go on; `then` is called at once where it is done already, as it always is on a
    /// node alone, and otherwise on a task.
    pub(super) fn run_or_spawn<T: Send + 'static>(
        &self,
        mut call: BoxFuture<T>,
        then: impl FnOnce(T) + Send + 'static,
    ) {
        match Pin::new(&mut call).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => then(result),
            Poll::Pending => {
                self.context.tasks.spawn(async move { then(call.await) });
            }
        }
    }
}
