//! Any bytes at the judge: the fuzzer's corpus, the rows of the corpora, and what the mutator makes of them.
//!
//! `PORTCULLIS_FUZZ` says how many mutations (1,500), `PORTCULLIS_FUZZ_SEED` which. The text that is being judged stands in
//! `fuzz-text` in the target directory's `tmp`, so that one which ends the process is not lost: put it into
//! `fuzz/corpus/judge`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use portcullis_policy::fuzz::{Fuzz, Mutator};
use portcullis_policy::{Effort, STACK_BYTES, effort};
use serde_json::Value;

/// How many mutations are judged, unless the environment says otherwise.
const MUTATIONS: u64 = 1_500;
/// One row in so many is judged as it is, unless the environment says how many mutations: other tests judge them all.
const ROWS_STEP: usize = 6;
/// No text takes nearly as long; one that does hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// After so many texts with which something is wrong, the rest is not tried.
const WRONG_MAX: usize = 20;
/// The stack of an ordinary worker, which small texts are judged on.
const SMALL_STACK_BYTES: usize = 2 << 20;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn fuzz() -> Fuzz {
    let profiles = root().join("provisioner/profiles");
    let names = ["storage/policy.toml", "override/policy.toml", "design/policy.toml", "policy.example.toml"];
    let documents = names.map(|name| fs::read_to_string(profiles.join(name)).unwrap());
    Fuzz::new(&documents.each_ref().map(String::as_str)).unwrap()
}

fn rows() -> Vec<String> {
    let mut texts = Vec::new();
    for name in ["attack.jsonl", "benign.jsonl", "clients.jsonl"] {
        let rows = fs::read_to_string(root().join("policy/corpus").join(name)).unwrap();
        let sql = |row| serde_json::from_str::<Value>(row).unwrap()["sql"].as_str().unwrap().to_owned();
        texts.extend(rows.lines().map(sql));
    }
    texts.sort();
    texts.dedup();
    texts
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// Judges the texts on the stacks that the judge asks for.
fn judge_all(texts: impl Iterator<Item = Vec<u8>> + Send, name: &str) {
    let (fuzz, last) = (fuzz(), Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
    let on_a_stack = |bytes, work: &mut (dyn FnMut() + Send)| {
        let joined =
            thread::scope(|scope| thread::Builder::new().stack_size(bytes).spawn_scoped(scope, work).unwrap().join());
        joined.unwrap_or_else(|panic| resume_unwind(panic));
    };
    let (mut count, mut big, mut slowest) = (0, 0, Duration::ZERO);
    let (mut texts, mut wrong) = (texts, Vec::new());
    on_a_stack(SMALL_STACK_BYTES, &mut || {
        for text in &mut texts {
            fs::write(&last, &text).unwrap();
            let started = Instant::now();
            let judged = catch_unwind(AssertUnwindSafe(|| match effort(&text) {
                Effort::Small => fuzz.judge(&text),
                Effort::Medium | Effort::Large => on_a_stack(STACK_BYTES, &mut || fuzz.judge(&text)),
            }));
            let shown: String = String::from_utf8_lossy(&text).chars().take(2_000).collect();
            assert!(started.elapsed() < PATIENCE, "{:?}: {shown}", started.elapsed());
            if let Err(panic) = judged {
                let why = panic.downcast_ref::<String>().map_or("a panic without words", String::as_str);
                wrong.push(format!("{why}\n  {} bytes: {shown}", text.len()));
                assert!(wrong.len() < WRONG_MAX, "{}", wrong.join("\n"));
            }
            (count, big) = (count + 1, big + u64::from(effort(&text) != Effort::Small));
            slowest = slowest.max(started.elapsed());
        }
    });
    eprintln!("{count} texts, {big} of them on a big stack, the slowest took {slowest:?}");
    assert!(count > 0);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_of_the_corpus_passes() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/judge");
    let files = fs::read_dir(directory).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
    judge_all(files, "fuzz-text-file");
}

#[test]
fn rows_of_the_corpora_pass() {
    let step = if number("PORTCULLIS_FUZZ").is_some() { 1 } else { ROWS_STEP };
    judge_all(rows().into_iter().step_by(step).map(String::into_bytes), "fuzz-text-row");
}

#[test]
fn every_mutation_passes() {
    let seed = number("PORTCULLIS_FUZZ_SEED").unwrap_or(1);
    let count = number("PORTCULLIS_FUZZ").unwrap_or(MUTATIONS);
    eprintln!("PORTCULLIS_FUZZ={count} PORTCULLIS_FUZZ_SEED={seed}");
    let mut mutator = Mutator::new(seed, &rows());
    judge_all((0..count).map(|_| mutator.bytes()), &format!("fuzz-text-{seed}"));
}
