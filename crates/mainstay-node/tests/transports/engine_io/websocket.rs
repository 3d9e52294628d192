//! Sessions that open on a WebSocket: messages, closes with their codes, heartbeats, slow clients, the shutdown.

use std::time::Duration;

use futures_util::SinkExt;
use mainstay_node::engine_io::{CloseReason, EngineSettings, Frame, Revision};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{Served, soon};

/// Times in which a test can wait for a heartbeat.
fn quick() -> EngineSettings {
    let (ping_interval, ping_timeout) = (Duration::from_millis(100), Duration::from_millis(100));
    EngineSettings { ping_interval, ping_timeout, ..EngineSettings::default() }
}

#[tokio::test]
async fn the_open_packet_says_what_node_says_and_messages_come_back_in_order() {
    let mut served = Served::start(EngineSettings::default()).await;
    let mut client = served.connect("EIO=4&transport=websocket").await;
    let connection = served.session().await;
    let open = format!(
        r#"0{{"sid":"{}","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":16384}}"#,
        connection.sid()
    );
    assert_eq!(client.text().await, open);
    for n in 0..200 {
        client.0.feed(Message::text(format!("4{n} é"))).await.unwrap();
    }
    client.0.flush().await.unwrap();
    for n in 0..200 {
        assert_eq!(client.text().await, format!("4{n} é"));
    }
    let figures = served.server.stats();
    assert_eq!((figures.sessions, figures.websockets, figures.received, figures.sent), (1, 1, 200, 200));
}

#[tokio::test]
async fn binary_is_a_frame_of_its_own_and_a_packet_and_its_attachment_stay_together() {
    let served = Served::start(EngineSettings::default()).await;
    let mut client = served.open().await;
    for data in [vec![], vec![1; 200], vec![2; 16 * 1024]] {
        client.0.send(Message::binary(data.clone())).await.unwrap();
        assert_eq!(client.next().await, Message::binary(data));
    }
    client.say("4two").await;
    assert_eq!(client.text().await, "4a");
    assert_eq!(client.next().await, Message::binary(vec![1]));
}

#[tokio::test]
async fn one_frame_goes_to_many_clients_and_the_facts_of_each_handshake_are_kept() {
    let mut served = Served::start(EngineSettings::default()).await;
    let (mut one, mut two) =
        (served.open().await, served.connect("EIO=4&transport=websocket&user=%C3%A9").await);
    let (first, second) = (served.session().await, served.session().await);
    let frame = Frame::text("2[\"news\"]");
    for connection in [&first, &second] {
        connection.send(&frame);
    }
    assert_eq!(one.text().await, "42[\"news\"]");
    two.text().await;
    assert_eq!(two.text().await, "42[\"news\"]");
    assert_eq!(second.handshake().query().last().unwrap(), ("user".into(), "é".into()));
    assert_eq!(second.revision(), Revision::Four);
    assert!(second.is_websocket() && second.is_ready());
    assert!(second.handshake().header("sec-websocket-key").is_some());
}

#[tokio::test]
async fn an_orderly_close_comes_after_what_was_sent_and_has_no_code() {
    let mut served = Served::start(EngineSettings::default()).await;
    let mut client = served.open().await;
    client.say("4kick").await;
    assert_eq!(client.text().await, "4bye");
    assert_eq!(client.code().await, None);
    assert_eq!(served.ended().await, CloseReason::ForcedClose);
    assert_eq!(served.server.stats().sessions, 0);
}

#[tokio::test]
async fn a_full_node_says_1008_and_an_oversized_message_is_refused_with_1009() {
    let mut served = Served::start(EngineSettings { max_payload: 100, ..EngineSettings::default() }).await;
    let mut client = served.open().await;
    client.say("4full").await;
    assert_eq!(client.code().await, Some((1008, "Server at capacity".into())));
    assert_eq!(served.ended().await, CloseReason::ForcedClose);
    let mut client = served.open().await;
    client.say(&format!("4{}", "x".repeat(99))).await;
    assert_eq!(client.text().await.len(), 100);
    client.say(&format!("4{}", "x".repeat(100))).await;
    assert_eq!(client.code().await, Some((1009, String::new())));
    assert_eq!(served.ended().await, CloseReason::TransportError);
}

