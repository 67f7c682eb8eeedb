//! The fuzzer's corpus as an ordinary test: each file goes through the function that its fuzz target calls.
//!
//! A file that a fuzzer found is put beside the others. The seeds are written from the tables of samples: `UPDATE=1`
//! rewrites them.

use std::fs;
use std::path::PathBuf;

use portcullis_wire::fuzz::{fuzz_backend, fuzz_frontend, fuzz_scram, fuzz_startup};

use crate::samples;
use crate::scram;

/// A file's name and content.
type Seed = (String, Vec<u8>);
/// What a fuzz target calls.
type Run = fn(&[u8]);

fn seeds() -> Vec<(&'static str, Vec<Seed>)> {
    let named = |samples: Vec<samples::Sample>| {
        samples.into_iter().map(|sample| (sample.name.to_owned(), sample.bytes)).collect::<Vec<Seed>>()
    };
    let texts = |texts: &[&str]| {
        texts.iter().enumerate().map(|(at, text)| (format!("{at:02}"), text.as_bytes().to_vec())).collect::<Vec<_>>()
    };
    vec![
        ("startup", named(samples::startup())),
        ("frontend", named(samples::frontend())),
        ("backend", named(samples::backend())),
        ("scram", texts(scram::SEEDS)),
    ]
}

fn directory(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

#[test]
fn the_seeds_are_the_samples() {
    for (target, seeds) in seeds() {
        for (name, bytes) in seeds {
            let path = directory(target).join(format!("seed-{name}"));
            if std::env::var_os("UPDATE").is_some() {
                fs::create_dir_all(directory(target)).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            let stored =
                fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run with UPDATE=1", path.display()));
            assert!(stored == bytes, "{} is not its sample; run with UPDATE=1", path.display());
        }
    }
}

#[test]
fn every_file_of_the_corpus_passes() {
    let targets: [(&str, Run); 4] =
        [("startup", fuzz_startup), ("frontend", fuzz_frontend), ("backend", fuzz_backend), ("scram", fuzz_scram)];
    for (target, run) in targets {
        let mut files = 0;
        for entry in fs::read_dir(directory(target)).unwrap() {
            run(&fs::read(entry.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files > 0, "the corpus of {target} is empty");
    }
}
