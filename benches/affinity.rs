//! What it costs to say where a client goes: nanoseconds per pick among 64 nodes, and per cookie.
//!
//! `cargo bench --bench affinity`. Each figure is the median of several rounds, with the lowest and the highest
//! beside it; `-- WORDS` measures only what has these words in its name. The loads are atomics, as the balancer keeps them, all nodes are up, and every pick is for
//! another client.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::COOKIE;

use mainstay::affinity::cookie::{CookiePolicy, KeyRing, SameSite, SecureAttribute};
use mainstay::affinity::{
    AffinityHints, AffinityRequest, AffinitySource, NodeDirectory, collect_hints, hash,
};
use mainstay::pool::select::{BalancePolicy, NodeLoad, SelectRequest, select_candidates};
use mainstay::pool::{Node, NodeSet, NodeState};

const NODES: usize = 64;
const ROUNDS: usize = 15;
/// About how long a round takes.
const ROUND: Duration = Duration::from_millis(40);
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

fn main() {
    let equal = Fleet::new(|_| 1);
    let mixed = Fleet::new(|node| [1, 2, 4, 10][node % 4]);
    println!("{:<44} {:>9} {:>9} {:>9}", "ns per operation, 64 nodes", "median", "lowest", "highest");
    for (weights, fleet) in [("equal weights", &equal), ("mixed weights", &mixed)] {
        by_key(weights, fleet);
        by_balance(weights, fleet);
    }
    by_pin(&equal);
    cookies(&equal);
}

fn by_key(weights: &str, fleet: &Fleet) {
    let keys: Vec<AffinityHints> = (0..512).map(|user| fleet.wishes_of_user(user)).collect();
    let pick =
        |turn: u64| fleet.pick(&keys[turn as usize % keys.len()], BalancePolicy::LeastConnections, turn);
    measure(&format!("pick by key, {weights}"), pick);
}

fn by_balance(weights: &str, fleet: &Fleet) {
    let nothing = AffinityHints::default();
    for (rule, balance) in [
        ("least_connections", BalancePolicy::LeastConnections),
        ("random_two", BalancePolicy::RandomTwo),
        ("round_robin", BalancePolicy::RoundRobin),
    ] {
        measure(&format!("pick by {rule}, {weights}"), |turn| fleet.pick(&nothing, balance, turn));
    }
}

fn by_pin(fleet: &Fleet) {
    let sources = [AffinitySource::NodeCookie { name: "io".into() }];
    let pins: Vec<AffinityHints> =
        (0..NODES).map(|node| fleet.wishes(&sources, &cookie(&format!("io=ws{node}")), None)).collect();
    measure("pick by pin", |turn| {
        fleet.pick(&pins[turn as usize % NODES], BalancePolicy::LeastConnections, turn)
    });
}

fn cookies(fleet: &Fleet) {
    let keys = KeyRing::parse("a:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").expect("a sound key");
    for (what, keys) in [("an unsigned", None), ("a signed", Some(keys))] {
        let rule = rule(keys);
        let tag = fleet.nodes.tag(5).expect("node 5 is one of 64");
        let set = rule.set_cookie("chat", tag, 0, true).expect("a sound rule");
        let pair = set.to_str().expect("ASCII").split(';').next().unwrap_or_default().to_owned();
        let headers = cookie(&format!("theme=dark; {pair}; session=0123456789abcdef"));
        let sources = [AffinitySource::Cookie(rule)];
        measure(&format!("find and read {what} cookie"), |_| {
            fleet.wishes(&sources, &headers, None).as_slice().len()
        });
    }
}

/// 64 nodes and their loads.
struct Fleet {
    nodes: NodeSet,
    loads: Vec<Counters>,
}

/// A node's load as threads share it.
struct Counters {
    state: AtomicU8,
    live: AtomicU32,
    share: AtomicU32,
}

