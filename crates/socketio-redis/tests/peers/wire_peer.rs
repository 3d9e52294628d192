//! One namespace of a node among Node.js servers, driven by lines of JSON, for the tests of `tests/js`.
//!
//! It is the bus with one invented socket, no server. `wire_peer URL KIND PREFIX`, where KIND is `streams`, `pubsub`,
//! `sharded`, `dynamic-private` or `static`. Each line on stdin is `{"id": n, "do": "...", ...}` and gets one line
//! `{"id": n, "result": ...}` or `{"id": n, "error": "..."}`; what other nodes ask of it comes as
//! `{"heard": {"operation": "...", ...}}`. Bytes are `{"$bin": "hex"}` on the way in.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use socketio_redis::RedisAdapter;
use socketio_redis::adapter::{
    Adapter, BroadcastFlags, LocalNamespace, NamespaceAdapter, Offset, Operation, RemoteAck, RemoteSocket,
    Room, Session, Target,
};
use socketio_redis::client::RedisAddress;
use socketio_redis::settings::{AdapterKind, AdapterSettings, StreamsSettings, SubscriptionMode};
use socketio_redis::value::Value;
use tokio::sync::{mpsc, oneshot};

/// The invented socket's id.
const SID: &str = "rust-socket-id-00001";

/// A hub with one socket, which answers acknowledgements with its id and the last argument.
struct Invented {
    rooms: Mutex<Vec<Room>>,
}

impl Invented {
    fn meant(&self, target: &Target) -> bool {
        let rooms = self.rooms.lock();
        let is_in = |of: &[Room]| of.iter().any(|room| rooms.iter().any(|own| own.name == room.name));
        (target.rooms.is_empty() || is_in(&target.rooms)) && !is_in(&target.except)
    }
}

impl LocalNamespace for Invented {
    fn deliver(&self, operation: Operation, offset: Option<Offset>) {
        let said = match &operation {
            Operation::Broadcast { data, target, .. } if self.meant(target) => {
                let offset = offset.map_or(Value::Null, |offset| Value::from(&*offset));
                Value::map([
                    ("operation", "broadcast".into()),
                    ("data", data.clone().into()),
                    ("offset", offset),
                ])
            }
            Operation::Broadcast { .. } => return,
            Operation::Join { target, rooms } => {
                if self.meant(target) {
                    self.rooms.lock().extend(rooms.iter().cloned());
                }
                order("join", rooms)
            }
            Operation::Leave { target, rooms } => {
                if self.meant(target) {
                    self.rooms.lock().retain(|room| !rooms.iter().any(|left| left.name == room.name));
                }
                order("leave", rooms)
            }
            Operation::Disconnect { target, close } => Value::map([
                ("operation", "disconnect".into()),
                ("close", (*close).into()),
                ("meant", self.meant(target).into()),
            ]),
            Operation::ServerSideEmit { data } => {
                Value::map([("operation", "serverSideEmit".into()), ("data", data.clone().into())])
            }
        };
        say(&Value::map([("heard", said)]));
    }

    fn broadcast_with_ack(
        &self,
        data: Vec<Value>,
        target: &Target,
        _: &BroadcastFlags,
    ) -> (u64, mpsc::Receiver<Value>) {
        let (sender, receiver) = mpsc::channel(1);
        let count = u64::from(self.meant(target));
        if count == 1 {
            let last = data.last().cloned().unwrap_or_default();
            let _ = sender.try_send(Value::List(vec![SID.into(), last]));
        }
        (count, receiver)
    }

    fn fetch_sockets(&self, target: &Target) -> Vec<RemoteSocket> {
        let handshake = Value::map([
            ("headers", Value::map([("host", "rust".into())])),
            ("query", Value::map([])),
            ("auth", Value::map([])),
        ]);
        let facts = RemoteSocket {
            id: SID.into(),
            handshake,
            rooms: self.rooms.lock().clone(),
            data: Value::map([("name", "rust".into())]),
        };
        if self.meant(target) { vec![facts] } else { Vec::new() }
    }

    fn rooms(&self) -> Vec<Room> {
        self.rooms.lock().clone()
    }

