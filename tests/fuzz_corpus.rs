//! The corpora of the fuzz targets as tests on stable: each input that the fuzzer kept goes through the same function
//! again, so that what was found once stays found.

// The targets reach some private readers, which are open only where debug assertions are on.
#![cfg(debug_assertions)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let targets: BTreeSet<String> = fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(targets.len(), fuzz::TARGETS.len());
    assert_eq!(names(&folder("fuzz_targets")), targets);
    assert_eq!(names(&folder("corpus")), targets);
}

#[test]
fn every_input_that_was_kept_still_passes() {
    let mut bytes = 0;
    for (name, run) in fuzz::TARGETS {
        let corpus = folder("corpus").join(name);
        let inputs: Vec<PathBuf> =
            fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "the corpus of {name} is empty");
        for input in inputs {
            let data = fs::read(&input).unwrap();
            bytes += data.len();
            let run = || run(&data);
            assert!(std::panic::catch_unwind(run).is_ok(), "{name}: {}", input.display());
        }
    }
    assert!(bytes < 1 << 20, "the corpora have {bytes} bytes: minimise them with `cargo fuzz cmin`");
}
