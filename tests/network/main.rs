//! What breaks in a network, with real processes on hosts of a kernel's namespaces: what clients see, and what the
//! counters say. Needs root, `ip`, `nft`, `node` and `redis-server`; without root or namespaces each test says so and
//! passes.

mod fleet;
mod net;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use fleet::{Balancer, Client, End, Process, echo, get, node, redis};
use net::{Host, Net};

/// Two echoing nodes, a balancer, and clients. The cables go from the balancer to each.
struct Town {
    balancer: Balancer,
    _nodes: [Process; 2],
    hosts: [Host; 2],
    clients: Host,
    middle: Host,
    /// The balancer, as the clients know it.
    at: Ipv4Addr,
    net: Net,
}

impl Town {
    /// `pool` is more keys of the pool. `None` where there can be no network.
    fn new(pool: &str) -> Option<Self> {
        let net = Net::new()?;
        let (middle, clients) = (net.host("lb"), net.host("clients"));
        let hosts = [net.host("n1"), net.host("n2")];
        let [at, _] = net.cable(&middle, &clients);
        let [one, two] = hosts.each_ref().map(|host| net.cable(&middle, host)[1]);
        let nodes = hosts.each_ref().map(echo);
        let balancer = Balancer::start(&middle, &[("n1", one), ("n2", two)], pool);
        Some(Self { balancer, _nodes: nodes, hosts, clients, middle, at, net })
    }

    /// A client that is pinned to a node.
    fn client(&self, node: &str) -> Client {
        Client::open(&self.clients, self.at, node, "/").unwrap()
    }

    fn on(&self, node: &str) -> f64 {
        self.balancer.metric("mainstay_websocket_connections", &[&format!("node=\"{node}\"")])
    }
}

#[test]
fn a_partitioned_node_gets_nobody_new_and_keeps_its_tunnels_until_it_is_back() {
    let Some(mut town) = Town::new("") else { return };
    let (mut cut_off, mut honest) = (town.client("n1"), town.client("n2"));
    cut_off.echoes("before");
    honest.echoes("before");
    let began = Instant::now();
    town.middle.fault(&town.hosts[0], "drop");
    // The probes have not seen it yet: the dial finds that nobody answers, and the next node is tried.
    let mut early = town.client("n1");
    early.echoes("early");
    town.balancer.process.line(&["node state changed", "n1", "down"]);
    assert!(began.elapsed() < Duration::from_secs(10), "found after {:?}", began.elapsed());
    let dialed = Instant::now();
    let mut late = town.client("n1");
    assert!(dialed.elapsed() < Duration::from_secs(2), "nobody waits for a node that is known to be away");
    late.echoes("late");
    honest.echoes("during");
    assert_eq!((town.on("n1"), town.on("n2")), (1.0, 3.0), "the tunnel of the lost node is still there");
    // What is said meanwhile is on its way, as TCP has it.
    cut_off.say("through the wall");
    town.middle.heal();
    assert_eq!(cut_off.hear(""), "through the wall");
    town.balancer.process.line(&["node state changed", "n1", "up"]);
    let mut back = town.client("n1");
    back.echoes("back");
    assert_eq!((town.on("n1"), town.on("n2")), (2.0, 3.0));
    [cut_off, honest, early, late, back].into_iter().for_each(Client::leave);
    town.balancer.adds_up(5.0);
}

#[test]
fn clients_that_vanish_are_found_by_ping_and_no_others() {
    let Some(town) = Town::new("messages: { ping: 1s }") else { return };
    let elsewhere = town.net.host("elsewhere");
    let [at, _] = town.net.cable(&town.middle, &elsewhere);
    let mut honest = Client::open(&elsewhere, at, "n1", "/").unwrap();
    let mut vanished: Vec<Client> =
        ["n1", "n2"].iter().cycle().take(6).map(|node| town.client(node)).collect();
    vanished.iter_mut().for_each(|client| client.echoes("here"));
    let began = Instant::now();
    town.middle.fault(&town.clients, "drop");
    town.balancer.until(("mainstay_websocket_connections", &[]), 1.0, || honest.echoes("still here"));
    assert!(began.elapsed() < Duration::from_secs(20), "found after {:?}", began.elapsed());
    town.middle.heal();
    // The balancer has let go of them: whatever their kernels still have, they end.
    for mut client in vanished {
        client.end();
    }
    honest.echoes("to the end");
    honest.leave();
    town.balancer.adds_up(7.0);
    let closed = town.balancer.metric("mainstay_closes_total", &["side=\"client\"", "code=\"1006\""]);
    assert_eq!(closed, 6.0, "{}", town.balancer.closes());
}

#[test]
fn a_storm_of_resets_from_one_node_ends_its_tunnels_and_no_others() {
    const STRUCK: usize = 30;
    let Some(mut town) = Town::new("") else { return };
    let mut struck: Vec<Client> = (0..STRUCK).map(|_| town.client("n1")).collect();
    let mut honest: Vec<Client> = (0..5).map(|_| town.client("n2")).collect();
    struck.iter_mut().chain(&mut honest).for_each(|client| client.echoes("before"));
    town.hosts[0].fault(&town.middle, "tcp dport 3001 reject with tcp reset");
    for client in &mut struck {
        client.say("into the storm");
    }
    // A reset is passed on as a reset: there is no Close that the node has not sent.
    assert!(struck.iter_mut().all(|client| client.end() == End::Broken));
    honest.iter_mut().for_each(|client| client.echoes("during"));
    let mut moved: Vec<Client> = (0..STRUCK).map(|_| town.client("n1")).collect();
    moved.iter_mut().for_each(|client| client.echoes("moved"));
    assert_eq!((town.on("n1"), town.on("n2")), (0.0, 35.0), "they find the other node");
    let node = ["node=\"n1\"", "side=\"node\"", "code=\"1006\""];
    assert_eq!(town.balancer.metric("mainstay_closes_total", &node), STRUCK as f64);
    town.balancer.process.line(&["node state changed", "n1", "down"]);
    town.hosts[0].heal();
    town.balancer.process.line(&["node state changed", "n1", "up"]);
    // Back means serving: what was thought of it during the storm is forgotten.
    let mut back = town.client("n1");
    back.echoes("back");
    assert_eq!(town.on("n1"), 1.0);
    let opened = STRUCK + honest.len() + moved.len() + 1;
    honest.into_iter().chain(moved).chain([back]).for_each(Client::leave);
    town.balancer.adds_up(opened as f64);
}

