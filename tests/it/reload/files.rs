//! What a reload reads, binds and opens; and that nothing has changed when any of it cannot be done.

use std::path::Path;

use mainstay::app::App;
use tokio::net::TcpStream;

use super::{Fleet, REST, Rest, bound, client, config, tunnel};
use crate::harness::{RawStream, SWITCHING_PROTOCOLS, accept_request, assert_relays, resolve, soon};

#[tokio::test]
async fn listeners_come_and_go_and_a_tunnel_outlives_the_one_it_came_by() {
    let fleet = Fleet::set(&REST).await;
    let mut tunnel = fleet.tunnel("one").await;
    let before = fleet.app.listeners();
    let both = "127.0.0.1:0\" }, { address: \"127.0.0.78:0";
    let changes = fleet.reload(&config(&fleet.both(), &Rest { listeners: both, ..REST })).await;
    assert_eq!(changes, ["listener 127.0.0.78:0 added (listening)"]);
    let during = fleet.app.listeners();
    assert_eq!((&during[..1], during.len()), (&before[..], 2), "the first is the same socket");
    let changes = fleet.reload(&config(&fleet.both(), &Rest { listeners: "127.0.0.78:0", ..REST })).await;
    assert_eq!(changes, ["listener 127.0.0.1:0 removed"]);
    assert_eq!(fleet.app.listeners(), during[1..]);
    assert!(soon(TcpStream::connect(&before[0])).await.is_err());
    assert_relays(&mut tunnel).await;
    fleet.tunnel("two").await;
    fleet.app.stop().await;
}

#[tokio::test]
async fn the_admin_api_moves_and_the_one_who_asked_still_gets_the_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("balancer.yaml");
    let node = bound().await;
    let text = |admin: &str| {
        config(&[("one", &node)], &Rest { top: &format!("admin: {{ address: \"{admin}\" }}"), ..REST })
    };
    std::fs::write(&path, text("127.0.0.1:0")).unwrap();
    let app = started(&path).await;
    let old = app.admin().unwrap();
    let mut admin = RawStream(soon(TcpStream::connect(&old)).await.unwrap());
    std::fs::write(&path, text("127.0.0.78:0")).unwrap();
    admin
        .send(
            "POST /api/reload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        )
        .await;
    let answer = String::from_utf8(admin.read_to_end().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // The watcher of the file may have been faster.
    let change = "admin: address is 127.0.0.78:0 now, was 127.0.0.1:0";
    assert!(answer.contains(change) || answer.contains("\"changes\":[]"), "{answer}");
    assert!(soon(TcpStream::connect(&old)).await.is_err());
    assert!(app.admin().unwrap().starts_with("127.0.0.78:"));
    assert!(soon(TcpStream::connect(app.admin().unwrap())).await.is_ok());
    app.stop().await;
}

async fn started(path: &Path) -> App {
    let config = mainstay::control::load::load(path).unwrap();
    soon(App::start_from(path, &config)).await.unwrap()
}

#[tokio::test]
async fn i8_a_reload_with_any_fault_changes_nothing_and_says_all_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("balancer.yaml");
    let (node, taken) = (bound().await, bound().await);
    let good = config(&[("one", &node)], &REST);
    std::fs::write(&path, &good).unwrap();
    let app = started(&path).await;
    let mut tunnel = tunnel(&app, "one", &node).await;
    let listeners = app.listeners();
    let (config_before, in_use) = (app.reload().config(), taken.local_addr().unwrap().to_string());

    // What reading sees.
    std::fs::write(&path, good.replace("over: 0s", "over: 0").replace("drain: 1s", "drian: 1s")).unwrap();
    let faults = soon(app.reload().reload_from_file()).await.unwrap_err().to_string();
    assert_eq!(faults.lines().count(), 2, "{faults}");
    assert!(faults.lines().all(|line| line.starts_with(path.to_str().unwrap())), "{faults}");

    // What only trying sees: everything else in the file would have been fine.
    let both = format!("127.0.0.1:0\" }}, {{ address: \"{in_use}");
    let text = config(&[("two", &node)], &Rest { listeners: &both, ..REST });
    std::fs::write(&path, text).unwrap();
    let faults = soon(app.reload().reload_from_file()).await.unwrap_err().to_string();
    assert!(faults.contains(&format!("balancer.yaml:1:52: cannot listen on {in_use}: ")), "{faults}");

    let log = format!("access_log: {{ path: \"{}\" }}", directory.path().display());
    std::fs::write(&path, good.replace("access_log: { format: off }", &log)).unwrap();
    let faults = soon(app.reload().reload_from_file()).await.unwrap_err().to_string();
    assert!(faults.contains("access_log: cannot be opened: "), "{faults}");

    std::fs::remove_file(&path).unwrap();
    let faults = soon(app.reload().reload_from_file()).await.unwrap_err().to_string();
    assert!(faults.contains("the config cannot be read: No such file"), "{faults}");

    assert_eq!(*app.reload().config(), *config_before);
    assert_eq!(app.listeners(), listeners);
    assert_eq!(app.reload().front().state.load().generation, 1);
    assert_relays(&mut tunnel).await;
    app.stop().await;
}

