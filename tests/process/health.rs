//! `mainstay health`: what a container's health check hears.

use std::process::Command;

use rustix::process::Signal;

use crate::balancer::{Balancer, config, node, path_in, tunnel};

#[test]
fn health_says_whether_it_lives_and_ready_whether_it_takes_clients() {
    let node = node();
    let folder = tempfile::tempdir().unwrap();
    let (socket, token) = (path_in(&folder, "admin.sock"), path_in(&folder, "token"));
    std::fs::write(&token, "a-token-of-operators\n").unwrap();
    let admin = format!("\"unix:{socket}\", token_file: {token}");
    let text = config(&node, "1h", "health: null").replacen(
        "\"127.0.0.1:0\" }\naccess",
        &format!("{admin} }}\naccess"),
        1,
    );
    let mut balancer = Balancer::start(&text, |_| {});
    balancer.wait_until_serving();
    // A health check needs no token, so it does not fail for want of one.
    std::fs::remove_file(&token).unwrap();
    let file = path_in(&balancer.folder, "balancer.yaml");
    let asked = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        let output = command.arg("health").args(arguments).env("MAINSTAY_CONFIG", &file).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), out + &err)
    };
    assert_eq!(asked(&[]), (Some(0), "ok\n".into()));
    assert_eq!(asked(&["--ready", "--json"]), (Some(0), "{\"ok\":true}\n".into()));
    let _tunnel = tunnel(&balancer, &node);
    balancer.signal(Signal::TERM);
    balancer.line("stopping");
    assert_eq!(asked(&[]), (Some(0), "ok\n".into()));
    assert_eq!(asked(&["--ready"]), (Some(1), "mainstay: draining\n".into()));
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.exit_code(), 1);
    let (code, said) = asked(&[]);
    assert!(code == Some(1) && said.contains("nobody answers at unix:"), "{said}");
}
