//! Emits an event to a room of a Socket.IO fleet, as `@socket.io/redis-emitter` does from Node.js.
//!
//! ```text
//! cargo run -p socketio-redis --example emit -- redis://127.0.0.1:6379 lobby news '"hello"' '{"n":1}'
//! ```
//!
//! The arguments behind the event are JSON. The fleet's servers use `@socket.io/redis-adapter`, or Rust nodes with
//! `--adapter pubsub`.

use std::error::Error;
use std::sync::Arc;

use socketio_redis::adapter::{Adapter, BroadcastFlags, LocalNamespace, Operation, Room, Target};
use socketio_redis::client::RedisAddress;
use socketio_redis::settings::{AdapterKind, AdapterSettings};
use socketio_redis::value::Value;
use socketio_redis::{NoSockets, RedisAdapter};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(room), Some(event)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: emit REDIS_URL ROOM EVENT [JSON]...".into());
    };
    let mut data = vec![Value::from(event)];
    for json in arguments {
        data.push(Value::from_json(&json)?);
    }
    let address = RedisAddress::parse(&url, false)?;
    let adapter = RedisAdapter::start(address, AdapterSettings::new(AdapterKind::Classic), Arc::new(()));
    adapter.wait_until_ready().await;
    // A program without sockets has nothing that the others could ask for.
    let sockets: Arc<dyn LocalNamespace> = Arc::new(NoSockets);
    let namespace = adapter.namespace(&"/".into(), Arc::downgrade(&sockets));
    let target = Target { rooms: vec![Room::text(&room)], except: Vec::new() };
    namespace.send(Operation::Broadcast { data, target, flags: BroadcastFlags::default() }).await?;
    adapter.close().await;
    Ok(())
}
