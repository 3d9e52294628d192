//! The commands that speak to a running balancer: where they find it, what they print, and how they end.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::balancer::{Balancer, DEADLINE, close_code, config, node, tunnel};

pub const NO_PROBES: &str = "health: null";

/// Runs a command in the folder of the balancer, where its config is `balancer.yaml`.
pub fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mainstay")).current_dir(folder).args(arguments).output().unwrap()
}

/// The standard output of a command that ends well.
pub fn said(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{arguments:?}: {out}");
    out
}

/// The standard error of a command that ends with this code.
pub fn failed(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = run(folder, arguments);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(code), &b""[..]), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The ids of the live sessions, once there are so many.
pub fn ids(folder: &Path, admin: &str, count: usize) -> Vec<String> {
    let end = Instant::now() + DEADLINE;
    loop {
        let answer = said(folder, &["sessions", "--json", "--admin", admin]);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let sessions = answer["sessions"].as_array().unwrap();
        if sessions.len() == count {
            return sessions.iter().map(|session| session["id"].as_str().unwrap().to_owned()).collect();
        }
        assert!(Instant::now() < end, "{answer}");
    }
}

#[test]
fn a_running_balancer_is_looked_at_and_a_session_is_killed() {
    let node = node();
    let balancer = Balancer::serving(&config(&node, "1s", NO_PROBES));
    let (folder, admin) = (balancer.folder.path(), balancer.admin.as_str());
    let (mut first, _node_of_first) = tunnel(&balancer, &node);
    let id = ids(folder, admin, 1).remove(0);
    let (_second, _node_of_second) = tunnel(&balancer, &node);
    ids(folder, admin, 2);

    let status = said(folder, &["status", "--admin", admin]);
    let head = format!("mainstay {}, serving, up ", env!("CARGO_PKG_VERSION"));
    assert!(status.starts_with(&head), "{status}");
    assert!(status.contains("\n2 tunnels, 1 of 1 nodes up\n"), "{status}");
    assert!(status.contains("\nPOOL  NODE  STATE  TUNNELS  MAX  USE  WEIGHT  RELEASE  ADDRESS"), "{status}");
    assert!(
        status.contains("\nchat  ws1   up           2    -    -       1  -        127.0.0.1:"),
        "{status}"
    );
    let json: Value = serde_json::from_str(&said(folder, &["status", "--json", "--admin", admin])).unwrap();
    assert_eq!(json["pools"][0]["nodes"][0]["id"], "ws1");

    let sessions = said(folder, &["sessions", "--pool", "chat", "--node", "ws1", "--admin", admin]);
    assert!(sessions.starts_with("ID  "), "{sessions}");
    assert!(sessions.contains(&format!("\n{id}  127.0.0.1  chat  ws1 ")), "{sessions}");
    let page = said(folder, &["sessions", "--limit", "1", "--admin", admin]);
    assert!(page.contains("there are more: --after "), "{page}");

    assert_eq!(said(folder, &["kill", &id, "--admin", admin]), format!("closing {id}\n"));
    assert_eq!(close_code(&mut first), 1012);
    drop(first);
    ids(folder, admin, 1);
    let gone = failed(folder, &["kill", &id, "--admin", admin], 1);
    assert!(gone.contains("there is no such session"), "{gone}");
}

#[test]
fn a_pool_is_rebalanced_and_the_plan_and_its_progress_are_shown() {
    let nodes = [node(), node()];
    let [one, two] = [0, 1].map(|at| nodes[at].local_addr().unwrap());
    let both = format!("{{ id: ws2, address: \"{two}\" }}");
    let text = config(&nodes[0], "1s", NO_PROBES);
    let balancer = Balancer::serving(&text);
    let (folder, admin) = (balancer.folder.path(), balancer.admin.as_str());
    let mut tunnels: Vec<_> = (0..4).map(|_| tunnel(&balancer, &nodes[0])).collect();
    ids(folder, admin, 4);
    let rebalance = |more: &[&str]| said(folder, &[&["rebalance", "chat", "--admin", admin], more].concat());
    assert_eq!(rebalance(&[]), "chat: no node has more than 1.1 times its share, nobody is moved\n");
    let grown = text.replace(&format!("address: \"{one}\" }}"), &format!("address: \"{one}\" }}, {both}"));
    std::fs::write(folder.join("balancer.yaml"), grown).unwrap();
    assert!(said(folder, &["reload", "--admin", admin]).contains("node ws2"));

    let shown = rebalance(&["--over", "200ms", "--quiet-first", "false"]);
    let plan = "chat: at most 2 tunnels move over 200ms\n\
                NODE  TUNNELS  SHARE  MOVES\n\
                ws1         4      2      2\n\
                ws2         0      2      0\n";
    assert!(shown.starts_with(plan) && shown.ends_with("chat: done\n"), "{shown}");
    ids(folder, admin, 2);
    let closed = tunnels.iter_mut().filter(|(client, _)| {
        client.0.set_nonblocking(true).unwrap();
        client.0.peek(&mut [0]).is_ok()
    });
    assert_eq!(closed.map(|(client, _)| close_code(client)).collect::<Vec<_>>(), [1012, 1012]);
    let wrong = failed(folder, &["rebalance", "chat", "--tolerance", "0.5", "--admin", admin], 1);
    assert!(wrong.contains("tolerance: 0.5 is not a number from 1 to 1000"), "{wrong}");
    let wrong = failed(folder, &["rebalance", "chats", "--admin", admin], 1);
    assert!(wrong.contains("there is no pool `chats`; the pools are: chat"), "{wrong}");
}