#[test]
fn a_nat_that_forgets_costs_only_the_flows_that_it_forgot() {
    let Some(town) = Town::new("messages: { ping: 1s }") else { return };
    let mut old: Vec<Client> = (0..4).map(|_| town.client("n1")).collect();
    old.iter_mut().for_each(|client| client.echoes("before"));
    let ports: Vec<String> = old.iter().map(|client| client.port().to_string()).collect();
    let ports = ports.join(", ");
    town.clients.fault(&town.middle, &format!("tcp sport {{ {ports} }} drop; tcp dport {{ {ports} }} drop"));
    // A new flow passes at once, and lives on.
    let mut new = town.client("n1");
    let began = Instant::now();
    town.balancer.until(("mainstay_websocket_connections", &[]), 1.0, || new.echoes("new"));
    assert!(began.elapsed() < Duration::from_secs(20), "found after {:?}", began.elapsed());
    new.leave();
    town.balancer.adds_up(5.0);
    let silent = ["side=\"client\"", "code=\"1006\""];
    assert_eq!(town.balancer.metric("mainstay_closes_total", &silent), 4.0, "{}", town.balancer.closes());
}

#[test]
fn loss_and_delay_cost_time_and_neither_a_message_nor_a_tunnel() {
    let Some(town) = Town::new("") else { return };
    let mut clients = ["n1", "n2"].map(|node| town.client(node));
    if !town.middle.shapes(&town.hosts[0], &["netem", "delay", "20ms", "10ms"]) {
        eprintln!("without delay: this kernel has no sch_netem");
    }
    for peer in [&town.hosts[0], &town.clients] {
        // One table at a time: the loss is on the way to the node at one end, on that to the client at the other.
        let (here, there) =
            if peer == &town.clients { (&town.clients, &town.middle) } else { (&town.middle, peer) };
        here.fault(there, "numgen random mod 100 < 5 drop");
    }
    for round in 0..100 {
        for client in &mut clients {
            client.echoes(&format!("round {round}"));
        }
    }
    // Many at once, in their order.
    for client in &mut clients {
        (0..200).for_each(|number| client.say(&format!("many {number}")));
        (0..200).for_each(|number| assert_eq!(client.hear(""), format!("many {number}")));
    }
    assert_eq!(town.balancer.metric("mainstay_closes_total", &[]), 0.0);
    town.middle.heal();
    town.clients.heal();
    clients.into_iter().for_each(Client::leave);
    town.balancer.adds_up(2.0);
}

#[test]
fn a_node_without_redis_says_so_and_comes_back_with_every_subscription() {
    let Some(net) = Net::new() else { return };
    let [middle, clients, store] = ["lb", "clients", "redis"].map(|name| net.host(name));
    let hosts = ["n1", "n2"].map(|name| net.host(name));
    let [at, _] = net.cable(&middle, &clients);
    let served = hosts.each_ref().map(|host| net.cable(&middle, host)[1]);
    let stores = hosts.each_ref().map(|host| net.cable(host, &store)[1]);
    let _redis = redis(&store);
    let _nodes = [node(&hosts[0], "n1", stores[0]), node(&hosts[1], "n2", stores[1])];
    let balancer = Balancer::start(&middle, &[("n1", served[0]), ("n2", served[1])], "");
    let enter = |node: &str| {
        let path = "/socket.io/?EIO=4&transport=websocket";
        let mut client = Client::open(&clients, at, node, path).unwrap();
        client.say("40");
        client.hear("40{");
        client.say(r#"421["join",{"room":"r"}]"#);
        client.hear("431[");
        client
    };
    let publish = |client: &mut Client, word: &str| {
        client.say(&format!(r#"42["publish",{{"room":"r","data":"{word}"}}]"#))
    };
    let [mut one, mut beside, mut two] = ["n1", "n1", "n2"].map(enter);
    publish(&mut one, "before");
    beside.hear("before");
    two.hear("before");
    let health = || get(&middle, (served[0], 3001).into(), "/health");
    assert!(health().contains(r#""status":"ok""#), "{}", health());

    hosts[0].fault(&store, "drop");
    until("Redis is away", || health().contains(r#""state":"away""#));
    assert!(health().contains(r#""status":"degraded""#), "{}", health());
    // Its own clients go on, and so does the other node.
    publish(&mut one, "within");
    beside.hear("within");
    assert!(get(&middle, (served[1], 3001).into(), "/health").contains(r#""status":"ok""#));

    hosts[0].heal();
    until("Redis is back", || health().contains(r#""status":"ok""#));
    publish(&mut two, "inwards");
    one.hear("inwards");
    beside.hear("inwards");
    publish(&mut one, "outwards");
    two.hear("outwards");
    beside.hear("outwards");
    publish(&mut two, "last");
    one.hear("last");
    assert_eq!((one.count("inwards"), two.count("outwards")), (1, 1), "each message is heard once");
    [one, beside, two].into_iter().for_each(Client::leave);
    balancer.adds_up(3.0);
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + fleet::DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within {:?}", fleet::DEADLINE);
    }
}
