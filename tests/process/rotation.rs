//! Log rotation as logrotate does it: move the file away, send SIGUSR1, go on.

use std::collections::BTreeMap;
use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use crate::balancer::{Balancer, Raw, config, node, tunnel};

/// How often the file is rotated.
const TURNS: usize = 10;

#[test]
fn rotation_loses_no_line_and_writes_none_to_the_wrong_file() {
    let (node, folder) = (node(), tempfile::tempdir().unwrap());
    let path = folder.path().join("access.log");
    let moved = |turn: usize| folder.path().join(format!("access.log.{turn}"));
    let text = config(&node, "2s", "health: null");
    let text = text.replace("{ format: off }", &format!("{{ format: json, path: \"{}\" }}", path.display()));
    let mut balancer = Balancer::serving(&text);
    // One session is open all the time; its two lines are in the first file and in the last.
    let (long, long_node) = tunnel(&balancer, &node);
    let mut sessions = 1;
    for turn in 0..TURNS {
        for _ in 0..5 {
            let (mut client, node) = tunnel(&balancer, &node);
            drop(node);
            client.rest();
            sessions += 1;
        }
        fs::rename(&path, moved(turn)).unwrap();
        balancer.signal(Signal::USR1);
        balancer.later_line("access log reopened", turn);
    }
    drop((long, long_node));
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());

    let files: Vec<_> = (0..TURNS).map(moved).chain([path]).collect();
    let mut seen: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for (number, file) in files.iter().enumerate() {
        for line in fs::read_to_string(file).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|fault| panic!("{fault}: {line}"));
            let event = (number, line["event"].as_str().unwrap().to_owned());
            seen.entry(line["id"].as_str().unwrap().to_owned()).or_default().push(event);
        }
    }
    assert_eq!(seen.len(), sessions);
    let mut opened = vec![0; files.len()];
    for lines in seen.values() {
        let [(first, open), (last, close)] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((open.as_str(), close.as_str()), ("open", "close"));
        assert!(*last <= first + 1 || (*first, *last) == (0, TURNS), "{lines:?}");
        opened[*first] += 1;
    }
    // What opened in a turn was reported after the file of the turn before had been let go of.
    for (turn, opened) in (1..=TURNS).map(|turn| (turn, opened[..turn].iter().sum::<usize>())) {
        assert!(opened <= 1 + 5 * turn, "turn {turn}: {opened} sessions in the first {turn} files");
    }
}

#[test]
fn a_file_that_cannot_be_opened_again_is_said_and_the_old_one_is_written_on() {
    let (node, folder) = (node(), tempfile::tempdir().unwrap());
    let path = folder.path().join("access.log");
    let text = config(&node, "2s", "health: null");
    let text = text.replace("{ format: off }", &format!("{{ format: text, path: \"{}\" }}", path.display()));
    let mut balancer = Balancer::serving(&text);
    fs::rename(&path, folder.path().join("moved")).unwrap();
    fs::create_dir(&path).unwrap();
    balancer.signal(Signal::USR1);
    balancer.line("access log cannot be reopened");
    let (mut client, node): (Raw, Raw) = tunnel(&balancer, &node);
    drop(node);
    client.rest();
    balancer.signal(Signal::TERM);
    assert_eq!(balancer.exit_code(), 0, "{}", balancer.log());
    assert_eq!(fs::read_to_string(folder.path().join("moved")).unwrap().lines().count(), 2);
}
