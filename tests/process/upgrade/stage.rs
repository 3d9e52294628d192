//! A balancer whose binary can be replaced, and the processes that run it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::balancer::{Balancer, DEADLINE, Raw, config, node};

/// A balancer whose binary can be replaced.
pub struct Stage {
    pub balancer: Balancer,
    pub node: TcpListener,
    pub folder: TempDir,
    pub binary: PathBuf,
}

impl Stage {
    pub fn set(pool: &str) -> Self {
        Self::with(pool, |text| text)
    }

    pub fn with(pool: &str, change: impl FnOnce(String) -> String) -> Self {
        let (folder, node) = (tempfile::tempdir().unwrap(), node());
        let binary = folder.path().join("mainstay");
        copy(Path::new(env!("CARGO_BIN_EXE_mainstay")), &binary);
        let mut balancer = Balancer::spawn(&change(config(&node, "5s", pool)), Command::new(&binary));
        balancer.wait_until_serving();
        Self { balancer, node, folder, binary }
    }

    pub fn quiet() -> Self {
        Self::set("health: null")
    }

    /// The same with an old process that waits long for what it has begun.
    pub fn patient() -> Self {
        Self::with("health: null", |text| text.replace("drain: 5s", "drain: 25s"))
    }

    /// Puts another program in the place of the binary, as an installer does.
    pub fn install(&self, program: &[u8]) {
        let [text, new] = ["text", "new"].map(|name| self.folder.path().join(name));
        fs::write(&text, program).unwrap();
        copy(&text, &new);
        fs::rename(new, &self.binary).unwrap();
    }

    /// `mainstay upgrade`, with what it prints, and whether it says that it worked.
    pub fn upgrade(&self) -> (bool, String) {
        upgrade(&self.balancer.admin)
    }

    /// The same, and the new process is killed as soon as there is one. It must have been seen to that it does not take
    /// over before that.
    pub fn upgrade_and_kill(&self) -> (bool, String) {
        let old = self.serving();
        let admin = self.balancer.admin.clone();
        let upgrading = std::thread::spawn(move || upgrade(&admin));
        let end = Instant::now() + DEADLINE;
        let new = loop {
            match child(old) {
                Some(new) => break new,
                None => assert!(Instant::now() < end, "no new process"),
            }
        };
        kill_process(new, Signal::KILL).unwrap();
        upgrading.join().unwrap()
    }

    /// One upgrade to a program that fails its check, and one whose new process is killed before it has said that it is
    /// ready: this process serves on. The only ones that fail on this stage.
    pub fn upgrade_in_vain(&self) {
        let before = self.serving();
        self.install(b"#!/bin/sh\nexit 7\n");
        let (done, told) = self.upgrade();
        assert!(!done && told.contains("exit status: 7"), "{told}");
        // It hears what is said to it, and never answers.
        self.install(b"#!/bin/sh\nexec cat > /dev/null\n");
        let (done, told) = self.upgrade_and_kill();
        assert!(!done && told.contains("signal: 9"), "{told}");
        self.install(&fs::read(env!("CARGO_BIN_EXE_mainstay")).unwrap());
        assert_eq!(self.serving(), before);
        self.shows("mainstay_upgrades_total{result=\"failed\"}", 2);
    }

    /// The process that serves now.
    pub fn serving(&self) -> i32 {
        let metrics = self.balancer.admin("/api/status");
        let told = metrics.split_once("\"pid\":").map(|(_, rest)| rest.split([',', '}']).next());
        told.flatten().unwrap_or_else(|| panic!("no pid in {metrics}")).trim().parse().unwrap()
    }

    /// Returns once no process but `but` runs the binary: those that were replaced have ended.
    pub fn alone(&self, but: i32) {
        let end = Instant::now() + DEADLINE;
        while running(&self.binary).iter().any(|process| *process != but) {
            assert!(Instant::now() < end, "the old process does not end:\n{}", self.balancer.log());
            std::thread::yield_now();
        }
    }

    /// Returns once the series has this value: the last that an old process counted may come behind its end.
    pub fn shows(&self, series: &str, value: u64) {
        let end = Instant::now() + DEADLINE;
        loop {
            let metrics = self.balancer.admin("/metrics");
            let told = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
            if told.is_some_and(|told| told == value.to_string()) {
                return;
            }
            assert!(Instant::now() < end, "{series} is {told:?} and not {value}");
            std::thread::yield_now();
        }
    }
}

pub fn upgrade(admin: &str) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    let output = command.args(["upgrade", "--admin", admin]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// The whole answer of the admin server to an order.
pub fn order(admin: &str, path: &str, body: &str) -> String {
    let mut order = Raw::new(TcpStream::connect(admin).unwrap());
    order.send(format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    order.rest()
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(Runs(self.binary.clone()));
    }
}

/// A binary whose processes do not outlive the test.
pub struct Runs(pub PathBuf);

impl Drop for Runs {
    fn drop(&mut self) {
        for process in running(&self.0) {
            let _ = kill_process(Pid::from_raw(process).unwrap(), Signal::KILL);
        }
    }
}

/// Copies a program in a process of its own: a file that this one writes can be open in the children of other tests for a
/// moment, and then it cannot be run.
pub fn copy(from: &Path, to: &Path) {
    let copied = Command::new("install").args(["-m", "755"]).arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// A child of this process.
pub fn child(parent: i32) -> Option<Pid> {
    let parent = format!("PPid:\t{parent}");
    let is_its = |process: &i32| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        status.lines().any(|line| line == parent)
    };
    processes().find(is_its).and_then(Pid::from_raw)
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The processes that run this file, or did before it was replaced. Only this test's copy has that path.
pub fn running(binary: &Path) -> Vec<i32> {
    let runs = |process: &i32| {
        let program = fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default();
        program.to_string_lossy().trim_end_matches(" (deleted)") == binary.to_string_lossy()
    };
    processes().filter(runs).collect()
}
