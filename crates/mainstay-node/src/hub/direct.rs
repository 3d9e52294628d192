//! One socket of this node: what is sent to it does not go to the other nodes unless the log has to have it.

use std::sync::Arc;
use std::time::Duration;

use super::namespace::Namespace;
use super::selection::AckError;
use super::{Event, Socket};
use crate::value::Value;

impl Namespace {
    /// Sends an event to one socket of this node. Where sessions can be taken up again it goes through the log, so that
    /// it is not lost with the connection.
    pub fn emit_to(&self, socket: &Arc<Socket>, event: &str, arguments: impl IntoIterator<Item = Value>) {
        if self.shared.recovers {
            let data = std::iter::once(Value::from(event)).chain(arguments).collect();
            drop(self.to(socket.id()).emit_data(data));
        } else {
            self.emit_to_unlogged(socket, event, arguments);
        }
    }

    /// Sends an event to one socket of this node, and to nothing that would keep it: it is lost with the connection.
    pub fn emit_to_unlogged(
        &self,
        socket: &Arc<Socket>,
        event: &str,
        arguments: impl IntoIterator<Item = Value>,
    ) {
        let data: Vec<Value> = std::iter::once(Value::from(event)).chain(arguments).collect();
        self.send(std::slice::from_ref(socket), &Event::new(self.name(), &data, None), false);
    }

    /// Sends an event to one socket of this node and waits for its answer, with all its arguments.
    pub async fn emit_to_with_ack(
        &self,
        socket: &Arc<Socket>,
        time: Duration,
        event: &str,
        arguments: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<Value>, AckError> {
        let data: Vec<Value> = std::iter::once(Value::from(event)).chain(arguments).collect();
        let (number, sockets) = (self.pending_acks.next_id(), std::slice::from_ref(socket));
        let mut heard = self.pending_acks.register(number, sockets, true);
        self.give_up_after(time, number);
        self.send(sockets, &Event::asking(self.name(), &data, number), false);
        match heard.recv().await {
            Some(Value::List(answer)) => Ok(answer),
            _ => Err(AckError::Timeout),
        }
    }
}
