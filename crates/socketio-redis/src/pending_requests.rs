//! Questions to the other nodes whose answers are still awaited.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::adapter::{RemoteAck, RemoteSocket, RequestError, Room, SendError};
use crate::value::Value;

/// Answers to one question that may wait to be taken. A broadcast to a great room with acknowledgement gets one from
/// each client.
const MAX_WAITING: usize = 65_536;

/// An answer.
#[derive(Debug)]
pub(super) enum RequestReply {
    /// To a broadcast with acknowledgement.
    Ack(RemoteAck),
    /// To the question for sockets.
    Sockets(Vec<RemoteSocket>),
    /// To the question for rooms.
    Rooms(Vec<Room>),
    /// To an event for servers.
    Server(Value),
}

/// What came back for a question, and the fault if that is not all.
pub(super) type Replies = Result<(Vec<RequestReply>, Option<RequestError>), SendError>;

/// The servers' answers to an event; with a fault those that came.
pub(super) type Answers = Result<Vec<Value>, (RequestError, Vec<Value>)>;

enum OpenRequest {
    Acks(mpsc::Sender<RemoteAck>),
    Others(mpsc::Sender<RequestReply>),
}

impl OpenRequest {
    fn is_dropped(&self) -> bool {
        match self {
            OpenRequest::Acks(sender) => sender.is_closed(),
            OpenRequest::Others(sender) => sender.is_closed(),
        }
    }
}

/// The open questions of one adapter.
#[derive(Default)]
pub(super) struct PendingRequests {
    open: Mutex<HashMap<String, OpenRequest>>,
}

impl PendingRequests {
    /// Opens a broadcast with acknowledgement.
    pub(crate) fn open_acks(&self, request: &str) -> mpsc::Receiver<RemoteAck> {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        self.insert(request, OpenRequest::Acks(sender));
        receiver
    }

    /// Opens any other question.
    pub(crate) fn open(&self, request: &str) -> mpsc::Receiver<RequestReply> {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        self.insert(request, OpenRequest::Others(sender));
        receiver
    }

    fn insert(&self, request: &str, question: OpenRequest) {
        let mut open = self.open.lock();
        open.retain(|_, open| !open.is_dropped());
        open.insert(request.to_owned(), question);
    }

    /// Whether a question is one of these.
    pub(crate) fn contains(&self, request: &str) -> bool {
        self.open.lock().contains_key(request)
    }

    /// Hands an answer to whoever asked. What nobody asked for, or not in this way, is dropped.
    pub(crate) fn resolve(&self, request: &str, answer: RequestReply) {
        let mut open = self.open.lock();
        let taken = match (open.get(request), answer) {
            (Some(OpenRequest::Acks(sender)), RequestReply::Ack(ack)) => sender.try_send(ack).is_ok(),
            (Some(OpenRequest::Others(_)), RequestReply::Ack(_)) | (Some(OpenRequest::Acks(_)) | None, _) => {
                return;
            }
            (Some(OpenRequest::Others(sender)), answer) => sender.try_send(answer).is_ok(),
        };
        if !taken {
            open.remove(request);
        }
    }
}

/// Takes `expected` answers, or as many as come in time. Says whether they are all.
pub(super) async fn collect_replies(
    mut heard: mpsc::Receiver<RequestReply>,
    expected: usize,
    max_wait: Duration,
) -> (Vec<RequestReply>, bool) {
    let deadline = Instant::now() + max_wait;
    let mut answers = Vec::new();
    while answers.len() < expected {
        match timeout_at(deadline, heard.recv()).await {
            Ok(Some(answer)) => answers.push(answer),
            Ok(None) | Err(_) => return (answers, false),
        }
    }
    (answers, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_reach_whoever_asked_and_nothing_is_kept_of_who_stopped_waiting() {
        let requests = PendingRequests::default();
        let mut acks = requests.open_acks("a");
        let heard = requests.open("b");
        requests.resolve("a", RequestReply::Ack(RemoteAck::Count(2)));
        requests.resolve("a", RequestReply::Rooms(Vec::new()));
        requests.resolve("nobody", RequestReply::Rooms(Vec::new()));
        requests.resolve("b", RequestReply::Server(Value::Int(1)));
        requests.resolve("b", RequestReply::Server(Value::Int(2)));
        assert_eq!(acks.recv().await, Some(RemoteAck::Count(2)));
        let (answers, whole) = collect_replies(heard, 2, Duration::from_secs(5)).await;
        assert!(
            whole && matches!(&answers[..], [RequestReply::Server(Value::Int(1)), RequestReply::Server(_)])
        );
        drop(acks);
        let _open = requests.open("c");
        assert!(!requests.contains("a") && !requests.contains("b") && requests.contains("c"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_in_time_is_given_and_said_not_to_be_all() {
        let requests = PendingRequests::default();
        let heard = requests.open("a");
        requests.resolve("a", RequestReply::Server(Value::Null));
        let (answers, whole) = collect_replies(heard, 2, Duration::from_secs(5)).await;
        assert!(answers.len() == 1 && !whole);
    }
}
