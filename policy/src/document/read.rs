//! Reads a TOML table key by key and collects mistakes instead of stopping at the first. It must not know any policy.

use std::collections::BTreeSet;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{DocumentError, DocumentErrors};

struct Mistakes {
    found: Vec<(usize, String)>,
}

/// Which of many names a key picks, each name with its place in the document.
pub(super) enum Picked {
    All,
    None,
    Only(Vec<(usize, String)>),
    Except(Vec<(usize, String)>),
}

/// One table being read: which keys were asked for, and where mistakes go.
pub(super) struct Table<'a, 'i> {
    values: &'a DeTable<'i>,
    start: usize,
    asked: BTreeSet<String>,
    mistakes: &'a mut Mistakes,
}

/// Parses `toml` and lets `read` take its root table apart.
pub(super) fn document<T>(toml: &str, read: impl FnOnce(&mut Table<'_, '_>) -> T) -> Result<T, DocumentErrors> {
    let (root, syntax) = DeTable::parse_recoverable(toml);
    let mut mistakes = Mistakes { found: Vec::new() };
    for error in syntax {
        let start = error.span().map_or(0, |span| span.start);
        mistakes.found.push((start, error.message().to_owned()));
    }
    // What can be read beside broken syntax is read, for the mistakes in it.
    let mut table = Table { values: root.get_ref(), start: 0, asked: BTreeSet::new(), mistakes: &mut mistakes };
    let value = read(&mut table);
    table.finish();
    if mistakes.found.is_empty() { Ok(value) } else { Err(located(toml, mistakes.found)) }
}

fn located(toml: &str, mut found: Vec<(usize, String)>) -> DocumentErrors {
    found.sort();
    found.dedup();
    let locate = |(offset, message): (usize, String)| {
        let before = toml.get(..offset).unwrap_or(toml);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        let column = before[line_start..].chars().count() + 1;
        DocumentError {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: u32::try_from(column).unwrap_or(u32::MAX),
            message,
        }
    };
    DocumentErrors(found.into_iter().map(locate).collect())
}

impl<'a, 'i> Table<'a, 'i> {
    fn value(&mut self, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.asked.insert(key.to_owned());
        self.values.get(key)
    }

    fn start_of(&self, key: &str) -> usize {
        self.values.get(key).map_or(self.start, |value| value.span().start)
    }

    /// A mistake about the whole table.
    pub(super) fn mistake(&mut self, message: impl Into<String>) {
        self.mistakes.found.push((self.start, message.into()));
    }

    /// A mistake at a byte of the document.
    pub(super) fn mistake_in(&mut self, at: usize, message: String) {
        self.mistakes.found.push((at, message));
    }

    /// A mistake in the value of `key`.
    pub(super) fn mistake_at(&mut self, key: &str, message: String) {
        let start = self.start_of(key);
        self.mistakes.found.push((start, format!("`{key}`: {message}")));
    }

    fn wrong_type(&mut self, key: &str, expected: &str, value: &Spanned<DeValue<'i>>) {
        let found = value.get_ref().type_str();
        self.mistakes.found.push((value.span().start, format!("`{key}` must be {expected}, not {found}")));
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    pub(super) fn string(&mut self, key: &str) -> Option<String> {
        let value = self.value(key)?;
        match value.get_ref().as_str() {
            Some(text) if !text.is_empty() => return Some(text.to_owned()),
            Some(_) => self.mistake_at(key, "must not be empty".to_owned()),
            None => self.wrong_type(key, "a string", value),
        }
        None
    }

    /// An optional name of a–z, 0–9 and _, at most `bytes_max` long.
    pub(super) fn optional_name(&mut self, key: &str, bytes_max: usize) -> Option<String> {
        let name = self.string(key)?;
        if !is_name(&name, bytes_max) {
            self.mistake_at(
                key,
                format!("`{name}` must be 1 to {bytes_max} of a-z, 0-9 and _, not starting with a digit"),
            );
        }
        Some(name)
    }

    pub(super) fn required_name(&mut self, key: &str, bytes_max: usize) -> String {
        if !self.has(key) {
            self.mistake(format!("`{key}` is missing: 1 to {bytes_max} of a-z, 0-9 and _"));
        }
        self.optional_name(key, bytes_max).unwrap_or_default()
    }

    pub(super) fn boolean(&mut self, key: &str, default: bool) -> bool {
        let Some(value) = self.value(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(key, "true or false", value);
            default
        })
    }

