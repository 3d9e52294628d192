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

/// The check of this config; gives the code, the standard output and the standard error.
fn checked(text: &str) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("b.yaml"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    let output = command.current_dir(folder.path()).args(["check", "-c", "b.yaml"]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_missing_file_is_named_with_the_whole_path_that_was_tried() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    for (variable, arguments) in [
        (None, &["check"][..]),
        (None, &["run"]),
        (None, &[]),
        (None, &["status"]),
        (None, &["check", "-c", "balancer.yaml"]),
        (Some("balancer.yaml"), &["check"]),
        (Some(""), &["run"]),
        (Some(""), &["reload"]),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.current_dir(&folder).args(arguments);
        command.envs(variable.map(|path| ("MAINSTAY_CONFIG", path)));
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let place = format!("looked for at {}/balancer.yaml; name ", folder.display());
        assert!(
            said.starts_with("balancer.yaml: the config cannot be read: ") && said.contains(&place),
            "{said}"
        );
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    }
}

#[test]
fn addresses_that_the_kernel_gives_only_once_are_found_before_they_are_bound() {
    const POOLS: &str =
        "pools: { p: { nodes: [{ id: a, address: \"a:1\" }, { id: b, address: \"b:1\" }] } }\n";
    for (listeners, expected) in [
        ("\"0.0.0.0:8080\" }, { address: \"127.0.0.1:8080\"", Some("127.0.0.1:8080 is part of it")),
        ("\"[::1]:8080\" }, { address: \"[::]:8080\"", Some("[::]:8080 is part of it")),
        ("\"0.0.0.0:9090\"", Some("the admin API listens on 127.0.0.1:9090")),
        ("\"[::]:8080\" }, { address: \"0.0.0.0:8080\"", None),
        ("\"127.0.0.1:8080\" }, { address: \"127.0.0.2:8080\"", None),
    ] {
        let (code, _, faults) = checked(&format!("listeners: [{{ address: {listeners} }}]\n{POOLS}"));
        assert_eq!(code, Some(i32::from(expected.is_some())), "{listeners}: {faults}");
        assert!(faults.starts_with(if expected.is_some() { "b.yaml:1:" } else { "" }), "{faults}");
        assert!(faults.contains(expected.unwrap_or_default()), "{listeners}: {faults}");
    }
}

#[test]
fn what_is_unwise_is_printed_as_a_warning_and_ends_with_0() {
    let (code, said, faults) = checked(
        "pools:\n  chat: { nodes: [{ id: a, address: \"x:1\" }, { id: b, address: \"x:1\" }] }\n  \
         old: { nodes: [{ id: c, address: \"c:1\" }, { id: d, address: \"d:1\" }] }\nroutes: [{ pool: chat }]\n",
    );
    assert_eq!((code, faults.as_str()), (Some(0), ""));
    assert!(said.starts_with("b.yaml: ok\n"), "{said}");
    assert!(said.contains("\nb.yaml:2:64: warning: address: the node on line 2 is at x:1, too"), "{said}");
    assert!(said.contains("\nb.yaml:3:3: warning: old: no route leads to this pool"), "{said}");
}

#[test]
fn a_group_that_this_machine_does_not_have_is_a_warning_where_the_socket_is_written() {
    let (code, said, faults) = checked(
        "listeners:\n  - { address: \"unix:/run/a.sock\", group: no-such-group-here }\n  \
         - { address: \"unix:/run/b.sock\", group: 4711 }\n\
         pools: { p: { nodes: [{ id: a, address: \"a:1\" }, { id: b, address: \"b:1\" }] } }\n",
    );
    assert_eq!((code, faults.as_str()), (Some(0), ""));
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains("warning: ")).collect();
    let [warning] = warnings[..] else { panic!("{said}") };
    assert!(
        warning.starts_with("b.yaml:2:16: warning: group: there is no group `no-such-group-here`"),
        "{warning}"
    );
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
    let many = "more than 100000 values, with what the aliases stand for; a config is never that large";
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
