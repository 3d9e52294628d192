//! Commands that fail, or that look elsewhere than told: what programs read, and what the environment says.

use std::process::Command;

use serde_json::Value;

use crate::balancer::{Balancer, close_code, config, node, tunnel};
use crate::commands::{NO_PROBES, ids, run};

#[test]
fn with_json_programs_read_every_failure_too() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("bad.yaml"), "admin: { adress: x }\n").unwrap();
    let free = node().local_addr().unwrap().to_string();
    for (arguments, said) in [
        (&["status", "--admin", &free][..], "nobody answers at"),
        (&["reload", "-c", "bad.yaml"], "the config has faults"),
        (&["drain", "chat/ws1", "--admin", &free], "nobody answers at"),
        (&["rebalance", "chat", "--admin", &free], "nobody answers at"),
        (&["kill", "0123456789abcdef", "--admin", &free], "nobody answers at"),
        (&["config", "-c", "missing.yaml"], "the config has faults"),
    ] {
        let output = run(folder, &[arguments, &["--json"]].concat());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|fault| {
            panic!("{arguments:?}: {fault}: {}", String::from_utf8_lossy(&output.stdout))
        });
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(answer["error"].as_str().unwrap().contains(said) && answer["faults"].is_array(), "{answer}");
    }
}

#[test]
fn of_several_sessions_each_is_tried_and_those_that_failed_are_named() {
    let node = node();
    let balancer = Balancer::serving(&config(&node, "1s", NO_PROBES));
    let (folder, admin) = (balancer.folder.path(), balancer.admin.as_str());
    let (mut client, _at_node) = tunnel(&balancer, &node);
    let id = ids(folder, admin, 1).remove(0);
    let [first, last] = ["0000000000000000", "ffffffffffffffff"];
    let output = run(folder, &["kill", first, &id, last, "--admin", admin]);
    assert_eq!(close_code(&mut client), 1012);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("closing {id}\n"));
    let failures = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = failures.lines().collect();
    let [one, two] = lines[..] else { panic!("{failures}") };
    assert!(one.starts_with(&format!("mainstay: {first}: there is no such session")), "{failures}");
    assert!(two.starts_with(&format!("mainstay: {last}: there is no such session")), "{failures}");
    let output = run(folder, &["kill", first, "--json", "--admin", admin]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &answer["id"]), (Some(1), &first.into()), "{answer}");
}

#[test]
fn the_environment_says_which_balancer_unless_the_command_line_does() {
    let node = node();
    let text = config(&node, "1s", NO_PROBES);
    let balancer = Balancer::serving(&text);
    let (folder, admin) = (balancer.folder.path(), balancer.admin.as_str());
    std::fs::write(folder.join("named.yaml"), format!("admin: {{ address: \"{admin}\" }}\n")).unwrap();
    std::fs::write(folder.join("off.yaml"), "admin: null\n").unwrap();
    let status = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.current_dir(folder).arg("status").args(arguments).envs(variables.iter().copied());
        command.output().unwrap().status.code()
    };
    assert_eq!(status(&[("MAINSTAY_ADMIN", admin)], &[]), Some(0));
    assert_eq!(status(&[("MAINSTAY_CONFIG", "named.yaml")], &[]), Some(0));
    assert_eq!(status(&[("MAINSTAY_CONFIG", "named.yaml"), ("MAINSTAY_ADMIN", admin)], &[]), Some(0));
    assert_eq!(status(&[("MAINSTAY_CONFIG", "missing.yaml")], &["--admin", admin]), Some(0));
    assert_eq!(status(&[("MAINSTAY_CONFIG", "off.yaml")], &["-c", "named.yaml"]), Some(0));
    let nowhere = ("MAINSTAY_ADMIN", "127.0.0.1:1");
    assert_eq!(status(&[nowhere], &["-c", "named.yaml"]), Some(0));
    assert_eq!(status(&[nowhere], &["--admin", admin]), Some(0));
    assert_eq!(status(&[("MAINSTAY_CONFIG", "off.yaml")], &[]), Some(1));
    assert_eq!(status(&[("MAINSTAY_ADMIN", "9090")], &["-c", "off.yaml"]), Some(1));
    assert_eq!(status(&[("MAINSTAY_ADMIN", "9090")], &[]), Some(1));
    let mut check = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    let check =
        check.current_dir(folder).arg("check").env("MAINSTAY_CONFIG", "balancer.yaml").output().unwrap();
    assert_eq!(check.status.code(), Some(0));
}
