//! A server without sockets, for programs that only emit.

use tokio::sync::{mpsc, oneshot};

use crate::adapter::{BroadcastFlags, LocalNamespace, Offset, Operation, RemoteSocket, Room, Target};
use crate::value::Value;

/// A server without sockets: for a program that only emits.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSockets;

impl LocalNamespace for NoSockets {
    fn deliver(&self, _: Operation, _: Option<Offset>) {}

    fn broadcast_with_ack(
        &self,
        _: Vec<Value>,
        _: &Target,
        _: &BroadcastFlags,
    ) -> (u64, mpsc::Receiver<Value>) {
        (0, mpsc::channel(1).1)
    }

    fn fetch_sockets(&self, _: &Target) -> Vec<RemoteSocket> {
        Vec::new()
    }

    fn rooms(&self) -> Vec<Room> {
        Vec::new()
    }

    fn server_side_emit_with_ack(&self, _: Vec<Value>) -> Option<oneshot::Receiver<Value>> {
        None
    }
}
