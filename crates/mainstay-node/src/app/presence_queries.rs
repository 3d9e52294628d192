//! Questions of clients about who is where: what one client may ask at a time, and what is asked once for many.
//!
//! An answer costs the other nodes far more than its question costs a client, so:
//! - One client has at most [`MAX_RUNNING`] questions under way; up to [`MAX_WAITING`] more wait for their turn, and one more is
//!   refused.
//! - About one room at most one question is under way, whoever asks. Who asks meanwhile shares the next one. It begins
//!   when the one before is over, so an answer is never older than its question.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use socketio_redis::adapter::RemoteSocket;

/// Questions of one client that are under way at a time.
const MAX_RUNNING: usize = 4;
/// Questions of one client that wait for their turn.
const MAX_WAITING: usize = 100;

/// The sockets in a room of all nodes, by their ids; or why that cannot be known.
pub(super) type MembersResult = Result<Arc<[RemoteSocket]>, String>;

/// The questions of a node's clients.
#[derive(Default)]
pub(super) struct PresenceQueries {
    /// Clients that have asked something, by their socket's id.
    clients: Mutex<HashMap<Arc<str>, Arc<QueryBudget>>>,
    /// Rooms that somebody asks about.
    rooms: Mutex<HashMap<Box<str>, RoomQuery>>,
}

/// What one client may ask.
struct QueryBudget {
    /// Those that are under way.
    running: Arc<Semaphore>,
    /// Those that are under way, and those that wait.
    admitted: Arc<Semaphore>,
}

/// The questions about one room.
struct RoomQuery {
    /// Of the one that is under way.
    turn: Arc<Semaphore>,
    /// The one that has not begun: those who share it wait for its answer here.
    next: Option<Arc<OnceCell<MembersResult>>>,
}

/// A question that may be asked now, or waits for that; it is over when this is dropped.
pub(super) struct QueryPermit<'a> {
    queries: &'a PresenceQueries,
    client: Arc<str>,
    budget: Arc<QueryBudget>,
    _begun: OwnedSemaphorePermit,
    running: Option<OwnedSemaphorePermit>,
}

impl Drop for QueryPermit<'_> {
    fn drop(&mut self) {
        let mut clients = self.queries.clients.lock();
        // The map's and this one: the client's other questions have each one of their own.
        if Arc::strong_count(&self.budget) == 2 {
            clients.remove(&self.client);
        }
    }
}

impl PresenceQueries {
    /// Waits until the client of this socket may ask.
    ///
    /// # Errors
    ///
    /// Too many of its questions wait: for the client.
    pub(super) async fn acquire(&self, client: &Arc<str>) -> Result<QueryPermit<'_>, String> {
        let refused = || {
            format!("over {MAX_WAITING} questions of this client wait; wait for their answers and ask again")
        };
        let client = Arc::clone(client);
        let budget = Arc::clone(self.clients.lock().entry(Arc::clone(&client)).or_default());
        let begun = Arc::clone(&budget.admitted).try_acquire_owned().map_err(|_| refused())?;
        let mut permit = QueryPermit { queries: self, client, budget, _begun: begun, running: None };
        // It is never closed.
        permit.running = Arc::clone(&permit.budget.running).acquire_owned().await.ok();
        Ok(permit)
    }

    /// Who is in a room: `fetch` asks all nodes.
    ///
    /// # Errors
    ///
    /// What `fetch` says.
    pub(super) async fn room_members<F>(&self, room: &str, fetch: impl FnOnce() -> F) -> MembersResult
    where
        F: Future<Output = Result<Vec<RemoteSocket>, String>>,
    {
        let (turn, answer) = self.join_query(room);
        let members = answer.get_or_init(|| async {
            let _turn = turn.acquire().await;
            self.begin_query(room, &answer);
            let mut members = fetch().await?;
            members.sort_unstable_by(|a, b| a.id.cmp(&b.id));
            Ok(members.into())
        });
        let members = members.await.clone();
        drop(answer);
        self.forget_idle(room, turn);
        members
    }

    /// The next question about a room.
    fn join_query(&self, room: &str) -> (Arc<Semaphore>, Arc<OnceCell<MembersResult>>) {
        let mut rooms = self.rooms.lock();
        let question = rooms.entry(room.into()).or_default();
        (Arc::clone(&question.turn), Arc::clone(question.next.get_or_insert_default()))
    }

    /// The question begins: who asks from now on shares the one after it.
    fn begin_query(&self, room: &str, answer: &Arc<OnceCell<MembersResult>>) {
        if let Some(question) = self.rooms.lock().get_mut(room) {
            question.next.take_if(|next| Arc::ptr_eq(next, answer));
        }
    }

    /// Forgets a room about which nobody asks any more.
    fn forget_idle(&self, room: &str, turn: Arc<Semaphore>) {
        let mut rooms = self.rooms.lock();
        // The map's and this one: whoever else asks has one of his own.
        let is_over = |question: &RoomQuery| {
            Arc::ptr_eq(&question.turn, &turn) && Arc::strong_count(&turn) == 2 && question.next.is_none()
        };
        if rooms.get(room).is_some_and(is_over) {
            rooms.remove(room);
        }
    }
}

