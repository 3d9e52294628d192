//! Who may use the admin API, and what bad input gets.

use tokio::net::TcpStream;

use crate::admin::{app_in, asks, config_with, gets, raw};
use crate::harness::{Harness, RawStream, soon};

#[tokio::test]
async fn a_token_is_needed_where_the_config_names_some_and_can_be_rotated() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("admin.token");
    std::fs::write(&token, "the-first-token-0123\n").unwrap();
    let admin = "{ address: \"0.0.0.0:0\", token_file: admin.token }";
    let app = app_in(directory.path(), &config_with(admin, "{ id: ws1, address: \"127.0.0.1:1\" }")).await;
    let (first, second) =
        ("Authorization: Bearer the-first-token-0123\r\n", "Authorization: Bearer the-second-token-012\r\n");
    for path in ["/", "/metrics", "/api/status", "/api/config", "/api/sessions", "/api/reload", "/nothing"] {
        for (shown, method) in [("", "GET"), (second, "GET"), ("Authorization: Basic YTpi\r\n", "POST")] {
            let answer = asks(&app, method, path, shown).await;
            assert_eq!(answer.status, 401, "{method} {path} {shown}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"mainstay\""));
            assert!(answer.error().contains("a token is needed"));
        }
    }
    for path in ["/healthz", "/readyz"] {
        let request = format!("HEAD {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(raw(&app, request).await.status, 200, "{path}");
    }
    assert_eq!(asks(&app, "GET", "/api/status", first).await.status, 200);

    std::fs::write(&token, "the-second-token-012\nthe-first-token-0123\n").unwrap();
    assert_eq!(asks(&app, "POST", "/api/reload", first).await.status, 200);
    assert_eq!(asks(&app, "GET", "/api/status", second).await.status, 200);
    std::fs::write(&token, "the-second-token-012\n").unwrap();
    assert_eq!(asks(&app, "POST", "/api/reload", second).await.status, 200);
    assert_eq!(asks(&app, "GET", "/api/status", first).await.status, 401);
    app.stop().await;
}

