//! Reads the policy's corpora, and knows which profile and kind of login a row is about.

use std::{fs, path::PathBuf};

use portcullis_tests::programs;
use serde::de::DeserializeOwned;

/// One text of a corpus, with what every corpus says about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Text {
    /// `profile/kind`.
    pub role: String,
    /// `simple`, `parse`, `extended` or `http`.
    pub surface: String,
    /// The text.
    pub sql: String,
}

impl Text {
    /// The profile's name.
    pub fn profile(&self) -> &str {
        self.role.split_once('/').unwrap().0
    }

    /// The kind of login.
    pub fn kind(&self) -> &str {
        self.role.split_once('/').unwrap().1
    }
}

/// The path of a file beside the corpora.
pub fn path(name: &str) -> PathBuf {
    programs::root().join("policy/corpus").join(name)
}

/// The rows of a file of JSON lines.
pub fn read<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let text = fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let parse = |(at, line)| serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}:{}: {error}", at + 1));
    text.lines().enumerate().map(parse).collect()
}
