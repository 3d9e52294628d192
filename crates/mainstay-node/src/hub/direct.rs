//! One socket of this node: what is sent to it does not go to the other nodes unless the log has to have it.

use std::sync::Arc;
use std::time::Duration;

use super::namespace::Namespace;
use super::selection::AckFault;
use super::{Event, Socket};
use crate::value::Value;

impl Namespace {
    /// Sends an event to one socket of this node. Where sessions can be taken up again it goes through the log, so that
    /// it is not lost with the connection.
    pub fn tell(&self, socket: &Arc<Socket>, event: &str, arguments: impl IntoIterator<Item = Value>) {
        if self.shared.recovers {
            let data = std::iter::once(Value::from(event)).chain(arguments).collect();
            drop(self.to(socket.id()).emit_data(data));
        } else {
            self.tell_now(socket, event, arguments);
        }
    }

    /// Sends an event to one socket of this node, and to nothing that would keep it: it is lost with the connection.
    pub fn tell_now(&self, socket: &Arc<Socket>, event: &str, arguments: impl IntoIterator<Item = Value>) {
        let data: Vec<Value> = std::iter::once(Value::from(event)).chain(arguments).collect();
        self.send(std::slice::from_ref(socket), &Event::new(self.name(), &data, None), false);
    }

    /// Sends an event to one socket of this node and waits for its answer, with all its arguments.
    pub async fn ask_one(
        &self,
        socket: &Arc<Socket>,
        time: Duration,
        event: &str,
        arguments: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<Value>, AckFault> {
        let data: Vec<Value> = std::iter::once(Value::from(event)).chain(arguments).collect();
        let (number, sockets) = (self.asked.number(), std::slice::from_ref(socket));
        let mut heard = self.asked.wait(number, sockets, true);
        self.give_up_after(time, number);
        self.send(sockets, &Event::asking(self.name(), &data, number), false);
        match heard.recv().await {
            Some(Value::List(answer)) => Ok(answer),
            _ => Err(AckFault::Timeout),
        }
    }
}
