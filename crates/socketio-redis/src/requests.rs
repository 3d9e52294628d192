//! Questions to the other nodes whose answers are still awaited.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::adapter::{NotSent, RemoteAck, RequestFault, Room, SocketFacts};
use crate::value::Value;

/// Answers to one question that may wait to be taken. A broadcast to a great room with acknowledgement gets one from
/// each client.
const MOST_WAITING: usize = 65_536;

/// An answer.
#[derive(Debug)]
pub(super) enum Answered {
    /// To a broadcast with acknowledgement.
    Ack(RemoteAck),
    /// To the question for sockets.
    Sockets(Vec<SocketFacts>),
    /// To the question for rooms.
    Rooms(Vec<Room>),
    /// To an event for servers.
    Server(Value),
}

/// What came back for a question, and the fault if that is not all.
pub(super) type Heap = Result<(Vec<Answered>, Option<RequestFault>), NotSent>;

/// The servers' answers to an event; with a fault those that came.
pub(super) type Answers = Result<Vec<Value>, (RequestFault, Vec<Value>)>;

enum Open {
    Acks(mpsc::Sender<RemoteAck>),
    Others(mpsc::Sender<Answered>),
}

impl Open {
    fn is_dropped(&self) -> bool {
        match self {
            Open::Acks(sender) => sender.is_closed(),
            Open::Others(sender) => sender.is_closed(),
        }
    }
}

/// The open questions of one adapter.
#[derive(Default)]
pub(super) struct Requests {
    open: Mutex<HashMap<String, Open>>,
}

impl Requests {
    /// Opens a broadcast with acknowledgement.
    pub fn open_acks(&self, request: &str) -> mpsc::Receiver<RemoteAck> {
        let (sender, receiver) = mpsc::channel(MOST_WAITING);
        self.insert(request, Open::Acks(sender));
        receiver
    }

    /// Opens any other question.
    pub fn open(&self, request: &str) -> mpsc::Receiver<Answered> {
        let (sender, receiver) = mpsc::channel(MOST_WAITING);
        self.insert(request, Open::Others(sender));
        receiver
    }

    fn insert(&self, request: &str, question: Open) {
        let mut open = self.open.lock();
        open.retain(|_, open| !open.is_dropped());
        open.insert(request.to_owned(), question);
    }

    /// Whether a question is one of these.
    pub fn contains(&self, request: &str) -> bool {
        self.open.lock().contains_key(request)
    }

    /// Hands an answer to whoever asked. What nobody asked for, or not in this way, is dropped.
    pub fn answered(&self, request: &str, answer: Answered) {
        let mut open = self.open.lock();
        let taken = match (open.get(request), answer) {
            (Some(Open::Acks(sender)), Answered::Ack(ack)) => sender.try_send(ack).is_ok(),
            (Some(Open::Others(_)), Answered::Ack(_)) | (Some(Open::Acks(_)) | None, _) => return,
            (Some(Open::Others(sender)), answer) => sender.try_send(answer).is_ok(),
        };
        if !taken {
            open.remove(request);
        }
    }
}

/// Takes `expected` answers, or as many as come in time. Says whether they are all.
pub(super) async fn gather(
    mut heard: mpsc::Receiver<Answered>,
    expected: usize,
    patience: Duration,
) -> (Vec<Answered>, bool) {
    let deadline = Instant::now() + patience;
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
        let requests = Requests::default();
        let mut acks = requests.open_acks("a");
        let heard = requests.open("b");
        requests.answered("a", Answered::Ack(RemoteAck::Count(2)));
        requests.answered("a", Answered::Rooms(Vec::new()));
        requests.answered("nobody", Answered::Rooms(Vec::new()));
        requests.answered("b", Answered::Server(Value::Int(1)));
        requests.answered("b", Answered::Server(Value::Int(2)));
        assert_eq!(acks.recv().await, Some(RemoteAck::Count(2)));
        let (answers, whole) = gather(heard, 2, Duration::from_secs(5)).await;
        assert!(whole && matches!(&answers[..], [Answered::Server(Value::Int(1)), Answered::Server(_)]));
        drop(acks);
        let _open = requests.open("c");
        assert!(!requests.contains("a") && !requests.contains("b") && requests.contains("c"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_in_time_is_given_and_said_not_to_be_all() {
        let requests = Requests::default();
        let heard = requests.open("a");
        requests.answered("a", Answered::Server(Value::Null));
        let (answers, whole) = gather(heard, 2, Duration::from_secs(5)).await;
        assert!(answers.len() == 1 && !whole);
    }
}
