//! What a text is and touches, whoever sends it: for permits, and for people who ask why a text was refused. It must not
//! decide anything.

use crate::classify::{Access, Facts, classify};
use crate::verdict::Kind;

use super::{bounded, rules, start_of};

/// What the statements of a text are and touch, as far as their syntax tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// The kind of the statement that works, or of the first one where none does.
    pub kind: Kind,
    /// How many statements there are.
    pub statements: usize,
    /// The relations that are read, sorted, without CTEs.
    pub reads: Vec<String>,
    /// The relations and other objects that are written, locked, truncated, defined or dropped, sorted.
    pub writes: Vec<String>,
    /// The functions that are called, sorted.
    pub functions: Vec<String>,
}

impl Outline {
    /// The outline of a text; `None` where it does not parse or contains what no role may send.
    ///
    /// Needs the stack that [`judge`](crate::judge()) needs.
    #[must_use]
    pub fn of_text(text: &[u8]) -> Option<Self> {
        let (text, _) = bounded(text).ok()?;
        let tree = pg_query::parse(text, 0).ok()?.protobuf;
        let facts = tree
            .stmts
            .iter()
            .map(|statement| classify(statement.stmt.as_deref()?, start_of(text, statement), &[]).ok());
        Some(Self::of(&facts.collect::<Option<Vec<_>>>()?))
    }

    pub(super) fn of(all: &[Facts<'_>]) -> Self {
        let (mut reads, mut writes, mut functions) = (Vec::new(), Vec::new(), Vec::new());
        for facts in all {
            for used in &facts.uses {
                let list = if used.access == Access::Read { &mut reads } else { &mut writes };
                list.push(used.name.to_string());
            }
            functions.extend(facts.calls.iter().map(|call| call.name.to_string()));
        }
        for list in [&mut reads, &mut writes, &mut functions] {
            list.sort_unstable();
            list.dedup();
        }
        let kind = all.iter().find(|facts| rules::works(facts)).or(all.first()).map_or(Kind::Empty, |facts| facts.kind);
        Self { kind, statements: all.len(), reads, writes, functions }
    }
}
