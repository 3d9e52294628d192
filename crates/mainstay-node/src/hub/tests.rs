//! The hub over the memory bus, with clients that write down what they get.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::*;
use crate::limits::ConnectionLimiter;
use socketio_redis::adapter::{Room, Target};
use socketio_redis::memory::MemoryAdapter;
use socketio_redis::value::Value;

/// A client that writes down what it gets.
#[derive(Default)]
struct Pad {
    got: Mutex<Vec<String>>,
    is_plain: bool,
    is_slow: bool,
}

impl Pad {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.got.lock())
    }
}

impl ClientConnection for Pad {
    fn event(&self, event: &Event<'_>) {
        self.got.lock().push(Value::List(event.data().to_vec()).to_json());
    }

    fn is_ready(&self) -> bool {
        !self.is_slow
    }

    fn can_answer(&self) -> bool {
        !self.is_plain
    }

    fn disconnect(&self, _: &Arc<Socket>, close: bool) {
        self.got.lock().push(format!("disconnect {close}"));
    }

    fn handshake(&self, _: &Socket) -> Value {
        Value::map([("query", Value::Map(Vec::new()))])
    }
}

fn hub(bus: &Arc<MemoryAdapter>) -> Arc<Hub> {
    Hub::new(bus.clone(), &["/admin".into()], &Metrics::new(&ConnectionLimiter::new(10)))
}

fn come(hub: &Hub, id: &str, rooms: &[&str], pad: &Arc<Pad>) -> Arc<Socket> {
    let arrival = NewSocket {
        id: id.into(),
        pid: Some(format!("p-{id}").into()),
        client: pad.clone(),
        user: None,
        data: Value::Null,
    };
    let socket = hub.main().connect(arrival, |_| ());
    let rooms: Vec<Room> = rooms.iter().map(|room| Room::text(room)).collect();
    drop(hub.main().join(&socket, &rooms));
    socket
}

/// Two nodes, two clients on the first and one on the second.
struct Pair {
    nodes: [Arc<Hub>; 2],
    pads: [Arc<Pad>; 3],
    sockets: [Arc<Socket>; 3],
}

fn pair(recovery: Option<Duration>) -> Pair {
    let bus = MemoryAdapter::new(recovery);
    let nodes = [hub(&bus), hub(&bus.another_server())];
    let pads = [Pad::new(), Pad::new(), Pad::new()];
    let sockets = [
        come(&nodes[0], "a1", &["r", "s"], &pads[0]),
        come(&nodes[0], "a2", &["s"], &pads[1]),
        come(&nodes[1], "b1", &["r"], &pads[2]),
    ];
    Pair { nodes, pads, sockets }
}

impl Pair {
    fn took(&self) -> [usize; 3] {
        self.pads.each_ref().map(|pad| pad.take().len())
    }
}

#[tokio::test]
async fn an_event_reaches_each_socket_that_is_meant_once_on_every_node() {
    for recovery in [None, Some(Duration::from_secs(60))] {
        let pair = pair(recovery);
        let main = pair.nodes[0].main();
        main.all().emit("e", []).await.unwrap();
        assert_eq!(pair.took(), [1, 1, 1]);
        main.to("r").to("s").emit("e", [1u64.into()]).await.unwrap();
        assert_eq!(pair.took(), [1, 1, 1]);
        main.to("r").except("a1").emit("e", []).await.unwrap();
        assert_eq!(pair.took(), [0, 0, 1]);
        main.to("b1").emit("e", []).await.unwrap();
        assert_eq!(pair.took(), [0, 0, 1]);
        main.all().local().emit("e", []).await.unwrap();
        assert_eq!(pair.took(), [1, 1, 0]);
        pair.nodes[1].namespace("/admin").unwrap().all().emit("e", []).await.unwrap();
        assert_eq!(pair.took(), [0, 0, 0]);
    }
}

#[tokio::test]
async fn sockets_are_moved_and_disconnected_wherever_they_are() {
    let pair = pair(None);
    let main = pair.nodes[1].main();
    main.to("r").join(&["t"]).await.unwrap();
    assert!(pair.sockets[0].is_in("t") && !pair.sockets[1].is_in("t") && pair.sockets[2].is_in("t"));
    main.to("t").leave(&["t", "r"]).await.unwrap();
    assert!(!pair.sockets[0].is_in("t") && !pair.sockets[2].is_in("r"));
    assert_eq!(pair.nodes[0].main().count_in("t"), 0);
    main.to("a2").disconnect(true).await.unwrap();
    assert_eq!(pair.pads[1].take(), ["disconnect true"]);
    assert_eq!(pair.took(), [0, 0, 0]);
}

