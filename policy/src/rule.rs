//! The rules by which the judge refuses, one line each: the stable id that DETAIL, logs, metrics and corpora name, and what
//! it means for an operator. It must not decide anything.

use std::fmt;

macro_rules! rules {
    ($($variant:ident $id:literal $about:literal,)*) => {
        /// Why a text was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rule {
            $(#[doc = $about] $variant,)*
        }

        impl Rule {
            /// Every rule, in the order in which a text meets them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The stable id, such as `function.not_allowed`.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$variant => $id,)*
                }
            }

            /// What the rule refuses, in a sentence.
            #[must_use]
            pub const fn about(self) -> &'static str {
                match self {
                    $(Self::$variant => $about,)*
                }
            }
        }
    };
}

rules! {
    TextTooLong "text.too_long" "The text is longer than 1 MiB.",
    TextNotUtf8 "text.not_utf8" "The text is not UTF-8.",
    TextZeroByte "text.zero_byte" "The text contains a zero byte.",
    TextCommentDepth "text.comment_depth" "Comments are nested more than 16 deep.",
    TextTooDeep "text.too_deep" "Expressions or brackets are nested or chained more than 2,000 deep.",
    TextTooLarge "text.too_large" "The text has so many names and values that its tree would not fit the bound on memory.",
    SyntaxError "syntax.error" "PostgreSQL's grammar does not accept the text.",
    StatementEmpty "statement.empty" "There is no statement where exactly one is expected (HTTP).",
    StatementMultiple "statement.multiple" "More than one statement that works, or more than the surface takes.",
    StatementNeedsSession "statement.needs_session" "Transactions, settings, cursors, COPY and their like over HTTP.",
    StatementNotAllowed "statement.not_allowed" "A kind of statement that no policy, or not this one, lets pass.",
    ClauseNotAllowed "clause.not_allowed" "A part of a statement, or an option, that does not pass.",
    NodeUnknown "node.unknown" "Syntax that the judge does not know at its place.",
    TargetUnqualified "target.unqualified" "A write, definition or lock whose target has no schema in front.",
    TargetSchema "target.schema" "A write, definition, lock, reference or sequence outside the schemas of the login.",
    TargetTable "target.table" "A write to a table that the policy keeps from the login.",
    TargetTemporary "target.temporary" "A temporary table where the policy has none.",
    RelationNotReadable "relation.not_readable" "A read of a schema that the login does not read.",
    ColumnNotReadable "column.not_readable" "A column of a table of which the login reads some columns only, or what may be one.",
    ColumnNotWritable "column.not_writable" "A column of a table of which the login writes some columns only, or what may be one.",
    CatalogNotReadable "catalog.not_readable" "A relation of pg_catalog that tells of others than this workspace.",
    NameDatabase "name.database" "A three-part name of another database.",
    NameSchema "name.schema" "A type, operator, collation or operator class of a schema that the login does not read.",
    NameTooLong "name.too_long" "A name of more than 63 bytes, which PostgreSQL would cut off.",
    NameReserved "name.reserved" "A cursor, prepared statement or savepoint whose name belongs to the proxy.",
    FunctionNotAllowed "function.not_allowed" "A call of a function that is not on the list, however it is written.",
    SettingNotAllowed "setting.not_allowed" "A parameter that may not be set.",
    SettingValue "setting.value" "A parameter that may be set, but not to this value.",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_find_every_rule_in_the_readme() {
        let readme = include_str!("../../README.md");
        let table: String = Rule::ALL.iter().map(|rule| format!("| `{}` | {} |\n", rule.id(), rule.about())).collect();
        assert!(readme.contains(&table), "README.md must contain:\n{table}");
    }

    #[test]
    fn ids_are_different() {
        let mut ids: Vec<&str> = Rule::ALL.iter().map(|rule| rule.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), Rule::ALL.len());
    }
}