#[test]
fn a_node_is_drained_with_its_progress_and_taken_back() {
    let node = node();
    let balancer = Balancer::serving(&config(&node, "1s", NO_PROBES));
    let (folder, admin) = (balancer.folder.path(), balancer.admin.as_str());
    let (mut client, at_node) = tunnel(&balancer, &node);
    ids(folder, admin, 1);
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command
        .current_dir(folder)
        .args(["drain", "chat/ws1", "--over", "0s", "--code", "4012", "--admin", admin]);
    let draining = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(close_code(&mut client), 4012);
    drop((client, at_node));
    let output = draining.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("warning: ws1 was the last node of chat"), "{out}");
    assert!(lines[1].starts_with("chat/ws1: ") && lines[1].contains(" closed, at most "), "{out}");
    assert_eq!(lines[lines.len() - 1], "chat/ws1: drained; it takes no clients until `mainstay undrain`");
    assert!(said(folder, &["status", "--admin", admin]).contains("\nchat  ws1   draining        0 "));

    let empty = said(folder, &["drain", "chat/ws1", "--admin", admin]);
    assert!(
        empty.ends_with(
            "chat/ws1: nothing to do, it has no tunnels; it takes no clients until `mainstay undrain`\n"
        ),
        "{empty}"
    );
    assert!(!empty.contains("to go"), "{empty}");
    let again = said(folder, &["drain", "chat/ws1", "--detach", "--json", "--admin", admin]);
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!((&again["state"], &again["drain"]["left"]), (&"draining".into(), &0.into()));
    assert_eq!(said(folder, &["undrain", "chat/ws1", "--admin", admin]), "chat/ws1: up\n");
    let unknown = failed(folder, &["drain", "chat/ws9", "--admin", admin], 1);
    assert_eq!(unknown, "mainstay: there is no node `ws9` in the pool chat; its nodes are: ws1\n");
    let wrong = failed(folder, &["drain", "chat/ws1", "--code", "1000", "--admin", admin], 1);
    assert!(wrong.contains("codes after which clients come back"), "{wrong}");
}

