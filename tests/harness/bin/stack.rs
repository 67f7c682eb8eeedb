//! Starts the stack that all tests of a run share, writes its description to the file given, and stops it when its
//! standard input ends: whoever started it and dies, however that comes about, takes the stack along.
#![allow(clippy::expect_used)]

use std::{env, fs, path::PathBuf};

use portcullis_tests::{Options, Stack};
use tokio::io::{AsyncReadExt, stdin};

#[tokio::main]
async fn main() {
    let path = PathBuf::from(env::args_os().nth(1).expect("the file to describe the stack in"));
    // All tests come from one network, and many of them fail to log in on purpose: they must not throttle each other.
    let options = Options::default();
    let options = options.proxy("throttle.failures_per_network_max", 0).proxy("throttle.failures_per_login_max", 0);
    let stack = Stack::private(options).await;
    let description = serde_json::to_vec(&stack.access).expect("the description is JSON");
    // Renamed into place: whoever waits for the file never sees half of it.
    let part = path.with_extension("part");
    fs::write(&part, description).expect("the description is written");
    fs::rename(&part, &path).expect("the description is put in place");
    let mut rest = Vec::new();
    let _ = stdin().read_to_end(&mut rest).await;
    drop(stack);
}
