//! Interprets what was given: each key is asked for once, with its type, bounds and default.
//!
//! What nobody asked for is unknown. Mistakes are collected, so that one start shows them all.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose};
use zeroize::Zeroizing;

use crate::{
    error::{ConfigError, Origin, Problem},
    secret::Secret,
    source::{Environment, Given, Source, Value, read_bounded},
};

/// The keys that were given and not yet asked for.
pub(crate) struct Keys {
    source: Source,
    known: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Keys {
    /// Reads file and environment, lets `read` ask for every key, and refuses what is left over.
    pub fn load<T>(
        path: Option<&Path>,
        environment: &Environment,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let source = Source::read(path, environment).map_err(|problem| ConfigError::new(vec![problem]))?;
        let mut keys = Self { source, known: BTreeSet::new(), problems: Vec::new() };
        let value = read(&mut keys);
        keys.refuse_unknown();
        match value {
            Some(value) if keys.problems.is_empty() => Ok(value),
            _ => Err(ConfigError::new(keys.problems)),
        }
    }

    /// The names below a prefix: `servers` → each `name` of `servers.name.…`.
    pub fn names_below(&self, prefix: &str) -> BTreeSet<String> {
        let below = self.source.values.keys().chain(self.source.tables.iter().map(|(key, _)| key));
        below
            .filter_map(|key| key.strip_prefix(prefix)?.strip_prefix('.')?.split('.').next())
            .map(str::to_owned)
            .collect()
    }

    /// A text that `parse` understands; `expected` says what that is.
    pub fn parsed<T>(&mut self, key: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let given = self.take(key)?;
        let parsed = if let Value::Text(text) = &given.value { parse(text) } else { None };
        if parsed.is_none() {
            self.invalid(key, given, expected);
        }
        parsed
    }

    /// A text that is not empty.
    pub fn text(&mut self, key: &str) -> Option<String> {
        self.parsed(key, "a text", |text| (!text.is_empty()).then(|| text.to_owned()))
    }

    /// The name of a file; it is not opened here.
    pub fn file(&mut self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// A whole number within bounds.
    pub fn number<N: TryFrom<i64>>(&mut self, key: &str, bounds: RangeInclusive<i64>, default: N) -> N {
        let expected = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        self.whole(key, &expected, |n| bounds.contains(&n), default)
    }

    /// A whole number within bounds, or 0, which means something of its own and is the default.
    pub fn number_or_zero(&mut self, key: &str, bounds: RangeInclusive<i64>) -> u64 {
        let expected = format!("0, or a whole number from {} to {}", bounds.start(), bounds.end());
        self.whole(key, &expected, |n| n == 0 || bounds.contains(&n), 0)
    }

    fn whole<N: TryFrom<i64>>(&mut self, key: &str, expected: &str, fits: impl Fn(i64) -> bool, default: N) -> N {
        let Some(given) = self.take(key) else { return default };
        let number = match &given.value {
            Value::Number(number) => Some(*number),
            Value::Text(text) => text.trim().parse().ok(),
            Value::Flag(_) | Value::Other(_) => None,
        };
        match number.filter(|n| fits(*n)).and_then(|n| N::try_from(n).ok()) {
            Some(number) => number,
            None => {
                self.invalid(key, given, expected);
                default
            }
        }
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(given) = self.take(key) else { return default };
        let flag = match &given.value {
            Value::Flag(flag) => Some(*flag),
            Value::Text(text) => text.trim().parse().ok(),
            Value::Number(_) | Value::Other(_) => None,
        };
        flag.unwrap_or_else(|| {
            self.invalid(key, given, "true or false");
            default
        })
    }

    /// A secret: given as `key`, or in the file that `<key>_file` names, whose trailing line end is dropped.
    pub fn secret(&mut self, key: &str) -> Option<Secret<String>> {
        let (text, _) = self.secret_text(key)?;
        Some(Secret::new(text.as_str().to_owned()))
    }

    /// A secret of 32 bytes, as base64 (standard or URL alphabet, padding optional) or 64 hexadecimal digits.
    pub fn secret_32_bytes(&mut self, key: &str) -> Option<Secret<[u8; 32]>> {
        let (text, origin) = self.secret_text(key)?;
        let bytes = decode_32_bytes(text.trim());
        if bytes.is_none() {
            let expected = "32 bytes as base64 or hexadecimal, e.g. from `openssl rand -base64 32`".to_owned();
            self.problems.push(Problem::Invalid { key: key.to_owned(), origin, value: "***".to_owned(), expected });
        }
        bytes
    }

    /// Reports a required key that was given nowhere. Keys that were given but are wrong are not reported again.
    pub fn required<T>(&mut self, key: &str, value: Option<T>) -> Option<T> {
        self.required_as(key, false, value)
    }

    /// The same for a secret.
    pub fn required_secret<T>(&mut self, key: &str, value: Option<T>) -> Option<T> {
        self.required_as(key, true, value)
    }

    /// Reports a name or a combination that cannot be, where it was given.
    pub fn refuse(&mut self, key: &str, value: &str, expected: &str) {
        let origin = self.source.tables.iter().find(|(table, _)| table == key).map(|(_, origin)| origin.clone());
        let origin = origin.unwrap_or_else(|| Origin::Variable(crate::source::variable_of(key)));
        let (key, value, expected) = (key.to_owned(), value.to_owned(), expected.to_owned());
        self.problems.push(Problem::Invalid { key, origin, value, expected });
    }

    fn required_as<T>(&mut self, key: &str, secret: bool, value: Option<T>) -> Option<T> {
        let file_key = format!("{key}_file");
        let reported = self.problems.iter().any(|problem| match problem {
            Problem::Invalid { key: at, .. } | Problem::Twice { key: at, .. } => *at == key || *at == file_key,
            Problem::Unreadable { key: Some(at), .. } => *at == file_key,
            _ => false,
        });
        if value.is_none() && !reported {
            self.problems.push(Problem::Missing { key: key.to_owned(), secret });
        }
        value
    }

    fn secret_text(&mut self, key: &str) -> Option<(Zeroizing<String>, Origin)> {
        let file_key = format!("{key}_file");
        let direct = self.take(key);
        let Some(file) = self.take(&file_key) else {
            let given = direct?;
            return match given.value {
                Value::Text(text) if !text.is_empty() => Some((text, given.origin)),
                _ => {
                    self.invalid_secret(key, given.origin, "a text that is not empty");
                    None
                }
            };
        };
        if direct.is_some() {
            self.problems.push(Problem::Twice { key: key.to_owned(), origin: file.origin });
            return None;
        }
        let Value::Text(path) = &file.value else {
            self.invalid(&file_key, file, "the name of a file");
            return None;
        };
        match read_bounded(Path::new(path.as_str())) {
            Ok(text) if text.trim_end_matches(['\r', '\n']).is_empty() => {
                self.invalid_secret(&file_key, file.origin, "a file that is not empty");
                None
            }
            Ok(text) => Some((Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()), file.origin)),
            Err(reason) => {
                let path = PathBuf::from(path.as_str());
                self.problems.push(Problem::Unreadable { key: Some(file_key), path, reason });
                None
            }
        }
    }

    fn take(&mut self, key: &str) -> Option<Given> {
        self.known.insert(key.to_owned());
        self.source.values.remove(key)
    }

    fn invalid(&mut self, key: &str, given: Given, expected: &str) {
        let value = match &given.value {
            Value::Text(text) => format!("{:?}", text.chars().take(100).collect::<String>()),
            Value::Number(number) => number.to_string(),
            Value::Flag(flag) => flag.to_string(),
            Value::Other(kind) => (*kind).to_owned(),
        };
        let (key, expected) = (key.to_owned(), expected.to_owned());
        self.problems.push(Problem::Invalid { key, origin: given.origin, value, expected });
    }

    fn invalid_secret(&mut self, key: &str, origin: Origin, expected: &str) {
        let (key, value, expected) = (key.to_owned(), "***".to_owned(), expected.to_owned());
        self.problems.push(Problem::Invalid { key, origin, value, expected });
    }

    fn refuse_unknown(&mut self) {
        let is_section = |key: &str| self.known.iter().any(|known| known.starts_with(&format!("{key}.")));
        let tables = self.source.tables.iter().filter(|(key, _)| !is_section(key) && !self.has_values(key));
        let tables = tables.map(|(key, origin)| (key.clone(), origin.clone()));
        let values = self.source.values.iter().map(|(key, given)| (key.clone(), given.origin.clone()));
        let unknown: Vec<_> = tables.chain(values).collect();
        for (key, origin) in unknown {
            let nearest = nearest(&key, &self.known);
            self.problems.push(Problem::UnknownKey { key, origin, nearest });
        }
    }

    fn has_values(&self, table: &str) -> bool {
        self.source.values.keys().any(|key| key.starts_with(&format!("{table}.")))
    }
}

/// Decodes a key. Its length is known beforehand, so nothing is allocated by what was given.
fn decode_32_bytes(text: &str) -> Option<Secret<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0u8; 32]);
    if text.len() == 64 {
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
        }
    } else {
        let plain = text.strip_suffix('=').unwrap_or(text);
        let mut decoded = Zeroizing::new([0u8; 36]);
        let engines = [general_purpose::STANDARD_NO_PAD, general_purpose::URL_SAFE_NO_PAD];
        let fits = plain.len() == 43 && engines.iter().any(|e| e.decode_slice(plain, decoded.as_mut()) == Ok(32));
        if !fits {
            return None;
        }
        bytes.copy_from_slice(&decoded[..32]);
    }
    Some(Secret::new(*bytes))
}

/// The known key that differs least, if it differs by little.
fn nearest(key: &str, known: &BTreeSet<String>) -> Option<String> {
    let limit = (key.len() / 4).max(2);
    known.iter().map(|k| (distance(key, k), k)).filter(|(d, _)| *d <= limit).min().map(|(_, k)| k.clone())
}

/// Levenshtein's distance in bytes; keys are short ASCII.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().take(200).enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replace = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}
