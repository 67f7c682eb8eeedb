//! The startup parameter `options`, which is a command line: what libpq's `options=-c name=value` sends.
//!
//! It is read as PostgreSQL reads it (`pg_split_opts`, then the switches of `postgres`), but only switches that set a
//! parameter are understood; every other one is an error. Whether a parameter may be set is the policy's to say.

use super::PARAMETERS_MAX;
use crate::WireError;
use crate::error::excerpt;

/// Names and values in the order given: `-c name=value`, `-cname=value`, `--name=value`.
///
/// Arguments are parted by white space; a backslash takes the next character as it is. In a name `-` is read as `_`.
/// A `+` is a `+`: this is no URL.
///
/// # Errors
/// [`WireError::InvalidOption`] (42601) for anything else, for a name that is empty or a missing `=`.
pub fn parse_options(options: &str) -> Result<Vec<(String, String)>, WireError> {
    let mut settings = Vec::new();
    let mut arguments = Arguments { rest: options };
    while let Some(argument) = arguments.next() {
        let assignment = if argument == "-c" {
            arguments.next().ok_or_else(|| invalid(&argument))?
        } else if let Some(rest) = argument.strip_prefix("--").or_else(|| argument.strip_prefix("-c")) {
            rest.to_owned()
        } else {
            return Err(invalid(&argument));
        };
        if settings.len() >= PARAMETERS_MAX {
            return Err(WireError::Malformed { message: "StartupMessage", reason: "too many parameters" });
        }
        settings.push(assign(&assignment)?);
    }
    Ok(settings)
}

fn assign(assignment: &str) -> Result<(String, String), WireError> {
    match assignment.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.replace('-', "_"), value.to_owned())),
        _ => Err(invalid(assignment)),
    }
}

fn invalid(argument: &str) -> WireError {
    WireError::InvalidOption { argument: excerpt(argument) }
}

/// Splits like `pg_split_opts`.
struct Arguments<'a> {
    rest: &'a str,
}

impl Iterator for Arguments<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start_matches(is_space);
        if self.rest.is_empty() {
            return None;
        }
        let mut argument = String::new();
        let mut escaped = false;
        let mut end = self.rest.len();
        for (at, character) in self.rest.char_indices() {
            if escaped {
                argument.push(character);
                escaped = false;
            } else if character == '\\' {
                escaped = true;
            } else if is_space(character) {
                end = at;
                break;
            } else {
                argument.push(character);
            }
        }
        self.rest = &self.rest[end..];
        Some(argument)
    }
}

/// C's isspace, which also knows the vertical tab.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}
