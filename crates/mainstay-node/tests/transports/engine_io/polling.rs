//! Sessions that poll: what a request may be, how sessions end, who is told.

use std::time::Duration;

use mainstay_node::engine_io::{CloseKind, CloseReason, EngineSettings, Frame, SessionBinding};

use super::{POLLING, Served, soon};

#[tokio::test]
async fn a_waiting_get_is_answered_with_what_is_sent_and_a_post_is_delivered_in_order() {
    let mut served = Served::start(EngineSettings::default()).await;
    let (query, connection) = served.poll().await;
    assert!(!connection.is_websocket() && !connection.is_ready());
    let waiting = served.ask("GET", &query, "");
    let send = async {
        while !connection.is_ready() {
            tokio::task::yield_now().await;
        }
        connection.send_all(&[Frame::text("a"), Frame::binary(&[1, 2, 3])]);
    };
    let (answer, ()) = soon(async { tokio::join!(waiting, send) }).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "4a\u{1e}bAQID"));
    assert_eq!(served.ask("POST", &query, "4x\u{1e}bAQ==\u{1e}4two").await.text(), "ok");
    assert_eq!(served.ask("GET", &query, "").await.text(), "4x\u{1e}bAQ==\u{1e}4a\u{1e}bAQ==");
}

#[tokio::test]
async fn a_client_that_leaves_its_get_ends_its_session() {
    let mut served = Served::start(EngineSettings::default()).await;
    let (query, connection) = served.poll().await;
    {
        let mut waiting = std::pin::pin!(served.ask("GET", &query, ""));
        let ready = async {
            while !connection.is_ready() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { _ = &mut waiting => panic!("nothing was sent"), () = soon(ready) => {} }
    }
    assert_eq!(served.ended().await, CloseReason::TransportError);
    assert!(served.ask("GET", &query, "").await.text().contains("Session ID unknown"));
}

#[tokio::test]
async fn each_end_of_a_polling_session_has_its_reason() {
    let mut served = Served::start(EngineSettings::default()).await;
    for (body, reason) in [
        ("1", CloseReason::TransportClose),
        ("x", CloseReason::ParseError),
        ("", CloseReason::ParseError),
        ("2", CloseReason::TransportError),
    ] {
        let (query, _) = served.poll().await;
        assert_eq!(served.ask("POST", &query, body).await.text(), "ok");
        assert_eq!(served.ended().await, reason, "{body}");
        assert_eq!(served.ask("POST", &query, "4late").await.status, 400);
    }
    assert_eq!(served.server.stats().sessions, 0);
}

#[tokio::test]
async fn a_session_that_was_closed_hears_it_with_its_next_get() {
    let mut served = Served::start(EngineSettings::default()).await;
    let (query, connection) = served.poll().await;
    connection.send(&Frame::text("last"));
    connection.close(CloseKind::Orderly);
    connection.send(&Frame::text("too late"));
    assert_eq!(served.ask("GET", &query, "").await.text(), "4last");
    assert_eq!(served.ask("GET", &query, "").await.text(), "6\u{1e}1");
    assert_eq!(served.ended().await, CloseReason::ForcedClose);
}

#[tokio::test]
async fn a_session_whose_client_never_comes_back_times_out() {
    let (ping_interval, ping_timeout) = (Duration::from_millis(50), Duration::from_millis(50));
    let mut served =
        Served::start(EngineSettings { ping_interval, ping_timeout, ..EngineSettings::default() }).await;
    let (query, _) = served.poll().await;
    assert_eq!(served.ended().await, CloseReason::PingTimeout);
    assert_eq!(served.ask("GET", &query, "").await.status, 400);
}

#[tokio::test]
async fn a_polling_client_that_does_not_fetch_is_cut() {
    let mut served = Served::start(EngineSettings { queue_packets: 3, ..EngineSettings::default() }).await;
    let (_, connection) = served.poll().await;
    for _ in 0..4 {
        connection.send(&Frame::text("x"));
    }
    assert_eq!(served.ended().await, CloseReason::SlowConsumer);
}

#[tokio::test]
async fn a_full_server_and_one_that_ends_let_nobody_in() {
    let mut served = Served::start(EngineSettings { sessions: 1, ..EngineSettings::default() }).await;
    let (query, _) = served.poll().await;
    let answer = served.ask("GET", POLLING, "").await;
    assert_eq!((answer.status, answer.text().as_str()), (503, "Server at capacity"));
    soon(served.server.shutdown(Duration::ZERO)).await;
    assert_eq!(served.ended().await, CloseReason::ShuttingDown);
    assert_eq!(served.ask("GET", &query, "").await.status, 400);
    assert_eq!(served.ask("GET", POLLING, "").await.status, 503);
}

/// A session that was opened with these headers: the query of its later requests.
async fn opened_with(served: &mut Served, query: &str, headers: &[(&str, &str)]) -> String {
    let answer = served.ask_with("GET", query, headers, b"").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    format!("{query}&sid={}", served.session().await.sid())
}

#[tokio::test]
async fn a_polling_session_is_refused_to_other_credentials_and_lives_on() {
    let cookie = SessionBinding { cookie: Some("who".into()), address: false };
    let mut served = Served::start(EngineSettings { binding: cookie, ..EngineSettings::default() }).await;
    let own = [("authorization", "Bearer a"), ("cookie", "x=1; who=a")];
    let query = opened_with(&mut served, &format!("{POLLING}&token=t"), &own).await;
    assert_eq!(served.ask_with("POST", &query, &own, b"4x").await.text(), "ok");
    let others: [&[(&str, &str)]; 5] = [
        &[],
        &[own[1]],
        &[own[0]],
        &[("authorization", "Bearer b"), own[1]],
        &[own[0], ("cookie", "x=1; who=b")],
    ];
    for method in ["GET", "POST"] {
        for other in others {
            let refused = served.ask_with(method, &query, other, b"41").await;
            assert_eq!(refused.status, 403, "{method} {other:?}: {}", refused.text());
        }
        let otherwise = query.replace("token=t", "token=u");
        assert_eq!(served.ask_with(method, &otherwise, &own, b"41").await.status, 403);
    }
    // Another cookie of the client's is nobody's business.
    let own = [own[0], ("cookie", "x=2; who=a; balancer=1")];
    assert_eq!(served.ask_with("GET", &query, &own, b"").await.text(), "4x");
    let upgrade = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
    let key = ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
    let query = query.replace("polling", "websocket");
    for shown in [("cookie", "who=b"), ("cookie", "a=1")] {
        let request = [&upgrade[..], &[key, shown]].concat();
        assert_eq!(served.ask_with("GET", &query, &request, b"").await.status, 400, "{shown:?}");
    }
}

#[tokio::test]
async fn a_websocket_that_takes_a_session_over_need_not_show_its_authorization() {
    let mut served = Served::start(EngineSettings::default()).await;
    let own = [("authorization", "Bearer a")];
    let query = opened_with(&mut served, POLLING, &own).await;
    assert_eq!(served.ask_with("POST", &query, &own, b"4x").await.text(), "ok");
    let mut client = served.connect(&query.replace("polling", "websocket")).await;
    client.say("2probe").await;
    assert_eq!(client.text().await, "3probe");
    client.say("5").await;
    assert_eq!(client.text().await, "4x");
}

#[tokio::test]
async fn a_client_that_shows_its_credentials_with_the_handshake_alone_goes_on() {
    let mut served = Served::start(EngineSettings::default()).await;
    let own = [("authorization", "Bearer a")];
    let query = opened_with(&mut served, POLLING, &own).await;
    assert_eq!(served.ask("POST", &query, "4x").await.text(), "ok");
    assert_eq!(served.ask("GET", &query, "").await.text(), "4x");
    let other = [("authorization", "Bearer b")];
    assert_eq!(served.ask_with("GET", &query, &other, b"").await.status, 403);
}