#[tokio::test]
async fn packets_that_mean_nothing_are_passed_over_and_those_that_are_none_end_the_session() {
    let mut served = Served::start(EngineSettings::default()).await;
    for (packet, reason) in
        [("8", CloseReason::ParseError), ("", CloseReason::ParseError), ("2", CloseReason::TransportError)]
    {
        let mut client = served.open().await;
        for idle in ["0{}", "1", "3", "5", "6"] {
            client.say(idle).await;
        }
        client.say("4here").await;
        assert_eq!(client.text().await, "4here");
        client.say(packet).await;
        assert_eq!(client.code().await, None, "{packet}");
        assert_eq!(served.ended().await, reason);
    }
}

#[tokio::test]
async fn a_ping_of_the_websocket_is_answered_and_a_clients_close_is_returned_with_its_code() {
    let mut served = Served::start(EngineSettings::default()).await;
    let mut client = served.open().await;
    client.0.send(Message::Ping(b"there?".as_slice().into())).await.unwrap();
    assert_eq!(client.next().await, Message::Pong(b"there?".as_slice().into()));
    let close = CloseFrame { code: CloseCode::Away, reason: "tab closed".into() };
    client.0.close(Some(close)).await.unwrap();
    assert_eq!(client.code().await.unwrap().0, 1001);
    assert_eq!(served.ended().await, CloseReason::TransportClose);
    drop(served.open().await); // no Close at all
    assert_eq!(served.ended().await, CloseReason::TransportClose);
}

#[tokio::test]
async fn a_client_that_answers_its_pings_stays_and_one_that_does_not_is_closed() {
    let mut served = Served::start(quick()).await;
    let mut client = served.open().await;
    for _ in 0..3 {
        assert_eq!(client.text().await, "2");
        client.say("3").await;
    }
    assert_eq!(client.text().await, "2");
    assert_eq!(client.code().await, None);
    assert_eq!(served.ended().await, CloseReason::PingTimeout);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_and_counted_and_nobody_waits_for_it() {
    let mut served =
        Served::start(EngineSettings { queue_bytes: 64 * 1024, ..EngineSettings::default() }).await;
    let _deaf = served.open().await;
    let mut well = served.open().await;
    let (deaf, other) = (served.session().await, served.session().await);
    let frame = Frame::binary(&[0; 16 * 1024]);
    let flood = async {
        while served.server.stats().sessions == 2 {
            deaf.send(&frame);
            tokio::task::yield_now().await;
        }
    };
    soon(flood).await;
    assert_eq!(served.ended().await, CloseReason::SlowConsumer);
    other.send(&Frame::text("well"));
    assert_eq!(well.text().await, "4well");
    assert_eq!(served.server.stats().closed[CloseReason::SlowConsumer as usize], 1);
}

#[tokio::test]
async fn a_panic_in_the_layer_above_ends_that_session_alone() {
    let mut served = Served::start(EngineSettings::default()).await;
    let (mut one, mut two) = (served.open().await, served.open().await);
    one.say("4panic").await;
    assert_eq!(served.ended().await, CloseReason::TransportError);
    assert_eq!(served.server.stats().sessions, 1);
    two.say("4here").await;
    assert_eq!(two.text().await, "4here");
}

#[tokio::test]
async fn at_shutdown_every_client_hears_1012_and_no_new_one_is_let_in() {
    let mut served = Served::start(EngineSettings::default()).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(served.open().await);
    }
    let closing = async {
        for client in &mut clients {
            assert_eq!(client.code().await, Some((1012, "service restart".into())));
        }
    };
    tokio::join!(served.server.shutdown(Duration::from_millis(200)), closing);
    for _ in 0..5 {
        assert_eq!(served.ended().await, CloseReason::ShuttingDown);
    }
    let late = tokio_tungstenite::connect_async(format!(
        "ws://{}/socket.io/?EIO=4&transport=websocket",
        served.address
    ));
    let tokio_tungstenite::tungstenite::Error::Http(answer) = late.await.unwrap_err() else {
        panic!("an answer is expected")
    };
    assert_eq!(answer.status(), 503);
}

#[tokio::test]
async fn a_shutdown_is_over_as_soon_as_the_last_client_has_left() {
    let mut served = Served::start(EngineSettings::default()).await;
    let client = served.open().await;
    let server = served.server.clone();
    let leaving = async {
        drop(client);
        assert!([CloseReason::TransportClose, CloseReason::ShuttingDown].contains(&served.ended().await));
    };
    // An hour, of which the test could not wait for a part.
    soon(async { tokio::join!(server.shutdown(Duration::from_secs(3600)), leaving) }).await;
}
