//! A hub that only writes down what its adapter asks of it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use socketio_redis::RedisAdapter;
use socketio_redis::adapter::{
    Adapter, AdapterState, BroadcastFlags, LocalNamespace, NamespaceAdapter, Offset, Operation, RemoteSocket,
    Room, Target,
};
use socketio_redis::client::RedisAddress;
use socketio_redis::metrics::AdapterMetrics;
use socketio_redis::settings::AdapterSettings;
use socketio_redis::value::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

/// Longer than anything takes that goes well.
pub const SOON: Duration = Duration::from_secs(20);

/// A hub with one socket.
pub struct StandIn {
    name: String,
    delivered: UnboundedSender<(Operation, Option<Offset>)>,
    /// Its socket answers nothing.
    pub is_silent: std::sync::atomic::AtomicBool,
}

impl StandIn {
    fn socket(&self) -> RemoteSocket {
        RemoteSocket {
            id: format!("sid-of-{}", self.name).into(),
            handshake: Value::map([("address", Value::from("127.0.0.1"))]),
            rooms: vec![
                Room::text(&self.name),
                Room::text("room"),
                Room { name: "42".into(), numeric: true },
            ],
            data: Value::map([("blob", Value::Binary(vec![1, 2].into()))]),
        }
    }

    fn meant(&self, target: &Target) -> bool {
        let socket = self.socket();
        let is_in =
            |rooms: &[Room]| rooms.iter().any(|room| socket.rooms.iter().any(|own| own.name == room.name));
        (target.rooms.is_empty() || is_in(&target.rooms)) && !is_in(&target.except)
    }
}

impl LocalNamespace for StandIn {
    fn deliver(&self, operation: Operation, offset: Option<Offset>) {
        let _ = self.delivered.send((operation, offset));
    }

    fn broadcast_with_ack(
        &self,
        data: Vec<Value>,
        target: &Target,
        _: &BroadcastFlags,
    ) -> (u64, mpsc::Receiver<Value>) {
        let (sender, receiver) = mpsc::channel(1);
        if self.meant(target) && !self.is_silent.load(std::sync::atomic::Ordering::Relaxed) {
            let answer = Value::List(vec![Value::from(&*self.name), data.last().unwrap().clone()]);
            sender.try_send(answer).unwrap();
        }
        (u64::from(self.meant(target)), receiver)
    }

    fn fetch_sockets(&self, target: &Target) -> Vec<RemoteSocket> {
        if self.meant(target) { vec![self.socket()] } else { Vec::new() }
    }

    fn rooms(&self) -> Vec<Room> {
        self.socket().rooms
    }

    fn server_side_emit_with_ack(&self, _: Vec<Value>) -> Option<oneshot::Receiver<Value>> {
        let (sender, receiver) = oneshot::channel();
        sender.send(Value::from(&*self.name)).unwrap();
        Some(receiver)
    }
}

/// What was reported.
#[derive(Default)]
pub struct Counts {
    pub unpublished: AtomicU64,
    pub unreadable: AtomicU64,
    pub missed: AtomicU64,
    pub delivered: AtomicU64,
}

impl AdapterMetrics for Counts {
    fn record_unpublished(&self) {
        self.unpublished.fetch_add(1, Relaxed);
    }

    fn record_unreadable(&self) {
        self.unreadable.fetch_add(1, Relaxed);
    }

    fn record_missed(&self, messages: u64) {
        self.missed.fetch_add(messages, Relaxed);
    }

    fn record_delivery(&self, _: Duration) {
        self.delivered.fetch_add(1, Relaxed);
    }
}

/// One node in process: a bus, and one namespace of it.
pub struct Node {
    pub bus: RedisAdapter,
    pub counts: Arc<Counts>,
    pub local: Arc<StandIn>,
    pub adapter: Arc<dyn NamespaceAdapter>,
    delivered: Mutex<UnboundedReceiver<(Operation, Option<Offset>)>>,
}

impl Node {
    /// A node that can speak and hear, and that others have heard of.
    pub async fn start(name: &str, url: &str, settings: AdapterSettings) -> Node {
        let node = Node::begin(name, url, settings);
        timeout(SOON, node.bus.wait_until_ready()).await.expect("the bus is ready");
        node.is_counted().await;
        node
    }

    /// The same before anything is certain.
    pub fn begin(name: &str, url: &str, settings: AdapterSettings) -> Node {
        let counts = Arc::new(Counts::default());
        let bus = RedisAdapter::start(RedisAddress::parse(url, false).unwrap(), settings, counts.clone());
        let (sender, receiver) = unbounded_channel();
        let local = Arc::new(StandIn { name: name.to_owned(), delivered: sender, is_silent: false.into() });
        let weak: Weak<dyn LocalNamespace> = Arc::downgrade(&(local.clone() as Arc<dyn LocalNamespace>));
        let adapter = bus.namespace(&Arc::from("/"), weak);
        Node { bus, counts, local, adapter, delivered: Mutex::new(receiver) }
    }

    /// Returns when the server counts this node's subscriptions: it answers its own questions in time.
    async fn is_counted(&self) {
        let asked = self.adapter.server_side_emit_with_ack(vec![Value::from("are you there")]);
        timeout(SOON, asked).await.unwrap().ok();
    }

    /// What the hub was asked next.
    pub async fn next(&self) -> (Operation, Option<Offset>) {
        let mut delivered = self.delivered.lock().await;
        timeout(SOON, delivered.recv()).await.expect("something was delivered").unwrap()
    }

    /// The arguments of the next broadcast, as JSON.
    pub async fn next_broadcast(&self) -> String {
        match self.next().await.0 {
            Operation::Broadcast { data, .. } => Value::List(data).to_json(),
            other => panic!("{other:?}"),
        }
    }

    /// Whether nothing was asked of the hub until now.
    pub async fn heard_nothing(&self) -> bool {
        self.delivered.lock().await.try_recv().is_err()
    }

    /// Returns when the bus is so.
    pub async fn until(&self, wanted: impl Fn(&AdapterState) -> bool) {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        let waiting = async {
            while !wanted(&self.bus.state()) {
                pause.tick().await;
            }
        };
        timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("it is {:?}", self.bus.state()));
    }
}

/// A broadcast to these rooms.
pub fn broadcast(data: &[&str], rooms: &[&str], except: &[&str]) -> Operation {
    let rooms_of = |names: &[&str]| names.iter().map(|name| Room::text(name)).collect();
    Operation::Broadcast {
        data: data.iter().map(|text| Value::from(*text)).collect(),
        target: Target { rooms: rooms_of(rooms), except: rooms_of(except) },
        flags: BroadcastFlags::default(),
    }
}