#[tokio::test]
async fn what_has_left_is_in_no_room_and_comes_into_none() {
    let pair = pair(None);
    let (node, socket) = (&pair.nodes[0], &pair.sockets[0]);
    assert!(node.main().disconnect(socket, false));
    assert!(!node.main().disconnect(socket, false));
    drop(node.main().join(socket, &[Room::text("late")]));
    assert_eq!((node.main().len(), node.main().count_in("late"), node.main().count_in("r")), (1, 0, 0));
    node.main().all().emit("e", []).await.unwrap();
    assert_eq!(pair.took(), [0, 1, 1]);
}

#[tokio::test]
async fn the_sockets_and_rooms_of_all_nodes_are_known() {
    let pair = pair(None);
    let main = pair.nodes[0].main();
    assert_eq!(main.servers().await, Ok(2));
    let sockets = main.to("r").fetch_sockets().await.unwrap();
    let mut ids: Vec<_> = sockets.iter().map(|socket| &*socket.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["a1", "b1"]);
    let names: Vec<_> = main.all_rooms().await.unwrap().iter().map(|room| room.name.to_string()).collect();
    assert_eq!(names, ["a1", "a2", "b1", "r", "s"]);
    pair.nodes[1].close().await;
    assert_eq!(main.servers().await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn answers_come_from_every_node_and_a_silent_client_leaves_them_partial() {
    let pair = pair(None);
    let main = pair.nodes[0].main();
    let answer = async |silent: usize| {
        for (place, socket) in pair.sockets.iter().enumerate().filter(|(place, _)| *place != silent) {
            let node = pair.nodes[place / 2].main();
            // An unknown number is ignored, and so is a second answer.
            for number in [99, 0, 0, 1, 1] {
                node.answer(socket, number, vec![Value::from(place as u64), Value::Null]);
            }
        }
    };
    let asking = main.all().timeout(Duration::from_secs(1)).emit_with_ack("q", []);
    let (answers, ()) = tokio::join!(asking, answer(9));
    let mut answers: Vec<_> = answers.unwrap().iter().map(|value| value.as_u64().unwrap()).collect();
    answers.sort_unstable();
    assert_eq!(answers, [0, 1, 2]);
    let asking = main.all().timeout(Duration::from_secs(1)).emit_with_ack("q", []);
    let (answers, ()) = tokio::join!(asking, answer(2));
    let (fault, partial) = answers.unwrap_err();
    assert_eq!((fault, partial.len()), (AckError::Timeout, 2));
    let none = main.to("nobody").emit_with_ack("q", []).await;
    assert_eq!(none, Ok(vec![]));
}

#[tokio::test]
async fn a_client_that_cannot_answer_is_not_waited_for() {
    let node = hub(&MemoryAdapter::new(None));
    let pad = Arc::new(Pad { is_plain: true, ..Pad::default() });
    come(&node, "p", &[], &pad);
    assert_eq!(node.main().all().emit_with_ack("q", []).await, Ok(vec![]));
    assert_eq!(pad.take().len(), 1);
}

#[tokio::test]
async fn a_volatile_event_passes_by_who_is_not_ready() {
    let node = hub(&MemoryAdapter::new(None));
    let pads = [Arc::new(Pad { is_slow: true, ..Pad::default() }), Pad::new()];
    come(&node, "slow", &[], &pads[0]);
    come(&node, "quick", &[], &pads[1]);
    node.main().all().volatile().emit("v", []).await.unwrap();
    assert_eq!(pads.each_ref().map(|pad| pad.take().len()), [0, 1]);
}

#[tokio::test]
async fn other_servers_hear_events_and_answer_once() {
    let pair = pair(None);
    let heard = Arc::new(Mutex::new(Vec::new()));
    for (place, node) in pair.nodes.iter().enumerate() {
        let heard = heard.clone();
        node.main().listen(Arc::new(move |event: ServerEvent| {
            heard.lock().push((place, Value::List(event.data).to_json()));
            if let Some(answer) = event.answer {
                answer.send(Value::from(place as u64)).unwrap();
            }
        }));
    }
    let main = pair.nodes[0].main();
    main.server_side_emit("hi", [1u64.into()]).await.unwrap();
    assert_eq!(main.ask_servers("q", []).await, Ok(vec![Value::from(1u64)]));
    assert_eq!(*heard.lock(), [(1, r#"["hi",1]"#.to_owned()), (1, r#"["q"]"#.to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_written_ahead_once_for_all_changes_and_again_in_time() {
    let node = hub(&MemoryAdapter::new(Some(Duration::from_secs(60))));
    let ahead = session_checkpoint::SessionCheckpoint::new(Duration::from_secs(60));
    let socket = come(&node, "a", &[], &Pad::new());
    let due = |seconds: u64| async move { tokio::time::advance(Duration::from_secs(seconds)).await };
    ahead.mark_changed(&socket);
    ahead.mark_changed(&socket);
    assert_eq!(ahead.take_due().len(), 1);
    due(29).await;
    assert_eq!(ahead.take_due().len(), 0);
    ahead.mark_changed(&socket);
    assert_eq!(ahead.take_due().len(), 1);
    due(1).await;
    assert_eq!(ahead.take_due().len(), 1);
    node.main().disconnect(&socket, false);
    due(30).await;
    assert_eq!(ahead.take_due().len(), 0);
}

/// Takes up the session of `a1` on a node.
async fn back(node: &Hub, offset: &str) -> (Option<Arc<Socket>>, Vec<String>) {
    let pad = Pad::new();
    let back = SessionRecovery { pid: "p-a1".into(), offset: offset.into(), client: pad.clone(), user: None };
    let greeted = pad.clone();
    let socket = back.run(node.main(), move |_| greeted.got.lock().push("greeted".into())).await;
    (socket, pad.take())
}

#[tokio::test(start_paused = true)]
async fn a_session_is_taken_up_on_another_node_with_what_was_missed_and_once() {
    let pair = pair(Some(Duration::from_secs(60)));
    let main = pair.nodes[1].main();
    pair.sockets[0].set_data(Value::from("kept"));
    let offset = main.to("r").emit("seen", []).await.unwrap().unwrap();
    pair.nodes[0].main().disconnect(&pair.sockets[0], true);
    for (room, number) in [("r", 1u64), ("other", 2), ("a1", 3)] {
        main.to(room).emit("missed", [number.into()]).await.unwrap();
    }
    main.except("s").emit("missed", [4u64.into()]).await.unwrap();
    main.all().volatile().emit("missed", [5u64.into()]).await.unwrap();
    let (socket, got) = back(&pair.nodes[1], &offset).await;
    assert_eq!(got, [r#"["missed",1]"#, r#"["missed",3]"#, "greeted"]);
    let socket = socket.unwrap();
    assert_eq!((&**socket.id(), socket.data(), socket.is_in("s")), ("a1", Value::from("kept"), true));
    assert_eq!(main.count_in("r"), 2);
    assert!(back(&pair.nodes[0], &offset).await.0.is_none());
}

#[tokio::test(start_paused = true)]
async fn no_session_is_taken_up_by_a_wrong_offset_or_too_late_or_after_a_farewell() {
    for (offset, keeps, wait) in
        [(Some("1-1"), true, 0), (None, true, 61), (None, false, 0), (Some("x"), true, 0)]
    {
        let pair = pair(Some(Duration::from_secs(60)));
        let last = pair.nodes[0].main().all().emit("e", []).await.unwrap().unwrap();
        pair.nodes[0].main().disconnect(&pair.sockets[0], keeps);
        tokio::time::advance(Duration::from_secs(wait)).await;
        let (socket, got) = back(&pair.nodes[0], offset.unwrap_or(&last)).await;
        assert!(socket.is_none() && got.is_empty());
    }
}

#[test]
fn a_target_without_rooms_is_everybody() {
    let index = room_index::RoomIndex::new(Metrics::new(&ConnectionLimiter::new(1)).rooms);
    assert!(index.select(&Target::default()).is_empty());
    assert_eq!(index.len(), 0);
}
