//! A text, judged for every kind of the shipped profiles.
#![no_main]

use std::sync::LazyLock;
use std::thread;

use portcullis_policy::{Effort, STACK_BYTES, effort, fuzz::Fuzz};

static FUZZ: LazyLock<Fuzz> = LazyLock::new(|| {
    let documents = [
        include_str!("../../../provisioner/profiles/storage/policy.toml"),
        include_str!("../../../provisioner/profiles/override/policy.toml"),
        include_str!("../../../provisioner/profiles/design/policy.toml"),
        include_str!("../../../provisioner/profiles/policy.example.toml"),
    ];
    Fuzz::new(&documents).expect("the shipped profiles")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if effort(data) == Effort::Small {
        return FUZZ.judge(data);
    }
    thread::scope(|scope| {
        let worker = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || FUZZ.judge(data));
        worker.expect("a thread").join().expect("no panic");
    });
});
