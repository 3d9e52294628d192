//! Sessions that move from polling to a WebSocket; the first three tests are the recorded ones.

use std::time::Duration;

use futures_util::SinkExt as _;
use mainstay_node::engine_io::{CloseReason, EngineSettings, Frame};

use super::{Served, soon};

const WEBSOCKET: &str = "EIO=4&transport=websocket";

#[tokio::test]
async fn a_message_during_the_probe_goes_to_the_waiting_get_and_later_ones_to_the_websocket() {
    let mut served = Served::start(EngineSettings::default()).await;
    let (query, connection) = served.poll().await;
    let mut client = served.connect(&format!("{WEBSOCKET}&sid={}", connection.sid())).await;
    connection.send(&Frame::text("2[\"during\",\"upgrade\"]"));
    client.say("2probe").await;
    assert_eq!(client.text().await, "3probe");
    assert_eq!(served.ask("GET", &query, "").await.text(), "42[\"during\",\"upgrade\"]");
    connection.send(&Frame::text("2[\"after\",\"upgrade\"]"));
    client.say("5").await;
    assert_eq!(client.text().await, "42[\"after\",\"upgrade\"]");
    client.say("4via ws").await;
    assert_eq!(client.text().await, "4via ws");
    let refused = served.ask("GET", &query, "").await;
    assert_eq!((refused.status, refused.text().as_str()), (400, "{\"code\":3,\"message\":\"Bad request\"}"));
    let mut second = served.connect(&format!("{WEBSOCKET}&sid={}", connection.sid())).await;
    assert_eq!(second.code().await, None);
    let figures = served.server.stats();
    assert_eq!((figures.upgraded, figures.websockets, figures.sessions), (1, 1, 1));
    drop(client);
    assert_eq!(served.ended().await, CloseReason::TransportClose);
}

#[tokio::test]
async fn the_waiting_get_is_released_with_a_noop_once_the_probe_was_answered() {
    let mut served = Served::start(EngineSettings::default()).await;
    let (query, connection) = served.poll().await;
    let mut client = served.connect(&format!("{WEBSOCKET}&sid={}", connection.sid())).await;
    let probe = async {
        client.say("2probe").await;
        assert_eq!(client.text().await, "3probe");
    };
    let (answer, ()) = soon(async { tokio::join!(served.ask("GET", &query, ""), probe) }).await;
    assert_eq!(answer.text(), "6");
    client.say("5").await;
    client.say("4x").await;
    assert_eq!(client.text().await, "4x");
}

#[tokio::test]
async fn a_wrong_first_packet_closes_the_websocket_and_polling_goes_on() {
    let mut served = Served::start(EngineSettings::default()).await;
    let (query, connection) = served.poll().await;
    for wrong in ["42[\"x\"]", "5", "2"] {
        let mut client = served.connect(&format!("{WEBSOCKET}&sid={}", connection.sid())).await;
        client.say(wrong).await;
        assert_eq!(client.code().await, None, "{wrong}");
    }
    connection.send(&Frame::text("2[\"still\",\"polling\"]"));
    assert_eq!(served.ask("GET", &query, "").await.text(), "42[\"still\",\"polling\"]");
}

#[tokio::test]
async fn one_websocket_probes_at_a_time_and_one_that_is_abandoned_makes_way() {
    let settings =
        EngineSettings { upgrade_timeout: Duration::from_millis(200), ..EngineSettings::default() };
    let mut served = Served::start(settings).await;
    let (_, connection) = served.poll().await;
    let query = format!("{WEBSOCKET}&sid={}", connection.sid());
    let mut first = served.connect(&query).await;
    first.say("2probe").await;
    assert_eq!(first.text().await, "3probe");
    assert_eq!(served.connect(&query).await.code().await, None, "a second probe");
    assert_eq!(first.code().await, None, "upgrade_timeout");
    let mut third = served.connect(&query).await;
    third.say("2probe").await;
    assert_eq!(third.text().await, "3probe");
    third.say("5").await;
    third.say("4here").await;
    assert_eq!(third.text().await, "4here");
}

#[tokio::test]
async fn what_is_sent_right_behind_the_five_is_not_lost() {
    let mut served = Served::start(EngineSettings::default()).await;
    let (_, connection) = served.poll().await;
    let mut client = served.connect(&format!("{WEBSOCKET}&sid={}", connection.sid())).await;
    for text in ["2probe", "5", "4one", "4more"] {
        client.0.feed(tokio_tungstenite::tungstenite::Message::text(text)).await.unwrap();
    }
    client.0.flush().await.unwrap();
    assert_eq!([client.text().await, client.text().await, client.text().await], ["3probe", "4one", "4more"]);
}
