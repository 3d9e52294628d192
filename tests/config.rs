//! The corpus of configs: what is valid is accepted without a word, what is not gets the very answer beside it.
//!
//! After a change of a message: `mainstay check -c NAME.yaml 2> NAME.txt` in `tests/config/invalid`, without `, looked for at`
//! and the path behind it, which only the command knows; then read the diff.

#[path = "config/certificates.rs"]
mod certificates;
#[path = "config/warnings.rs"]
mod warnings;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay::affinity::{AffinitySource, ClientPrefixes};
use mainstay::config::schema::entries;
use mainstay::config::{Config, Faults, ListenAddress, LogFormat, Probe, TlsVersion};
use mainstay::config::{admin_place, effective, resolve, resolve_at, yaml};
use mainstay::pool::retry::RetryPolicy;
use mainstay::pool::select::BalancePolicy;

/// 2027-01-15, for what certificates say of their time.
const NOW: i64 = 1_800_000_000;

/// The config of a file, in an environment with nothing but `env`.
fn load(path: &Path, env: &[(&str, &str)]) -> Result<Config, Faults> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let variable = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
    let read = |named: &Path| fs::read(path.parent().unwrap().join(named));
    resolve_at(name, NOW, &fs::read(path).unwrap(), &variable, &read)
}

fn corpus(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(directory);
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    files
}

fn valid(name: &str) -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/valid").join(name);
    load(&path, &[]).unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn valid_configs_are_accepted_without_a_word() {
    let files = corpus("valid");
    assert!(files.len() >= 6, "the corpus has {} files", files.len());
    for file in files {
        let config = load(&file, &[]).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(config.warnings, [], "{}", file.display());
    }
}

#[test]
fn i8_a_bad_config_says_everything_that_is_wrong_with_it_at_once() {
    let files = corpus("invalid");
    assert!(files.len() >= 25, "the corpus has {} files", files.len());
    let wrong: Vec<String> = files.iter().filter_map(|file| difference(file)).collect();
    assert!(wrong.is_empty(), "{} files get another answer:\n{}", wrong.len(), wrong.join("\n"));
}

/// The first line in which the answer to a file is not the expected one.
fn difference(file: &Path) -> Option<String> {
    let expected = fs::read_to_string(file.with_extension("txt")).unwrap();
    let said = load(file, &[]).map(|_| "no fault".to_owned()).unwrap_or_else(|faults| faults.to_string());
    let (mut said, mut expected) = (said.lines(), expected.lines());
    loop {
        match (said.next(), expected.next()) {
            (None, None) => return None,
            (said, expected) if said == expected => {}
            (said, expected) => return Some(format!("  said     {said:?}\n  expected {expected:?}")),
        }
    }
}

/// What a config says, wherever in its file it says so.
fn without_places(config: Config) -> Config {
    Config { warnings: Vec::new(), places: Default::default(), ..config }
}

#[test]
fn the_reference_config_is_valid_and_says_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("balancer.yaml");
    let reference = load(&path, &[]).unwrap_or_else(|faults| panic!("{faults}"));
    let short = "pools: { chat: { nodes: [\
        { id: ws1, address: \"127.0.0.1:3001\" }, { id: ws2, address: \"127.0.0.1:3002\" }, \
        { id: ws3, address: \"127.0.0.1:3003\" }] } }";
    let defaults = resolve("short.yaml", short.as_bytes(), &|_| None, &|path| fs::read(path)).unwrap();
    assert_eq!(without_places(reference), without_places(defaults));
}

/// The keys that a config file says, and those of the examples in its comments.
fn written_keys(text: &str) -> BTreeSet<&str> {
    let mut keys = BTreeSet::new();
    for line in text.lines() {
        let (code, comment) = line.split_once('#').unwrap_or((line, ""));
        for (is_example, text) in [(true, code), (comment.starts_with("   "), comment)] {
            for (colon, _) in text.match_indices(':') {
                let before = &text[..colon];
                let name = &before[before
                    .rfind(|c: char| !c.is_ascii_lowercase() && !"_0123456789".contains(c))
                    .map_or(0, |at| at + 1)..];
                let is_value_next = text[colon + 1..].starts_with([' ', '`']) || text.len() == colon + 1;
                // In prose a key stands in braces or backticks.
                let lead = before[..before.len() - name.len()].trim_end().chars().next_back();
                let is_key =
                    lead.is_none_or(|lead| "{-`".contains(lead) || (lead == ',' && text.contains('{')));
                if !name.is_empty() && is_value_next && is_key && (is_example || lead.is_some()) {
                    keys.insert(name);
                }
            }
        }
    }
    keys
}

#[test]
fn the_reference_config_has_every_key_of_the_table_and_no_other() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("balancer.yaml")).unwrap();
    let written = written_keys(&text);
    let entries = entries();
    let table: BTreeSet<&str> = entries.iter().filter_map(|entry| entry.path.rsplit('.').next()).collect();
    assert!(table.len() > 80, "{} keys", table.len());
    let missing: Vec<_> = table.difference(&written).collect();
    assert!(missing.is_empty(), "balancer.yaml does not name {missing:?}");
    // The name of a pool is the operator's.
    let unknown: Vec<_> = written.difference(&table).filter(|key| **key != "chat").collect();
    assert!(unknown.is_empty(), "balancer.yaml names {unknown:?}, which are in no table of src/config");
}

