//! The layout of the source as tests: what may name what, what a band may not do, how files look.
//!
//! Every rule is a function from one file (or all of them) to the faults that it finds, each `path:line: what`. A
//! rule reads code with its comments and literals blanked out, so prose and strings are free. `examples` below
//! shows each rule something wrong, because a rule that finds nothing may only be blind.

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::path::Path;

use source::{Band, CRATES, File, Modules, files, read, root, sources};

/// Invariants that have no test with their name yet. It only ever gets shorter: an entry whose test exists fails.
const MISSING: &[&str] = &[];

/// Lines that a file may have before its inline tests.
const MOST_LINES: usize = 400;

#[test]
fn i1_a_module_names_only_modules_above_it() {
    for krate in CRATES {
        let modules = Modules::of_the_crate(krate);
        assert_none(sources(krate), |file| names_below(file, &modules));
    }
}

#[test]
fn i1_each_band_names_only_what_it_may() {
    for krate in CRATES {
        let modules = Modules::of_the_crate(krate);
        assert_none(sources(krate), |file| band_faults(file, &modules));
    }
    let faults = joins_balancer_and_node(&files(&["src", "crates"]));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn i2_pure_modules_have_no_clock_no_io_no_threads() {
    for krate in CRATES {
        let modules = Modules::of_the_crate(krate);
        let pure = sources(krate).into_iter().filter(|file| modules.band(file.module()) == Some(Band::Pure));
        assert_none(pure.collect(), impure);
    }
}

#[test]
fn every_file_says_at_its_head_what_it_is_for() {
    assert_none(files(&["src", "crates", "tests", "benches"]), without_head);
}

#[test]
fn no_file_outgrows_its_noun() {
    assert_none(files(&["src", "crates", "tests", "benches"]), too_long);
}

#[test]
fn shipped_code_does_not_end_in_a_panic() {
    assert_none(files(&["src", "crates"]), may_panic);
}

#[test]
fn tests_wait_for_events_and_all_of_them_run() {
    assert_none(files(&["src", "crates", "tests"]), sleeps_or_is_ignored);
}

#[test]
fn no_file_names_another_that_leads_back_to_it() {
    assert_no_fault(every_crate(), |sources| {
        circles::circles(sources)
            .into_iter()
            .map(|circle| format!("a circle: {}", circle.join(", ")))
            .collect()
    });
}

#[test]
fn no_two_types_of_a_crate_share_a_name() {
    assert_no_fault(every_crate(), names::shared_names);
}

#[test]
fn public_functions_are_named_outside_their_crate() {
    // Not of socketio-redis, whose users are elsewhere.
    for krate in &CRATES[..3] {
        let own = format!("{krate}src/");
        let everything = files(&["src", "crates", "tests", "benches", "fuzz"]);
        let is_own = |file: &File| file.path.starts_with(&own) && !file.path.contains("src/bin/");
        let (sources, outside): (Vec<_>, Vec<_>) = everything.into_iter().partition(is_own);
        let faults = names::unused_public_functions(&sources, &outside);
        assert!(!sources.is_empty() && faults.is_empty(), "\n{}\n", faults.join("\n"));
    }
}

#[test]
fn errors_are_called_so() {
    assert_none(files(&["src", "crates"]), names::unnamed_errors);
}

#[test]
fn no_comment_sends_the_reader_elsewhere_for_what_it_is() {
    assert_none(files(&["src", "crates"]), names::empty_comments);
}

#[test]
fn functions_are_read_at_a_glance() {
    assert_none(files(&["src", "crates"]), names::long_functions);
}

#[test]
fn a_module_with_a_folder_is_its_mod_rs() {
    assert_no_fault(every_crate(), names::split_modules);
}

#[test]
fn names_say_what_a_thing_is_or_does() {
    assert_none(files(&["src", "crates", "tests", "benches"]), empty_names);
}

#[test]
fn every_invariant_has_a_test_with_its_name() {
    let invariants = invariants(&read("src/lib.rs"));
    assert!(invariants.len() >= 9, "{invariants:?}");
    let tests = test_names(&files(&["src", "crates", "tests"]));
    let faults = invariant_faults(&invariants, &tests, MISSING);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_balancer_without_its_demo_links_nothing_of_the_node() {
    const OF_THE_NODE: [&str; 6] = ["mainstay-node", "redis", "yawc", "jsonwebtoken", "rmpv", "flate2"];
    let tree = |features: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO"));
        command
            .args(["tree", "--package", "mainstay", "--edges", "normal", "--prefix", "none"])
            .args(features);
        let output = command.current_dir(root()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let (whole, bare) = (tree(&[]), tree(&["--no-default-features"]));
    for name in OF_THE_NODE {
        assert!(whole.contains(name), "the demo does not link {name}: is it called something else now?");
        assert!(!bare.contains(name), "the balancer links {name}");
    }
    assert!(bare.contains("mainstay-core"));
}

/// What `crate::` reaches below the file's own module.
fn names_below(file: &File, modules: &Modules) -> Vec<String> {
    let Some(own) = modules.place(file.module()) else { return Vec::new() };
    let reached = file.names("crate::").into_iter().chain(file.root_names_through_super());
    let faults = reached.filter_map(|(line, name)| match modules.place(&name) {
        Some(place) if place <= own => None,
        Some(_) => Some(file.fault(line, &format!("{} names {name}, which is below it", file.module()))),
        None => Some(file.fault(line, &format!("{name} is no module of lib.rs"))),
    });
    faults.collect()
}

/// What the order alone would allow and a band does not.
fn band_faults(file: &File, modules: &Modules) -> Vec<String> {
    let own = file.module();
    let may = |name: &str| match (own, modules.band(own)) {
        (_, Some(Band::Mechanism)) => !["config", "pool", "route"].contains(&name),
        ("proxy", _) => name != "control",
        _ => true,
    };
    let named = file.names("crate::").into_iter().filter(|(_, name)| !may(name));
    named.map(|(line, name)| file.fault(line, &format!("{own} may not name {name}"))).collect()
}

/// Files other than `demo` in which the balancer and the node name each other.
fn joins_balancer_and_node(files: &[File]) -> Vec<String> {
    let is_node = |file: &File| file.path.starts_with("crates/");
    let other = |file: &File| if is_node(file) { "mainstay::" } else { "mainstay_node::" };
    let shipped = files.iter().filter(|file| !file.path.contains("tests/") && file.path != "src/demo.rs");
    let joining = shipped.filter(|file| file.shipped_with(&[other(file)]).next().is_some());
    joining.map(|file| file.fault(1, "only demo names both the balancer and the node")).collect()
}

/// Words that stand for a clock, I/O, a thread, a lock or chance.
const IMPURE: &[&str] = &[
    "tokio",
    "hyper",
    "socket2",
    "rustix",
    "parking_lot",
    "arc_swap",
    "tracing",
    "prometheus",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "UnixStream",
    "UnixListener",
    "std::fs",
    "fs::read",
    "fs::write",
    "File::open",
    "std::env",
    "env::var",
    "std::thread",
    "thread::spawn",
    "Mutex",
    "RwLock",
    "Condvar",
    "mpsc",
    "Instant::now",
    "SystemTime::now",
    ".elapsed()",
    "println!",
    "eprintln!",
    "stdout",
    "stderr",
    "stdin",
    "RandomState",
    "DefaultHasher",
    "SystemRandom",
    "rand::fill",
];

fn impure(file: &File) -> Vec<String> {
    file.shipped_with(IMPURE)
        .map(|(line, word)| file.fault(line, &format!("{word} in a pure module")))
        .collect()
}

fn without_head(file: &File) -> Vec<String> {
    let first = file.text.lines().next().unwrap_or_default();
    let says = first.strip_prefix("//!").is_some_and(|rest| !rest.trim().is_empty());
    if says { Vec::new() } else { vec![file.fault(1, "does not begin with `//!` and what it is")] }
}

fn too_long(file: &File) -> Vec<String> {
    let lines = file.before_inline_tests().lines().count();
    if lines <= MOST_LINES {
        return Vec::new();
    }
    vec![file.fault(lines, &format!("{lines} lines before the tests, {MOST_LINES} are the most"))]
}

const PANICS: &[&str] = &[".unwrap()", ".unwrap_err()", "todo!", "unimplemented!", "dbg!", "panic!"];

fn may_panic(file: &File) -> Vec<String> {
    file.shipped_with(PANICS)
        .map(|(line, word)| file.fault(line, &format!("{word} in shipped code")))
        .collect()
}

const WAITS: &[&str] = &["thread::sleep", "time::sleep", "sleep(", "sleep_until", "#[ignore"];

/// A test on tokio's paused clock does not wait: its sleeps only move that clock.
const PAUSED: &str = "start_paused = true";

fn sleeps_or_is_ignored(file: &File) -> Vec<String> {
    if file.text.contains(PAUSED) {
        return Vec::new();
    }
    file.tests_with(WAITS).map(|(line, word)| file.fault(line, &format!("{word} in a test"))).collect()
}

fn empty_names(file: &File) -> Vec<String> {
    const PREFIXES: [&str; 4] = ["handle_", "process_", "do_", "get_"];
    const NOUNS: [&str; 7] = ["manager", "helper", "helpers", "util", "utils", "common", "misc"];
    // What traits of other crates call their methods.
    const FOREIGN: [&str; 1] = ["get_db"];
    const TYPES: [&str; 5] = ["Manager", "Helper", "Helpers", "Util", "Utils"];
    let mut faults = Vec::new();
    for part in Path::new(&file.path).with_extension("").iter().filter_map(|part| part.to_str()) {
        if NOUNS.contains(&part) {
            faults.push(file.fault(1, &format!("a file is named for the noun in it, {part} is none")));
        }
    }
    for (line, name) in file.names("fn ") {
        if PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && !FOREIGN.contains(&name.as_str()) {
            faults.push(file.fault(line, &format!("fn {name} does not say what it does")));
        }
    }
    for (line, name) in ["struct ", "enum ", "trait ", "type "].iter().flat_map(|word| file.names(word)) {
        if TYPES.iter().any(|noun| name.ends_with(noun)) {
            faults.push(file.fault(line, &format!("{name} does not say what it is")));
        }
    }
    for (line, name) in file.names("mod ").into_iter().filter(|(_, name)| NOUNS.contains(&name.as_str())) {
        faults.push(file.fault(line, &format!("mod {name} does not say what it is")));
    }
    faults
}

/// The ids in the list at the head of lib.rs.
fn invariants(lib: &File) -> Vec<String> {
    let items = lib.text.lines().filter_map(|line| line.strip_prefix("//! - I"));
    let numbers = items.filter_map(|item| item.split(' ').next()?.parse::<u32>().ok());
    numbers.map(|number| format!("I{number}")).collect()
}

fn test_names(files: &[File]) -> BTreeSet<String> {
    files.iter().flat_map(|file| file.names("fn ")).map(|(_, name)| name).collect()
}

fn invariant_faults(invariants: &[String], tests: &BTreeSet<String>, missing: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for id in invariants {
        let prefix = format!("{}_", id.to_lowercase());
        let has_test = tests.iter().any(|name| name.starts_with(&prefix));
        match (has_test, missing.contains(&id.as_str())) {
            (false, false) => faults.push(format!("{id} has no test whose name begins with {prefix}")),
            (true, true) => faults.push(format!("{id} has its test: take it off MISSING")),
            _ => {}
        }
    }
    faults
}

/// The sources of each crate of the workspace.
fn every_crate() -> Vec<Vec<File>> {
    let crates = std::fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut folders: Vec<String> = crates.map(|name| format!("crates/{name}/")).collect();
    folders.push(String::new());
    folders.iter().map(|krate| sources(krate)).collect()
}

fn assert_no_fault(crates: Vec<Vec<File>>, rule: impl Fn(&[File]) -> Vec<String>) {
    assert!(crates.len() > 2 && crates.iter().all(|sources| !sources.is_empty()), "the rule saw no file");
    let faults: Vec<String> = crates.iter().flat_map(|sources| rule(sources)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn assert_none(files: Vec<File>, rule: impl Fn(&File) -> Vec<String>) {
    assert!(!files.is_empty(), "the rule saw no file");
    let faults: Vec<String> = files.iter().flat_map(rule).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[cfg(test)]
mod examples {
    use super::*;

    const LIB: &str = "// pure: data\npub mod ws;\npub mod pool;\n// mechanism: I/O\npub mod relay;\n\
                       // planes and wiring\npub mod proxy;\npub mod control;\npub mod app;\npub mod demo;\n";

    fn lib() -> Modules {
        Modules::of(LIB)
    }

    /// The lines of the faults.
    fn lines(faults: Vec<String>) -> Vec<usize> {
        let line = |fault: &String| fault.split(':').nth(1).and_then(|line| line.parse().ok());
        faults.iter().map(|fault| line(fault).unwrap_or_else(|| panic!("{fault}"))).collect()
    }

    #[test]
    fn the_order_and_the_bands_are_read_from_lib() {
        let modules = lib();
        assert_eq!(modules.place("relay"), Some(2));
        assert_eq!(modules.place("elsewhere"), None);
        assert_eq!(modules.band("pool"), Some(Band::Pure));
        assert_eq!(modules.band("relay"), Some(Band::Mechanism));
        assert_eq!(modules.band("app"), Some(Band::Plane));
    }

    #[test]
    fn a_module_that_names_one_below_it_is_seen() {
        let text = "use crate::ws;\nuse crate::{\n    relay::{Tunnel, proxy},\n    proxy,\n};\n// crate::app\n\
                    fn f() { crate::demo::run(\"crate::app\") }\n#[cfg(test)]\nmod tests { use crate::control; }\n";
        let file = File::new("src/relay/mod.rs", text);
        assert_eq!(lines(names_below(&file, &lib())), [4, 7, 9]);
        assert_eq!(lines(names_below(&File::new("src/app.rs", "use crate::Thing;"), &lib())), [1]);
        assert!(names_below(&File::new("src/lib.rs", "use crate::demo;"), &lib()).is_empty());
    }

    #[test]
    fn the_way_through_super_is_seen_as_well() {
        let text = "use super::pipe;\nuse super::super::{ws, proxy};\n#[cfg(test)]\nmod tests {\n    use super::*;\n\
                    use super::super::tests;\n use super::super::super::app;\n}";
        assert_eq!(lines(names_below(&File::new("src/relay/engine.rs", text), &lib())), [2, 7]);
        assert_eq!(lines(names_below(&File::new("src/relay/mod.rs", "use super::app;"), &lib())), [1]);
    }

    #[test]
    fn a_band_that_names_what_it_may_not_is_seen() {
        let named = |path, text| lines(band_faults(&File::new(path, text), &lib()));
        assert_eq!(named("src/relay/mod.rs", "use crate::ws;\nuse crate::pool;"), [2]);
        assert_eq!(named("src/proxy/mod.rs", "use crate::pool;\nuse crate::control;"), [2]);
        assert!(named("src/app.rs", "use crate::{pool, control};").is_empty());
    }

    #[test]
    fn only_demo_and_nothing_else_joins_the_balancer_and_the_node() {
        let joined = |path, text| joins_balancer_and_node(&[File::new(path, text)]).len();
        let to_node = "use mainstay_node::Node;";
        assert_eq!([joined("src/demo.rs", to_node), joined("src/control.rs", to_node)], [0, 1]);
        assert_eq!(joined("crates/mainstay-node/src/lib.rs", "use mainstay::app;"), 1);
        assert_eq!(joined("crates/mainstay-node/src/bin/mainstay-node/main.rs", to_node), 0);
    }

    #[test]
    fn a_clock_a_socket_a_lock_and_chance_are_seen_in_pure_code_but_not_in_its_tests() {
        let text = "use std::net::{IpAddr, SocketAddr};\nuse std::net::TcpStream;\nlet now = Instant::now();\n\
                    let lock = std::sync::Mutex::new(());\n/// tokio\nlet mutexes = \"Mutex\";\n\
                    use std::hash::RandomState;\n#[cfg(test)]\nmod tests { use std::fs; }";
        let mut seen = lines(impure(&File::new("src/ws.rs", text)));
        seen.sort();
        assert_eq!(seen, [2, 3, 4, 7]);
    }

    #[test]
    fn a_file_without_a_head_or_that_is_too_long_is_seen() {
        assert_eq!(lines(without_head(&File::new("src/a.rs", "use x;\n//! late\n"))), [1]);
        assert_eq!(lines(without_head(&File::new("src/a.rs", "//!\n"))), [1]);
        assert!(without_head(&File::new("src/a.rs", "//! what it is\n")).is_empty());
        let fits = "//! x\n".repeat(MOST_LINES) + "#[cfg(test)]\nmod tests {\n" + &"\n".repeat(900) + "}\n";
        assert!(too_long(&File::new("src/a.rs", &fits)).is_empty());
        assert_eq!(too_long(&File::new("src/a.rs", &format!("//! x\n{fits}"))).len(), 1);
        // Something else for the tests does not end the count.
        let early = format!("#[cfg(test)]\npub(crate) fn x() {{}}\n{fits}");
        assert_eq!(too_long(&File::new("src/a.rs", &early)).len(), 1);
    }

    #[test]
    fn what_panics_is_seen_before_the_tests_only() {
        let text = "a.unwrap();\na.unwrap_or(b);\ntodo!();\ndbg!(x);\npanic!();\ncall(my_panic!());\n// .unwrap()\n\
                    let s = r#\"panic!(\"x\")\"#;\n#[cfg(test)]\npub(super) mod tests { fn f() { a.unwrap() } }";
        let mut seen = lines(may_panic(&File::new("src/a.rs", text)));
        seen.sort();
        assert_eq!(seen, [1, 3, 4, 5]);
    }

    #[test]
    fn a_test_that_sleeps_or_does_not_run_is_seen() {
        let text = "time::sleep(PAUSE).await;\n#[cfg(test)]\nmod tests {\n    #[ignore = \"slow\"]\n\
                    fn f() { thread::sleep(x) }\n}";
        assert_eq!(lines(sleeps_or_is_ignored(&File::new("src/a.rs", text))), [5, 5, 4]);
        assert_eq!(lines(sleeps_or_is_ignored(&File::new("tests/it/a.rs", "sleep(x).await;"))), [1]);
    }

    #[test]
    fn a_name_that_says_nothing_is_seen() {
        let text = "pub fn handle_request() {}\nfn get() {}\nasync fn do_it() {}\nstruct NodeManager;\nmod common;\n";
        assert_eq!(lines(empty_names(&File::new("src/a.rs", text))), [1, 3, 4, 5]);
        assert_eq!(empty_names(&File::new("tests/common/mod.rs", "")).len(), 1);
        assert_eq!(empty_names(&File::new("src/utils.rs", "")).len(), 1);
        assert!(empty_names(&File::new("src/process.rs", "fn processed() {}\nfn target_of() {}")).is_empty());
    }

    #[test]
    fn an_invariant_without_a_test_and_an_excuse_without_need_are_seen() {
        let lib = File::new("src/lib.rs", "//! - I1 One.\n//! - I2 Two.\n//! - I10 Ten.\n//! - If not.\n");
        let ids = invariants(&lib);
        assert_eq!(ids, ["I1", "I2", "I10"]);
        let tests = test_names(&[File::new("tests/a.rs", "fn i10_ten() {}\n// fn i2_two() {}\n")]);
        assert_eq!(invariant_faults(&ids, &tests, &["I1"]).len(), 1, "I2");
        assert_eq!(invariant_faults(&ids, &tests, &["I1", "I2"]).len(), 0, "I1 is not tested by i10");
        assert_eq!(invariant_faults(&ids, &tests, &["I1", "I2", "I10"]).len(), 1);
    }
}
