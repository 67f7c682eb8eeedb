//! Where values come from: the TOML file and the environment, flattened to `section.key` → value.
//!
//! Nothing is interpreted here; `keys` does that. The environment wins over the file, key by key.

use std::{collections::BTreeMap, path::Path, path::PathBuf, sync::Arc};

use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use crate::error::{Origin, Problem};

/// What every variable that we read begins with; `__` separates levels.
const PREFIX: &str = "PORTCULLIS__";

/// The bytes of a configuration file or of a file that holds one secret, at most: enough for any, and a slip such as
/// naming a log file is told instead of read into memory.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 20;

/// The variables `PORTCULLIS__…` of a process (or of a test).
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, Zeroizing<String>>);

impl Environment {
    /// The variables of this process. A value that is not UTF-8 is kept with replacement characters, and so fails where
    /// it is read, with its name.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Environment {
    /// Keeps the variables that begin with `PORTCULLIS__`.
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let ours = pairs.into_iter().map(|(name, value)| (name.into(), Zeroizing::new(value.into())));
        Self(ours.filter(|(name, _)| name.starts_with(PREFIX)).collect())
    }
}

impl std::fmt::Debug for Environment {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A value before it is interpreted.
pub(crate) enum Value {
    Text(Zeroizing<String>),
    Number(i64),
    Flag(bool),
    /// A kind of value that no key takes; its name in TOML.
    Other(&'static str),
}

/// A value and where it was given.
pub(crate) struct Given {
    pub value: Value,
    pub origin: Origin,
}

/// Everything that was given, by full key.
#[derive(Default)]
pub(crate) struct Source {
    pub values: BTreeMap<String, Given>,
    /// Tables of the file, so that an unknown empty one is noticed too.
    pub tables: Vec<(String, Origin)>,
}

impl Source {
    pub fn read(path: Option<&Path>, environment: &Environment) -> Result<Self, Problem> {
        let mut source = Self::default();
        if let Some(path) = path {
            let text = read_bounded(path).map_err(|reason| Problem::Unreadable {
                key: None,
                path: path.to_owned(),
                reason,
            })?;
            source.add_file(path, &text)?;
        }
        source.add_environment(environment);
        Ok(source)
    }

    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), Problem> {
        let place = Place { path: Arc::new(path.to_owned()), text };
        let table = DeTable::parse(text).map_err(|error| Problem::Syntax {
            origin: place.at(error.span().map_or(0, |span| span.start)),
            reason: error.message().to_owned(),
        })?;
        self.add_table("", table.get_ref(), &place);
        Ok(())
    }

    fn add_table(&mut self, prefix: &str, table: &DeTable<'_>, place: &Place<'_>) {
        for (name, value) in table {
            let key =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            let origin = place.at(name.span().start);
            let value = match value.get_ref() {
                DeValue::Table(inner) => {
                    self.tables.push((key.clone(), origin));
                    self.add_table(&key, inner, place);
                    continue;
                }
                DeValue::String(text) => Value::Text(Zeroizing::new(text.to_string())),
                DeValue::Boolean(flag) => Value::Flag(*flag),
                DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => Value::Number(number),
                    Err(_) => Value::Other("an integer that is too large"),
                },
                DeValue::Float(_) => Value::Other("a float"),
                DeValue::Datetime(_) => Value::Other("a date"),
                DeValue::Array(_) => Value::Other("an array"),
            };
            self.values.insert(key, Given { value, origin });
        }
    }

    fn add_environment(&mut self, environment: &Environment) {
        for (name, value) in &environment.0 {
            let key = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            // A secret given here replaces the file's, in whichever form the file gives it.
            let other = key.strip_suffix("_file").map_or_else(|| format!("{key}_file"), str::to_owned);
            if self.values.get(&other).is_some_and(|given| matches!(given.origin, Origin::File { .. })) {
                self.values.remove(&other);
            }
            let given = Given { value: Value::Text(value.clone()), origin: Origin::Variable(name.clone()) };
            self.values.insert(key, given);
        }
    }
}

/// The variable that overrides a key: `listen.address` → `PORTCULLIS__LISTEN__ADDRESS`.
pub(crate) fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"))
}

/// Reads a small UTF-8 file; the error says why not.
pub(crate) fn read_bounded(path: &Path) -> Result<Zeroizing<String>, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX { Err(format!("larger than {FILE_BYTES_MAX} bytes")) } else { Ok(text) }
}

struct Place<'a> {
    path: Arc<PathBuf>,
    text: &'a str,
}

impl Place<'_> {
    fn at(&self, byte: usize) -> Origin {
        let before = self.text.as_bytes().iter().take(byte);
        Origin::File { path: Arc::clone(&self.path), line: 1 + before.filter(|b| **b == b'\n').count() }
    }
}