#[test]
fn the_fleets_of_the_migration_examples_can_be_put_on_any_port() {
    let env = [
        ("LISTEN", "127.0.0.1:0"),
        ("ADMIN", "[::1]:0"),
        ("NODE_1", "40001"),
        ("NODE_2", "40002"),
        ("NODE_3", "40003"),
    ];
    for name in [
        "nginx-ip-hash.yaml",
        "nginx-map-cookie-io.yaml",
        "haproxy-balance-source.yaml",
        "socketio-sticky.yaml",
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/valid").join(name);
        let config = load(&path, &env).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(config.listeners[0].address.to_string(), "127.0.0.1:0", "{name}");
        assert_eq!(config.admin.unwrap().address.to_string(), "[::1]:0", "{name}");
        let nodes: Vec<String> = config.pools[0].nodes.iter().map(|node| node.address.to_string()).collect();
        assert_eq!(nodes, ["127.0.0.1:40001", "127.0.0.1:40002", "127.0.0.1:40003"], "{name}");
    }
}

#[test]
fn every_key_reaches_its_field() {
    let config = valid("everything.yaml");
    assert_eq!(config.listeners.len(), 4);
    let tls = config.listeners[0].tls.as_ref().unwrap();
    assert_eq!(tls.certificates[0].names, ["chat.example.com", "*.chat.example.com"]);
    assert_eq!((tls.min_version, tls.certificates[0].expires.as_str()), (TlsVersion::Tls13, "2120-01-01"));
    assert!(tls.client_ca.is_some() && tls.tickets.is_some() && config.listeners[1].tls.is_none());
    let access = &config.listeners[3].access;
    assert_eq!((access.mode, access.group.as_deref()), (Some(0o640), Some("www-data")));
    let admin = config.admin.unwrap();
    assert!(matches!(&admin.address, ListenAddress::Unix(_)));
    assert_eq!((admin.access.effective_mode(), admin.access.group.as_deref()), (Some(0o660), Some("27")));
    assert!(admin.tokens.is_some_and(|tokens| tokens.accept(b"old-token-of-the-operators")));
    assert_eq!(config.trusted_proxies.len(), 3);
    assert_eq!(config.limits.request_head, 32 << 10);
    assert_eq!(config.limits.head_time, Duration::from_millis(500));
    assert_eq!(config.limits.keep_alive, Duration::from_secs(5400));
    assert_eq!(config.access_log.format, LogFormat::Off);
    assert_eq!(config.shutdown.drain, Duration::ZERO);
    let [a, b, c] = &config.pools[..] else { panic!("{} pools", config.pools.len()) };
    assert_eq!((a.nodes[0].weight, a.nodes[0].max_connections), (1000, Some(50_000)));
    assert_eq!(a.nodes[0].release.as_deref(), Some("v7"));
    assert_eq!(a.affinity.len(), 6);
    assert!(
        matches!(&a.affinity[0], AffinitySource::Cookie(rule) if rule.keys.is_some() && rule.partitioned)
    );
    assert_eq!(a.affinity[5], AffinitySource::ClientIp(ClientPrefixes { ipv4: 24, ipv6: 56 }));
    assert_eq!((a.balance, a.load_bound), (BalancePolicy::RandomTwo, Some(2.0)));
    assert_eq!(a.health.probe, Probe::WebSocket { path: "/ws".into() });
    assert_eq!((a.health.rise, a.health.fall, a.passive.failures), (1, 1, 0));
    assert_eq!((a.passive.eject, a.slow_start), (Duration::from_secs(60), Duration::ZERO));
    assert_eq!((a.passive.max_ejected, a.retries), (30, RetryPolicy { attempts: 2, of_handshakes: 5 }));
    assert_eq!((a.timeouts.idle, a.timeouts.request), (Duration::from_secs(7200), Duration::from_secs(30)));
    assert_eq!((a.timeouts.close, c.timeouts.close), (Duration::from_secs(5), Duration::from_secs(5)));
    assert_eq!((a.messages.max_size, a.messages.ping), (Some(1 << 20), Some(Duration::from_secs(30))));
    assert_eq!((a.drain.code, a.drain.reason.as_str()), (4000, "moved"));
    let rebalance = a.rebalance.unwrap();
    assert_eq!((rebalance.over.as_secs(), rebalance.tolerance, rebalance.quiet_first), (300, 1.2, false));
    assert_eq!((b.affinity.len(), b.balance, &b.health.probe), (0, BalancePolicy::RoundRobin, &Probe::Tcp));
    assert_eq!((&c.health.probe, c.timeouts.idle), (&Probe::Off, a.timeouts.idle));
    assert!(a.tls.as_ref().is_some_and(|tls| tls.server_name.is_some() && tls.identity.is_some()));
    assert_eq!(config.routes.len(), 3);
}

