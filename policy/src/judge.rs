//! The verdict over one text: bounds, grammar, facts, and the role's rules over these facts. Pure: the same text, role and
//! target always give the same answer.

mod outline;
mod refuse;
mod rewrite;
mod rules;
mod syntax;

use std::sync::Arc;

use pg_query::protobuf as pb;

use crate::SQL_BYTES_MAX;
use crate::classify::{Facts, classify};
use crate::document::RolePolicy;
use crate::scan::{self, DEPTH_MAX, Measure};
use crate::verdict::{Denial, Passed, Permit, Surface, Target, Verdict};

pub use outline::Outline;
use refuse::Refuse;
use rules::Rules;

/// The stack that [`judge`] needs for the worst text within the bounds, in bytes.
///
/// Measured over every way to nest and chain at the bounds: at most 20 MB in an optimised build and 100 MB in a debug build,
/// nearly all of it in the decoder of the parser's tree. Only what is touched costs memory.
pub const STACK_BYTES: usize = if cfg!(debug_assertions) { 192 << 20 } else { 64 << 20 };

/// What judging a text takes, as its length and one pass over it tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// 2 MB of stack and a few milliseconds at most: any worker may do it in place.
    Small,
    /// Up to 64 MB of memory, a tenth of a second, and a stack of [`STACK_BYTES`].
    Medium,
    /// Up to 550 MB, a second or two, and a stack of [`STACK_BYTES`]: there should be few of these at a time.
    Large,
}

/// The bounds of [`Effort::Small`]: bytes of the text, depth and kB of its tree.
const SMALL: (usize, usize, usize) = (8 * 1024, 40, 4 * 1024);
/// The bounds of [`Effort::Medium`].
const MEDIUM: (usize, usize, usize) = (128 * 1024, DEPTH_MAX, 64 * 1024);

/// What judging `text` will take. A text that is refused before it is parsed takes next to nothing.
pub fn effort(text: &[u8]) -> Effort {
    if text.len() > SQL_BYTES_MAX {
        return Effort::Small;
    }
    let Ok(Ok(measure)) = std::str::from_utf8(text).map(scan::measure) else { return Effort::Small };
    let within = |(bytes, depth, tree_kb): (usize, usize, usize)| {
        text.len() <= bytes && measure.depth <= depth && measure.tree_kb <= tree_kb
    };
    match () {
        () if within(SMALL) => Effort::Small,
        () if within(MEDIUM) => Effort::Medium,
        () => Effort::Large,
    }
}

/// Judges `text` (without a terminating NUL) for `role`.
///
/// Needs a stack of [`STACK_BYTES`] unless its [`effort`] is small.
pub fn judge(role: &RolePolicy, surface: Surface, text: &[u8], target: &Target<'_>) -> Verdict {
    match pass(role, surface, text, target) {
        Ok((text, passed)) => Verdict::Allow(Permit::new(text, passed)),
        Err(denial) => Verdict::Deny(Arc::new(*denial)),
    }
}

fn pass<'t>(
    role: &RolePolicy,
    surface: Surface,
    text: &'t [u8],
    target: &Target<'_>,
) -> Result<(&'t str, Passed), Box<Denial>> {
    let (text, measure) = bounded(text)?;
    let refuse = Refuse { role, text };
    let tree = pg_query::parse(text, 0).map_err(|error| syntax::denial(text, &error))?.protobuf;
    let statements = &tree.stmts;
    refuse.count(surface, statements)?;
    let rules = Rules { role, target, refuse: &refuse, long_name: measure.long_name };
    let mut all = Vec::with_capacity(statements.len());
    for statement in statements {
        let location = start_of(text, statement);
        let node = statement.stmt.as_deref().ok_or_else(|| refuse.empty())?;
        let facts = classify(node, location, &role.tables).map_err(|refusal| refuse.classified(*refusal, location))?;
        all.push(rules.apply(facts)?);
    }
    refuse.batch(surface, &all)?;
    Ok((text, passed(all)))
}

/// The checks that come before anything recurses.
fn bounded(text: &[u8]) -> Result<(&str, Measure), Box<Denial>> {
    if text.len() > SQL_BYTES_MAX {
        return Err(refuse::too_long(text.len()));
    }
    let text = std::str::from_utf8(text).map_err(|error| refuse::not_utf8(text, &error))?;
    if let Some(at) = text.find('\0') {
        return Err(refuse::zero_byte(text, at));
    }
    let measure = scan::measure(text).map_err(|too_much| refuse::too_much(text, too_much))?;
    Ok((text, measure))
}

/// Where a statement starts, after the white space and comments that the parser counts to it.
fn start_of(text: &str, statement: &pb::RawStmt) -> i32 {
    let from = usize::try_from(statement.stmt_location).unwrap_or(0);
    let rest = text.get(from..).unwrap_or("");
    let start = match scan::Lexer::new(rest).next() {
        Ok(Some(token)) => from + token.start,
        _ => from,
    };
    i32::try_from(start).unwrap_or(-1)
}

fn passed(all: Vec<Facts<'_>>) -> Passed {
    let Outline { kind, statements, reads, writes, functions } = Outline::of(&all);
    let literals_matter = !matches!(all.as_slice(), [facts] if rules::ignores_literals(facts));
    let mut effects = Vec::new();
    let mut ends = Vec::with_capacity(statements);
    for facts in all {
        effects.extend(facts.effects);
        ends.push(effects.len());
    }
    Passed { kind, statements, effects, ends, reads, writes, functions, literals_matter }
}

#[cfg(test)]
#[path = "judge/tests.rs"]
mod tests;
