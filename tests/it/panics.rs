//! A panic in one session, and what goes on beside it.
//!
//! No code of the balancer is known to panic, so the test takes the nodes of one pool out from under it.

use std::sync::Arc;

use mainstay::config::Config;
use mainstay::log::AccessLog;
use mainstay::metrics::Metrics;
use mainstay::net::listener::Listener;
use mainstay::proxy::acceptor::Acceptor;
use mainstay::proxy::{ProxyContext, ProxyState, connection};
use mainstay::relay::{CloseObserver, Relay};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::harness::{
    RawStream, SWITCHING_PROTOCOLS, UPGRADE_REQUEST, accept_request, client_frame, node_frame, resolve, soon,
};

/// A front desk whose pool `broken` panics at each session, with room for five connections.
struct Desk {
    front: Arc<ProxyContext>,
    address: String,
    node: TcpListener,
    _accepting: JoinSet<()>,
}

impl Desk {
    async fn set() -> Self {
        let node = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nodes =
            format!("nodes: [{{ id: ws1, address: \"{}\" }}], health: null", node.local_addr().unwrap());
        let config = resolve(&format!(
            "listeners: [{{ address: \"127.0.0.1:0\" }}]\naccess_log: {{ format: off }}\nlimits: {{ connections: 5 }}\n\
             pools: {{ chat: {{ {nodes} }}, broken: {{ {nodes} }} }}\n\
             routes: [{{ path: /broken/, pool: broken }}, {{ pool: chat }}]\n"
        ));
        let front = Arc::new(front(&config));
        let listener = Listener::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_address();
        let entrance = Arc::new(Acceptor::new(&config.listeners[0]).unwrap());
        let mut accepting = JoinSet::new();
        accepting.spawn(connection::serve_listener(Arc::clone(&front), listener, entrance));
        Self { front, address, node, _accepting: accepting }
    }

    async fn client(&self) -> RawStream {
        RawStream(soon(TcpStream::connect(&self.address)).await.unwrap())
    }

    fn counts(&self, line: &str) -> bool {
        self.front.metrics.render().lines().any(|counted| counted == line)
    }
}

fn front(config: &Config) -> ProxyContext {
    let metrics = Metrics::new(1);
    let observer: CloseObserver = Arc::new(|_, _| {});
    let access = Arc::new(AccessLog::disabled(metrics.access_log_dropped()));
    let mut state = ProxyState::new(config, &metrics);
    let broken = state.pools.get_mut("broken").and_then(Arc::get_mut).unwrap();
    broken.upstreams.clear();
    ProxyContext::new(state, Relay::start(1, &observer).unwrap(), metrics, access, 7)
}

#[tokio::test]
async fn a_panic_in_one_session_ends_that_session_alone() {
    let desk = Desk::set().await;
    let mut client = desk.client().await;
    client.send(UPGRADE_REQUEST).await;
    let mut node = accept_request(&desk.node).await;
    node.send(SWITCHING_PROTOCOLS).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 101 "));
    // More than there are places: each gives its own back.
    for round in 0..12 {
        let mut broken = desk.client().await;
        let request = if round % 2 == 0 {
            UPGRADE_REQUEST.replace("/chat", "/broken/")
        } else {
            "GET /broken/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()
        };
        broken.send(request).await;
        let answer = String::from_utf8(broken.read_to_end().await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.ends_with("the balancer failed at this request\n"), "{answer}");
        drop(broken);
        client.send(client_frame(1, b"still here")).await;
        node.expect(&client_frame(1, b"still here")).await;
    }
    for line in [
        "mainstay_panics_total{part=\"front_desk\"} 12",
        "mainstay_panics_total{part=\"relay\"} 0",
        "mainstay_handshakes_total{pool=\"broken\",result=\"failed\"} 6",
        "mainstay_handshakes_total{pool=\"broken\",result=\"upgraded\"} 0",
        "mainstay_requests_total{pool=\"broken\",status=\"5xx\"} 6",
        "mainstay_websocket_connections{pool=\"chat\",node=\"ws1\"} 1",
    ] {
        assert!(desk.counts(line), "{line} in\n{}", desk.front.metrics.render());
    }
    node.send(node_frame(1, b"and here")).await;
    client.expect(&node_frame(1, b"and here")).await;
    desk.front.shutdown.stop();
}