#[tokio::test]
async fn a_reload_that_moves_the_admin_address_is_answered_and_the_old_one_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let node = "{ id: ws1, address: \"127.0.0.1:1\" }";
    let app = app_in(directory.path(), &config_with("{ address: \"127.0.0.1:0\" }", node)).await;
    let old = app.admin().unwrap();
    let mut kept = RawStream(soon(TcpStream::connect(&old)).await.unwrap());
    kept.send("HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    kept.read_head().await;
    let moved = config_with("{ address: \"127.0.0.2:0\" }", node);
    std::fs::write(directory.path().join("balancer.yaml"), moved).unwrap();
    // The watch of the file may be faster than this request, which then finds nothing changed, or nobody there.
    if let Ok(stream) = soon(TcpStream::connect(&old)).await {
        let mut asking = RawStream(stream);
        asking.send("POST /api/reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        let answer = String::from_utf8_lossy(&asking.read_to_end().await).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    assert_eq!(kept.read_to_end().await, b"");
    assert!(app.admin().unwrap().starts_with("127.0.0.2:"));
    gets(&app, "/api/status").await;
    assert!(soon(TcpStream::connect(&old)).await.is_err());
    app.stop().await;
}

#[tokio::test]
async fn each_path_has_its_methods_and_what_is_not_built_is_not_there() {
    let harness = Harness::start("").await;
    for (path, allowed) in [
        ("/api/status", "GET, HEAD"),
        ("/api/config", "GET, HEAD"),
        ("/api/sessions", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
        ("/api/sessions/0000000000000000", "DELETE"),
        ("/api/reload", "POST"),
        ("/api/pools/chat/nodes/ws1/drain", "POST"),
        ("/api/pools/chat/nodes/ws1/undrain", "POST"),
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            if allowed.split(", ").any(|allowed| allowed == method) {
                continue;
            }
            let answer = asks(&harness.app, method, path, "").await;
            assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{method} {path}");
        }
    }
    for path in [
        "/api",
        "/api/",
        "/api/status/",
        "/API/status",
        "/api/../api/status",
        "/api/%73tatus",
        "//api/status",
        "/api/pools/chat/nodes/ws1",
        "/api/pools/chat/nodes/ws1/kill",
        "/api/pools/chat/rebalance/",
        "/../../etc/passwd",
        "/api/sessions%00",
    ] {
        for method in ["GET", "POST"] {
            let answer = asks(&harness.app, method, path, "").await;
            assert_eq!((answer.status, answer.error().is_empty()), (404, false), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn bad_input_gets_its_status_as_json_and_the_server_goes_on() {
    let harness = Harness::start("").await;
    let head = "POST /api/reload HTTP/1.1\r\nHost: localhost\r\n";
    let big = "x".repeat((16 << 10) + 1);
    let mut cases: Vec<(Vec<u8>, u16)> = [
        (format!("{head}Content-Length: {}\r\n\r\n{big}", big.len()), 413),
        (format!("{head}Content-Length: 99999999999\r\n\r\n"), 413),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\n4001\r\n{big}\r\n0\r\n\r\n"), 413),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n"), 400),
        (format!("{head}Connection: close\r\nContent-Length: 9\r\n\r\nnot json!"), 400),
        (format!("{head}Connection: close\r\nContent-Length: 2\r\n\r\n[]"), 400),
        (format!("{head}Connection: close\r\nContent-Length: 11\r\n\r\n{{\"over\": 1}}"), 400),
        (format!("{head}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
        (format!("GET /api/status HTTP/1.1\r\nHost: localhost\r\nX: {big}\r\n\r\n"), 431),
        (format!("GET /api/status HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(1000)), 431),
        ("GET /api/status HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n".into(), 400),
        ("GET /api/status HTTP/1.1\r\n\r\n".into(), 400),
        ("GET /api/status\r\n\r\n".into(), 400),
    ]
    .map(|(text, status)| (text.into_bytes(), status))
    .into();
    cases.push((b"GET /api/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), 400));
    cases.push((b"GET /api/status HTTP/1.1\r\nHost: \xff\r\nConnection: close\r\n\r\n".to_vec(), 400));
    cases.push((b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n".to_vec(), 400));
    for (request, status) in cases {
        let answer = raw(&harness.app, &request).await;
        let shown = String::from_utf8_lossy(&request[..request.len().min(120)]).into_owned();
        assert_eq!((answer.status, answer.error().is_empty()), (status, false), "{shown}");
    }
    let one_nothing = format!("{head}Connection: close\r\nContent-Length: 2\r\n\r\n{{}}");
    assert_ne!(raw(&harness.app, one_nothing).await.status, 400, "an empty object is no body");
    gets(&harness.app, "/api/status").await;
}

#[tokio::test]
async fn no_web_page_can_read_or_change_anything() {
    let harness = Harness::start("").await;
    let name = "GET /api/status HTTP/1.1\r\nHost: rebound.example:9090\r\nConnection: close\r\n\r\n";
    let answer = raw(&harness.app, name).await;
    assert_eq!(answer.status, 403);
    assert!(answer.error().contains("localhost"), "{}", answer.error());
    for header in ["Origin: http://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"] {
        for (method, path) in [("POST", "/api/reload"), ("DELETE", "/api/sessions/0000000000000000")] {
            assert_eq!(asks(&harness.app, method, path, header).await.status, 403, "{method} {header}");
        }
    }
    let own =
        asks(&harness.app, "DELETE", "/api/sessions/0000000000000000", "Origin: http://localhost\r\n").await;
    assert_eq!(own.status, 404);
    for (method, path) in
        [("GET", "/api/status"), ("OPTIONS", "/api/status"), ("GET", "/x"), ("GET", "/api/config")]
    {
        let answer = asks(&harness.app, method, path, "Origin: http://evil.example\r\n").await;
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{method} {path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{method} {path}");
        assert!(!answer.head.to_lowercase().contains("access-control-"), "{}", answer.head);
    }
}

#[tokio::test]
async fn many_silent_connections_do_not_keep_an_operator_out() {
    let harness = Harness::start("").await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(soon(TcpStream::connect(harness.app.admin().unwrap())).await.unwrap());
    }
    assert_eq!(gets(&harness.app, "/api/status").await["phase"], "serving");
}