impl Default for QueryBudget {
    fn default() -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self { running: semaphore(MAX_RUNNING), admitted: semaphore(MAX_RUNNING + MAX_WAITING) }
    }
}

impl Default for RoomQuery {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), next: None }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;
    use socketio_redis::value::Value;

    fn socket(id: &str) -> RemoteSocket {
        RemoteSocket { id: id.into(), handshake: Value::Null, rooms: Vec::new(), data: Value::Null }
    }

    fn ids(members: MembersResult) -> Vec<String> {
        members.unwrap().iter().map(|one| one.id.to_string()).collect()
    }

    #[tokio::test]
    async fn a_client_asks_a_few_at_a_time_some_wait_and_more_is_refused() {
        let questions = PresenceQueries::default();
        let client: Arc<str> = "a".into();
        let mut running: Vec<_> = Vec::new();
        for _ in 0..MAX_RUNNING {
            running.push(questions.acquire(&client).await.unwrap());
        }
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| Box::pin(questions.acquire(&client))).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()));
        let refused = questions.acquire(&client).now_or_never().unwrap().err().unwrap();
        assert!(refused.contains("over 100 questions"), "{refused}");
        assert!(questions.acquire(&"b".into()).now_or_never().unwrap().is_ok(), "another client");
        running.pop();
        assert!(waiting[0].as_mut().now_or_never().unwrap().is_ok(), "the first has its turn");
        drop((running, waiting));
        assert!(questions.clients.lock().is_empty());
    }

    #[tokio::test]
    async fn one_question_about_a_room_is_under_way_and_the_others_share_the_next() {
        let questions = PresenceQueries::default();
        let asked = Cell::new(0);
        let (first, answer) = oneshot::channel::<()>();
        let slow = questions.room_members("r", || async {
            asked.set(asked.get() + 1);
            answer.await.unwrap();
            Ok(vec![socket("b"), socket("a")])
        });
        let mut slow = Box::pin(slow);
        assert!(slow.as_mut().now_or_never().is_none());
        let fetch = || async {
            asked.set(asked.get() + 1);
            Ok(vec![socket("c")])
        };
        let mut shared: Vec<_> = (0..50).map(|_| Box::pin(questions.room_members("r", fetch))).collect();
        assert!(shared.iter_mut().all(|one| one.now_or_never().is_none()));
        assert_eq!(asked.get(), 1);
        first.send(()).unwrap();
        assert_eq!(ids(slow.await), ["a", "b"]);
        for one in shared {
            assert_eq!(ids(one.await), ["c"], "asked later, so answered by a later question");
        }
        assert_eq!(asked.get(), 2);
        assert!(questions.rooms.lock().is_empty());
    }

    #[tokio::test]
    async fn who_leaves_while_asking_takes_nobody_s_answer_away() {
        let questions = PresenceQueries::default();
        let (_never, answer) = oneshot::channel::<()>();
        let gone = questions.room_members("r", || async {
            answer.await.ok();
            Ok(Vec::new())
        });
        let mut gone = Box::pin(gone);
        assert!(gone.as_mut().now_or_never().is_none());
        let mut waits = Box::pin(questions.room_members("r", || async { Ok(vec![socket("a")]) }));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(gone);
        assert_eq!(ids(waits.await), ["a"]);
        assert!(questions.rooms.lock().is_empty());
    }
}
