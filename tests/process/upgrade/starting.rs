//! Which program a new process is, and when a process is ready.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::copy;
use super::stage::{Runs, running, upgrade};
use crate::balancer::{Balancer, asked, config, node, tunnel};

#[test]
fn a_binary_behind_a_symbolic_link_is_replaced_by_the_one_that_the_link_leads_to_now() {
    let (folder, node) = (tempfile::tempdir().unwrap(), node());
    let [first, second, link] = ["releases/1", "releases/2", "current"].map(|name| folder.path().join(name));
    let binaries = [&first, &second].map(|release| {
        fs::create_dir_all(release).unwrap();
        let binary = release.join("mainstay");
        copy(env!("CARGO_BIN_EXE_mainstay").as_ref(), &binary);
        Runs(binary)
    });
    symlink(&first, &link).unwrap();
    // By its name alone, as from a shell.
    let mut command = Command::new("sh");
    command.args(["-c", "PATH=\"$1\"; shift; exec mainstay \"$@\"", "sh"]).arg(&link);
    let mut balancer = Balancer::spawn(&config(&node, "1s", "health: null"), command);
    balancer.wait_until_serving();
    assert_eq!(running(&binaries[0].0).len(), 1);
    for (target, binary) in [(&second, &binaries[1]), (&first, &binaries[0])] {
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
        let (done, told) = upgrade(&balancer.admin);
        assert!(done, "{told}");
        assert_eq!(running(&binary.0).len(), 1, "{}", balancer.log());
        tunnel(&balancer, &node);
    }
    fs::remove_file(&link).unwrap();
    let (done, told) = upgrade(&balancer.admin);
    assert!(!done && told.contains("current/mainstay: No such file"), "{told}");
    tunnel(&balancer, &node);
}

#[test]
fn nobody_is_told_that_it_is_ready_before_clients_are_accepted() {
    let (first, second) = (node(), node());
    let second_pool = format!(
        "}}, slow: {{ nodes: [{{ id: a, address: \"{}\" }}], health: {{ http: {{}}, timeout: 20s, interval: 30s }}",
        second.local_addr().unwrap()
    );
    let text = format!(
        "{}routes: [{{ path: /slow, pool: slow }}, {{ pool: chat }}]\n",
        config(&first, "1s", &format!("health: null {second_pool}"))
    );
    let mut balancer = Balancer::start(&text, |_| {});
    let line = balancer.line("admin listening");
    balancer.admin = line.rsplit_once("address=").unwrap().1.to_owned();
    let (mut probe, _) = asked(&second);
    let answer = balancer.admin("/readyz");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("starting"), "{answer}");
    probe.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    balancer.wait_until_serving();
    assert!(balancer.admin("/readyz").starts_with("HTTP/1.1 200 "));
    tunnel(&balancer, &first);
}
