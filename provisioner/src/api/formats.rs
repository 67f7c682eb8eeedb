//! A connection in the forms that programs want it in (D15): one credential, ten texts.
//!
//! Each form has its own quoting. Passwords are letters and digits by construction, but hosts come from the
//! configuration and nothing here relies on what they contain.

use portcullis_catalog::Workspace;
use portcullis_config::PublicConfig;
use serde_json::{Value, json};

use crate::ops::credentials::Credential;

/// A form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `postgresql://…`
    Uri,
    /// `host=… port=…`
    Libpq,
    /// A command line.
    Psql,
    /// `jdbc:postgresql://…`
    Jdbc,
    /// `Host=…;Port=…` (Npgsql)
    Dotnet,
    /// `postgresql+psycopg://…`
    Sqlalchemy,
    /// `PGHOST=…` lines
    Env,
    /// A line of `~/.pgpass`
    Pgpass,
    /// A section of `~/.pg_service.conf`
    Service,
    /// A Secret
    Kubernetes,
}

impl Format {
    /// All of them by name.
    pub const ALL: [(&'static str, Format); 10] = [
        ("uri", Format::Uri),
        ("libpq", Format::Libpq),
        ("psql", Format::Psql),
        ("jdbc", Format::Jdbc),
        ("dotnet", Format::Dotnet),
        ("sqlalchemy", Format::Sqlalchemy),
        ("env", Format::Env),
        ("pgpass", Format::Pgpass),
        ("service", Format::Service),
        ("kubernetes", Format::Kubernetes),
    ];

    /// The form of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Format> {
        Format::ALL.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    fn name(self) -> &'static str {
        Format::ALL.iter().find(|(_, format)| *format == self).map_or("uri", |(name, _)| name)
    }
}

/// Everything that a client needs to connect through the gate.
pub struct Connection<'a> {
    kind: &'a str,
    host: &'a str,
    port: u16,
    database: &'a str,
    username: &'a str,
    password: &'a str,
    sslmode: &'a str,
    version: i32,
}

