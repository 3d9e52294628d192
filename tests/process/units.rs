//! The systemd units as they are shipped: every systemd since 247 knows what they say, and the reload that they name
//! replaces the process and says how it ended.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process};

use crate::balancer::{Balancer, DEADLINE, config, node, path_in};

const UNITS: [&str; 2] = ["mainstay.service", "mainstay.socket"];
/// Where the unit expects the program, and its config.
const PROGRAM: &str = "/usr/local/bin/mainstay";
const FILE: &str = "/etc/mainstay/balancer.yaml";

fn unit(name: &str) -> String {
    let path = format!("{}/deploy/systemd/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// The one value of a key.
fn value<'a>(unit: &'a str, key: &str) -> &'a str {
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("no {key}"));
    assert_eq!(values.next(), None, "{key} is there twice");
    value
}

/// Keys and values that came after systemd 247 (its NEWS), as far as a unit like this could want them.
const YOUNGER: [&str; 9] = [
    "notify-reload",
    "ReloadSignal=",
    "ExitType=",
    "RestrictFileSystems=",
    "RestrictNetworkInterfaces=",
    "SocketBindAllow=",
    "RestartSteps=",
    "RestartMode=",
    "ExtensionDirectories=",
];

#[test]
fn systemd_247_knows_every_key_of_the_units() {
    let service = unit("mainstay.service");
    assert_eq!(value(&service, "Type"), "notify");
    assert_eq!(
        value(&service, "NotifyAccess"),
        "all",
        "the new process is not the main one when it says MAINPID="
    );
    for unit in UNITS.map(unit) {
        let said: Vec<&str> = unit.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(said.len() > 10);
        for line in said {
            assert!(!YOUNGER.iter().any(|young| line.contains(young)), "{line}");
        }
    }
}

#[test]
fn the_systemd_of_this_machine_finds_no_fault_in_the_units() {
    // Without it the test above is all that can be said.
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in UNITS {
        let text = unit(name).replace(PROGRAM, env!("CARGO_BIN_EXE_mainstay"));
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let verify = |name: &str| {
        let output =
            Command::new("systemd-analyze").arg("verify").arg(folder.path().join(name)).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    for name in UNITS {
        let said = verify(name);
        // The manual pages are installed by packages only; what it says of other units is not about ours.
        let own = |line: &&str| line.contains("mainstay") && !line.contains("Command 'man ");
        assert_eq!(said.lines().find(own), None, "{said}");
    }
    std::fs::write(
        folder.path().join("mainstay.socket"),
        unit("mainstay.socket").replace("NoDelay", "NoDelays"),
    )
    .unwrap();
    assert!(verify("mainstay.socket").contains("Unknown key"), "it would be said");
}

#[test]
fn the_reload_of_the_unit_hands_over_to_a_new_main_process_and_says_when_it_does_not() {
    let (node, folder) = (node(), tempfile::tempdir().unwrap());
    let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let heard = || {
        let mut buffer = [0; 4096];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let hears = |part: &str| std::iter::repeat_with(heard).find(|text| text.contains(part)).unwrap();
    let admin = format!("\"unix:{}\" }}\naccess", path_in(&folder, "admin.sock"));
    let text = config(&node, "1s", "health: null").replacen("\"127.0.0.1:0\" }\naccess", &admin, 1);
    let mut balancer = Balancer::start(&text, |command| {
        command.env("NOTIFY_SOCKET", folder.path().join("notify"));
    });
    balancer.wait_until_serving();
    hears("READY=1");
    let file = path_in(&balancer.folder, "balancer.yaml");
    let reload = || -> Output {
        let command = unit("mainstay.service");
        let mut words = value(&command, "ExecReload").split(' ');
        assert_eq!(words.next(), Some(PROGRAM));
        let words = words.map(|word| if word == FILE { file.as_str() } else { word });
        Command::new(env!("CARGO_BIN_EXE_mainstay")).args(words).output().unwrap()
    };
    std::fs::write(&file, text.replace("pools:", "polls:")).unwrap();
    let output = reload();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("did you mean `pools`?"), "{said}");

    std::fs::write(&file, &text).unwrap();
    let output = reload();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(0) && said.starts_with("replaced: process "), "{said}");
    let told = hears("MAINPID=");
    let process: i32 = told.lines().find_map(|line| line.strip_prefix("MAINPID=")).unwrap().parse().unwrap();
    assert!(
        said.starts_with(&format!("replaced: process {process}, ")) && told.contains("READY=1"),
        "{said}{told}"
    );
    assert_eq!(balancer.exit_code_or_orphan(), 0);
    kill_process(Pid::from_raw(process).unwrap(), Signal::TERM).unwrap();
    hears("STOPPING=1");
}