    pub(super) fn integer(&mut self, key: &str, min: u64, max: u64) -> Option<u64> {
        let value = self.value(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, "a whole number", value);
            return None;
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if (min..=max).contains(&number) => Some(number),
            _ => {
                self.mistake_at(key, format!("must be from {min} to {max}"));
                None
            }
        }
    }

    /// Texts, each with its place in the document, none twice.
    pub(super) fn texts(&mut self, key: &str) -> Vec<(usize, String)> {
        let mut texts: Vec<(usize, String)> = Vec::new();
        for (start, text) in self.spanned_strings(key) {
            if texts.iter().any(|(_, other)| *other == text) {
                self.mistakes.found.push((start, format!("`{key}`: `{text}` stands here twice")));
            } else {
                texts.push((start, text));
            }
        }
        texts
    }

    /// `{ only = […] }` or `{ except = […] }`; `true` and `false` too, where the key is a `switch`.
    pub(super) fn picked(&mut self, key: &str, switch: bool) -> Option<Picked> {
        let value = self.value(key)?;
        match (value.get_ref().as_bool(), value.get_ref().as_table()) {
            (Some(true), _) if switch => return Some(Picked::All),
            (Some(false), _) if switch => return Some(Picked::None),
            (_, Some(_)) => {}
            _ => {
                let switches = if switch { "true, false, " } else { "" };
                self.wrong_type(key, &format!("{switches}{{ only = […] }} or {{ except = […] }}"), value);
                return None;
            }
        }
        let mut picked = None;
        self.table(key, |table| {
            let (only, except) = (table.texts("only"), table.texts("except"));
            match (table.has("only"), table.has("except")) {
                (true, false) if only.is_empty() => table.mistake_at("only", "must name something".to_owned()),
                (false, true) if except.is_empty() => table.mistake_at("except", "must name something".to_owned()),
                (true, false) => picked = Some(Picked::Only(only)),
                (false, true) => picked = Some(Picked::Except(except)),
                _ => table.mistake(format!("`{key}` needs either `only` or `except`, a list of names")),
            }
        });
        picked
    }

    /// The keys of this table and where their values stand, each a string or a whole number given as text.
    pub(super) fn amounts(&mut self) -> Vec<(usize, String, String)> {
        let mut amounts = Vec::new();
        for (key, value) in self.values.iter() {
            self.asked.insert(key.get_ref().to_string());
            let text = match (value.get_ref().as_str(), value.get_ref().as_integer()) {
                (Some(text), _) => text.to_owned(),
                (None, Some(number)) => number.to_string(),
                (None, None) => {
                    self.wrong_type(key.get_ref(), "a whole number or a string with a unit", value);
                    continue;
                }
            };
            amounts.push((value.span().start, key.get_ref().to_string(), text));
        }
        amounts
    }

    fn spanned_strings(&mut self, key: &str) -> Vec<(usize, String)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, "an array of strings", value);
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_str() {
                Some(text) => texts.push((item.span().start, text.to_owned())),
                None => self.wrong_type(key, "an array of strings", item),
            }
        }
        texts
    }

    /// Names of schemas, each once, none of PostgreSQL's own.
    pub(super) fn schemas(&mut self, key: &str) -> Vec<String> {
        let mut names = Vec::new();
        for (start, name) in self.spanned_strings(key) {
            let system = name.starts_with("pg_") || name == "information_schema";
            if system || !is_name(&name, 63) {
                let why = "must be 1 to 63 of a-z, 0-9 and _, and none of PostgreSQL's own schemas";
                self.mistakes.found.push((start, format!("`{key}`: schema `{name}` {why}")));
            } else if names.contains(&name) {
                self.mistakes.found.push((start, format!("`{key}`: `{name}` stands here twice")));
            } else {
                names.push(name);
            }
        }
        names
    }

    /// One of the words; the first one when the key is absent.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> T {
        let default = words[0].1;
        let Some(text) = self.string(key) else { return default };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => *value,
            None => {
                self.mistake_at(key, format!("`{text}` is not one of {}", word_list(words)));
                default
            }
        }
    }

    /// Any of the words.
    pub(super) fn choices<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Vec<T> {
        let mut values = Vec::new();
        for (start, text) in self.spanned_strings(key) {
            match words.iter().find(|(word, _)| *word == text) {
                Some((_, value)) => values.push(*value),
                None => {
                    self.mistakes.found.push((start, format!("`{key}`: `{text}` is not one of {}", word_list(words))));
                }
            }
        }
        values
    }

    /// Lets `read` take the table under `key` apart, where there is one.
    pub(super) fn table(&mut self, key: &str, read: impl FnOnce(&mut Table<'_, '_>)) {
        let Some(value) = self.value(key) else { return };
        let Some(values) = value.get_ref().as_table() else { return self.wrong_type(key, "a table", value) };
        let start = value.span().start;
        let mut table = Table { values, start, asked: BTreeSet::new(), mistakes: self.mistakes };
        read(&mut table);
        table.finish();
    }

    /// Lets `read` take each table of the array of tables under `key` apart.
    pub(super) fn tables(&mut self, key: &str, mut read: impl FnMut(&mut Table<'_, '_>)) {
        let Some(value) = self.value(key) else { return };
        let Some(array) = value.get_ref().as_array() else { return self.wrong_type(key, "an array of tables", value) };
        for item in array.iter() {
            match item.get_ref().as_table() {
                Some(values) => {
                    let start = item.span().start;
                    let mut table = Table { values, start, asked: BTreeSet::new(), mistakes: self.mistakes };
                    read(&mut table);
                    table.finish();
                }
                None => self.wrong_type(key, "an array of tables", item),
            }
        }
    }

    fn finish(self) {
        for (key, _) in self.values.iter() {
            if !self.asked.contains(key.get_ref().as_ref()) {
                let known = self.asked.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
                let message = format!("unknown key `{}`; here stand {known}", key.get_ref());
                self.mistakes.found.push((key.span().start, message));
            }
        }
    }
}

fn is_name(name: &str, bytes_max: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    !name.is_empty()
        && name.len() <= bytes_max
        && name.bytes().all(allowed)
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

fn word_list<T>(words: &[(&str, T)]) -> String {
    words.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
