//! Which client certificates open which logins: a TOML file of its own, so that SIGHUP can read it again.
//!
//! A table per rule. A login that is named in any rule opens only with a certificate that one of its rules describes: with it
//! alone (`auth = "cert"`), or with it and the password (`auth = "cert+scram"`).

use std::{collections::BTreeSet, path::Path, path::PathBuf};

use toml::{Table, Value};

use crate::source::read_bounded;

/// Rules of a file, at most.
const RULES_MAX: usize = 10_000;
/// The longest name of a login or of a certificate's holder, bytes.
const NAME_BYTES_MAX: usize = 2_048;

/// What describes a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A URI among its subject alternative names, e.g. a SPIFFE id; to the letter.
    Uri(String),
    /// A DNS name among its subject alternative names; in lower case.
    Dns(String),
    /// Its subject's only common name; to the letter.
    CommonName(String),
    /// The SHA-256 of the whole certificate.
    Sha256([u8; 32]),
}

/// Whether the certificate stands for the password or beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No password is asked for.
    Cert,
    /// The password is asked for too.
    CertAndScram,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRule {
    /// Its name in the file.
    pub name: String,
    /// Whose certificates it is about.
    pub holder: Holder,
    /// The logins that they open.
    pub logins: BTreeSet<String>,
    /// What else is asked for.
    pub auth: ClientAuth,
}

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", .path.display())]
pub struct ClientMapError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, with the rule.
    pub reason: String,
}

/// Reads the rules of a file of at most 1 MiB.
///
/// # Errors
/// A file that cannot be read or is no TOML, and the first rule that is not understood in every part.
pub fn read_client_map(path: &Path) -> Result<Vec<ClientRule>, ClientMapError> {
    let failed = |reason: String| ClientMapError { path: path.to_owned(), reason };
    let text = read_bounded(path).map_err(|reason| failed(format!("cannot be read: {reason}")))?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| failed(error.message().to_owned()))?;
    if table.len() > RULES_MAX {
        return Err(failed(format!("has more than {RULES_MAX} rules")));
    }
    let rules = table.into_iter().map(|(name, value)| rule(name, value));
    rules.collect::<Result<_, _>>().map_err(failed)
}

fn rule(name: String, value: Value) -> Result<ClientRule, String> {
    let Value::Table(mut table) = value else { return Err(format!("`{name}` is no table: expected [{name}]")) };
    let wrong = |what: String| format!("[{name}] {what}");
    let mut holders = Vec::new();
    for (key, make) in HOLDERS {
        if let Some(value) = table.remove(*key) {
            let text = text(&value).ok_or_else(|| wrong(format!("{key} is no text of 1 to {NAME_BYTES_MAX} bytes")))?;
            holders.push(
                make(text).ok_or_else(|| wrong(format!("{key} is not what it should be: 64 hexadecimal digits")))?,
            );
        }
    }
    let (Some(holder), true) = (holders.pop(), holders.is_empty()) else {
        return Err(wrong("needs exactly one of uri, dns, common_name and sha256".to_owned()));
    };
    let logins = logins(table.remove("logins")).ok_or_else(|| wrong("needs logins = [\"user name\", …]".to_owned()))?;
    let auth = match table.remove("auth").as_ref().and_then(Value::as_str) {
        Some("cert") => ClientAuth::Cert,
        Some("cert+scram") => ClientAuth::CertAndScram,
        _ => return Err(wrong("needs auth = \"cert\" or \"cert+scram\"".to_owned())),
    };
    match table.keys().next() {
        Some(key) => Err(wrong(format!("has the unknown key `{key}`"))),
        None => Ok(ClientRule { name, holder, logins, auth }),
    }
}

type Make = fn(&str) -> Option<Holder>;

const HOLDERS: &[(&str, Make)] = &[
    ("uri", |text| Some(Holder::Uri(text.to_owned()))),
    ("dns", |text| Some(Holder::Dns(text.to_ascii_lowercase()))),
    ("common_name", |text| Some(Holder::CommonName(text.to_owned()))),
    ("sha256", |text| digest(text).map(Holder::Sha256)),
];

