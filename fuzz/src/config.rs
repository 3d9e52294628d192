//! The config: no text makes it panic, every fault has its place in the text, and what is accepted can be shown and
//! is no other one than itself.

use std::io;
use std::path::Path;

use mainstay::config::{diff, effective, resolve_at};

/// 2027-01-15.
const NOW: i64 = 1_800_000_000;

/// One input: a YAML file. `${NAME}` is `ws1`, no other variable is set; `keys` is a secret file.
pub fn run(data: &[u8]) {
    let env = |name: &str| (name == "NAME").then(|| "ws1".to_owned());
    let read = |path: &Path| match path.to_str() {
        Some("keys") => Ok(b"a:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n".to_vec()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    match resolve_at("balancer.yaml", NOW, data, &env, &read) {
        Ok(config) => {
            assert!(diff(&config, &config).is_empty(), "it differs from itself");
            let _ = effective(&config).to_string();
            let again = resolve_at("balancer.yaml", NOW, data, &env, &read);
            assert_eq!(again.as_ref(), Ok(&config), "it is read in two ways");
        }
        Err(faults) => {
            assert!(!faults.list().is_empty(), "it is refused without a word");
            // A lone CR ends a line of YAML too.
            let lines = 2 + data.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count();
            for fault in faults.list() {
                assert!(!fault.message.is_empty());
                if let Some(at) = fault.at {
                    assert!(at.line >= 1 && at.line <= lines && at.column >= 1, "{at:?} of {lines} lines");
                }
            }
            assert!(faults.lines().all(|line| line.lines().count() == 1), "a fault is one line");
            let unplaced = faults.list().iter().filter(|fault| fault.at.is_none()).count();
            assert!(unplaced <= 1, "only the file as a whole has no place");
        }
    }
}
