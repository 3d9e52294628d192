//! `mainstay check`, and commands that are none: what they print and how they end.

use std::fs;
use std::path::Path;
use std::process::Command;

use mainstay::config::{Summary, resolve};

#[test]
fn check_answers_0_and_a_summary_or_1_and_every_fault() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let check = |file: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.current_dir(&folder);
        command.args(["check", "-c", file]).output().unwrap()
    };
    let good = check("valid/shortest.yaml");
    let said = String::from_utf8(good.stdout).unwrap();
    assert_eq!(good.status.code(), Some(0));
    let text = fs::read(folder.join("valid/shortest.yaml")).unwrap();
    let config = resolve("shortest", &text, &|_| None, &|path| fs::read(path)).unwrap();
    assert_eq!(said, format!("valid/shortest.yaml: ok\n{}", Summary(&config)));

    let bad = check("invalid/duplicate-keys.yaml");
    assert_eq!(bad.status.code(), Some(1));
    assert!(bad.stdout.is_empty());
    let faults = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(faults.lines().count(), 2, "{faults}");
    assert!(faults.lines().all(|line| line.starts_with("invalid/duplicate-keys.yaml:")), "{faults}");
}

#[test]
fn a_command_that_is_none_ends_with_2() {
    for arguments in [&["chekc"][..], &["demo", "--nodes", "0"], &["-c"], &["-c", "x.yaml", "check"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_mainstay")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn files_that_are_made_to_hurt_are_refused_with_one_line() {
    const NODES: &str = "nodes: [{ id: a, address: \"a:1\" }, { id: b, address: \"b:1\" }]";
    let large = "the file is larger than 1 MiB; a config is never that large";
    let many = "more than 100000 values, with what the aliases stand for";
    let hostile = [
        (" ".repeat(10 << 20), format!("f: {large}")),
        (format!("#{}\npools: {{ p: {{ {NODES} }} }}\n", "x".repeat(10 << 20)), format!("f: {large}")),
        ("- a\n".repeat(200_000), format!("f:100001:3: {many}")),
        (
            format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(1_000), "*a,".repeat(1_000)),
            format!("f:2:296: {many}"),
        ),
        (
            format!(
                "pools: {{ p: {{ {NODES} }} }}\nroutes: [{{ pool: p, path: {} }}]\n",
                "/".repeat(900_000)
            ),
            "f:2:27: path: a path of 900000 bytes; write one of at most 1024".into(),
        ),
    ];
    for (text, expected) in hostile {
        let faults = resolve("f", text.as_bytes(), &|_| None, &|path| fs::read(path)).unwrap_err();
        assert_eq!(faults.to_string(), expected);
    }
}