fn text(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| (1..=NAME_BYTES_MAX).contains(&text.len()))
}

fn logins(value: Option<Value>) -> Option<BTreeSet<String>> {
    let Some(Value::Array(names)) = value else { return None };
    let logins: Option<BTreeSet<String>> = names.iter().map(|name| text(name).map(str::to_owned)).collect();
    logins.filter(|logins| !logins.is_empty())
}

/// Hexadecimal, with or without the colons that `openssl x509 -fingerprint` prints.
fn digest(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let mut digest = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(name: &str, text: &str) -> Result<Vec<ClientRule>, String> {
        let path = std::env::temp_dir().join(format!("portcullis-map-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let rules = read_client_map(&path).map_err(|error| error.to_string());
        std::fs::remove_file(path).unwrap();
        rules
    }

    #[test]
    fn rules_of_every_kind() {
        let text = "[a]\nuri = 'spiffe://x/a'\nlogins = ['one', 'two']\nauth = 'cert'\n\
                    [b]\ndns = 'Etl.Example'\nlogins = ['one']\nauth = 'cert+scram'\n\
                    [c]\ncommon_name = 'C'\nlogins = ['c']\nauth = 'cert'\n\
                    [d]\nsha256 = '00:01:02:03:04:05:06:07:08:09:0A:0b:0c:0d:0e:0f:10:11:12:13:14:15:16:17:18:19:1a:1b:1c:1d:1e:1f'\n\
                    logins = ['d']\nauth = 'cert'\n";
        let rules = read("good", text).unwrap();
        let digest: [u8; 32] = std::array::from_fn(|n| n as u8);
        let holders: Vec<_> = rules.iter().map(|rule| rule.holder.clone()).collect();
        let expect = [
            Holder::Uri("spiffe://x/a".into()),
            Holder::Dns("etl.example".into()),
            Holder::CommonName("C".into()),
            Holder::Sha256(digest),
        ];
        assert_eq!(holders, expect);
        assert_eq!(rules[0].logins.iter().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!((rules[0].auth, rules[1].auth), (ClientAuth::Cert, ClientAuth::CertAndScram));
        assert_eq!(read("empty", "").unwrap(), []);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let rest = "logins = ['l']\nauth = 'cert'\n";
        for (name, text, expect) in [
            ("toml", "[a".to_owned(), ": "),
            ("table", "a = 1".to_owned(), "`a` is no table"),
            ("nobody", format!("[a]\n{rest}"), "[a] needs exactly one of uri, dns"),
            ("two", format!("[a]\nuri = 'x'\ndns = 'y'\n{rest}"), "[a] needs exactly one of uri, dns"),
            ("empty", format!("[a]\nuri = ''\n{rest}"), "[a] uri is no text"),
            ("short", format!("[a]\nsha256 = '00'\n{rest}"), "[a] sha256 is not what it should be"),
            ("signs", format!("[a]\nsha256 = '{}'\n{rest}", "+1".repeat(32)), "[a] sha256 is not what it should be"),
            ("logins", "[a]\nuri = 'x'\nlogins = []\nauth = 'cert'".to_owned(), "[a] needs logins"),
            ("login", "[a]\nuri = 'x'\nlogins = 'l'\nauth = 'cert'".to_owned(), "[a] needs logins"),
            ("auth", "[a]\nuri = 'x'\nlogins = ['l']\nauth = 'none'".to_owned(), "[a] needs auth"),
            ("key", format!("[a]\nuri = 'x'\n{rest}pasword = true"), "[a] has the unknown key `pasword`"),
        ] {
            let said = read(name, &text).unwrap_err();
            assert!(said.contains(expect), "{name}: {said:?} should say {expect:?}");
        }
        let absent = read_client_map(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(absent.starts_with("/nonexistent: cannot be read: "), "{absent}");
    }
}