#[test]
fn the_effective_config_is_a_config_that_says_the_same() {
    let files = corpus("valid");
    for file in files {
        let config = load(&file, &[]).unwrap();
        let effective = effective(&config);
        for text in [serde_json::to_string_pretty(&effective).unwrap(), yaml(&effective)] {
            let read = |named: &Path| fs::read(file.parent().unwrap().join(named));
            let again = resolve("effective.yaml", text.as_bytes(), &|_| None, &read);
            let again = again.unwrap_or_else(|faults| panic!("{}: {faults}\n{text}", file.display()));
            assert_eq!(without_places(again), without_places(config.clone()));
        }
    }
}

#[test]
fn the_effective_config_names_secrets_by_their_file_and_every_default() {
    let text = effective(&valid("everything.yaml")).to_string();
    assert!(text.contains("everything.secret") && text.contains("everything.token"), "{text}");
    for file in ["everything.secret", "everything.token"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/valid").join(file);
        let secrets = fs::read_to_string(path).unwrap();
        let mut words = secrets.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
        assert!(words.peek().is_some());
        for word in words {
            let secret = word.split_once(':').map_or(word, |(_, secret)| secret);
            assert!(!text.contains(secret), "{secret}");
        }
    }
    let short = "pools: { p: { nodes: [{ id: a, address: \"a:1\" }], drain: { reason: \"$${HOME}\" } } }";
    let config = resolve("f", short.as_bytes(), &|_| None, &|path| fs::read(path)).unwrap();
    let shown = effective(&config);
    assert_eq!(shown["pools"]["p"]["timeouts"]["idle"], "1h");
    assert_eq!(shown["admin"]["address"], "127.0.0.1:9090");
    assert_eq!(shown["pools"]["p"]["drain"]["reason"], "$${HOME}", "as a config file has to write it");
}

#[test]
fn the_admin_place_is_found_whatever_else_is_wrong() {
    let place = |text: &str| admin_place("f", text.as_bytes(), &|_| None);
    let address = |text: &str| place(text).unwrap().address.map(|address| address.to_string());
    assert_eq!(address("pools: 3").as_deref(), Some("127.0.0.1:9090"));
    assert_eq!(address("admin: { address: \"unix:/a\" }\nbogus: ${NOT_SET}\n").as_deref(), Some("unix:/a"));
    assert_eq!(address("admin: null").as_deref(), None);
    let with_token = place("admin: { address: \"0.0.0.0:1\", token_file: t }").unwrap();
    assert_eq!(with_token.token_file, Some(PathBuf::from("t")));
    for bad in
        ["admin: { address: 7 }", "admin: [", "admin: { address: \"${NOT_SET}\" }", "admin: { adress: x }"]
    {
        assert!(!place(bad).unwrap_err().list().is_empty(), "{bad}");
    }
}

#[test]
fn every_path_of_a_probe_that_is_accepted_can_be_sent() {
    let mut accepted = 0;
    for sign in '!'..='~' {
        let path = format!("/a{sign}b?c{sign}d");
        let text = format!(
            "pools: {{ a: {{ nodes: [{{ id: x, address: \"x:1\" }}], health: {{ http: {{ path: {} }} }} }} }}",
            serde_json::to_string(&path.replace('$', "$$")).unwrap()
        );
        let Ok(config) = resolve("p.yaml", text.as_bytes(), &|_| None, &|path| fs::read(path)) else {
            continue;
        };
        let Probe::Http { path, .. } = &config.pools[0].health.probe else { panic!("{text}") };
        assert!(http::Request::get(path).body(()).is_ok(), "{path}");
        accepted += 1;
    }
    assert!(accepted > 80, "{accepted}");
}

proptest::proptest! {
    /// What happens to files: something is overwritten, cut off or put in twice.
    #[test]
    fn a_damaged_config_is_accepted_or_refused_with_places_inside_the_file(
        start in 0_usize..8_000, length in 0_usize..60, put_in in "[a-z0-9:\\-\\[\\]{}&*!|>'\"%#,? \n\t<$~\u{0}\u{e9}]{0,12}",
    ) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/valid/everything.yaml");
        let mut text = fs::read(&path).unwrap();
        let start = start % text.len();
        let end = (start + length).min(text.len());
        text.splice(start..end, put_in.bytes());
        let lines = text.iter().filter(|byte| **byte == b'\n').count() + 1;
        let read = |named: &Path| fs::read(path.parent().unwrap().join(named));
        if let Err(faults) = resolve("damaged.yaml", &text, &|_| None, &read) {
            proptest::prop_assert!(!faults.list().is_empty());
            for fault in faults.list() {
                let at = fault.at.expect("the file could be read");
                proptest::prop_assert!(at.line >= 1 && at.line <= lines && at.column >= 1, "{:?}", fault);
                proptest::prop_assert!(!fault.line("damaged.yaml", "").contains('\n'));
            }
        }
    }
}