    fn server_side_emit_with_ack(&self, data: Vec<Value>) -> Option<oneshot::Receiver<Value>> {
        let (sender, receiver) = oneshot::channel();
        let _ = sender.send(Value::List(vec!["rust".into(), data.into()]));
        Some(receiver)
    }
}

fn order(name: &str, rooms: &[Room]) -> Value {
    Value::map([("operation", name.into()), ("rooms", names(rooms))])
}

fn names(rooms: &[Room]) -> Value {
    Value::List(rooms.iter().map(|room| Value::from(&*room.name)).collect())
}

#[expect(clippy::print_stdout, reason = "its answers are its output")]
fn say(value: &Value) {
    println!("{}", value.to_json());
}

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().collect();
    let [_, url, kind, prefix] = &words[..] else { panic!("wire_peer URL KIND PREFIX") };
    let place = RedisAddress::parse(url, false).expect("the first argument names a Redis");
    let kind = match kind.as_str() {
        "streams" => AdapterKind::Streams(StreamsSettings {
            name: prefix.as_str().into(),
            ..StreamsSettings::default()
        }),
        "pubsub" => AdapterKind::Classic,
        "sharded" => AdapterKind::Sharded(SubscriptionMode::Dynamic),
        "dynamic-private" => AdapterKind::Sharded(SubscriptionMode::DynamicPrivate),
        "static" => AdapterKind::Sharded(SubscriptionMode::Static),
        other => panic!("{other} is no kind"),
    };
    let settings = AdapterSettings { channel_prefix: prefix.as_str().into(), ..AdapterSettings::new(kind) };
    let bus = RedisAdapter::start(place, settings, Arc::new(()));
    let local = Arc::new(Invented { rooms: Mutex::new(vec![Room::text(SID)]) });
    let weak: Weak<dyn LocalNamespace> = Arc::downgrade(&(local.clone() as Arc<dyn LocalNamespace>));
    let adapter = bus.namespace(&Arc::from("/"), weak);
    bus.wait_until_ready().await;
    adapter.create_room(&Room::text(SID)).await;
    // What was asked for before is confirmed when this is answered.
    let _ = adapter.server_count().await;
    say(&Value::map([("ready", true.into())]));
    let (sender, mut lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let lines = std::io::stdin().lines().map_while(Result::ok);
        lines.map_while(|line| sender.blocking_send(line).ok()).for_each(drop);
    });
    while let Some(line) = lines.recv().await {
        let asked = bytes_in(Value::from_json(&line).expect("a line is JSON"));
        let id = asked.get("id").cloned().unwrap_or_default();
        let answer = match answer(&*adapter, &local, &asked).await {
            Ok(result) => ("result", result),
            Err(error) => ("error", error),
        };
        say(&Value::map([("id", id), answer]));
    }
    bus.close().await;
}