#[tokio::test]
async fn a_listener_that_the_running_one_is_in_the_way_of_is_refused_with_the_remedy() {
    let fleet = Fleet::set(&Rest { listeners: "0.0.0.0:0", ..REST }).await;
    let port = fleet.app.listeners()[0].rsplit_once(':').unwrap().1.to_owned();
    let wide = format!("0.0.0.0:{port}");
    // A config that names the port, as an operator's does.
    fleet.app.stop().await;
    let (one, two) = (bound().await, bound().await);
    let nodes = [("one", &one), ("two", &two)];
    let running = resolve(&config(&nodes, &Rest { listeners: &wide, ..REST }));
    let app = soon(App::start(&running)).await.unwrap();
    let narrow = config(&nodes, &Rest { listeners: &format!("127.0.0.1:{port}"), ..REST });
    let faults = soon(app.reload().apply(resolve(&narrow))).await.unwrap_err().to_string();
    let remedy = format!(
        "the balancer itself listens on {wide}: take that out, reload, and then add 127.0.0.1:{port}"
    );
    assert!(faults.contains(&remedy), "{faults}");
    app.stop().await;
}

#[tokio::test]
async fn a_secret_that_is_replaced_in_its_file_counts_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (path, secret) = (directory.path().join("balancer.yaml"), directory.path().join("secret"));
    let node = bound().await;
    let text = config(&[("one", &node)], &REST)
        .replace("cookie: { name: io, set_by: node }", "cookie: { name: pin, secret_file: secret }");
    std::fs::write(&path, text).unwrap();
    std::fs::write(&secret, format!("k1:{}=\n", "A".repeat(43))).unwrap();
    let app = started(&path).await;
    let signed_by = |head: &str, key: &str| head.contains(&format!(".{key}."));
    let mut first = client(&app, "x").await;
    accept_request(&node).await.send(SWITCHING_PROTOCOLS).await;
    let before = first.read_head().await;
    assert!(signed_by(&before, "k1"), "{before}");
    std::fs::write(&secret, format!("k2:{}=\n", "E".repeat(43))).unwrap();
    let changes = soon(app.reload().reload_from_file()).await.unwrap();
    let said: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["pool chat: keys of cookie pin replaced"]);
    let mut second = client(&app, "x").await;
    accept_request(&node).await.send(SWITCHING_PROTOCOLS).await;
    let after = second.read_head().await;
    assert!(signed_by(&after, "k2") && !signed_by(&after, "k1"), "{after}");
    app.stop().await;
}

#[tokio::test]
async fn the_access_log_changes_its_file_and_loses_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("first"), directory.path().join("second"));
    let fleet = Fleet::set(&REST).await;
    let with = |path: &Path| {
        let log = format!("access_log: {{ format: json, path: \"{}\" }}", path.display());
        config(&fleet.both(), &REST).replace("access_log: { format: off }", &log)
    };
    fleet.reload(&with(&first)).await;
    let (client, node) = fleet.tunnel("one").await;
    fleet.reload(&with(&second)).await;
    drop((client, node));
    fleet.app.stop().await;
    let [before, after] = [first, second].map(|path| std::fs::read_to_string(path).unwrap());
    // What the writer has not come to yet may be written to either.
    assert_eq!(format!("{before}{after}").lines().count(), 2, "{before}{after}");
    assert!(after.contains("\"close\""), "{before}{after}");
}
