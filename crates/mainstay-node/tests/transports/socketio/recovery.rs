//! Sessions that go on after their connection broke, on the same node and on another; capacity and rates.

use mainstay_node::limits::RateLimits;
use socketio_redis::memory::MemoryAdapter;

use super::*;

const RECOVERY: Option<Duration> = Some(Duration::from_secs(60));

/// The offset at the end of an event.
fn offset(event: &str) -> String {
    let data: Vec<serde_json::Value> = serde_json::from_str(&event[2..]).unwrap();
    data.last().unwrap().as_str().unwrap().to_owned()
}

/// The event without its offset.
fn bare(event: &str) -> String {
    let mut data: Vec<serde_json::Value> = serde_json::from_str(&event[2..]).unwrap();
    data.pop();
    serde_json::to_string(&data).unwrap()
}

/// Until the node has noticed that all its clients have gone.
async fn emptied(node: &Node) {
    soon(async {
        while !node.hub.main().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_goes_on_on_another_node_and_misses_nothing() {
    let bus = MemoryAdapter::new(RECOVERY);
    let (first, second) = (
        Node::start(&bus, Wanted::default()).await,
        Node::start(&bus.another_server(), Wanted::default()).await,
    );
    let mut client = first.open().await;
    let (sid, pid) = client.enter("").await;
    let pid = pid.unwrap();
    client.say(r#"421["join","room1"]"#).await;
    client.say(r#"42["echo","there"]"#).await;
    let seen = client.text().await;
    assert_eq!(bare(&seen), r#"["echo","there"]"#);
    // Taking it away without a word is what a network does.
    drop(client);
    emptied(&first).await;
    let main = first.hub.main();
    main.to("room1").emit("missed", [1u64.into()]).await.unwrap();
    main.except("room1").emit("missed", [2u64.into()]).await.unwrap();
    main.all().volatile().emit("missed", [3u64.into()]).await.unwrap();
    second.hub.main().to(&sid).emit("missed", [4u64.into()]).await.unwrap();
    let mut client = second.open().await;
    client.say(&format!(r#"40{{"pid":"{pid}","offset":"{}"}}"#, offset(&seen))).await;
    assert_eq!(bare(&client.text().await), r#"["missed",1]"#);
    assert_eq!(bare(&client.text().await), r#"["missed",4]"#);
    assert_eq!(ids(&client.text().await), (sid, Some(pid)));
    main.to("room1").emit("after", []).await.unwrap();
    assert_eq!(bare(&client.text().await), r#"["after"]"#);
}

#[tokio::test]
async fn a_client_that_said_good_bye_or_was_put_out_begins_anew() {
    for farewell in ["41", r#"42["kick"]"#, r#"42["boom"]"#] {
        let node = Node::start(&MemoryAdapter::new(RECOVERY), Wanted::default()).await;
        let mut client = node.open().await;
        let (sid, pid) = client.enter("").await;
        client.say(r#"42["echo"]"#).await;
        let seen = client.text().await;
        client.say(farewell).await;
        emptied(&node).await;
        let mut client = node.open().await;
        let auth = format!(r#"{{"pid":"{}","offset":"{}"}}"#, pid.clone().unwrap(), offset(&seen));
        let (new_sid, new_pid) = client.enter(&auth).await;
        assert!(new_sid != sid && new_pid != pid, "{farewell}");
    }
}

#[tokio::test]
async fn a_client_that_broke_the_protocol_may_come_back_and_a_pid_serves_once() {
    let node = Node::start(&MemoryAdapter::new(RECOVERY), Wanted::default()).await;
    let mut client = node.open().await;
    let (sid, pid) = client.enter("").await;
    client.say(r#"42["echo"]"#).await;
    let auth = format!(r#"{{"pid":"{}","offset":"{}"}}"#, pid.unwrap(), offset(&client.text().await));
    client.say("40").await;
    assert_eq!(client.code().await, None);
    emptied(&node).await;
    let mut back = node.open().await;
    assert_eq!(back.enter(&auth).await.0, sid);
    let mut thief = node.open().await;
    assert_ne!(thief.enter(&auth).await.0, sid);
}

#[tokio::test]
async fn what_wants_an_answer_or_is_volatile_or_local_has_no_offset() {
    let node = Node::start(&MemoryAdapter::new(RECOVERY), Wanted::default()).await;
    let mut client = node.open().await;
    client.enter("").await;
    let main = node.hub.main();
    main.all().local().emit("l", []).await.unwrap();
    assert_eq!(client.text().await, r#"42["l"]"#);
    main.all().volatile().emit("v", []).await.unwrap();
    assert_eq!(client.text().await, r#"42["v"]"#);
    let (answers, ()) = tokio::join!(main.all().emit_with_ack("q", []), async {
        assert_eq!(client.text().await, r#"420["q"]"#);
        client.say(r#"430["a",2]"#).await;
    });
    assert_eq!(answers, Ok(vec!["a".into()]));
    client.say(r#"427["echo","hi"]"#).await;
    assert_eq!(client.text().await, r#"437["hi"]"#);
}

#[tokio::test]
async fn a_full_node_says_so_and_closes_with_1008() {
    let node = Node::start(&MemoryAdapter::new(None), Wanted { limiter: 1, ..Wanted::default() }).await;
    let mut first = node.open().await;
    first.enter("").await;
    let mut second = node.open().await;
    second.say("40").await;
    assert_eq!(second.text().await, r#"44{"message":"Server at capacity"}"#);
    assert_eq!(second.code().await, Some((1008, "Server at capacity".into())));
    // The seat is free again when the first has gone.
    drop(first);
    emptied(&node).await;
    soon(async {
        loop {
            let mut next = node.open().await;
            next.say("40").await;
            if next.text().await.starts_with("40") {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_says_too_much_is_closed_with_1008() {
    let rates = RateLimits { messages: 5, bytes: 0 };
    let node = Node::start(&MemoryAdapter::new(None), Wanted { rates, ..Wanted::default() }).await;
    let mut client = node.open().await;
    client.enter("").await;
    for _ in 0..20 {
        client.say(r#"42["nothing"]"#).await;
    }
    assert_eq!(client.code().await, Some((1008, "too many messages".into())));
}

#[tokio::test]
async fn clients_of_a_node_that_ends_go_on_on_another() {
    let bus = MemoryAdapter::new(RECOVERY);
    let (first, second) = (
        Node::start(&bus, Wanted::default()).await,
        Node::start(&bus.another_server(), Wanted::default()).await,
    );
    let mut client = first.open().await;
    let (sid, pid) = client.enter("").await;
    client.say(r#"42["echo"]"#).await;
    let auth = format!(r#"{{"pid":"{}","offset":"{}"}}"#, pid.unwrap(), offset(&client.text().await));
    let (code, ()) = tokio::join!(client.code(), first.server.shutdown(Duration::ZERO));
    assert_eq!(code.unwrap().0, 1012);
    emptied(&first).await;
    assert_eq!(second.open().await.enter(&auth).await.0, sid);
}

#[tokio::test]
async fn only_the_user_that_left_a_session_takes_it_up() {
    let users =
        [(Some("ann"), Some("bob")), (Some("ann"), None), (None, Some("bob")), (Some("ann"), Some("ann"))];
    for (first, second) in users {
        let node = Node::start(&MemoryAdapter::new(RECOVERY), Wanted::default()).await;
        let mut client = node.open().await;
        let (sid, pid) =
            client.enter(&first.map_or(String::new(), |name| format!(r#"{{"token":"{name}"}}"#))).await;
        client.say(r#"421["join","secret"]"#).await;
        client.say(r#"42["echo","there"]"#).await;
        let offset = offset(&client.text().await);
        drop(client);
        emptied(&node).await;
        node.hub.main().to("secret").emit("missed", []).await.unwrap();
        let mut client = node.open().await;
        let token = second.map_or(String::new(), |name| format!(r#","token":"{name}""#));
        client.say(&format!(r#"40{{"pid":"{}","offset":"{offset}"{token}}}"#, pid.unwrap())).await;
        let answer = client.text().await;
        if first == second {
            assert_eq!(bare(&answer), r#"["missed"]"#);
            assert_eq!(ids(&client.text().await).0, sid);
        } else {
            // The first thing that it hears is that it is in, as somebody else.
            assert_ne!(ids(&answer).0, sid, "{first:?} {second:?}");
            assert_eq!(node.hub.main().count_in("secret"), 0);
        }
    }
}

#[tokio::test]
async fn who_was_not_admitted_yet_holds_no_seat_and_the_oldest_of_them_make_way() {
    let node = Node::start(&MemoryAdapter::new(None), Wanted { limiter: 1, ..Wanted::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(node.open().await);
    }
    // One that may not come in is none that has come in.
    silent[29].say(r#"40/auth,{"token":"no"}"#).await;
    assert!(silent[29].text().await.starts_with("44/auth,"));
    for first in &mut silent[..10] {
        assert_eq!(first.code().await, None);
    }
    let mut client = silent.remove(10);
    client.enter("").await;
    assert_eq!(node.hub.main().len(), 1);
    let mut other = node.open().await;
    other.say("40").await;
    assert_eq!(other.text().await, r#"44{"message":"Server at capacity"}"#);
    client.say(r#"427["echo","hi"]"#).await;
    assert_eq!(client.text().await, r#"437["hi"]"#);
}
