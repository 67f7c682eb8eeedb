//! What can be wrong with a configuration, in words that name the key, the line and the remedy.
//!
//! The value of a secret key never appears here.

use std::{fmt, path::PathBuf, sync::Arc};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line (from 1) of the configuration file.
    File {
        /// The file as it was named on the command line.
        path: Arc<PathBuf>,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The configuration file, or a file that it names, cannot be read.
    Unreadable {
        /// The key that named the file; `None` for the configuration file itself.
        key: Option<String>,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// The file is not TOML.
    Syntax {
        /// Where.
        origin: Origin,
        /// What the parser said.
        reason: String,
    },
    /// Nothing has this name.
    UnknownKey {
        /// The key in full, e.g. `listen.adress`.
        key: String,
        /// Where it was given.
        origin: Origin,
        /// The known key that is spelt most like it.
        nearest: Option<String>,
    },
    /// A required key was given nowhere.
    Missing {
        /// The key in full.
        key: String,
        /// Whether `<key>_file` would do as well.
        secret: bool,
    },
    /// A secret was given both directly and as a file, at the same level.
    Twice {
        /// The key in full.
        key: String,
        /// Where the second one was given.
        origin: Origin,
    },
    /// The value does not fit the key.
    Invalid {
        /// The key in full.
        key: String,
        /// Where it was given.
        origin: Origin,
        /// The value as given, or `***` for a secret.
        value: String,
        /// What would fit.
        expected: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { key: None, path, reason } => write!(f, "cannot read {}: {reason}", path.display()),
            Self::Unreadable { key: Some(key), path, reason } => {
                write!(f, "cannot read {}, which {key} names: {reason}", path.display())
            }
            Self::Syntax { origin, reason } => write!(f, "{origin}: not valid TOML: {reason}"),
            Self::UnknownKey { key, origin, nearest } => {
                write!(f, "{origin}: unknown key `{key}`")?;
                nearest.as_ref().map_or(Ok(()), |known| write!(f, "; did you mean `{known}`?"))
            }
            Self::Missing { key, secret } => {
                let variable = crate::source::variable_of(key);
                write!(f, "`{key}` is required: set it in the file or as {variable}")?;
                if *secret { write!(f, ", or name a file by `{key}_file` or {variable}_FILE") } else { Ok(()) }
            }
            Self::Twice { key, origin } => write!(f, "{origin}: `{key}` and `{key}_file` are both given; keep one"),
            Self::Invalid { key, origin, value, expected } => {
                write!(f, "{origin}: `{key}` is {value}; expected {expected}")
            }
        }
    }
}

/// Every mistake that was found in a configuration, one per line.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    pub(crate) fn new(problems: Vec<Problem>) -> Self {
        Self { problems }
    }

    /// The mistakes, in the order in which they were found; at least one.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}