#[test]
fn the_config_tells_where_the_balancer_is_even_when_it_has_become_bad() {
    let node = node();
    let text = config(&node, "1s", NO_PROBES).replacen("127.0.0.1:0\" }\naccess", "${ADMIN}\" }\naccess", 1);
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("admin.sock");
    let place = format!("unix:{}", socket.display());
    let mut balancer = Balancer::start(&text, |command| {
        command.env("ADMIN", &place);
    });
    balancer.wait_until_serving();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let folder = balancer.folder.path();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        let output = command.current_dir(folder).env("ADMIN", &place).args(arguments).output().unwrap();
        let (out, err) = (output.stdout, String::from_utf8(output.stderr).unwrap());
        (output.status.code(), String::from_utf8(out).unwrap(), err)
    };
    let (code, effective, _) = command(&["config", "--json"]);
    assert_eq!(code, Some(0));
    let config: Value = serde_json::from_str(&effective).unwrap();
    assert_eq!(
        (&config["admin"]["address"], &config["pools"]["chat"]["passive"]["max_ejected"]),
        (&place.clone().into(), &"50%".into())
    );
    let (_, as_yaml, _) = command(&["config"]);
    for shown in [&effective, &as_yaml] {
        std::fs::write(folder.join("effective.yaml"), shown).unwrap();
        assert_eq!(
            command(&["check", "-c", "effective.yaml"]).0,
            Some(0),
            "what it prints is a config: {shown}"
        );
    }
    let keys: Vec<&str> = as_yaml.lines().filter(|line| !line.starts_with([' ', '-'])).collect();
    let order =
        ["listeners", "admin", "trusted_proxies", "limits", "access_log", "shutdown", "pools", "routes"];
    let in_order = keys.iter().zip(order).all(|(line, key)| line.starts_with(&format!("{key}:")));
    assert!(in_order && keys.len() == order.len(), "{as_yaml}");
    assert!(as_yaml.contains("\n    nodes:\n      - id: ws1\n        address: \"127.0.0.1:"), "{as_yaml}");

    assert_eq!(command(&["reload"]), (Some(0), "nothing has changed\n".into(), String::new()));
    std::fs::write(folder.join("balancer.yaml"), text.replace("ws1", "ws one")).unwrap();
    let (code, out, err) = command(&["reload"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    let lines: Vec<&str> = err.lines().collect();
    assert!(lines[0].starts_with("mainstay: the config has faults"), "{err}");
    assert!(lines[1].contains("balancer.yaml:5:") && lines[1].contains("id: "), "{err}");
    assert_eq!(command(&["status"]).0, Some(0), "the config that is in effect is the one before");

    let (code, out, err) = command(&["reload", "--json"]);
    let answer: Value = serde_json::from_str(&out).unwrap_or_else(|fault| panic!("{fault}: {out}"));
    assert_eq!((code, &answer["faults"][0]["line"]), (Some(1), &5.into()), "{answer}");
    assert!(
        answer["error"].as_str().unwrap().contains("has faults") && err.starts_with("mainstay: "),
        "{answer}"
    );
}

#[test]
fn the_help_explains_the_columns_of_the_tables() {
    let folder = tempfile::tempdir().unwrap();
    let status = said(folder.path(), &["status", "--help"]);
    assert!(status.contains("\n  USE ") && status.contains("\n  MAX "), "{status}");
    let sessions = said(folder.path(), &["sessions", "--help"]);
    assert!(sessions.contains("\n  GEN ") && sessions.contains("generation of the config"), "{sessions}");
    for help in [status, sessions] {
        assert!(help.contains("MAINSTAY_CONFIG") && help.contains("MAINSTAY_ADMIN"), "{help}");
    }
}

#[test]
fn the_token_comes_from_the_config_or_from_a_file_that_is_named() {
    let node = node();
    let text = config(&node, "1s", NO_PROBES).replacen(
        "admin: { address: \"127.0.0.1:0\" }",
        "admin: { address: \"127.0.0.1:0\", token_file: \"${TOKEN}\" }",
        1,
    );
    let tokens = tempfile::tempdir().unwrap();
    let (right, wrong) = (tokens.path().join("right"), tokens.path().join("wrong"));
    std::fs::write(&right, "# operators\na-token-of-operators\n").unwrap();
    std::fs::write(&wrong, "a-token-of-strangers\n").unwrap();
    let mut balancer = Balancer::start(&text, |command| {
        command.env("TOKEN", &right);
    });
    balancer.wait_until_serving();
    let (folder, admin) = (balancer.folder.path(), balancer.admin.as_str());
    let (right, wrong) = (right.to_str().unwrap(), wrong.to_str().unwrap());

    let none = failed(folder, &["status", "--admin", admin], 1);
    assert!(none.contains("wants a token; --token-file FILE"), "{none}");
    let strange = failed(folder, &["status", "--admin", admin, "--token-file", wrong], 1);
    assert!(strange.contains("wants another token"), "{strange}");
    assert!(said(folder, &["status", "--admin", admin, "--token-file", right]).contains("serving"));
    let output = Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .current_dir(folder)
        .env("TOKEN", right)
        .args(["status", "-c", "balancer.yaml", "--admin", admin])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let unreadable = failed(folder, &["status", "--admin", admin, "--token-file", "no/such"], 1);
    assert!(unreadable.contains("the token in no/such cannot be read"), "{unreadable}");
}

#[test]
fn who_cannot_be_asked_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let missing = failed(folder, &["status"], 1);
    assert!(
        missing.contains("balancer.yaml: the config cannot be read") && missing.contains("--admin"),
        "{missing}"
    );
    let free = node().local_addr().unwrap().to_string();
    let nobody = failed(folder, &["status", "--admin", &free], 1);
    assert!(
        nobody.starts_with(&format!("mainstay: nobody answers at {free}: connection refused")),
        "{nobody}"
    );
    assert!(nobody.contains("is mainstay running?"), "{nobody}");
    for (config, said) in [
        ("admin: null\n", "turns the admin API off"),
        ("admin: { address: \"127.0.0.1:0\" }\n", "--admin HOST:PORT"),
        ("admin: { adress: x }\n", "did you mean `address`?"),
        ("admin: [\n", "a.yaml:"),
    ] {
        std::fs::write(folder.join("a.yaml"), config).unwrap();
        let fault = failed(folder, &["sessions", "-c", "a.yaml"], 1);
        assert!(fault.contains(said), "{config}: {fault}");
    }
}

#[test]
fn a_command_that_is_written_wrongly_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["kill"][..],
        &["kill", "1"],
        &["kill", "../../api/reload"],
        &["sessions", "--limit", "0"],
        &["sessions", "--limit", "1001"],
        &["sessions", "--pool", "a b"],
        &["status", "--admin", "9090"],
        &["status", "--admin", "http://127.0.0.1:9090"],
        &["reload", "now"],
        &["drain", "ws1"],
        &["undrain", "chat/ws1", "--over", "1s"],
    ] {
        assert!(!failed(folder.path(), arguments, 2).is_empty(), "{arguments:?}");
    }
}