impl<'a> Connection<'a> {
    /// The workspace's real database, reached through the gate.
    #[must_use]
    pub fn new(public: &'a PublicConfig, workspace: &'a Workspace, credential: &'a Credential) -> Connection<'a> {
        Connection {
            kind: &credential.kind,
            host: &public.host,
            port: public.port,
            database: &workspace.database,
            username: &credential.username,
            password: credential.password.expose(),
            sslmode: public.sslmode.as_str(),
            version: credential.version,
        }
    }

    /// The body of `reveal`. For another form than `uri`, `text` has it.
    #[must_use]
    pub fn body(&self, format: Format) -> Value {
        let mut body = json!({
            "kind": self.kind,
            "pooled": true,
            "uri": self.text(Format::Uri),
            "username": self.username,
            "password": self.password,
            "host": self.host,
            "port": self.port,
            "database": self.database,
            "credential_version": self.version,
        });
        if format != Format::Uri {
            body["format"] = json!(format.name());
            body["text"] = json!(self.text(format));
        }
        body
    }

    /// The connection in a form.
    #[must_use]
    pub fn text(&self, format: Format) -> String {
        let Connection { host, port, database, username, password, sslmode, .. } = self;
        let authority = format!("{}:{port}/{}", uri_host(host), encoded(database));
        let user = format!("{}:{}", encoded(username), encoded(password));
        match format {
            Format::Uri => format!("postgresql://{user}@{authority}?sslmode={sslmode}"),
            Format::Sqlalchemy => format!("postgresql+psycopg://{user}@{authority}?sslmode={sslmode}"),
            Format::Jdbc => format!(
                "jdbc:postgresql://{authority}?user={}&password={}&sslmode={sslmode}",
                encoded(username),
                encoded(password)
            ),
            Format::Libpq => self.libpq(),
            Format::Psql => format!("psql {}", shell(&self.text(Format::Uri))),
            Format::Dotnet => format!(
                "Host={};Port={port};Database={};Username={};Password={};SSL Mode={}",
                dotnet(host),
                dotnet(database),
                dotnet(username),
                dotnet(password),
                match *sslmode {
                    "verify-full" => "VerifyFull",
                    "verify-ca" => "VerifyCA",
                    _ => "Require",
                }
            ),
            Format::Env => self.settings().map(|(name, value)| format!("PG{name}={}\n", shell(&value))).concat(),
            Format::Pgpass => [*host, &port.to_string(), database, username, password].map(pgpass).join(":") + "\n",
            Format::Service => {
                let lines = self.parameters().map(|(name, value)| format!("{name}={value}\n"));
                format!("[{}]\n{}", self.username, lines.concat())
            }
            Format::Kubernetes => self.kubernetes(),
        }
    }

    fn parameters(&self) -> [(&'static str, String); 6] {
        [
            ("host", self.host.to_owned()),
            ("port", self.port.to_string()),
            ("dbname", self.database.to_owned()),
            ("user", self.username.to_owned()),
            ("password", self.password.to_owned()),
            ("sslmode", self.sslmode.to_owned()),
        ]
    }

    fn settings(&self) -> [(&'static str, String); 6] {
        let names = ["HOST", "PORT", "DATABASE", "USER", "PASSWORD", "SSLMODE"];
        let mut values = self.parameters().into_iter().map(|(_, value)| value);
        names.map(|name| (name, values.next().unwrap_or_default()))
    }

    /// <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-KEYWORD-VALUE>
    fn libpq(&self) -> String {
        let quoted = |value: String| {
            let plain = !value.is_empty() && !value.contains([' ', '\'', '\\', '\t', '\n']);
            if plain { value } else { format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")) }
        };
        self.parameters().map(|(name, value)| format!("{name}={}", quoted(value))).join(" ")
    }

    /// A Secret whose values are quoted as JSON strings, which are YAML too.
    fn kubernetes(&self) -> String {
        let mut lines = vec![
            "apiVersion: v1".to_owned(),
            "kind: Secret".to_owned(),
            "metadata:".to_owned(),
            format!("  name: {}", self.username.replace('_', "-")),
            "type: Opaque".to_owned(),
            "stringData:".to_owned(),
        ];
        let settings = self.settings().map(|(name, value)| format!("  PG{name}: {}", json!(value)));
        lines.extend(settings);
        lines.push(format!("  DATABASE_URL: {}", json!(self.text(Format::Uri))));
        lines.join("\n") + "\n"
    }
}

/// Percent-encodes everything but unreserved characters (RFC 3986 §2.3).
#[must_use]
pub fn encoded(text: &str) -> String {
    let encode = |byte: u8| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(encode).collect()
}

/// A host in a URI: an IPv6 address in brackets.
#[must_use]
pub fn uri_host(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { encoded(host) }
}

/// One word for a POSIX shell.
fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A value of a .NET connection string.
fn dotnet(text: &str) -> String {
    let plain = !text.is_empty() && !text.contains([';', '"', '\'', '=', ' ']);
    if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

/// A field of a password file. <https://www.postgresql.org/docs/current/libpq-pgpass.html>
fn pgpass(text: &str) -> String {
    text.replace('\\', "\\\\").replace(':', "\\:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection<'static> {
        Connection {
            kind: "read",
            host: "gate.example.com",
            port: 6432,
            database: "ws_1",
            username: "tdb_1_read",
            password: "S3cret",
            sslmode: "require",
            version: 2,
        }
    }

    #[test]
    fn d15_ten_formats() {
        let want = [
            "postgresql://tdb_1_read:S3cret@gate.example.com:6432/ws_1?sslmode=require",
            "host=gate.example.com port=6432 dbname=ws_1 user=tdb_1_read password=S3cret sslmode=require",
            "psql 'postgresql://tdb_1_read:S3cret@gate.example.com:6432/ws_1?sslmode=require'",
            "jdbc:postgresql://gate.example.com:6432/ws_1?user=tdb_1_read&password=S3cret&sslmode=require",
            "Host=gate.example.com;Port=6432;Database=ws_1;Username=tdb_1_read;Password=S3cret;SSL Mode=Require",
            "postgresql+psycopg://tdb_1_read:S3cret@gate.example.com:6432/ws_1?sslmode=require",
            "PGHOST='gate.example.com'\nPGPORT='6432'\nPGDATABASE='ws_1'\nPGUSER='tdb_1_read'\nPGPASSWORD='S3cret'\n\
             PGSSLMODE='require'\n",
            "gate.example.com:6432:ws_1:tdb_1_read:S3cret\n",
            "[tdb_1_read]\nhost=gate.example.com\nport=6432\ndbname=ws_1\nuser=tdb_1_read\npassword=S3cret\n\
             sslmode=require\n",
            "apiVersion: v1\nkind: Secret\nmetadata:\n  name: tdb-1-read\ntype: Opaque\nstringData:\n  \
             PGHOST: \"gate.example.com\"\n  PGPORT: \"6432\"\n  PGDATABASE: \"ws_1\"\n  PGUSER: \"tdb_1_read\"\n  \
             PGPASSWORD: \"S3cret\"\n  PGSSLMODE: \"require\"\n  \
             DATABASE_URL: \"postgresql://tdb_1_read:S3cret@gate.example.com:6432/ws_1?sslmode=require\"\n",
        ];
        for ((name, format), want) in Format::ALL.into_iter().zip(want) {
            assert_eq!(connection().text(format), want, "{name}");
            assert_eq!(Format::parse(name), Some(format));
        }
        assert_eq!(Format::parse("yaml"), None);
    }

    #[test]
    fn what_needs_quoting_is_quoted() {
        let odd = Connection { host: "::1", database: "a b'c:\\;\"", ..connection() };
        assert!(odd.text(Format::Uri).contains("@[::1]:6432/a%20b%27c%3A%5C%3B%22?"));
        assert!(odd.text(Format::Libpq).contains(r#"dbname='a b\'c:\\;"'"#));
        assert!(odd.text(Format::Pgpass).starts_with(r#"\:\:1:6432:a b'c\:\\;":"#));
        assert!(odd.text(Format::Dotnet).contains(r#"Database="a b'c:\;""";"#));
        assert!(odd.text(Format::Env).contains(r#"PGDATABASE='a b'\''c:\;"'"#));
    }
}
