//! Names as the parser decoded them: folded, unquoted, U& resolved, cut to 63 bytes.

use std::fmt;

use pg_query::NodeEnum;
use pg_query::protobuf as pb;

/// A possibly qualified name; an empty part was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name<'t> {
    pub(crate) database: &'t str,
    pub(crate) schema: &'t str,
    pub(crate) name: &'t str,
}

impl<'t> Name<'t> {
    pub(crate) fn of_relation(relation: &'t pb::RangeVar) -> Self {
        Self { database: &relation.catalogname, schema: &relation.schemaname, name: &relation.relname }
    }

    /// From one, two or three parts; `None` for any other number.
    pub(crate) fn of_parts(parts: &[&'t str]) -> Option<Self> {
        match *parts {
            [name] => Some(Self { database: "", schema: "", name }),
            [schema, name] => Some(Self { database: "", schema, name }),
            [database, schema, name] => Some(Self { database, schema, name }),
            _ => None,
        }
    }

    pub(crate) fn is_qualified(&self) -> bool {
        !self.schema.is_empty()
    }

    /// The longest part, in bytes.
    pub(crate) fn longest(&self) -> usize {
        self.database.len().max(self.schema.len()).max(self.name.len())
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [self.database, self.schema] {
            if !part.is_empty() {
                write!(f, "{part}.")?;
            }
        }
        f.write_str(self.name)
    }
}

/// The strings of a list of String nodes; `None` if it contains anything else.
pub(crate) fn strings(nodes: &[pb::Node]) -> Option<Vec<&str>> {
    nodes
        .iter()
        .map(|node| match &node.node {
            Some(NodeEnum::String(string)) => Some(string.sval.as_str()),
            _ => None,
        })
        .collect()
}
