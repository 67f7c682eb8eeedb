//! The names that a workspace has on a PostgreSQL server. They follow from its opaque id alone, never from a name that a
//! customer chose, so that nothing a customer types can collide with or imitate a role.
//!
//! Roles are cluster-wide in PostgreSQL; `pg_database` and `pg_roles` are readable by everybody, which is why the names
//! tell nothing about the customer.

/// The names of one workspace's objects, derived from its id (`ws_<16 hex>`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    base: String,
}

impl Names {
    /// The names that belong to the workspace with this id.
    #[must_use]
    pub fn of(workspace_id: &str) -> Names {
        Names { base: workspace_id.to_owned() }
    }

    /// The NOLOGIN role that owns the database and everything managed in it (`dl_platform_runtime`, D22). Nobody logs in as it.
    #[must_use]
    pub fn owner(&self) -> String {
        format!("{}_owner", self.base)
    }

    /// The NOLOGIN role that holds the grants of one kind and owns what customers create through it.
    #[must_use]
    pub fn group(&self, kind: &str) -> String {
        format!("{}_{kind}", self.base)
    }

    /// The two login roles of one kind, of which one is in use: rotation sets the idle one's password first.
    #[must_use]
    pub fn logins(&self, kind: &str) -> [String; 2] {
        [format!("{}_{kind}_a", self.base), format!("{}_{kind}_b", self.base)]
    }
}

/// `name` as an SQL identifier, always quoted.
/// <https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS>
#[must_use]
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as an SQL string constant that reads the same under either setting of `standard_conforming_strings`.
#[must_use]
pub fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_and_literals_cannot_be_left() {
        for (name, want) in [("a", "\"a\""), ("a\"b", "\"a\"\"b\""), ("drop table x; --", "\"drop table x; --\"")] {
            assert_eq!(ident(name), want);
        }
        for (text, want) in [("a", "'a'"), ("o'hara", "'o''hara'"), (r"a\'b", r"E'a\\''b'")] {
            assert_eq!(literal(text), want);
        }
    }

    #[test]
    fn names_of_a_workspace() {
        let names = Names::of("ws_0123456789abcdef");
        assert_eq!(names.owner(), "ws_0123456789abcdef_owner");
        assert_eq!(names.group("read"), "ws_0123456789abcdef_read");
        assert_eq!(names.logins("read"), ["ws_0123456789abcdef_read_a", "ws_0123456789abcdef_read_b"]);
    }
}