impl Fleet {
    fn new(weight: impl Fn(usize) -> u16) -> Self {
        let node = |index: usize| Node {
            id: format!("ws{index}").parse().expect("a sound id"),
            address: "127.0.0.1:3001".parse().expect("a sound address"),
            weight: weight(index),
            max_connections: Some(50_000),
            release: None,
        };
        // Tunnels by weight, some more and some less, as a fleet looks after a while.
        let load = |index: usize| Counters {
            state: AtomicU8::new(NodeState::Up as u8),
            live: AtomicU32::new(u32::from(weight(index)) * 1000 + (hash::mix(index as u64) % 100) as u32),
            share: AtomicU32::new(1.0_f32.to_bits()),
        };
        Self {
            nodes: NodeSet::new("chat", (0..NODES).map(node).collect()),
            loads: (0..NODES).map(load).collect(),
        }
    }

    #[inline(never)]
    fn pick(&self, wishes: &AffinityHints, balance: BalancePolicy, turn: u64) -> usize {
        let draw = hash::mix(turn);
        let ask = SelectRequest {
            hints: wishes,
            balance,
            load_bound: Some(1.25),
            is_in_session: false,
            client: CLIENT,
            is_tunnel: true,
            opens_session: true,
            draining_pin: None,
            rollout: None,
            random: draw,
            sequence: turn,
        };
        let mut candidates = select_candidates(&self.nodes, ask, |node| self.loads[node].read());
        candidates.next().map_or(NODES, |candidate| candidate.node)
    }

    fn wishes_of_user(&self, user: u64) -> AffinityHints {
        self.wishes(&[AffinitySource::Query("user".into())], &HeaderMap::new(), Some(&format!("user={user}")))
    }

    fn wishes(&self, sources: &[AffinitySource], headers: &HeaderMap, query: Option<&str>) -> AffinityHints {
        let request = AffinityRequest { headers, query, client: CLIENT, now: 0, pool: "chat" };
        let nodes: &dyn NodeDirectory = &self.nodes;
        collect_hints(sources, &request, nodes)
    }
}

impl Counters {
    #[inline]
    fn read(&self) -> NodeLoad {
        let state =
            if self.state.load(Relaxed) == NodeState::Up as u8 { NodeState::Up } else { NodeState::Down };
        NodeLoad {
            state,
            live: self.live.load(Relaxed),
            slow_start_factor: f32::from_bits(self.share.load(Relaxed)),
            is_above_share: false,
            is_last_resort: false,
        }
    }
}

fn rule(keys: Option<KeyRing>) -> CookiePolicy {
    CookiePolicy {
        name: "mainstay".into(),
        keys,
        secret_file: None,
        max_age: Some(Duration::from_secs(3600)),
        same_site: SameSite::Lax,
        secure: SecureAttribute::Auto,
        partitioned: false,
        path: "/".into(),
        domain: None,
    }
}

fn cookie(text: &str) -> HeaderMap {
    [(COOKIE, text.parse().expect("a sound field"))].into_iter().collect()
}

/// Prints the cost of one call, if it is asked for.
fn measure<T>(what: &str, mut call: impl FnMut(u64) -> T) {
    let wanted = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    if wanted.is_some_and(|wanted| !what.contains(&wanted)) {
        return;
    }
    let mut turn = 0;
    let mut nanos_of = |calls: u64| {
        let start = Instant::now();
        for _ in 0..calls {
            turn += 1;
            black_box(call(black_box(turn)));
        }
        start.elapsed().as_nanos() as f64 / calls as f64
    };
    let warm = nanos_of(20_000);
    let calls = (ROUND.as_nanos() as f64 / warm).max(1.0) as u64;
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| nanos_of(calls)).collect();
    rounds.sort_by(f64::total_cmp);
    println!("{what:<44} {:>9.1} {:>9.1} {:>9.1}", rounds[ROUNDS / 2], rounds[0], rounds[ROUNDS - 1]);
}