async fn answer(adapter: &dyn NamespaceAdapter, local: &Invented, asked: &Value) -> Result<Value, Value> {
    let fault = |fault: &dyn std::fmt::Display| Value::from(fault.to_string());
    let (target, flags) = (target(asked), flags(asked));
    match asked.get("do").and_then(Value::as_text).unwrap_or_default() {
        "enter" => {
            for room in rooms(asked, "rooms") {
                adapter.create_room(&room).await;
                local.rooms.lock().push(room);
            }
            Ok(Value::Null)
        }
        "ask" => {
            let asking = adapter.broadcast_with_ack(list(asked, "data"), target, flags.clone());
            let mut acks = asking.await.map_err(|error| fault(&error))?;
            let (mut counts, mut expected, mut answers) = (0, 0, Vec::new());
            let max_wait = flags.timeout.unwrap_or(Duration::from_secs(5));
            let deadline = tokio::time::Instant::now() + max_wait;
            while counts < acks.servers || (answers.len() as u64) < expected {
                match tokio::time::timeout_at(deadline, acks.replies.recv()).await {
                    Ok(Some(RemoteAck::Count(count))) => (counts, expected) = (counts + 1, expected + count),
                    Ok(Some(RemoteAck::Ack(answer))) => answers.push(answer),
                    _ => return Err("operation has timed out".into()),
                }
            }
            Ok(answers.into())
        }
        "fetch" => {
            let sockets = adapter.fetch_sockets(target, flags).await.map_err(|error| fault(&error))?;
            let facts = sockets.into_iter().map(|socket| {
                Value::map([
                    ("id", Value::from(&*socket.id)),
                    ("rooms", names(&socket.rooms)),
                    ("data", socket.data),
                ])
            });
            Ok(Value::List(facts.collect()))
        }
        "askServers" => adapter
            .server_side_emit_with_ack(list(asked, "data"))
            .await
            .map(Value::from)
            .map_err(|(error, _)| fault(&error)),
        "servers" => {
            adapter.server_count().await.map(|count| Value::from(count as u64)).map_err(|error| fault(&error))
        }
        "rooms" => adapter.all_rooms().await.map(|rooms| names(&rooms)).map_err(|error| fault(&error)),
        "save" => {
            let text = |name| Box::from(asked.get(name).and_then(Value::as_text).unwrap_or_default());
            let data = asked.get("data").cloned().unwrap_or_default();
            let (sid, pid, rooms) = (text("sid"), text("pid"), rooms(asked, "rooms"));
            let session = Session { sid, pid, rooms, data, ..Session::default() };
            adapter.persist_session(session).await.map(|()| Value::Null).map_err(|error| fault(&error))
        }
        "restore" => {
            let text = |name| asked.get(name).and_then(Value::as_text).unwrap_or_default();
            let Some(restored) = adapter.restore_session(text("pid"), text("offset")).await else {
                return Ok(Value::Null);
            };
            let missed = restored.missed.into_iter().map(|missed| Value::from(missed.data.clone()));
            Ok(Value::map([
                ("sid", Value::from(&*restored.session.sid)),
                ("rooms", names(&restored.session.rooms)),
                ("data", restored.session.data),
                ("missed", Value::List(missed.collect())),
            ]))
        }
        name => {
            let operation = operation(name, asked, target, flags);
            let sent = adapter.send(operation).await.map_err(|error| fault(&error))?;
            Ok(sent.map_or(Value::Null, |offset| Value::from(&*offset)))
        }
    }
}

fn operation(name: &str, asked: &Value, target: Target, flags: BroadcastFlags) -> Operation {
    let (data, into) = (list(asked, "data"), rooms(asked, "into"));
    match name {
        "emit" => Operation::Broadcast { data, target, flags },
        "join" => Operation::Join { target, rooms: into },
        "leave" => Operation::Leave { target, rooms: into },
        "disconnect" => {
            let close = asked.get("close").and_then(Value::as_bool).unwrap_or_default();
            Operation::Disconnect { target, close }
        }
        "serverSideEmit" => Operation::ServerSideEmit { data },
        other => panic!("{other} is nothing that can be done"),
    }
}

fn list(asked: &Value, name: &str) -> Vec<Value> {
    asked.get(name).and_then(Value::as_list).unwrap_or_default().to_vec()
}

fn rooms(asked: &Value, name: &str) -> Vec<Room> {
    let room = |value: Value| match value {
        Value::Text(name) => Room::text(&name),
        number => Room { name: number.to_json().into(), numeric: true },
    };
    list(asked, name).into_iter().map(room).collect()
}

fn target(asked: &Value) -> Target {
    Target { rooms: rooms(asked, "rooms"), except: rooms(asked, "except") }
}

fn flags(asked: &Value) -> BroadcastFlags {
    let timeout = asked.get("timeout").and_then(Value::as_u64).map(Duration::from_millis);
    BroadcastFlags { timeout, ..BroadcastFlags::default() }
}

/// `{"$bin": "hex"}` as bytes.
fn bytes_in(value: Value) -> Value {
    if let Some(hex) = value.get("$bin").and_then(Value::as_text) {
        let byte = |place| u8::from_str_radix(&hex[place..place + 2], 16).expect("hex");
        return Value::Binary((0..hex.len()).step_by(2).map(byte).collect::<Vec<u8>>().into());
    }
    match value {
        Value::List(items) => Value::List(items.into_iter().map(bytes_in).collect()),
        Value::Map(entries) => {
            Value::Map(entries.into_iter().map(|(key, value)| (key, bytes_in(value))).collect())
        }
        other => other,
    }
}
