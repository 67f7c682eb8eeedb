//! Starts the stack that all tests of a run share, writes its description to the file given, and stops it when its
//! standard input ends: whoever started it and dies, however that comes about, takes the stack along.
#![allow(clippy::expect_used)]

use std::{env, fs, path::PathBuf};

use portcullis_tests::{Options, Stack};
use tokio::io::{AsyncReadExt, stdin};

#[tokio::main]
async fn main() {
    let path = PathBuf::from(env::args_os().nth(1).expect("the file to describe the stack in"));
    let stack = Stack::private(Options::default()).await;
    let description = serde_json::to_vec(&stack.access).expect("the description is JSON");
    // Renamed into place: whoever waits for the file never sees half of it.
    let part = path.with_extension("part");
    fs::write(&part, description).expect("the description is written");
    fs::rename(&part, &path).expect("the description is put in place");
    let mut rest = Vec::new();
    let _ = stdin().read_to_end(&mut rest).await;
    drop(stack);
}
