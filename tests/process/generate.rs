//! What packages and editors take from the binary: schema, completions, manual pages.

use std::process::{Command, Output, Stdio};

use crate::balancer::path_in;

fn mainstay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mainstay")).args(arguments).output().unwrap()
}

fn text(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_schema_is_printed_as_json_and_the_same_each_time() {
    let [first, second] = [(); 2].map(|()| text(mainstay(&["schema"])));
    assert_eq!(first, second);
    let schema: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!(schema["required"][0], "pools");
    assert_eq!(schema["properties"]["shutdown"]["properties"]["drain"]["default"], "30s");
}

#[test]
fn completions_know_the_commands_and_the_shells_can_read_them() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(mainstay(&["completions", shell]));
        for word in ["check", "reload", "completions", "config"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
        // A shell that is not installed reads nothing.
        let reader = Command::new(shell).arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let Ok(mut reader) = reader else { continue };
        std::io::Write::write_all(&mut reader.stdin.take().unwrap(), script.as_bytes()).unwrap();
        let read = reader.wait_with_output().unwrap();
        assert!(read.status.success(), "{shell}: {}", String::from_utf8_lossy(&read.stderr));
    }
    assert_eq!(mainstay(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn the_manual_has_a_page_for_each_command_and_one_for_the_config() {
    let folder = tempfile::tempdir().unwrap();
    text(mainstay(&["man", folder.path().to_str().unwrap()]));
    let page = |name: &str| {
        std::fs::read_to_string(path_in(&folder, name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    for name in ["mainstay.1", "mainstay-check.1", "mainstay-reload.1"] {
        assert!(page(name).contains(".TH mainstay"), "{name}");
    }
    let config = page("balancer.yaml.5");
    assert!(config.contains(".TH balancer.yaml 5"), "{config}");
    let pages = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    for page in pages.map(|path| std::fs::read_to_string(path).unwrap()) {
        assert!(!page.contains("dashboard"), "there is none to be told of: {page}");
    }
    for key in ["listeners[].address", "pools.NAME.nodes[].max_connections", "pools.NAME.drain.over"] {
        assert!(config.replace("\\-", "-").contains(key), "{key}");
    }
}

#[test]
fn a_folder_that_is_not_there_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let missing = path_in(&folder, "missing");
    let output = mainstay(&["man", &missing]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!("mainstay: {missing}: No such file or directory (os error 2)\n")
    );
}
